"""The row of one item in any format, and the checks that all formats share.

What the functions here find wrong is a ValueError; `read_items` adds the file, the place and the shape of the format.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ghost_jax.data.storage.files import quoted
from ghost_jax.text.mcq_format import LETTERS

KINDS = {str: "text", dict: "an object", list: "a list"}


@dataclass(frozen=True)
class Row:
    """One item as its file states it, unchecked."""

    # id, question, options, url: as of `Item`
    id: str
    question: str
    options: tuple[str, ...]
    gold: str  # the gold letter as it is written
    url: str = ""
    left_out: str = ""  # why a valid item cannot be scored as one letter; "" if it can


@dataclass(frozen=True)
class Format:
    """A row of `FORMATS`."""

    name: str  # what the format is called
    suffix: str  # the suffix of its files, as `tables` reads it
    shape: str  # what a file of it holds, in words
    # whether a file is of this format, by its first row of cells or its first JSON value
    recognises: Callable[[Any], bool]
    row: Callable[[str, Any], Row]  # `(place, record) -> Row`, from cells by column, plain cells or a JSON value
    columns: Sequence[str] = ()  # the columns that the header of a table must name; empty for a file without a header


def fields(record: Any, kinds: Mapping[str, type]) -> list:
    """Returns the values of a JSON object under the keys of `kinds`, each of the type given there."""
    if not isinstance(record, dict):
        raise ValueError("this is not a JSON object")
    for key, kind in kinds.items():
        if key not in record:
            raise ValueError(f'the key "{key}" is missing; the keys are: {quoted(", ".join(record) or "none", 200)}')
        if not isinstance(record[key], kind):
            raise ValueError(f'"{key}" must be {KINDS[kind]}')
    return [record[key] for key in kinds]


def by_letter(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the options of an object {"A": …, "B": …} in the order of their letters."""
    letters = LETTERS[: len(options)]
    if set(options) != set(letters) or not all(isinstance(text, str) for text in options.values()):
        raise ValueError(f"the options must be texts under the letters from A on, at most {len(LETTERS)}")
    return tuple(options[letter] for letter in letters)


def gold_index(row: Row) -> int:
    """Returns the index of the gold option of a row that can be scored."""
    if not row.question.strip():
        raise ValueError("the question is empty")
    if sum(bool(option.strip()) for option in row.options) < 2:
        raise ValueError("the item has fewer than 2 options with text")
    letters = LETTERS[: len(row.options)]
    letter = row.gold.strip().upper()
    if letter not in tuple(letters):
        raise ValueError(f"the gold answer {quoted(row.gold)} is not one of the letters {', '.join(letters)}")
    return letters.index(letter)


def quirks_of(row: Row, answer: int) -> Iterator[str]:
    """Yields a sentence for each blemish of a row that is scored all the same."""
    position_of: dict[str, int] = {}
    for position, option in enumerate(row.options):
        letter = LETTERS[position]
        if not option.strip():
            gold = ", and it is the gold one" if position == answer else ""
            yield f"option {letter} is empty{gold}; kept as published, the prompt shows it blank"
            continue
        twin = position_of.setdefault(option.strip(), position)
        if twin != position:
            pair = f"options {LETTERS[twin]} and {letter}"
            yield f"{pair} are equal; kept as published, only the gold letter counts as right"
    if row.gold != LETTERS[answer]:
        yield f"the gold letter is written {quoted(row.gold)}; read as {LETTERS[answer]}"
