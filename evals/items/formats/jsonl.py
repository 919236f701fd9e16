"""Items of one's own: JSON lines with 2 to 10 options; items of different numbers of options may stand in one file."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evals.items.formats.raw import Placed
from evals.items.formats.row import Row, lettered, refusal, require, texts

SHAPE = (
    'an object a line, {"id": "1", "question": "…", "options": {"A": "…", "B": "…"}, "answer": "B", "url": "…"}, with '
    "2 to 10 options; id and url may be left out"
)
KEYS = ("question", "options", "answer")


def recognises(first: Any) -> bool:
    """Any of the keys will do, so that a missing one is named."""
    return isinstance(first, dict) and not first.keys().isdisjoint(KEYS)


def rows(path: Path, records: Iterator[Placed]) -> Iterator[Row]:
    """Yields what the file says about each item. Raises UserError for one of another shape."""
    for place, record in records:
        refused = functools.partial(refusal, path, place, shape=SHAPE)
        require(record, KEYS, refused)
        options = lettered(record["options"], refused)
        question, answer = texts(record, ("question", "answer"), refused)
        name, url = record.get("id"), record.get("url") or ""
        if name is None:
            name = place
        if isinstance(name, int) and not isinstance(name, bool):
            name = str(name)
        if not isinstance(name, str) or not isinstance(url, str):
            raise refused("id and url must be text")
        yield Row(place, name, question, options, answer, url)
