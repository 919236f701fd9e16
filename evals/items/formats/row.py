"""What every format comes down to: the row of an item, what it must be to count, and what is odd about it."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ghost_jax.core.errors import UserError
from ghost_jax.text.mcq_format import LETTERS


@dataclass(frozen=True)
class Row:
    """What a file says about one item, before anything but its shape is believed.

    Attributes:
      place: where it stands: "line 58", or "item 58" of a JSON array.
      id, question, options, url: as of `Item`.
      gold: the gold letter as it is written.
      left_out: why the item cannot be scored as one letter though nothing is wrong with the file; "" if it can.
    """

    place: str
    id: str
    question: str
    options: tuple[str, ...]
    gold: str
    url: str = ""
    left_out: str = ""


def quoted(text: str, most: int = 40) -> str:
    """Returns the beginning of a text as it may stand in a message: in quotation marks, its line breaks spelled."""
    return json.dumps(text[:most], ensure_ascii=False)


def refusal(path: Path, place: str, fault: str, shape: str) -> UserError:
    """Returns the error for a file that is not of the shape of its format."""
    return UserError(f"{path}, {place}: {fault}. Give {shape}.")


def texts(record: object, keys: Sequence[str], refused: Callable[[str], UserError]) -> list[str]:
    """Returns what a JSON object has under each of `keys`. Raises `refused` where that is no text."""
    require(record, keys, refused)
    for key in keys:
        if not isinstance(record[key], str):
            raise refused(f'"{key}" must be text')
    return [record[key] for key in keys]


def require(record: object, keys: Sequence[str], refused: Callable[[str], UserError]) -> None:
    """Raises `refused` where a JSON value is no object with all of `keys`."""
    if not isinstance(record, dict):
        raise refused("this is no JSON object")
    for key in keys:
        if key not in record:
            listed = quoted(", ".join(record) or "none", 200)
            raise refused(f'the key "{key}" is missing; the keys are: {listed}')


def lettered(options: object, refused: Callable[[str], UserError]) -> tuple[str, ...]:
    """Returns the options of an object {"A": …, "B": …} by letter. Raises `refused` where it is none."""
    if not isinstance(options, dict) or set(options) != set(LETTERS[: len(options)]):
        raise refused(f"the options must be an object whose keys are the letters from A on, at most {len(LETTERS)}")
    if not all(isinstance(text, str) for text in options.values()):
        raise refused("every option must be text")
    return tuple(options[letter] for letter in LETTERS[: len(options)])


def gold_index(path: Path, row: Row) -> int:
    """Returns the index of the gold option. Raises UserError where the row is no question that can be scored."""
    if not row.question.strip():
        raise UserError(f"{path}, {row.place}: the question is empty. Fill it in, or fetch the file again.")
    if sum(bool(option.strip()) for option in row.options) < 2:
        raise UserError(
            f"{path}, {row.place}: the item has fewer than 2 options with text, so there is nothing to choose. "
            f"Give it at least two."
        )
    letters = LETTERS[: len(row.options)]
    letter = row.gold.strip().upper()
    if len(letter) != 1 or letter not in letters:
        raise UserError(
            f"{path}, {row.place}: the gold answer {quoted(row.gold)} is the letter of no option. Give one of "
            f"{', '.join(letters)}."
        )
    return letters.index(letter)


def quirks_of(row: Row, answer: int) -> Iterator[str]:
    """Yields a sentence for each blemish of a row that is scored all the same."""
    position_of: dict[str, int] = {}
    for position, option in enumerate(row.options):
        letter = LETTERS[position]
        if not option.strip():
            gold = ", and it is the gold one" if position == answer else ""
            yield f"{row.place}: option {letter} is empty{gold}; kept as published, the prompt shows it blank"
            continue
        twin = position_of.setdefault(option.strip(), position)
        if twin != position:
            pair = f"options {LETTERS[twin]} and {letter}"
            yield f"{row.place}: {pair} are equal; kept as published, only the gold letter counts as right"
    if row.gold != LETTERS[answer]:
        yield f"{row.place}: the gold letter is written {quoted(row.gold)}; read as {LETTERS[answer]}"
