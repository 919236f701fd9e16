"""Baselines that answer multiple-choice questions without knowledge.

A set of questions measures knowledge as far as these stay at chance on it. Each is a function
`(questions, options, answers) -> credits`: N texts, N sequences of texts, the N indices of the gold options, and
credits [N] in [0, 1]: where n options tie, the gold one among them earns 1/n. Their mean is the expected accuracy.
"""

import functools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Baseline = Callable[[Sequence[str], Sequence[Sequence[str]], Sequence[int]], np.ndarray]

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


def is_negated(question: str) -> bool:
    """Returns whether a question asks for what does not hold: "Which of these is NOT …?", "What is not …?"."""
    last = _SENTENCE_END.split(question.strip())[-1]
    asked = _ASKED.search(last)
    return bool(_NEGATED.search(question) or (asked and _NEGATED_VERB.match(last, asked.start())))


def is_all_of_the_above(question: str, option: str) -> bool:
    """Returns whether an option is "all of the above" and the question is not negated."""
    return bool(_ALL_OF_THE_ABOVE.search(option)) and not is_negated(question)


def always(letter: int) -> Baseline:
    """Returns the baseline that answers with one letter, given by its index."""

    def baseline(questions: Sequence[str], options: Sequence[Sequence[str]], answers: Sequence[int]) -> np.ndarray:
        return np.array([float(answer == letter) for answer in answers])

    return baseline


def _choosing(score: Callable[[str, str], float]) -> Baseline:
    """Returns the baseline that chooses the option of the highest `score(question, option)`."""

    def baseline(questions: Sequence[str], options: Sequence[Sequence[str]], answers: Sequence[int]) -> np.ndarray:
        credits = np.zeros(len(answers))
        for row, (question, offered, answer) in enumerate(zip(questions, options, answers, strict=True)):
            scores = [score(question, option) for option in offered]
            if scores[answer] == max(scores):
                credits[row] = 1 / scores.count(max(scores))
        return credits

    return baseline


longest = _choosing(lambda question, option: len(option))
shortest = _choosing(lambda question, option: -len(option))
all_of_the_above = _choosing(is_all_of_the_above)  # where no option is one, all tie
overlapping = _choosing(lambda question, option: len(content_words(option) & content_words(question)))


def popular(popularity: Mapping[str, int]) -> Baseline:
    """Returns the baseline that chooses the most popular option."""
    return _choosing(lambda question, option: popularity.get(option, 0))


def times_offered(options: Sequence[Sequence[str]]) -> Counter[str]:
    """Returns how often each text is an option of a reference set of questions."""
    return Counter(option for offered in options for option in offered)


def times_gold(options: Sequence[Sequence[str]], answers: Sequence[int]) -> Counter[str]:
    """Returns how often each text is the gold option of a reference set of questions."""
    return Counter(offered[answer] for offered, answer in zip(options, answers, strict=True))
