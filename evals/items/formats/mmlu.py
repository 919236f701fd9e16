"""MMLU's CSV files (hendrycks/test): no header; the question, four options, the gold letter."""

from collections.abc import Iterator
from pathlib import Path

from evals.items.formats.raw import Placed
from evals.items.formats.row import Row, refusal
from ghost_jax.text.mcq_format import LETTERS

FIELDS = 6
SHAPE = "rows without a header of six fields: the question, the options A to D, the letter of the right one"


def recognises(first: list[str]) -> bool:
    """A letter in the sixth field tells a question from a header."""
    return len(first) == FIELDS and first[-1].strip().upper() in tuple(LETTERS)


def rows(path: Path, cells: Iterator[Placed]) -> Iterator[Row]:
    """Yields what the file says about each item. Raises UserError for one of another shape."""
    for place, row in cells:
        if len(row) != FIELDS:
            raise refusal(path, place, f"the row has {len(row)} fields", SHAPE)
        question, *options, answer = row
        yield Row(place, place, question, tuple(options), answer)
