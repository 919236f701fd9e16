"""Reads predictions: a table with a row an item, in which any model wrote its answers.

A column holds one letter a row, or several columns hold a score for each letter: `A`, `B`, `C`, `D`, or the same after
a name (`phi_A` … `phi_D`). A column whose name is or ends in `@BCDA` was asked in that order of the options;
several such columns of one name are answers over orders. A cell that is no letter of its item is a wrong answer. A
column `id` matches rows to items, and a column `GT`, `gold` or `answer` must agree with them.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evals.items.answers import Answers
from ghost_jax.core.errors import UserError, did_you_mean
from ghost_jax.data.items.items import LETTERS, Item, Items, Order, parse_order
from ghost_jax.data.storage import tables
from ghost_jax.data.storage.files import quoted, refusal

SHAPE = "Give a .tsv, .csv or .jsonl file with a header, or keys, and one row an item."
ID_COLUMN = "id"
GOLD_COLUMNS = ("gt", "gold", "answer")
SOME = 0.1  # of the rows, more than hold one letter by chance where a column is a comment or a prompt
MOST = 0.5  # of the rows, more hold a number where columns named by letters are scores and not the options' texts
ROUNDED = 0.01  # by how much the sum of rounded probabilities may be above 1

Row = tuple[str, dict[str, str]]  # "line 58", and its cells by column


@dataclass(frozen=True)
class Predictions:
    """The answers of one model."""

    name: str  # of the column, without order and letter; of the file where that is empty
    answers: Answers  # to the items, in their order
    lower_case: int  # how many letters were in lower case


@dataclass(frozen=True)
class _Source:
    """The answers in one order: a column of letters, or a column of scores for each letter."""

    name: str
    order: Order  # the published one where the column's name has none
    columns: tuple[str, ...]

    @property
    def of_scores(self) -> bool:
        return len(self.columns) > 1


def read_predictions(path: Path, items: Items, *, column: str | None = None) -> list[Predictions]:
    """Reads every column of a file that holds letters or scores for these items.

    With `column` that one alone, by its name or with its order.

    Raises UserError where the file is no such table, its rows are not those of the items, or a cell is invalid.
    """
    rows = read_rows(path)
    header = list(rows[0][1])
    k = max(len(item.options) for item in items)
    sources = _sources(header, k, path.stem)
    if column is None:
        sources = [each for each in sources if each.columns[0].lower() not in (ID_COLUMN, *GOLD_COLUMNS)]
    else:
        sources = [each for each in sources if column in (each.name, *each.columns)]
        if not sources:
            raise UserError(f'{path}: there is no column "{column}".{did_you_mean(column, header)}')

    rows = matched(path, rows, items)
    golds = [LETTERS[item.answer] for item in items]
    check_gold(path, rows, items, golds, lambda cell: cell.strip().upper(), column)
    least = {True: 0.0, False: 0.0} if column else {True: MOST, False: SOME}  # of scores, of letters
    sources = [each for each in sources if _share_of_answers(each, rows, k) > least[each.of_scores]]
    if not sources:
        where = f"the column {quoted(column)} has no row with" if column else f"no column has in {SOME:.0%} of its rows"
        raise UserError(
            f"{path}: {where} a letter from A to {LETTERS[k - 1]}, or a number for each letter; the "
            f"columns are: {', '.join(header)[:200]}. Give one letter a row, or one score a letter in columns that "
            "end in _A, _B and so on."
        )
    ordered = next((each for each in sources if each.order != tuple(range(k))), None)
    if ordered and any(len(item.options) < k for item in items):
        raise UserError(
            f"{path}: the column {quoted(ordered.columns[0])} has an order of {k} options, and the items of "
            f"{items.path} differ in their number of options. Give answers to their published order."
        )
    of_letters = {each.name for each in sources if not each.of_scores}
    by_name: dict[str, list[_Source]] = defaultdict(list)
    for each in sources:
        by_name[f"{each.name} (scores)" if each.of_scores and each.name in of_letters else each.name].append(each)
    return [_predictions(path, name, rows, items, together) for name, together in by_name.items()]


def read_rows(path: Path, *, lists_by_letter: bool = True) -> list[Row]:
    """Returns the rows of a file. A list in JSON is a cell for each letter, or one cell. Raises UserError."""
    rows = [(place, _flat(path, place, record, lists_by_letter)) for place, record in tables.read(path)]
    for place, cells in rows:
        if cells.keys() != rows[0][1].keys():
            raise refusal(path, place, "its keys are not those of the first line", SHAPE)
    if not rows:
        raise UserError(f"{path}: the file holds no predictions. {SHAPE}")
    return rows


def _flat(path: Path, place: str, record: dict, lists_by_letter: bool) -> dict[str, str]:
    """A JSON object as cells; an object by letter, or a list in the order of letters, as a column for each letter."""
    cells: list[tuple[str, str]] = []
    for key, value in record.items():
        if isinstance(value, list):
            value = dict(zip(LETTERS, value, strict=False)) if lists_by_letter else ", ".join(map(str, value))
        if lists_by_letter and isinstance(value, dict) and value.keys() <= set(LETTERS):
            value = dict.fromkeys(LETTERS) | value  # the items may differ in their number of options
        parts = {f"{key}_{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {key: value}
        cells.extend((name, "" if each is None else str(each)) for name, each in parts.items())
    flat = dict(cells)
    if len(flat) < len(cells):
        raise refusal(path, place, f"two keys give the same column of {', '.join(flat)}", "Rename one of them.")
    return flat


def _sources(header: Sequence[str], k: int, unnamed: str) -> list[_Source]:
    """The possible columns of answers in file order; `unnamed` is the name of those with an order or letters alone."""
    scores: dict[str, dict[str, str]] = defaultdict(dict)  # name -> letter -> column
    for column in header:
        if column[-1:] in set(LETTERS[:k]) and column[-2:-1] in ("", "_"):
            scores[column[:-2]][column[-1]] = column
    score_name = {column: name for name, columns in scores.items() if len(columns) == k for column in columns.values()}
    found: dict[tuple[str, ...], _Source] = {}
    for column in header:
        name, columns = column, (column,)
        if column in score_name:
            name = score_name[column]
            columns = tuple(scores[name][letter] for letter in LETTERS[:k])
        before, _, after = name.rpartition("@")
        ordered = sorted(after) == list(LETTERS[:k])
        order = parse_order(after if ordered else LETTERS[:k], k)
        found[columns] = _Source((before if ordered else name) or unnamed, order, columns)
    return list(found.values())


def matched(path: Path, rows: list[Row], items: Items) -> list[Row]:
    """Returns the rows in the order of the items. Raises UserError where they are not those of the items."""
    of_id = next((name for name in rows[0][1] if name.lower() == ID_COLUMN), None)
    if of_id is None:
        if len(rows) != len(items):
            left_out = f" ({len(items.left_out):,} more are left out)" if items.left_out else ""
            raise UserError(
                f"{path}: it has {len(rows):,} rows, but {items.path} has {len(items):,} items{left_out}. Give one row "
                f'for each item in their order, or a column "{ID_COLUMN}" with their ids.'
            )
        return rows
    ids = [item.id for item in items]
    known = set(ids)
    row_of: dict[str, Row] = {}
    for place, cells in rows:
        name = cells[of_id].strip()
        if name in row_of:
            raise refusal(path, place, f"the id {quoted(name)} is also on {row_of[name][0]}", "Give each item one row.")
        if name not in known:
            fault = f"{quoted(name)} is the id of no item; the first item is {quoted(ids[0])}"
            fix = f'Give ids of items, or no column "{of_id}" if the rows are in their order.'
            raise refusal(path, place, fault, fix)
        row_of[name] = (place, cells)
    missing = [name for name in ids if name not in row_of]
    if missing:
        raise UserError(
            f"{path}: {len(missing):,} of {len(ids):,} items have no row, the first of them {quoted(missing[0])}. "
            "Give each item one row; a missing letter may be empty."
        )
    return [row_of[name] for name in ids]


def check_gold(
    path: Path, rows: Sequence[Row], items: Items, golds: Sequence[str], spell: Callable[[str], str], column: str | None
) -> None:
    """Raises UserError where a gold column, but `column`, differs from the items' golds [N], spelled as those are."""
    for name in (name for name in rows[0][1] if name.lower() in GOLD_COLUMNS and name != column):
        for (place, cells), item, gold in zip(rows, items, golds, strict=True):
            if spell(cells[name]) != gold:
                fault = f"{name} is {quoted(cells[name])}, but the gold answer of {quoted(item.id)} is {gold}"
                fix = (
                    f"Give rows in the order of {items.path} or a column {ID_COLUMN}, letters in the published order. "
                    f"If {name} holds the answers of a model, add --column={name}."
                )
                raise refusal(path, place, fault, fix)


def _share_of_answers(source: _Source, rows: Sequence[Row], k: int) -> float:
    cells = [row[source.columns[0]].strip() for _, row in rows]
    holding = [not math.isnan(_number(cell)) if source.of_scores else _letter_index(cell, k) >= 0 for cell in cells]
    return sum(holding) / len(cells)


def _predictions(path: Path, name: str, rows: Sequence[Row], items: Items, sources: list[_Source]) -> Predictions:
    by_order: dict[Order, _Source] = {}
    for source in sources:
        if by_order.setdefault(source.order, source) is not source:
            raise UserError(
                f"{path}: the column {quoted(source.columns[0])} holds answers in an order that another column of that "
                f'name holds too. Name each column after its order, such as "{source.name}@BCDA".'
            )
    # The first order is what single-order figures are of: the published one, where it was asked.
    placed = sorted(by_order, key=lambda order: list(order) != sorted(order))
    sources = [by_order[order] for order in placed]
    orders = [[order[: len(item.options)] for order in placed] for item in items]
    if sources[0].of_scores:
        scores = [
            np.array([_scores(path, row, source, item) for source in sources])
            for row, item in zip(rows, items, strict=True)
        ]
        return Predictions(name, Answers.from_log_probs(orders, _as_logs(scores)), lower_case=0)
    letters, lower_case = [], 0
    for (_, cells), item in zip(rows, items, strict=True):
        answers = [cells[source.columns[0]].strip() for source in sources]
        letters.append([_letter_index(cell, len(item.options)) for cell in answers])
        lower_case += sum(cell.islower() and index >= 0 for cell, index in zip(answers, letters[-1], strict=True))
    return Predictions(name, Answers.from_letters(orders, letters), lower_case)


def _letter_index(cell: str, k: int) -> int:
    """The index of the letter in a cell, -1 where it is none of the first k."""
    return LETTERS[:k].find(cell.upper()) if len(cell) == 1 else -1


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _scores(path: Path, row: Row, source: _Source, item: Item) -> list[float]:
    """The score of each letter that the item has."""
    place, cells = row
    columns = source.columns[: len(item.options)]
    for column in columns:
        if not _number(cells[column]) < math.inf:  # -inf is the score of probability 0
            fault = f"{quoted(cells[column])} under {column} is no finite number, nor -inf"
            raise refusal(path, place, fault, "Give a score for each letter of the item, the highest for the answer.")
    return [_number(cells[column]) for column in columns]


def _as_logs(scores: list[np.ndarray]) -> list[np.ndarray]:
    """The logarithms of scores that are probabilities in every row; log-probabilities and logits unchanged.

    Probabilities of letters among all tokens add up to less than 1; in percent each row adds up to 100.
    """
    if all((each >= 0).all() and abs(each.sum() - 100) < 100 * ROUNDED for row in scores for each in row):
        scores = [each / 100 for each in scores]
    probable = all((each >= 0).all() and (each.sum(axis=1) < 1 + ROUNDED).all() for each in scores)
    return [np.log(np.maximum(each, np.finfo(float).tiny)) for each in scores] if probable else scores
