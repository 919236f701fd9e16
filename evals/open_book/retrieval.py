"""What the open book gives the reader: how often the page a question was written from is found, and how fast; and the
controls that say what of the score is owed to which lines.

Every control is the same reader on the same items with other lines to read.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from evals.answering.controls import swapped
from evals.items.items import Item
from evals.open_book.lexical import FOUND, LexicalReader, Read
from ghost_jax.data.retrieval.bm25 import Index

DEPTHS = (1, 5, 10)  # pages
DEEPEST = 512  # lines searched to find the ten best pages; a page seldom holds more than 30 of them

_TECHNIQUE = re.compile(r"(attack\.mitre\.org/techniques/t\d{4})[/.](\d{3})")


def page_of(url: str) -> str:
    """Returns the page that an address names, in one spelling, or "" for what is no address.

    A sub-technique is written T1566.001 and T1566/001, in either case, a page with http or https, with www. and
    without, and with a slash at its end or none.
    """
    address = url.strip().partition("#")[0].partition("?")[0].lower().rstrip("/")
    scheme, found, rest = address.partition("://")
    if not found or scheme not in ("http", "https"):
        return ""
    rest = rest.removeprefix("www.")
    technique = _TECHNIQUE.fullmatch(rest)
    return ".".join(technique.groups()) if technique else rest


@dataclass(frozen=True)
class Recall:
    """How well the source pages are found.

    Attributes:
      hits: [N, DEPTHS] whether the page of each item is among so many first pages; of the items whose page is in the
        book alone.
      rows: [N] which items these are.
      absent: how many items name a page that is not in the book, or none.
      seconds: of the median search.
    """

    hits: np.ndarray
    rows: np.ndarray
    absent: int
    seconds: float


def recall(index: Index, items: Sequence[Item]) -> Recall:
    """Searches for each item's question and looks for the page it was written from; its best line ranks a page."""
    pages = [page_of(index.passage(row).url) for row in range(len(index))]
    held = set(pages) - {""}
    hits, rows, seconds = [], [], []
    for i, item in enumerate(items):
        wanted = page_of(item.url)
        if wanted not in held:
            continue
        start = time.perf_counter()
        (found,), (scores,) = index.search([item.question], DEEPEST)
        seconds.append(time.perf_counter() - start)
        ranked = list(dict.fromkeys(pages[row] for row, score in zip(found, scores, strict=True) if score > 0))
        hits.append([wanted in ranked[:depth] for depth in DEPTHS])
        rows.append(i)
    return Recall(
        np.array(hits, bool).reshape(-1, len(DEPTHS)),
        np.array(rows, int),
        len(items) - len(rows),
        float(np.median(seconds)) if seconds else 0.0,
    )


# ---- Controls ----


def random_passages(reader: LexicalReader, items: Sequence[Item], seed: int = 0) -> list[Read]:
    """Reads each item with lines drawn from the whole book, as many as a search gives."""
    rng = Random(seed)
    lines = [rng.sample(range(len(reader.index)), min(FOUND, len(reader.index))) for _ in items]
    return [reader.read(item, np.array(rows)) for item, rows in zip(items, lines, strict=True)]


def passages_of_another(reader: LexicalReader, items: Sequence[Item]) -> list[Read]:
    """Reads each item with the lines found for another's question, of another page where there are two pages."""
    found = (
        (rows, scores) for (rows,), (scores,) in (reader.index.search([q.question], FOUND) for q in swapped(items))
    )
    return [reader.read(item, rows[scores > 0]) for item, (rows, scores) in zip(items, found, strict=True)]


def oracle_page(reader: LexicalReader, items: Sequence[Item]) -> list[Read]:
    """Reads each item with the lines of the page it was written from alone; where the book lacks it, with none."""
    rows_of: dict[str, list[int]] = {}
    for row in range(len(reader.index)):
        rows_of.setdefault(page_of(reader.index.passage(row).url), []).append(row)
    rows_of.pop("", None)
    return [reader.read(item, np.array(rows_of.get(page_of(item.url), []), int)) for item in items]


def options_only(reader: LexicalReader, items: Sequence[Item]) -> list[Read]:
    """Reads each item with its question blank: nothing is found, and only what options look like is left."""
    return [reader.read(Item(item.id, "", item.options, item.answer, item.url)) for item in items]


CONTROLS: dict[str, Callable[[LexicalReader, Sequence[Item]], list[Read]]] = {
    "random passages": random_passages,
    "passages of another question": passages_of_another,
    "oracle page": oracle_page,
    "options only": options_only,
}
