"""How often the page of a question is found in the open book, and the reader's controls: other passages to read."""

import re
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from random import Random

import numpy as np

from evals.answering.controls import swapped
from evals.open_book.lexical import FOUND, LexicalReader, Read
from ghost_jax.data.items.items import Item
from ghost_jax.data.retrieval.bm25 import Index
from ghost_jax.runs.evaluation import Retrieval

DEPTHS = (1, 5, 10)  # pages
DEEPEST = 512  # lines searched to find the ten best pages; a page seldom holds more than 30 of them

_TECHNIQUE = re.compile(r"(attack\.mitre\.org/techniques/t\d{4})[/.](\d{3})")


def page_of(url: str) -> str:
    """Returns the page that an address names, in one spelling, or "" for what is not an address.

    A sub-technique is spelled T1566.001 or T1566/001, a page with http or https, with www. or without.
    """
    address = url.strip().partition("#")[0].partition("?")[0].lower().rstrip("/")
    scheme, found, rest = address.partition("://")
    if not found or scheme not in ("http", "https"):
        return ""
    rest = rest.removeprefix("www.")
    technique = _TECHNIQUE.fullmatch(rest)
    return ".".join(technique.groups()) if technique else rest


def recall(index: Index, items: Sequence[Item]) -> Retrieval:
    """Ranks the pages for each item's question, by their best lines, and finds the page it was written from."""
    pages = _pages(index)
    known = set(pages) - {""}
    wanted = [(item.question, page_of(item.url)) for item in items if page_of(item.url) in known]
    hits, seconds = [], []
    for question, page in wanted:
        start = time.perf_counter()
        (found,), (scores,) = index.search([question], DEEPEST)
        seconds.append(time.perf_counter() - start)
        ranked = list(dict.fromkeys(pages[row] for row, score in zip(found, scores, strict=True) if score > 0))
        hits.append([page in ranked[:depth] for depth in DEPTHS])
    shares = np.mean(hits, axis=0).tolist() if hits else []
    return Retrieval(
        n=len(wanted),
        absent=len(items) - len(wanted),
        recall_at=dict(zip(map(str, DEPTHS), shares, strict=bool(hits))),
        seconds_per_query=float(np.median(seconds)) if seconds else 0.0,
    )


def random_passages(reader: LexicalReader, items: Sequence[Item]) -> list[Read]:
    """Reads each item with random passages of the book, as many as a search finds."""
    rng = Random(0)

    sizes = [len(index) for index in reader.indexes]
    return [reader.read(item, [np.array(rng.sample(range(n), min(FOUND, n))) for n in sizes]) for item in items]


def passages_of_another(reader: LexicalReader, items: Sequence[Item]) -> list[Read]:
    """Reads each item with the passages found for another's question, of another page where there are two pages."""

    def found(index: Index, question: str) -> np.ndarray:
        (rows,), (scores,) = index.search([question], FOUND)
        return rows[scores > 0]

    others = swapped(items)
    return [
        reader.read(item, [found(index, other.question) for index in reader.indexes])
        for item, other in zip(items, others, strict=True)
    ]


def oracle_page(reader: LexicalReader, items: Sequence[Item]) -> list[Read]:
    """Reads each item with the passages of its own page alone; where the book lacks it, with none."""
    rows_of = []  # of each index: page -> its rows
    for index in reader.indexes:
        rows_of.append(defaultdict(list))
        for row, page in enumerate(_pages(index)):
            rows_of[-1][page].append(row)
        rows_of[-1][""] = []  # an item without an address has no page
    return [reader.read(item, [np.array(rows[page_of(item.url)], int) for rows in rows_of]) for item in items]


def _pages(index: Index) -> list[str]:
    return [page_of(passage.url) for passage in index.passages]


CONTROLS: dict[str, Callable[[LexicalReader, Sequence[Item]], list[Read]]] = {
    "random passages": random_passages,
    "passages of another question": passages_of_another,
    "oracle page": oracle_page,
}
