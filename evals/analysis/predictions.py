"""Reading predictions: a table with a row an item, in which any model, ours or not, says what it answered.

A column holds one letter a row, or several columns hold a score for each letter: `A`, `B`, `C`, `D`, or the same behind
a name (`phi_A` … `phi_D`). A column that ends in `@BCDA`, or is called so, was asked in that order of the options; of
one name, several such columns are answers over orders. A cell that is no letter of its item, such as `X`, is an answer
that is wrong. A column `id` matches rows to items, and a column `GT`, `gold` or `answer` must agree with them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evals.items.answers import Answers
from evals.items.formats import raw
from evals.items.formats.row import quoted
from evals.items.items import LETTERS, Item, Items, Order, order_name, parse_order
from ghost_jax.core.errors import UserError, did_you_mean

READERS = {".tsv": raw.tsv, ".csv": raw.comma_separated, ".jsonl": raw.json_lines}
SHAPE = "a .tsv, .csv or .jsonl file with a header, or keys, and one row an item"
ID_COLUMN = "id"
GOLD_COLUMNS = ("gt", "gold", "answer")
SUM_OF_PROBABILITIES = 0.01  # how far from 1 rounded probabilities may add up

Row = tuple[str, dict[str, str]]  # "line 58", and its cells by column


@dataclass(frozen=True)
class Predictions:
    """What one model, or one column, answered.

    Attributes:
      name: of the column, without order and letter; of the file where that leaves nothing.
      answers: to the items, in their order.
      lower_case: how many letters were written small, and read all the same.
    """

    name: str
    answers: Answers
    lower_case: int


@dataclass(frozen=True)
class _Asked:
    """The columns that hold the answers in one order: one with letters, or one for each letter with scores."""

    name: str
    order: Order | None  # None where the column does not say
    columns: tuple[str, ...]

    @property
    def of_scores(self) -> bool:
        return len(self.columns) > 1


def read_predictions(
    path: str | Path, items: Items, *, column: str | None = None, order: str | None = None
) -> list[Predictions]:
    """Reads every column of a file that holds letters or scores for these items.

    Args:
      path: the file, of one of `READERS`.
      items: what was answered; without a column `id`, the rows stand in their order.
      column: reads this one alone, by its name or with its order.
      order: the order, such as "CBDA", in which columns that do not say so were asked; by default the published one.
        The gold column is then of that order too.

    Raises:
      UserError: the file is absent or no table, there is no such column, or none that holds answers, its rows are not
        those of the items, or a gold letter or a score is none.
    """
    path = Path(path)
    rows = _read_rows(path)
    sizes = {len(item.options) for item in items}
    k = max(sizes)
    if len(sizes) > 1 and order is not None:
        raise UserError(f"{items.path}: its items differ in their number of options. Leave out --order.")
    default = None if order is None else parse_order(order, k)
    header = list(rows[0][1])
    known = _asked(header, k, orders_of=k if len(sizes) == 1 else None, unnamed=path.stem)
    wanted = [part for part in known if column is None or column in (part.name, *part.columns)]
    if column is not None and not wanted:
        raise UserError(f'{path}: there is no column "{column}".{did_you_mean(column, header)}')

    rows = _matched(path, rows, items, header)
    _check_gold(path, rows, items, [name for name in header if name != column], default)
    if column is None:
        wanted = [part for part in wanted if part.columns[0].lower() not in (ID_COLUMN, *GOLD_COLUMNS)]
    holding = [part for part in wanted if _holds_answers(part, rows, k)]
    if not holding:
        raise UserError(
            f"{path}: {'no column' if column is None else f'the column {quoted(column)} does not'} hold"
            f"{'s' if column is None else ''} a letter from A to {LETTERS[k - 1]} in most of its rows, or a number for "
            f"each letter; the columns are: {', '.join(header)[:200]}. Give one letter a row, or one score a letter in "
            f"columns that end in _A, _B and so on."
        )
    together: dict[str, list[_Asked]] = {}
    of_letters = {part.name for part in holding if not part.of_scores}
    for part in holding:
        name = f"{part.name} (scores)" if part.of_scores and part.name in of_letters else part.name
        together.setdefault(name, []).append(part)
    return [_predictions(path, name, rows, items, parts, default) for name, parts in together.items()]


def _read_rows(path: Path) -> list[Row]:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f'{path}: "{path.suffix}" is no suffix of predictions. Give {SHAPE}.')
    if not path.is_file():
        raise UserError(f"{path}: there is no such file of predictions. Check the path given to --predictions.")
    placed = reader(path, raw.read(path))
    if path.suffix.lower() == ".jsonl":
        rows = [(place, _flat(path, place, record)) for place, record in placed]
        for place, cells in rows:
            if cells.keys() != rows[0][1].keys():
                raise UserError(f"{path}, {place}: its keys are not those of the first line. Give {SHAPE}.")
    else:
        columns = [name.strip() for name in placed[0][1]]
        rows = raw.under_header(path, placed, columns, SHAPE)
    if not rows:
        raise UserError(f"{path}: the file has a header but no predictions. Give {SHAPE}.")
    return rows


def _flat(path: Path, place: str, record: object) -> dict[str, str]:
    """A JSON object as cells; what it holds by letter, or in the order of letters, as columns of their own."""
    if not isinstance(record, dict):
        raise UserError(f"{path}, {place}: this is no JSON object. Give {SHAPE}.")
    cells: list[tuple[str, str]] = []
    for key, value in record.items():
        if isinstance(value, list):
            value = dict(zip(LETTERS, value, strict=False))
        parts = {f"{key}_{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {key: value}
        cells.extend((name, "" if each is None else str(each)) for name, each in parts.items())
    if len(dict(cells)) < len(cells):
        raise UserError(f"{path}, {place}: two keys come to the same column. Rename one of them.")
    return dict(cells)


def _asked(header: Sequence[str], k: int, *, orders_of: int | None, unnamed: str) -> list[_Asked]:
    """What each column may hold, in the order of the file.

    Args:
      k: the letters that there are.
      orders_of: how many options names of orders are of; None where no name is one.
      unnamed: what columns are called that hold an order or letters and no name.
    """

    def asked(name: str, columns: tuple[str, ...]) -> _Asked:
        before, _, after = name.rpartition("@")
        if orders_of is None or sorted(after) != list(LETTERS[:orders_of]):
            return _Asked(name or unnamed, None, columns)
        return _Asked(before or unnamed, parse_order(after, orders_of), columns)

    letters = LETTERS[:k]
    scores: dict[str, list[str]] = {}
    for name in header:
        if name and name[-1] in letters and name[-2:-1] in ("", "_"):
            scores.setdefault(name[:-2], []).append(name)
    scores = {name: columns for name, columns in scores.items() if len(columns) == k}
    found: list[_Asked] = []
    taken = {name for columns in scores.values() for name in columns}
    for name in header:
        if name not in taken:
            found.append(asked(name, (name,)))
        elif name[-1] == letters[0]:
            columns = tuple(sorted(scores[name[:-2]], key=lambda each: each[-1]))
            found.append(asked(name[:-2], columns))
    return found


def _matched(path: Path, rows: list[Row], items: Items, header: Sequence[str]) -> list[Row]:
    """The rows in the order of the items."""
    of_id = next((name for name in header if name.lower() == ID_COLUMN), None)
    if of_id is None:
        if len(rows) != len(items):
            left_out = f" ({len(items.left_out):,} more are left out)" if items.left_out else ""
            raise UserError(
                f"{path}: it has {len(rows):,} rows, but {items.path} has {len(items):,} items{left_out}. Give one row "
                f'for each item in their order, or a column "{ID_COLUMN}" with their ids.'
            )
        return rows
    row_of: dict[str, Row] = {}
    ids = {item.id for item in items}
    for place, cells in rows:
        name = cells[of_id].strip()
        if name not in ids:
            raise UserError(
                f"{path}, {place}: {quoted(name)} is the id of no item; the first item is {quoted(items.items[0].id)}. "
                f'Give the ids of the items, or rename the column "{of_id}" if the rows stand in their order.'
            )
        if name in row_of:
            raise UserError(
                f"{path}, {place}: the id {quoted(name)} already stands on {row_of[name][0]}. Give each item one row."
            )
        row_of[name] = (place, cells)
    missing = [item.id for item in items if item.id not in row_of]
    if missing:
        raise UserError(
            f"{path}: {len(missing):,} of {len(items):,} items have no row, the first of them {quoted(missing[0])}. "
            f"Give each item one row; an answer that was not given may be left empty."
        )
    return [row_of[item.id] for item in items]


def _check_gold(path: Path, rows: Sequence[Row], items: Items, columns: Sequence[str], order: Order | None) -> None:
    for column in columns:
        if column.lower() not in GOLD_COLUMNS:
            continue
        for (place, cells), item in zip(rows, items, strict=True):
            gold = LETTERS[order[item.answer] if order else item.answer]
            if cells[column].strip().upper() != gold:
                raise UserError(
                    f"{path}, {place}: {column} is {quoted(cells[column])}, but the gold letter of the item "
                    f"{quoted(item.id)} is {gold}{f' in the order {order_name(order)}' if order else ''}. These are "
                    f"predictions for other items, or in another order of rows or options: give those for "
                    f"{items.path}, or name their order with --order."
                )


def _holds_answers(part: _Asked, rows: Sequence[Row], k: int) -> bool:
    """Whether most rows hold one: a column of another kind (a prompt, a comment) may hold some by chance."""
    cells = [row[part.columns[0]].strip() for _, row in rows]
    holding = map(_is_number, cells) if part.of_scores else (_letter_index(cell, k) >= 0 for cell in cells)
    return sum(holding) > len(cells) / 2


def _predictions(
    path: Path, name: str, rows: Sequence[Row], items: Items, parts: list[_Asked], default: Order | None
) -> Predictions:
    named = [part.order or default for part in parts]
    orders = [[order or tuple(range(len(item.options))) for order in named] for item in items]
    repeated = next((number for number, order in enumerate(orders[0]) if order in orders[0][:number]), None)
    if repeated is not None:
        raise UserError(
            f"{path}: the column {quoted(parts[repeated].columns[0])} holds answers in an order that another column of "
            f'that name holds too. Name each column after its order, such as "{parts[0].name}@BCDA".'
        )
    # The first order is what single-order figures are of: the published one, where it was asked.
    first = sorted(range(len(parts)), key=lambda number: list(orders[0][number]) != sorted(orders[0][number]))
    parts, orders = [parts[number] for number in first], [[of_item[number] for number in first] for of_item in orders]
    if parts[0].of_scores:
        scores = [
            np.array([_scores(path, row, part, item) for part in parts]) for row, item in zip(rows, items, strict=True)
        ]
        return Predictions(name, Answers.from_log_probs(orders, _as_logs(scores)), lower_case=0)
    cells = [[row[part.columns[0]].strip() for part in parts] for _, row in rows]
    letters = [
        [_letter_index(cell, len(item.options)) for cell in of_item] for of_item, item in zip(cells, items, strict=True)
    ]
    lower_case = sum(
        letter >= 0 and cell.islower()
        for pair in zip(cells, letters, strict=True)
        for cell, letter in zip(*pair, strict=True)
    )
    return Predictions(name, Answers.from_letters(orders, letters), lower_case)


def _letter_index(cell: str, k: int) -> int:
    """The index of the letter that a cell is, -1 where it is none of the first k."""
    return LETTERS[:k].find(cell.upper()) if len(cell) == 1 else -1


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _scores(path: Path, row: Row, part: _Asked, item: Item) -> list[float]:
    """The score of each letter that the item has; what stands under the others does not matter."""
    place, cells = row
    of_letters = [cells[column] for column in part.columns[: len(item.options)]]
    for column, cell in zip(part.columns, of_letters, strict=False):
        if not (_is_number(cell) and float(cell) < math.inf):  # NaN is not less; -inf is the score of probability 0
            raise UserError(
                f"{path}, {place}: {quoted(cell)} under {column} is no finite number, nor -inf. Give a score for "
                f"each letter of the item, the highest for the answer."
            )
    return [float(cell) for cell in of_letters]


def _as_logs(scores: list[np.ndarray]) -> list[np.ndarray]:
    """Scores that are probabilities in every row as their logarithms; log-probabilities and logits as they are."""
    probable = all((each >= 0).all() and (abs(each.sum(axis=1) - 1) < SUM_OF_PROBABILITIES).all() for each in scores)
    return [np.log(np.maximum(each, np.finfo(float).tiny)) for each in scores] if probable else scores
