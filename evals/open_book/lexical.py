"""The open-book reader without a neural model: which option do the lines that a question finds speak for?

A line of the book (`ghost_jax.data.retrieval.bm25`) is as good as it answers the question, by BM25, and as it holds the
option: in terms, each counted by what it tells, and in runs of three characters, which see through inflections and keep
the signs that terms lose ("C++", "-Indexes"). An option is worth its best line, and where a question asks what does NOT
hold, the order is turned round. Nothing of that is fitted; `evals.open_book.rescorer` fits weights for more of what is
measured here.

What is read of an item does not depend on the order of its options: the reader scores the same in every order.
"""

import functools
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evals.items.answers import Answers
from evals.items.items import Item, Order
from ghost_jax.core.console import Progress
from ghost_jax.data.retrieval.bm25 import Index, Passage, terms

VERSION = 1  # raise it when the same question gives other features

# What a line that holds nothing of the option is worth. On the development split it hardly matters: with terms alone
# 80.6, 80.9, 81.1 and 80.8% for 0.1, 0.3, 0.5 and 1. Characters beside the terms bring 80.9 to 82.2%.
UNSAID = 0.3
FOUND = 64  # lines that are read whatever the option is
SUPPORTING = 16  # lines more for each option
SHOWN = 3  # lines kept as evidence of each option
RUN = 3  # characters of a run

# What lines say of an option: turned round where the question is negated.
EVIDENCE = (
    "line",  # the best line, as described above: all that the reader goes by where nothing is fitted
    "new terms",  # the best line, of the option's terms those only that the question does not have
    "telling terms",  # the best line, a term counted less the more of the other options have it
    "pairs",  # the best line, neighbouring terms counted
    "verbatim",  # the best line that holds the option word for word
    "together",  # the best line for question and option searched as one
    "first line",  # how much of the option stands in the best line for the question
    "question",  # how much of the question stands in the option's best line
)
# What an option looks like. It is no evidence, and only a fit on real questions can learn from it.
APPEARANCE = ("longest", "length", "absolutes", "likeness", "all of them")

Weights = Mapping[str, float]  # by name of EVIDENCE and APPEARANCE; what is not named weighs nothing
NOTHING_FITTED: Weights = {"line": 1.0}

_WORD = re.compile(r"[^\W_]+")
# A question is negated by its own verb, near its "which" or "what", or in capitals. Any other "not" is of a clause that
# tells more of what is asked for: "Which weakness arises when input is not neutralized?"
_CLAUSE = r"(?:when|where|while|if|because|that|which|what|who|whose|how|as|to)\b"
_NEGATED = re.compile(
    r"\b(?:NOT|EXCEPT)\b|\b(?i:all (?:of )?(?:the following|these)\b.*\bexcept)\b|"
    r"\b(?i:least (?:likely|probable|common|effective|useful|relevant|related|suitable|appropriate))\b"
)
_NEGATED_VERB = re.compile(
    rf"(?:which|what)\b(?:[\s,]+(?!{_CLAUSE})[^\s,.;?]+){{0,6}}?\s+"
    r"(?:(?:is|are|was|were|does|do|did|has|have|can|could|would|should)(?: not|n['’]t)|cannot|can['’]t)\b",
    re.IGNORECASE,
)
_ASKED = re.compile(r"\b(?:which|what)\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.;])\s+")
_ALL_OF_THEM = re.compile(r"\ball (?:of )?(?:the |these )?(?:above|these|listed)\b|^all$|\bnone of\b", re.IGNORECASE)
_ABSOLUTE = re.compile(
    r"\b(?:all|always|any|every|must|only|solely|exclusively|completely|entirely|no|not|none|never|cannot|without|"
    r"un\w+able|disabl\w*|ignor\w*)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Read:
    """What was read of an item with K options.

    Attributes:
      evidence: [K, EVIDENCE] what the lines say of each option, as fractions of the best line for the question.
      appearance: [K, APPEARANCE] what each option looks like.
      rows: of each option, the rows [<= SHOWN] of its best lines that share a term with the question, best first.
      negated: whether the question asks what does not hold.
      known: whether any line shares a term with the question. If not, all evidence is zero: a fallback to be counted.
      empty: [K] which options have no text. They are never chosen.
    """

    evidence: np.ndarray
    appearance: np.ndarray
    rows: tuple[np.ndarray, ...]
    negated: bool
    known: bool
    empty: np.ndarray

    def scores(self, weights: Weights = NOTHING_FITTED) -> np.ndarray:
        """Returns the score [K] of each option, higher for the better; equal ones tie."""
        scores = self.features([*EVIDENCE, *APPEARANCE]) @ [weights.get(name, 0.0) for name in (*EVIDENCE, *APPEARANCE)]
        return self.without_empty(scores)

    def without_empty(self, scores: np.ndarray) -> np.ndarray:
        """Returns scores [K] of the options under which one without text is never chosen."""
        return np.where(self.empty, scores.min() - 1, scores) if self.empty.any() else scores

    def features(self, names: Sequence[str]) -> np.ndarray:
        """Returns the features [K, names], evidence turned round where the question is negated."""
        every = np.hstack([-self.evidence if self.negated else self.evidence, self.appearance])
        return every[:, [(*EVIDENCE, *APPEARANCE).index(name) for name in names]]


def answers_of(reads: Sequence[Read], orders: Sequence[Sequence[Order]], weights: Weights = NOTHING_FITTED) -> Answers:
    """Returns the answers in the orders asked; options that tie share the answer. The scores stand for log-probs."""
    return Answers.from_options(orders, [read.scores(weights) for read in reads])


def is_negated(question: str) -> bool:
    """Returns whether a question asks for what does not hold: "Which of these is NOT …?", "What is not …?"."""
    last = _SENTENCE_END.split(question.strip())[-1]
    asked = _ASKED.search(last)
    return bool(_NEGATED.search(question) or (asked and _NEGATED_VERB.match(last, asked.start())))


class LexicalReader:
    """Reads items with an index: about 12 ms an item with four options over 54,000 lines."""

    def __init__(self, index: Index):
        self.index = index
        self._line = functools.lru_cache(maxsize=1 << 15)(self._read_line)  # pages are asked about several times

    def read_all(self, items: Sequence[Item]) -> list[Read]:
        """Reads the items, with a line of progress."""
        reads = []
        with Progress("reading", len(items), unit="questions") as progress:
            for item in items:
                reads.append(self.read(item))
                progress.advance(1)
        return reads

    def read(self, item: Item, within: np.ndarray | None = None) -> Read:
        """Reads an item.

        Args:
          item: what is asked; its gold option is not looked at.
          within: the rows [n] of the only lines that may be read, as in a control; None for the whole book.
        """
        found = self.index.scores(item.question)
        if within is not None:
            allowed = np.zeros(len(found), np.float32)
            allowed[within] = 1
            found = found * allowed
        searched = self._searched(item, found)
        texts = sorted(set(item.options))  # an order of their own, so that no sum depends on the published one
        of = {text: self._option(searched, text) for text in texts}
        looks = {text: _appearance(text, item.options) for text in texts}
        return Read(
            np.array([of[text][0] for text in item.options]),
            np.array([looks[text] for text in item.options]),
            tuple(of[text][1] for text in item.options),
            is_negated(item.question),
            searched.best > 0,
            np.array([not text.strip() for text in item.options]),
        )

    def evidence(self, read: Read, weights: Weights = NOTHING_FITTED) -> list[Passage]:
        """Returns the lines that the answer rests on, best first: the best ones of the chosen option.

        Of a negated question they are the best line of each other option: they tell what does hold.
        """
        chosen = int(read.scores(weights).argmax())
        others = [k for k in range(len(read.rows)) if k != chosen and not read.empty[k]]
        rows = np.concatenate([read.rows[k][:1] for k in others]) if read.negated else read.rows[chosen]
        return [self.index.passage(row) for row in dict.fromkeys(rows.tolist())]

    def _searched(self, item: Item, found: np.ndarray) -> "_Searched":
        best = float(found.max())
        asked = self._weights(item.question)
        having = Counter(term for option in item.options for term in set(terms(option)))
        others = max(1, len(item.options) - 1)
        return _Searched(
            found / best if best else found,
            best,
            _highest(found, FOUND),
            asked,
            self.index.coverage(asked),
            {term: 1 - (count - 1) / others for term, count in having.items()},
        )

    def _option(self, searched: "_Searched", option: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the evidence [EVIDENCE] for an option and the rows [<= SHOWN] of its best lines."""
        weights = self._weights(option)
        held = self.index.coverage(weights)
        rows = np.union1d(searched.rows, _highest(searched.found * (UNSAID + held), SUPPORTING))
        lines = [self._line(row) for row in rows.tolist()]
        quality, held_by = searched.found[rows], held[rows]
        alike = (held_by + _runs_held(option, lines)) / 2
        worth = quality * (UNSAID + alike)
        best_first = np.argsort(-worth, kind="stable")[:SHOWN]
        shown = rows[best_first[quality[best_first] > 0]]
        if not searched.best:
            return np.zeros(len(EVIDENCE)), shown
        new = self.index.coverage({term: weights[term] for term in weights if term not in searched.asked})[rows]
        telling = self.index.coverage({term: weights[term] * searched.telling[term] for term in weights})[rows]
        pairs = _pairs_held(option, lines)
        words = _words(option)
        together = quality + self.index.scores(option)[rows] / searched.best
        evidence = (
            worth.max(),
            (quality * (UNSAID + new)).max(),
            (quality * (UNSAID + telling)).max(),
            (quality * (held_by if pairs is None else pairs)).max(),
            (quality * [bool(words.strip()) and words in line.words for line in lines]).max(),
            together[quality > 0].max(),
            held[searched.found.argmax()],
            searched.answered[rows[(quality * (UNSAID + held_by)).argmax()]],
        )
        return np.array(evidence, np.float64), shown

    def _weights(self, text: str) -> dict[str, float]:
        """Returns the weight of each term of a text, in the order of the alphabet: sums must not depend on a hash."""
        return {term: self.index.weight(term) for term in sorted(set(terms(text)))}

    def _read_line(self, row: int) -> "_Line":
        passage = self.index.passage(row)
        whole = f"{passage.title} | {passage.section} | {passage.text}"
        # No term of a pair may come from another part of the line than its neighbour: between them stands the bar.
        stems = " | ".join(" ".join(terms(part)) for part in (passage.title, passage.section, passage.text))
        return _Line(f" {stems} ", _words(whole), _spaced(f"{passage.section} {passage.text}"))


@dataclass(frozen=True)
class _Searched:
    """What is known before an option is looked at.

    Attributes:
      found: [passages] the score of every line for the question, as a fraction of the best one's.
      best: the best line's score; 0 where no line shares a term with the question.
      rows: the best lines for the question.
      asked: the terms of the question with their weights.
      answered: [passages] the share of the question that each line holds.
      telling: of each term of the options, 1 where one option alone has it, 0 where all do.
    """

    found: np.ndarray
    best: float
    rows: np.ndarray
    asked: Mapping[str, float]
    answered: np.ndarray
    telling: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Line:
    """A line in the three forms in which options are looked for in it; the title is no part of `spaced`."""

    stems: str
    words: str
    spaced: str


def _highest(values: np.ndarray, count: int) -> np.ndarray:
    """Returns the indices of the highest values, in no order."""
    count = min(count, len(values))
    return np.argpartition(values, -count)[-count:]


def _spaced(text: str) -> str:
    return f" {' '.join(text.lower().split())} "


def _words(text: str) -> str:
    return f" {' '.join(_WORD.findall(text.lower()))} "


def _runs_held(option: str, lines: Sequence[_Line]) -> np.ndarray:
    """Returns the share [lines] of the option's distinct runs of characters that stand in each line."""
    spaced = _spaced(option)
    runs = {spaced[start : start + RUN] for start in range(len(spaced) - RUN + 1)}
    return np.array([sum(run in line.spaced for run in runs) for line in lines]) / max(1, len(runs))


def _pairs_held(option: str, lines: Sequence[_Line]) -> np.ndarray | None:
    """Returns the share [lines] of the option's distinct neighbouring terms in each line, None for one term alone."""
    ordered = terms(option)
    pairs = {f" {first} {second} " for first, second in itertools.pairwise(ordered)}
    return np.array([sum(pair in line.stems for pair in pairs) for line in lines]) / len(pairs) if pairs else None


def _appearance(option: str, options: Sequence[str]) -> tuple[float, ...]:
    """Returns what an option looks like beside the others [APPEARANCE]."""
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
        float(bool(_ALL_OF_THEM.search(option))),
    )
