"""The open-book reader without a neural model; docs/scoring.md#open-book says how it chooses an option.

The share of an option that a passage holds is measured in terms, each weighted by idf, and in character trigrams, which
match inflections and keep characters that terms lose ("C++", "-Indexes"). No feature depends on the order of the
options: the reader scores the same in every order.
"""

import functools
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evals.items.answers import Answers
from ghost_jax.core.console import Progress
from ghost_jax.data.items.items import Item, Order
from ghost_jax.data.retrieval.bm25 import Index, Passage, terms
from ghost_jax.data.retrieval.mcq_baselines import is_all_of_the_above, is_negated

# The weight of a passage that holds nothing of the option. On the development split it hardly matters: with terms alone
# 80.6, 80.9, 81.1 and 80.8% for 0.1, 0.3, 0.5 and 1. Trigrams beside the terms raise 80.9 to 82.2%.
UNSAID = 0.3
FOUND = 64  # passages that are read for every option
SUPPORTING = 16  # more passages for each option
SHOWN = 3  # passages kept as evidence of each option
RUN = 3  # characters of a trigram

# How far passages support an option: negated where the question is negated.
EVIDENCE = (
    "line",  # the best passage, by the share of the option that it holds
    "new terms",  # the best passage, of the option's terms only those that the question lacks
    "telling terms",  # the best passage, a term weighted less the more of the other options have it
    "pairs",  # the best passage, by pairs of neighbouring terms
    "verbatim",  # the best passage that holds the option word for word
    "together",  # the best passage in a search for question and option together
    "first line",  # how much of the option the best passage for the question holds
    "question",  # how much of the question the option's best passage holds
)
# The form of an option. It is no evidence, and only a fit on real questions can use it.
APPEARANCE = ("longest", "length", "absolutes", "likeness", "all of them")
FEATURES = (*EVIDENCE, *APPEARANCE)

Weights = Mapping[str, float]  # by name of FEATURES; 0 for a name that is missing
NOTHING_FITTED: Weights = {"line": 1.0, "together": 1.0}
WITH_ALL_OF_THEM: Weights = NOTHING_FITTED | {"all of them": 100.0}  # more than any evidence: a rule of format

_WORD = re.compile(r"[^\W_]+")
_ABSOLUTE = re.compile(
    r"\b(?:all|always|any|every|must|only|solely|exclusively|completely|entirely|no|not|none|never|cannot|without|"
    r"un\w+able|disabl\w*|ignor\w*)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Read:
    """The features of an item with K options."""

    # [K, EVIDENCE] how far passages support each option, as fractions of the best score for the question; the mean over
    # the indexes of the book
    evidence: np.ndarray
    appearance: np.ndarray  # [K, APPEARANCE] the form of each option
    # of each option, the rows [<= SHOWN] of its best passages that share a term with the question, best first
    rows: tuple[np.ndarray, ...]
    negated: bool  # whether the question asks what does not hold
    known: bool  # whether any passage shares a term with the question. If not, all evidence is zero: a fallback.
    empty: np.ndarray  # [K] which options have no text. They are never chosen.

    @property
    def features(self) -> np.ndarray:
        """The features [K, FEATURES], evidence negated where the question is negated."""
        every = np.hstack([-self.evidence if self.negated else self.evidence, self.appearance])
        return np.asfortranarray(every)  # the order of sums, and so the last bit of a fit, depends on the layout

    def scores(self, weights: Weights = NOTHING_FITTED) -> np.ndarray:
        """Returns the score [K] of each option, higher for the better; equal ones tie."""
        return self.without_empty(self.features @ [weights.get(name, 0.0) for name in FEATURES])

    def without_empty(self, scores: np.ndarray) -> np.ndarray:
        """Returns scores [K] of the options under which one without text is never chosen."""
        return np.where(self.empty, scores.min() - 1, scores)


def answers_of(reads: Sequence[Read], orders: Sequence[Sequence[Order]], weights: Weights = NOTHING_FITTED) -> Answers:
    """Returns the answers in the orders asked, by scores in place of log-probabilities."""
    return Answers.from_options(orders, [read.scores(weights) for read in reads])


class LexicalReader:
    """Reads items with indexes of one book; evidence is quoted from the first, `index`, the one of lines.

    Over 65,000 lines and 50,000 paragraphs an item with four options takes about 20 ms.
    """

    def __init__(self, *indexes: Index):
        self.indexes, self.index = indexes, indexes[0]
        self._cuts = [_IndexReader(index) for index in indexes]

    def read_all(self, items: Sequence[Item]) -> list[Read]:
        """Reads the items, with a line of progress."""
        reads = []
        with Progress("reading", len(items), unit="questions") as progress:
            for item in items:
                reads.append(self.read(item))
                progress.advance(1)
        return reads

    def read(self, item: Item, within: Sequence[np.ndarray] | None = None) -> Read:
        """Reads an item, without its gold option.

        `within` are, of each index, the rows [n] of the only passages that may be read, as in a control; None for all.
        """
        allowed = within or [None] * len(self._cuts)
        found = [cut.read(item, rows) for cut, rows in zip(self._cuts, allowed, strict=True)]
        return Read(
            np.mean([[of[text][0] for text in item.options] for of, _ in found], axis=0),
            np.array([_appearance(item.question, text, item.options) for text in item.options]),
            tuple(found[0][0][text][1] for text in item.options),
            is_negated(item.question),
            any(known for _, known in found),
            np.array([not text.strip() for text in item.options]),
        )

    def evidence(self, read: Read) -> list[Passage]:
        """Returns the passages that support the answer, best first: the best ones of the chosen option.

        Of a negated question they are the best passage of each other option, because these do hold.
        """
        chosen = int(read.scores().argmax())
        others = [k for k in range(len(read.rows)) if k != chosen and not read.empty[k]]
        rows = [row for k in others for row in read.rows[k][:1]] if read.negated else read.rows[chosen]
        return [self.index.passages[row] for row in dict.fromkeys(map(int, rows))]


class _IndexReader:
    """Reads items with one index."""

    def __init__(self, index: Index):
        self.index = index
        self._line = functools.lru_cache(maxsize=1 << 15)(self._read_line)  # several questions are about one page

    def read(self, item: Item, within: np.ndarray | None) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], bool]:
        """Returns option -> its evidence [EVIDENCE] and best rows [<= SHOWN], and whether any passage was found."""
        found = self.index.scores(item.question)
        if within is not None:
            allowed = np.zeros(len(found), np.float32)
            allowed[within] = 1
            found = found * allowed
        search = _Search(self.index, item, found)
        texts = sorted(set(item.options))  # an order of their own, so that no sum depends on the published one
        return {text: self._option(search, text) for text in texts}, search.best > 0

    def _option(self, search: "_Search", option: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the evidence [EVIDENCE] for an option and the rows [<= SHOWN] of its best passages."""
        if not search.best:
            return np.zeros(len(EVIDENCE)), np.empty(0, int)
        weights = _weights(self.index, option)
        held = self.index.coverage(weights)
        rows = np.union1d(search.rows, search.highest(search.found * (UNSAID + held), SUPPORTING))
        lines = [self._line(row) for row in rows.tolist()]
        quality, held_by = search.found[rows], held[rows]
        alike = (held_by + _runs_held(option, lines)) / 2
        worth = quality * (UNSAID + alike)
        best_first = np.argsort(-worth, kind="stable")[:SHOWN]
        new = self.index.coverage({term: weights[term] for term in weights if term not in search.asked})[rows]
        telling = self.index.coverage({term: weights[term] * search.telling[term] for term in weights})[rows]
        pairs = _pairs_held(option, lines)
        words = _words(option)
        together = quality + self.index.scores(option)[rows] / search.best
        evidence = (
            worth.max(),
            (quality * (UNSAID + new)).max(),
            (quality * (UNSAID + telling)).max(),
            (quality * (held_by if pairs is None else pairs)).max(),
            (quality * [bool(words.strip()) and words in line.words for line in lines]).max(),
            together.max(),
            held[search.found.argmax()],
            search.answered[rows[(quality * (UNSAID + held_by)).argmax()]],
        )
        return np.array(evidence, np.float64), rows[best_first]

    def _read_line(self, row: int) -> "_Line":
        passage = self.index.passages[row]
        whole = f"{passage.title} | {passage.section} | {passage.text}"
        # The bar keeps terms of different parts of the passage from being neighbours.
        stems = " | ".join(" ".join(terms(part)) for part in (passage.title, passage.section, passage.text))
        return _Line(f" {stems} ", _words(whole), _spaced(f"{passage.section} {passage.text}"))


class _Search:
    """The search for a question, before any option; `found` [passages] are the scores of the passages."""

    def __init__(self, index: Index, item: Item, found: np.ndarray):
        self.best = float(found.max())  # 0 where no passage shares a term with the question
        self.found = found / self.best if self.best else found
        self._any = np.flatnonzero(found > 0)  # without the rest, whose scores all tie, a partition is fast
        self.rows = self.highest(found, FOUND)
        self.asked = _weights(index, item.question)
        self.answered = index.coverage(self.asked)  # [passages] the share of the question that each passage holds
        having = Counter(term for option in item.options for term in set(terms(option)))
        others = max(1, len(item.options) - 1)
        # term -> 1 where one option alone has it, 0 where all do
        self.telling = {term: 1 - (count - 1) / others for term, count in having.items()}

    def highest(self, values: np.ndarray, count: int) -> np.ndarray:
        """Returns the rows of the highest values among passages that share a term with the question, in no order."""
        if len(self._any) <= count:
            return self._any
        return self._any[np.argpartition(values[self._any], -count)[-count:]]


@dataclass(frozen=True, slots=True)
class _Line:
    """A passage in the three forms in which options are searched for in it; `spaced` has no title."""

    stems: str
    words: str
    spaced: str


def _weights(index: Index, text: str) -> dict[str, float]:
    """Returns the weight of each term of a text, in alphabetical order: sums must not depend on a hash."""
    return {term: index.weight(term) for term in sorted(set(terms(text)))}


def _spaced(text: str) -> str:
    return f" {' '.join(text.lower().split())} "


def _words(text: str) -> str:
    return f" {' '.join(_WORD.findall(text.lower()))} "


def _runs_held(option: str, lines: Sequence[_Line]) -> np.ndarray:
    """Returns the share [lines] of the option's distinct trigrams that each line holds."""
    spaced = _spaced(option)
    runs = {spaced[start : start + RUN] for start in range(len(spaced) - RUN + 1)}
    return np.array([sum(run in line.spaced for run in runs) for line in lines]) / max(1, len(runs))


def _pairs_held(option: str, lines: Sequence[_Line]) -> np.ndarray | None:
    """Returns the share [lines] of the option's distinct pairs of terms that each line holds, None for one term."""
    ordered = terms(option)
    pairs = {f" {first} {second} " for first, second in itertools.pairwise(ordered)}
    return np.array([sum(pair in line.stems for pair in pairs) for line in lines]) / len(pairs) if pairs else None


def _appearance(question: str, option: str, options: Sequence[str]) -> tuple[float, ...]:
    """Returns the form of an option beside the others [APPEARANCE]."""
    own = set(terms(option))
    others = sorted(options)
    others.remove(option)
    alike = [len(own & its) / max(1, len(own | its)) for its in (set(terms(other)) for other in others)]
    longest = max(map(len, options))
    return (
        (len(option) == longest) / [len(each) for each in options].count(longest),
        float(np.log1p(len(option))),
        float(len(_ABSOLUTE.findall(option))),
        float(np.mean(alike)),
        float(is_all_of_the_above(question, option)),
    )
