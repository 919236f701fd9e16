"""The wordings of typed facts: TOML files that map a relation to its texts.

Stating a fact often in one wording does not make it extractable; stating it in many, and from either end, does
(arXiv 2309.14316). Sentences on how two entities relate, and what kinds of thing they are, keep improving recall where
paraphrases level off (arXiv 2409.07431), so every relation has some in `statements.toml`.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path

from ghost_jax.data.storage.schema import Fact

ENDS = ("{subject}", "{object}")

_QUESTION_FRAMES = (
    "{question} {answer}.",
    "Question: {question} Answer: {answer}.",
    "A quiz asks: {question} One right answer: {answer}.",
)
_LABEL_FRAMES = ("{0}: {1} | {2}: {3}", "{1} [{0}]: {3} [{2}]")  # kind and name of one end, then of the other


def read(name: str) -> dict:
    """Returns the texts of `NAME.toml` by relation."""
    return tomllib.loads(Path(__file__).with_name(f"{name}.toml").read_text(encoding="utf-8"))


def fill(form: str, fact: Fact) -> str:
    """Returns the form with both names unaltered; a name that ends in a stop gets no second one."""
    text = form.format(subject=fact.subject, object=fact.object)
    return text[:-1] if text.endswith(("..", "!.", "?.")) and form.endswith(".") else text


def _forms(kinds: Sequence[str], written: Sequence[str]) -> tuple[str, ...]:
    """Returns the forms of a relation: four labels, the written sentences, and each written question in its frames."""
    ends = list(zip(kinds, ENDS, strict=True))
    forms = [frame.format(*first, *second) for frame in _LABEL_FRAMES for first, second in (ends, ends[::-1])]
    for form in written:
        unnamed = [end for end in ENDS if end not in form]
        forms += [frame.format(question=form, answer=unnamed[0]) for frame in _QUESTION_FRAMES] if unnamed else [form]
    return tuple(forms)


# How a fact is stated: at least twenty forms a relation, half of them asking for the object, half for the subject
FORMS = {relation: _forms(**row) for relation, row in read("statements").items()}
# How it is asked for: eight questions a relation, about the fact's subject and answered by its object
QUESTIONS: dict[str, list[str]] = read("questions")
