"""Multiple-choice questions answered with a reason: "B. <1-2 sentences>".

The reasons are the facts' evidence sentences, or replies of a language model (`ghost_jax/data/builders/teacher.py`). A
reply that argues for another answer, refuses or is empty is replaced by the evidence sentence, so that no gold letter
has a reason against it.
"""

import re
from collections.abc import Sequence

from ghost_jax.data.builders import mcq
from ghost_jax.data.examples import BuildInputs, Question, Rows
from ghost_jax.data.storage.text_cleaning import clean, first_sentences, flat
from ghost_jax.text.mcq_format import LETTERS

VERSION = 3  # raise it when the same questions give other reasons, also by a change of `teacher`

SENTENCES, CHARACTERS = 2, 300  # most of a reason
MOST_READ = 4000  # characters of a reply behind its thoughts; a rambling one is not searched to its end
FAULTS = ("empty", "refusal", "another answer")


def dataset(inputs: BuildInputs) -> Rows:
    """Returns the rows of the questions of `mcq`, answered with the reasons of `data.cot.teacher`.

    The gold letter is the question's, whatever the reason says.
    """
    options = inputs.options
    asked = list(mcq.questions(inputs.documents, options.seed))
    reasons, report = explain(asked, options.cot.teacher, options.cot.model)
    inputs.say(f"cot: the reasons are by {report['teacher']}")
    inputs.recorded["teacher"] = report
    return inputs.render(q.answered(options.layout, reason) for q, reason in zip(asked, reasons, strict=True))


def explain(asked: Sequence[Question], teacher: str, model: str) -> tuple[list[str], dict]:
    """Returns a reason for each question, and what the manifest records of them.

    Args:
      teacher: "offline", or the base URL of an OpenAI-compatible API that serves `model`.
    """
    if teacher == "offline":
        return [evidence_of(q) for q in asked], {"teacher": "offline evidence sentence"}
    from ghost_jax.data.builders.teacher import ask, open_api  # not above: importing openai takes a second

    replies, report = ask(open_api(teacher, model), asked)
    found = [reason_in(reply, q) for reply, q in zip(replies, asked, strict=True)]
    reasons = [reason or evidence_of(q) for (reason, _), q in zip(found, asked, strict=True)]
    faults = [fault for _, fault in found]
    return reasons, report | {"replaced": {fault: faults.count(fault) for fault in FAULTS}}


def evidence_of(q: Question) -> str:
    """Returns the evidence of a question, as long as a reason may be."""
    return first_sentences(q.evidence, SENTENCES, CHARACTERS)


# ---- From a model's reply to a reason ----

_THOUGHT = re.compile(r"<(think|thinking|reasoning)>.*?(?:</\1>|$)", re.DOTALL | re.IGNORECASE)
# Some chat templates open the block within the prompt, so that the reply holds its end alone.
_THOUGHT_END = re.compile(r"</(?:think|thinking|reasoning)>", re.IGNORECASE)
_EMPHASIS = re.compile(r"(?<![\w*])(\*{1,3})(?=[\w\"'(\[])([^\n]{1,300}?)(?<=\S)\1(?![\w*])")
_BULLET = re.compile(r"^[ \t]*(?:[-*•>]|\d+[.)])[ \t]+", re.MULTILINE)
_REFUSAL = re.compile(
    r"(?:i'?m |i am )?(?:very )?sorry\b|i apologi[sz]e\b|as an ai\b"
    r"|(?:unfortunately,? )?i(?: can(?:no|')t| can not| won't| will not|(?:'m| am) (?:not able|unable))\b",
    re.IGNORECASE,
)
# "Here is why:" on a line of its own, or the name of what follows.
_HEADING = re.compile(
    r"[^\n.]{0,80}:[ ]*\n\s*|(?:(?:correct )?answer|explanation|justification|rationale|reason(?:ing)?):\s*",
    re.IGNORECASE,
)
_STOP = re.compile(r"\s*(?:[.:](?=\s|$)\s*|\n\s*|$)")  # behind an option
_LETTER = r"(?-i:([A-J]))"  # a small "a" is an article, whatever the case of the words around it
_LABEL = re.compile(
    rf"\W*(?:(?:the\s+)?(?:\w+\s+)?(?:answer|option|choice)(?:\s+is)?\s*:?\s*)?[(\[]?{_LETTER}"
    r"(?:[)\].:]+(?=\s|$)|\s+[-–—](?=\s)|[ \t]*(?=\n|$))\s*",
    re.IGNORECASE,
)
_ANSWER_IS = re.compile(
    r"(?:\b(?:answer|option|choice)(?:\s+(?:is|was|(?:w|sh)ould be|must be)|\s*:)"
    r"(?:\s+(?:actually|clearly|indeed|really|therefore))?(?:\s+(?:option|choice|answer|letter))?"
    r"|\b(?:choose|pick|select)(?:\s+(?:option|choice|answer))?)\s*[(\[\"']*",
    re.IGNORECASE,
)
_IS_RIGHT = re.compile(
    r"[)\]\"']*\s+(?:is|was|would be)\s+(?:(?:actually|clearly|indeed|really)\s+)?(?:the\s+)?(?:only\s+|most\s+)?"
    r"(?:accurate|answer|best|correct|right|true)\b",
    re.IGNORECASE,
)
_FOR = re.compile(rf"{_ANSWER_IS.pattern}{_LETTER}\b(?![-'])|\b{_LETTER}{_IS_RIGHT.pattern}", re.IGNORECASE)
_AGAINST = re.compile(
    rf"\b{_LETTER}[)\]\"']*\s+(?:is|was)(?:n't|\s+not|\s+incorrect|\s+wrong)\b|\banswer is not (?:option )?{_LETTER}\b",
    re.IGNORECASE,
)


def reason_in(reply: str, q: Question) -> tuple[str, str]:
    """Returns the reason that a model's reply holds and "", or "" and which of `FAULTS` it has.

    "another answer" is a reply that names another letter or another option as the answer, or calls the gold one wrong.
    """
    text = _THOUGHT_END.split(_THOUGHT.sub("", reply))[-1][:MOST_READ].replace("’", "'")
    text = _BULLET.sub("", _EMPHASIS.sub(r"\2", clean(text))).strip()
    if _REFUSAL.match(text):
        return "", "refusal"
    sentences, named = _without_opening(text, q)
    named |= {letter for found in _FOR.finditer(text) for letter in found.groups() if letter}
    named |= {_option_at(text, found.end(), q)[0] for found in _ANSWER_IS.finditer(text)}
    first, end = _option_at(text, 0, q)
    if _IS_RIGHT.match(text, end):
        named.add(first)
    wrong = {letter for found in _AGAINST.finditer(text) for letter in found.groups()}
    if named - {q.letter, ""} or q.letter in wrong:
        return "", "another answer"
    reason = first_sentences(flat(sentences), SENTENCES, CHARACTERS)
    return (reason, "") if len(reason.split()) > 2 else ("", "empty")


def _without_opening(text: str, q: Question) -> tuple[str, set[str]]:
    """Returns the text behind "Answer: B) Persistence." and headings, and the letters named there."""
    named = set()
    while True:
        letter, end = _option_at(text, 0, q)
        if found := _LABEL.match(text):
            named |= {found[1], _option_at(text, found.end(), q)[0]}
        elif letter and (found := _STOP.match(text, end)):
            named.add(letter)
        elif not (found := _HEADING.match(text)):
            return text, named
        text = text[found.end() :]


def _option_at(text: str, start: int, q: Question) -> tuple[str, int]:
    """Returns the letter of the longest option that stands there, "" where none does, and where it ends."""
    there = [
        (len(option), letter)
        for letter, option in zip(LETTERS, q.options, strict=False)
        if re.compile(rf"{re.escape(option)}(?!\w)", re.IGNORECASE).match(text, start)
    ]
    length, letter = max(there, default=(0, ""))
    return letter, start + length
