"""The wordings of a typed fact: at least twenty a relation, half of them asking for the object, half for the subject.

Stating a fact often in one wording does not make it extractable; stating it in many, and from either end, does
(arXiv 2309.14316). Sentences on how two entities relate, and what kinds of thing they are, keep improving recall where
paraphrases level off (arXiv 2409.07431), so every relation has some. The written ones are in `statements.toml`.
"""

from collections.abc import Sequence

from ghost_jax.data import wordings
from ghost_jax.data.storage.schema import Fact

ENDS = ("{subject}", "{object}")

_QUESTION_FRAMES = (
    "{question} {answer}.",
    "Question: {question} Answer: {answer}.",
    "A quiz asks: {question} One right answer: {answer}.",
)
_LABEL_FRAMES = ("{0}: {1} | {2}: {3}", "{1} [{0}]: {3} [{2}]")  # kind and name of one end, then of the other


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


FORMS = {relation: _forms(**row) for relation, row in wordings.read("statements").items()}
