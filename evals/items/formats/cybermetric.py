"""CyberMetric's JSON files (cybermetric/CyberMetric): one object with a list of questions, which have no ids."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evals.items.formats.raw import Placed
from evals.items.formats.row import Row, lettered, refusal, require, texts

SHAPE = 'one object {"questions": [{"question": "…", "answers": {"A": "…", "B": "…"}, "solution": "B"}, …]}'


def recognises(value: Any) -> bool:
    """The list of questions is what no other format has."""
    return isinstance(value, dict) and "questions" in value


def rows(path: Path, values: Iterator[Placed]) -> Iterator[Row]:
    """Yields what the file says about each item. Raises UserError for one of another shape."""
    ((place, value),) = values
    if not isinstance(value["questions"], list):
        raise refusal(path, place, '"questions" must be a list', SHAPE)
    for number, record in enumerate(value["questions"], start=1):
        place = f"item {number}"
        refused = functools.partial(refusal, path, place, shape=SHAPE)
        require(record, ("question", "answers", "solution"), refused)
        question, gold = texts(record, ("question", "solution"), refused)
        yield Row(place, place, question, lettered(record["answers"], refused), gold)
