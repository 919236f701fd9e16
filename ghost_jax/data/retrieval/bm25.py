"""BM25 over lines or paragraphs of pages: the index of training with context, open-book evaluation, chat and server.

A passage is a line or paragraph of a page under the page's title and section, because the right line of a page is
harder to find than the page. Terms are Snowball stems; the title's count several times. bm25s computes every term's
score in every passage when the index is built, so that a search only adds; the arrays are memory-mapped.
"""

import dataclasses
import functools
import importlib
import itertools
import json
import logging
import math
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import Stemmer

from ghost_jax.core.errors import UserError
from ghost_jax.data.storage.schema import Record
from ghost_jax.data.storage.text_cleaning import sentences

LINE, PARAGRAPH = 40, 200  # words of the longest passage of an index, without its title and section
CONTEXT = 4  # passages in a prompt, as in the study
NEAR = 64  # passages among whose pages one is sought that a question names
SHOWN_CHARACTERS = 350  # of the longest passage in a prompt, as in the study
# Of generated questions' own pages, 66, 98, 99 and 99% are found first with weights 0, 1, 3 and 5; sentences that do
# not name their page are found a little worse with each step (59, 58, 58 and 56%).
TITLE_WEIGHT = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Passage:
    """One fact line of a page."""

    page: str  # the id of the record it comes from, unique within `source`
    source: str  # the record's source
    title: str  # the page's title with its publisher's number ("Phishing (T1566)")
    section: str  # the label of the line's paragraph ("Mitigation M1031 Network Intrusion Prevention"), or empty
    text: str  # at most `LINE` words, or `PARAGRAPH`
    url: str  # the page's address, or empty


_PART = r"[A-Z](?:\([^()\n]*\)|\.(?!\s)|[^:.;!?()\n]){0,70}"
# "Detection by Process: OS API Execution: Monitor …" has a label of two parts. A sentence with a colon may pass for
# one; nothing is lost by it, since a section is searched and shown as the text is.
_LABEL = re.compile(rf"(?P<label>Detection by {_PART}: {_PART}|{_PART}): (?P<content>.+)", re.DOTALL)
_NUMBER = re.compile(r"[A-Z]+-?\d+(?:[.-]\d+)*")
# At most eight words that end no sentence: "Explore", "Home | About us", "Several types exist:". Commands, paths and
# items of lists have other characters. BM25 prefers short passages: a heading came before every passage of its page.
_WORD = r"[\w(\[][\w()\[\]/&,'’-]*"
_HEADING = re.compile(rf"#{{1,6}} [^\n]+|{_WORD}(?: (?:[-–|&/] )?{_WORD}){{0,7}}:?")


def passages_of(record: Record, words: int = LINE, names: Mapping[str, str] | None = None) -> Iterator[Passage]:
    """Yields the passages of a page in its order; together they hold every word of it once, except headings.

    Args:
      words: the most that a passage has in its text.
      names: number of a page -> its title, which is added in a field of numbers alone ("Related weaknesses: CWE-79.").
    """
    number = record.id.rpartition("/")[2]
    named = _NUMBER.fullmatch(number) and number not in record.title
    title = f"{record.title} ({number})" if named else record.title
    for paragraph in map(str.strip, record.text.split("\n\n")):
        if _HEADING.fullmatch(paragraph):
            continue
        found = _LABEL.match(paragraph)
        section, content = (found["label"], found["content"]) if found else ("", paragraph)
        if names and section.startswith("Related "):
            content = _NUMBER.sub(
                lambda found: f"{names[found[0]]} ({found[0]})" if found[0] in names else found[0], content
            )
        for part in _lines(content, words):
            text = " ".join(part).removeprefix("- ")  # of a list's item
            yield Passage(record.id, record.source, title, section, text, record.url)


def _lines(paragraph: str, limit: int) -> Iterator[list[str]]:
    """Yields as many sentences of a paragraph at a time as the limit of words allows; a longer sentence is split."""
    kept: list[str] = []
    for sentence in itertools.chain.from_iterable(map(sentences, paragraph.split("\n"))):
        words = sentence.split()
        for start in range(0, len(words), limit):
            part = words[start : start + limit]
            if len(kept) + len(part) > limit:
                yield kept
                kept = []
            kept = kept + part
    if kept:
        yield kept


def shown(passage: Passage) -> str:
    """Returns the passage as a prompt shows it: title, section and text, cut between words to `SHOWN_CHARACTERS`."""
    heading = ", ".join(filter(None, (passage.title, passage.section)))
    return textwrap.shorten(f"{heading}: {passage.text}", SHOWN_CHARACTERS, placeholder=" …", break_on_hyphens=False)


# A number with what it belongs to is one term: T1566.002, CWE-79, CVE-2021-44228.
_TERM = re.compile(r"\w+(?:[-.]\d+)*")


def terms(text: str) -> list[str]:
    """Returns the stems of the text's words in their order, without the words that carry no meaning."""
    return [stem for word in _TERM.findall(text.lower()) if (stem := _stem(word))]


def missing(question: str, passages: Iterable[Passage]) -> list[str]:
    """Returns the words of a question, in its order and its spelling, that carry meaning and stand in no passage."""
    held = {term for each in passages for term in terms(f"{each.title} {each.section} {each.text}")}
    absent: dict[str, str] = {}
    for word in _TERM.findall(question):
        if (stem := _stem(word.lower())) and stem not in held:
            absent.setdefault(stem, word)
    return list(absent.values())


@functools.lru_cache(maxsize=1 << 17)
def _stem(word: str) -> str:
    return "" if word in _bm25s().stopwords.STOPWORDS_EN_PLUS else _STEMMER.stemWord(word)


_STEMMER = Stemmer.Stemmer("english")


@functools.cache
def _bm25s() -> ModuleType:
    """Imports the library without JAX: with JAX, it claims the accelerator and `jax.distributed` cannot start."""
    jax_lax = sys.modules.get("jax.lax")
    sys.modules["jax.lax"] = None
    try:
        library = importlib.import_module("bm25s")
    finally:
        del sys.modules["jax.lax"]
        if jax_lax:
            sys.modules["jax.lax"] = jax_lax
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it asks for every debugging line itself
    return library


def _names_of(title: str) -> list[set[str]]:
    """Returns the terms of each name of a page: of "Acquire Infrastructure: Botnet (T1583.005)" these, and "Botnet"."""
    name, _, number = title.rpartition(" (") if title.endswith(")") else (title, "", "")
    return [set(terms(part)) for part in (title, name, number, name.rpartition(": ")[2])]


class Index:
    """BM25 over passages, which are numbered by row. Make one with `build` or `load`."""

    def __init__(self, bm25: Any, passages: Sequence[Passage]):
        self._bm25 = bm25
        self.passages = passages

    @classmethod
    def build(cls, passages: Iterable[Passage]) -> "Index":
        """Returns the index of the passages; of those with the same title, section and text, the first is kept.

        Raises UserError where there is no term.
        """
        kept: dict[tuple[str, str, str], Passage] = {}
        vocabulary: dict[str, int] = {}
        rows: list[list[int]] = []
        for passage in passages:
            key = passage.title, passage.section, passage.text
            if key in kept:
                continue
            kept[key] = passage
            found = terms(passage.title) * TITLE_WEIGHT + terms(f"{passage.section} {passage.text}")
            # Numbered here in the order of appearance: the library's own order changes with every process.
            rows.append([vocabulary.setdefault(term, len(vocabulary)) for term in found])
        if not vocabulary:
            raise UserError("The sources hold no text to index. Add one to --config.data.sources, such as embedded.")
        bm25 = _bm25s().BM25()
        bm25.index((rows, vocabulary), create_empty_token=False, show_progress=False)
        return cls(bm25, list(kept.values()))

    def save(self, folder: Path) -> None:
        """Writes the index into a folder, the same bytes for the same passages. No file is a pickle."""
        self._bm25.save(folder, show_progress=False)
        with (folder / "passages.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(dataclasses.astuple(passage)) + "\n" for passage in self.passages)

    @classmethod
    def load(cls, folder: Path) -> "Index":
        """Opens a folder that `save` wrote, a complete store; the scores are read from disk when they are needed."""
        bm25 = _bm25s().BM25.load(folder, mmap=True)
        # Slices of a plain view are cheaper than slices of numpy's memmap.
        bm25.scores |= {name: bm25.scores[name].view(np.ndarray) for name in ("data", "indices", "indptr")}
        with (folder / "passages.jsonl").open(encoding="utf-8") as file:
            return cls(bm25, [Passage(*json.loads(line)) for line in file])

    def __len__(self) -> int:
        return len(self.passages)

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the rows [Q, k] int32 and the scores [Q, k] float32 of each query's best passages, best first.

        Of equal scores the lower row comes first. A passage without a term of the query scores 0. k is at most the
        number of passages.
        """
        k = min(k, len(self))
        rows, scores = np.empty((len(queries), k), np.int32), np.empty((len(queries), k), np.float32)
        for i, query in enumerate(queries):
            every = self.scores(query)
            # Everything at least as good as the k-th, in the order of rows, which a stable sort then keeps. Zeros are
            # left out where they can be: a partition of equal values is slow.
            matching = every[every > 0]
            least = np.partition(matching, -k)[-k] if len(matching) >= k else 0
            candidates = np.flatnonzero(every >= least)
            rows[i] = candidates[np.argsort(-every[candidates], kind="stable")][:k]
            scores[i] = every[rows[i]]
        return rows, scores

    def answering(self, question: str) -> list[Passage]:
        """Returns at most `CONTEXT` passages that share a word with a question, the best first.

        Where the question names pages and asks nothing else ("What is phishing?"), their beginnings come first: of so
        few words, BM25 prefers the shortest lines. A question that names a kind of section ("Which mitigation …") is
        answered by such sections first.
        """
        (rows,), (scores,) = self.search([question], NEAR)
        found = rows[scores > 0].tolist()
        asked = set(terms(question))
        found.sort(key=lambda row: not asked & set(terms(self.passages[row].section)[:1]))
        begins = [self._beginning(row) for row in found if asked in _names_of(self.passages[row].title)]
        return [self.passages[row] for row in list(dict.fromkeys([*begins, *found]))[:CONTEXT]]

    def _beginning(self, row: int) -> int:
        """Returns the first row of a row's page."""
        at = self.passages[row]
        while row and (self.passages[row - 1].source, self.passages[row - 1].page) == (at.source, at.page):
            row -= 1
        return row

    def context(self, questions: Sequence[str]) -> np.ndarray:
        """Returns the rows [Q, CONTEXT] int32 that a prompt with context shows, in training and in evaluation.

        They are found by the question alone: of generated questions' own pages, 99.0% come first by the question and
        94.2% by the question with its options, which name wrong pages too.
        """
        return self.search(questions, CONTEXT)[0]

    def scores(self, query: str) -> np.ndarray:
        """Returns the score [passages] float32 of every passage, 0 where it shares no term with the query."""
        return self._bm25.get_scores_from_ids(self._bm25.get_tokens_ids(terms(query)))

    def weight(self, term: str) -> float:
        """Returns Lucene's idf of a term: the higher, the fewer passages hold it."""
        holds = len(self._rows_with(term))
        return math.log(1 + (len(self) - holds + 0.5) / (holds + 0.5))

    def coverage(self, weights: Mapping[str, float]) -> np.ndarray:
        """Returns the share [passages] float32 of the terms' weights whose terms a passage holds; 0 without weights."""
        held = np.zeros(len(self), np.float32)
        total = sum(weights.values())
        if total:
            for term, weight in weights.items():
                held[self._rows_with(term)] += weight / total
        return held

    def _rows_with(self, term: str) -> np.ndarray:
        """Returns the rows [n] of the passages that hold a term in title, section or text."""
        number = self._bm25.vocab_dict.get(term)
        if number is None:
            return np.empty(0, np.int32)
        columns = self._bm25.scores
        return columns["indices"][columns["indptr"][number] : columns["indptr"][number + 1]]
