"""Multiple choice without letters, to be ranked: the question, and every option as a continuation of it.

The objective compares options: the gold one shall be more likely than the others. A row holds the prompt once and all
options beside one another, as branches that do not attend to each other (`ghost_jax.data.packing.Example`).
"""

from collections.abc import Iterable, Sequence

import numpy as np

from ghost_jax.data.builders import fact_mcq, mcq, raft
from ghost_jax.data.examples import BuildInputs, Question, Rows, by_split
from ghost_jax.text.chat_format import Message, render, render_prompt
from ghost_jax.text.mcq_format import answer, ask, with_context
from ghost_jax.text.tokenizer import Tokenizer

VERSION = 1  # raise it when the same questions give other rows

LAYOUT = "cloze"


def dataset(inputs: BuildInputs) -> Rows:
    """Returns the rows of the questions of `mcq`."""
    return _rows(inputs, ((q, ()) for q in mcq.questions(inputs.documents, inputs.options.seed)))


def fact_dataset(inputs: BuildInputs) -> Rows:
    """Returns the rows of the questions of `fact_mcq`."""
    return _rows(inputs, ((q, ()) for q in fact_mcq.questions(inputs.documents, inputs.options.seed)))


def read_dataset(inputs: BuildInputs) -> Rows:
    """Returns the rows of the questions of `fact_mcq` behind passages drawn as in `raft`."""
    asked = fact_mcq.questions(inputs.documents, inputs.options.seed)
    return _rows(inputs, raft.with_passages(asked, raft.index_of(inputs, asked), inputs.options.seed) if asked else ())


def _rows(inputs: BuildInputs, asked: Iterable[tuple[Question, Sequence[str]]]) -> Rows:
    return by_split((q.split, row(inputs.vocabulary, q, passages)) for q, passages in asked)


def row(tokenizer: Tokenizer, q: Question, passages: Sequence[str] = ()) -> dict:
    """Returns the row of a store: the prompt without its last token, then that token and each option in turn.

    The last token of the prompt predicts the first of every option, so it begins each branch. `passages` stand in front
    of the question.
    """
    asked = Message("user", with_context(ask(q.question, q.options, LAYOUT), passages))
    prompt = render_prompt(tokenizer, [asked])
    head = len(prompt) - 1
    tokens, mask, branches = [prompt[:head]], [np.zeros(head, bool)], [np.zeros(head, np.uint8)]
    for branch, option in enumerate(q.options, 1):
        ids, learnt = render(tokenizer, [asked, Message("assistant", answer(q.letter, option, LAYOUT))])
        tokens.append(ids[head:])
        mask.append(learnt[head:])
        branches.append(np.full(len(ids) - head, branch, np.uint8))
    arrays = {"tokens": tokens, "mask": mask, "branches": branches}
    named = {"id": q.id, "source": q.source, "letter": q.letter}
    return named | {name: np.concatenate(parts) for name, parts in arrays.items()}
