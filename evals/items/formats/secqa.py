"""SecQA (zefang-liu/secqa): CSV with a header as published, or the same columns as keys of JSON lines."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evals.items.formats.raw import Placed, under_header
from evals.items.formats.row import Row, refusal, texts

COLUMNS = ("Question", "A", "B", "C", "D", "Answer")
SHAPE = f"the columns {', '.join(COLUMNS)}, named in the header of the CSV or as keys of an object a line"


def recognises(first: Any) -> bool:
    """The question or the answer will do, so that a missing one is named; "A" may be an option of another format."""
    return isinstance(first, list | dict) and any(
        name.strip() in ("Question", "Answer") for name in first if isinstance(name, str)
    )


def csv_rows(path: Path, cells: Iterator[Placed]) -> Iterator[Row]:
    """Yields what the file says about each item. Raises UserError where the header or a row is of another shape."""
    return jsonl_rows(path, under_header(path, cells, COLUMNS, SHAPE))


def jsonl_rows(path: Path, records: Iterator[Placed]) -> Iterator[Row]:
    """Yields what the file says about each item. Raises UserError for one of another shape."""
    for place, record in records:
        refused = functools.partial(refusal, path, place, shape=SHAPE)
        question, *options, answer = texts(record, COLUMNS, refused)
        yield Row(place, place, question, tuple(options), answer)
