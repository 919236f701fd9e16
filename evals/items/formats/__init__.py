"""Reading a benchmark exactly as it was published. `FORMATS` is the one table to extend.

To add a format, write a module here with what a file of it holds in words (`SHAPE`), how it is recognised by its first
row or value (`recognises`), and a generator of `Row`s (`rows`), and give it a row in `FORMATS`. What a row must be to
count is checked here, for all formats alike.

A benchmark is scored whole or not at all. A row with a blemish (an empty option, a lower-case gold letter) is kept,
scored and named as a *quirk*; a row whose gold cannot be known stops the reading with its file and place. A question
that its publisher answers with several letters, or none, cannot be scored as one letter: it is *left out*, named and
counted, and never in silence, because an accuracy over "the rows that parsed" is an accuracy over another benchmark.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.items.formats import ctibench, cybermetric, jsonl, mmlu, raw, seceval, secqa
from evals.items.formats.raw import Placed
from evals.items.formats.row import Row, gold_index, quirks_of, quoted
from evals.items.items import Item, Items
from ghost_jax.core.errors import UserError

# The name "CTIBench MCQ" belongs to these bytes alone (xashru/cti-bench): an edited copy goes by its file name.
CTIBENCH_MCQ_SHA256 = "11e0af8db2dae9706c6e79901d2390bcdf9746e8feccbd9ba10682df649bcc6a"


@dataclass(frozen=True)
class Format:
    """A row of `FORMATS`.

    Attributes:
      name: what the format is called.
      suffix: how its files are named; decides how they are taken apart (`raw.CONTAINERS`).
      shape: what a file of it holds, in words.
      recognises: whether a file is of this format, by its first row of cells or its first JSON value.
      rows: yields what a file says about its items, given its path and all its rows or values.
    """

    name: str
    suffix: str
    shape: str
    recognises: Callable[[Any], bool]
    rows: Callable[[Path, Iterator[Placed]], Iterator[Row]]


FORMATS = (
    Format("CTIBench MCQ", ".tsv", ctibench.SHAPE, ctibench.recognises, ctibench.rows),
    Format("SecQA", ".csv", secqa.SHAPE, secqa.recognises, secqa.csv_rows),
    Format("SecQA", ".jsonl", secqa.SHAPE, secqa.recognises, secqa.jsonl_rows),
    Format("MMLU", ".csv", mmlu.SHAPE, mmlu.recognises, mmlu.rows),
    Format("CyberMetric", ".json", cybermetric.SHAPE, cybermetric.recognises, cybermetric.rows),
    Format("SecEval", ".json", seceval.SHAPE, seceval.recognises, seceval.rows),
    Format("your own items", ".jsonl", jsonl.SHAPE, jsonl.recognises, jsonl.rows),
)


def read_items(path: str | Path) -> Items:
    """Reads a benchmark file of one of the `FORMATS`, recognised by its suffix and its first row or value.

    Raises:
      UserError: the file is absent, empty, too large, not UTF-8 or of no known format, an id stands there twice, or a
        row can neither be scored nor left out with good reason.
    """
    path = Path(path)
    container = raw.CONTAINERS.get(path.suffix.lower())
    if container is None:
        raise _unknown(path, f'"{path.suffix}" is no suffix of test items')
    data = raw.read(path)
    sha256 = hashlib.sha256(data).hexdigest()
    values = container(path, data)
    first = next(values)
    of_suffix = [known for known in FORMATS if known.suffix == path.suffix.lower()]
    form = next((known for known in of_suffix if known.recognises(first[1])), None)
    if form is None:
        raise _unknown(path, "the file holds test items in no known format")

    items: list[Item] = []
    quirks: list[str] = []
    left_out: list[str] = []
    place_of: dict[str, str] = {}
    for row in form.rows(path, itertools.chain([first], values)):
        elsewhere = place_of.setdefault(row.id, row.place)
        if elsewhere != row.place:
            raise UserError(
                f"{path}, {row.place}: the id {quoted(row.id)} already stands in {elsewhere}. Give every item its own "
                f"id, so that answers can be matched to questions."
            )
        if row.left_out:
            left_out.append(f"{row.place}: {row.left_out}; left out")
            continue
        answer = gold_index(path, row)
        items.append(Item(row.id, row.question, row.options, answer, row.url))
        quirks.extend(quirks_of(row, answer))
    if not items:
        why = f" that can be scored ({left_out[0]})" if left_out else ""
        raise UserError(f"{path}: the file holds no questions{why}. Give the whole benchmark file.")
    name = "CTIBench MCQ" if sha256 == CTIBENCH_MCQ_SHA256 else path.name
    return Items(name, str(path), sha256, tuple(items), tuple(quirks), tuple(left_out))


def _unknown(path: Path, fault: str) -> UserError:
    known = "; ".join(f"{known.name} ({known.suffix}): {known.shape}" for known in FORMATS)
    return UserError(f"{path}: {fault}. Give one of these: {known}.")
