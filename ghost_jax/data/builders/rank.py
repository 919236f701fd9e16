"""Multiple choice without letters, to be ranked: the question, and every option as a continuation of it.

The objective compares options: the gold one shall be more likely than the others. A row holds the prompt once and all
options beside one another, as branches that do not attend to each other (`ghost_jax.data.packing.Example`).
"""

from collections.abc import Sequence

import numpy as np

from ghost_jax.data.builders import fact_mcq, mcq, raft
from ghost_jax.data.examples import BuildInputs, Question, Rows, by_split
from ghost_jax.text.mcq_format import cloze
from ghost_jax.text.tokenizer import Tokenizer

VERSION = 4  # raise it when the same questions give other rows


def dataset(inputs: BuildInputs) -> Rows:
    """Returns the rows of the questions of `mcq`."""
    asked = mcq.questions(inputs.documents, inputs.options.seed)
    return by_split((q.split, row(inputs.vocabulary, q)) for q in asked)


def fact_dataset(inputs: BuildInputs) -> Rows:
    """Returns the rows of the questions of `fact_mcq`."""
    asked = fact_mcq.questions(inputs.documents, inputs.options.seed)
    return by_split((q.split, row(inputs.vocabulary, q)) for q in asked)


def read_dataset(inputs: BuildInputs) -> Rows:
    """Returns the rows of the questions of `fact_mcq` behind passages drawn as in `raft`."""
    asked = fact_mcq.questions(inputs.documents, inputs.options.seed)
    found = raft.with_passages(asked, raft.index_of(inputs, asked), inputs.options.seed) if asked else ()
    return by_split((q.split, row(inputs.vocabulary, q, passages)) for q, passages in found)


def row(tokenizer: Tokenizer, q: Question, passages: Sequence[str] = ()) -> dict:
    """Returns the row of a store: the prompt without its last token, then that token and each option in turn."""
    prompt, turns = cloze(tokenizer, q.question, q.options, passages)
    pieces = [(prompt, np.zeros(len(prompt), bool)), *turns]
    return {
        "id": q.id,
        "source": q.source,
        "letter": q.letter,
        "tokens": np.concatenate([ids for ids, _ in pieces]),
        "mask": np.concatenate([mask for _, mask in pieces]),
        "branches": np.repeat(np.arange(len(pieces), dtype=np.uint8), [len(ids) for ids, _ in pieces]),
    }
