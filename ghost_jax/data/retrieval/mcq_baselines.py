"""Baselines that answer multiple-choice questions without knowledge.

A set of questions measures knowledge as far as these stay at chance on it. Each is a function of an item that returns
the share [K] of the answer that each option gets: options that tie share it. The share of the gold option is the
credit, and the mean credit is the expected accuracy.
"""

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from ghost_jax.data.items.items import Item

Baseline = Callable[[Item], np.ndarray]

NEAREST = "nearest_trained_question"  # a baseline by what one run was tuned on, and not by the items alone
RUN = 4  # characters of a word that an inflection of it has, too
_WORD = re.compile(r"\w+(?:\.\w+)*")  # an id such as T1566.001 is one word
_FUNCTION_WORDS = frozenset(
    _WORD.findall(
        "a an and any are as at be been being between by can could did do does doing for from had has have how if "
        "in into is it its may might more most must no nor not of on one or other over own same shall should so "
        "some such than that the their them then there these they this those to under up upon was we were what "
        "when where which while who whom whose why will with within without would you your"
    )
)

# A question is negated by its own verb, near its "which" or "what", or in capitals. Any other "not" is of a clause:
# "Which weakness arises when input is not neutralized?"
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
_ALL_OF_THE_ABOVE = re.compile(r"\ball (?:of )?(?:the |these )?(?:above|these|listed)\b|^all\.?$", re.IGNORECASE)


@functools.lru_cache(4096)  # the same options are offered again and again
def content_words(text: str) -> frozenset[str]:
    """Returns the lower-cased words of a text, an id with dots being one, without the function words of English."""
    return frozenset(_WORD.findall(text.lower())) - _FUNCTION_WORDS


@functools.lru_cache(4096)
def _runs(text: str) -> frozenset[str]:
    """Returns the runs of `RUN` characters in a text, in lower case and with a blank on each side."""
    spaced = f" {' '.join(text.lower().split())} "
    return frozenset(spaced[start : start + RUN] for start in range(len(spaced) - RUN + 1))


def runs_shared(question: str, option: str) -> float:
    """Returns the share of an option's runs of `RUN` characters that the question has: "injecting", "injection"."""
    return len(_runs(option) & _runs(question)) / max(1, len(_runs(option)))


def is_negated(question: str) -> bool:
    """Returns whether a question asks for what does not hold: "Which of these is NOT …?", "What is not …?"."""
    last = _SENTENCE_END.split(question.strip())[-1]
    asked = _ASKED.search(last)
    return bool(_NEGATED.search(question) or (asked and _NEGATED_VERB.match(last, asked.start())))


def is_all_of_the_above(question: str, option: str) -> bool:
    """Returns whether an option is "all of the above" and the question is not negated."""
    return bool(_ALL_OF_THE_ABOVE.search(option)) and not is_negated(question)


def credits_of(baseline: Baseline, items: Iterable[Item]) -> np.ndarray:
    """Returns the share [N] of each item's gold option."""
    return np.array([baseline(item)[item.answer] for item in items])


def always(letter: int) -> Baseline:
    """Returns the baseline that answers with one letter, given by its index."""
    return lambda item: (np.arange(len(item.options)) == letter).astype(float)


def _choosing(score: Callable[[str, str], float]) -> Baseline:
    """Returns the baseline that chooses the option of the highest `score(question, option)`."""

    def baseline(item: Item) -> np.ndarray:
        scores = np.array([score(item.question, option) for option in item.options])
        best = scores == scores.max()
        return best / best.sum()

    return baseline


longest = _choosing(lambda question, option: len(option))
shortest = _choosing(lambda question, option: -len(option))
all_of_the_above = _choosing(is_all_of_the_above)  # where no option is one, all tie
overlapping = _choosing(lambda question, option: len(content_words(option) & content_words(question)))
sharing_parts = _choosing(runs_shared)


def popular(popularity: Mapping[str, int]) -> Baseline:
    """Returns the baseline that chooses the most popular option."""
    return _choosing(lambda question, option: popularity.get(option, 0))


def times_offered(items: Iterable[Item]) -> Counter[str]:
    """Returns how many items of a reference set offer each text."""
    return Counter(option for item in items for option in set(item.options))


def times_gold(items: Iterable[Item]) -> Counter[str]:
    """Returns of how many items of a reference set each text is the gold option."""
    return Counter(item.options[item.answer] for item in items)
