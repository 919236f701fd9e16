"""SecEval's questions.json (XuanwuAI/SecEval): a list of questions, of which several options may be right.

The publisher asks for all right letters at once, which is another task than choosing one. Of the 2,189 questions that
its site shows, 934 have several letters, the same letter twice or none; they are left out, and a score is one on the
rest.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evals.items.formats.raw import Placed
from evals.items.formats.row import Row, quoted, refusal, require, texts
from ghost_jax.text.mcq_format import LETTERS

SHAPE = 'a list [{"id": "…", "question": "…", "choices": ["A: …", "B: …"], "answer": "B"}, …] with 2 to 10 choices'
KEYS = ("id", "question", "choices", "answer")


def recognises(value: Any) -> bool:
    """Any of the keys will do, so that a missing one is named."""
    return (
        isinstance(value, list) and bool(value) and isinstance(value[0], dict) and not value[0].keys().isdisjoint(KEYS)
    )


def rows(path: Path, values: Iterator[Placed]) -> Iterator[Row]:
    """Yields what the file says about each item. Raises UserError for one of another shape."""
    # "source" names a whole textbook or catalogue; no page is given that would make items dependent, so no url.
    ((_, records),) = values
    for number, record in enumerate(records, start=1):
        refused = functools.partial(refusal, path, f"item {number}", shape=SHAPE)
        require(record, KEYS, refused)
        name, question, answer = texts(record, ("id", "question", "answer"), refused)
        choices = record["choices"]
        if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
            raise refused('"choices" must be a list of texts')
        letters = LETTERS[: len(choices)]
        if len(choices) > len(LETTERS) or not all(map(str.startswith, choices, (f"{letter}:" for letter in letters))):
            raise refused(f"the choices must begin with their letters, A: and so on, at most {len(LETTERS)}")
        options = tuple(choice[2:].removeprefix(" ") for choice in choices)
        several = len(answer) != 1 and set(answer) <= set(letters)
        left_out = f"the answer of {quoted(name)} is {quoted(answer)}, not one letter" if several else ""
        yield Row(f"item {number}", name, question, options, answer, left_out=left_out)
