"""Multiple choice without letters, to be ranked: the question, and every option as a way to go on from it.

What is learnt is not a text but a comparison: the gold option shall be more likely than the others. So a record holds
the prompt once and all options beside one another, as branches that do not see each other
(`ghost_jax.data.packing.Example`).
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ghost_jax.data.builders import Question
from ghost_jax.text.chat_format import Message, render, render_prompt
from ghost_jax.text.mcq_format import answer, ask, with_context
from ghost_jax.text.tokenizer import Tokenizer

VERSION = 1  # raise it when the same questions give other rows

LAYOUT = "cloze"


@dataclasses.dataclass(frozen=True, slots=True)
class Ranking:
    """A question whose options are compared, before it is tokenised.

    Attributes:
      id, source, split: as of a `Conversation`.
      prompt: the user's turn.
      answers: the assistant's turn of each option.
      letter: the gold one's.
    """

    id: str
    source: str
    split: str
    prompt: Message
    answers: tuple[Message, ...]
    letter: str


def build(asked: Iterable[tuple[Question, Sequence[str]]]) -> Iterator[Ranking]:
    """Yields one ranking a question, given with the passages that its prompt shows in front of it, if any."""
    for q, passages in asked:
        prompt = Message("user", with_context(ask(q.question, q.options, LAYOUT), passages))
        answers = tuple(Message("assistant", answer(q.letter, option, LAYOUT)) for option in q.options)
        yield Ranking(q.id, q.source, q.split, prompt, answers, q.letter)


def row(tokenizer: Tokenizer, ranking: Ranking) -> dict:
    """Returns the row that a store keeps: the prompt but for its last token, and that with each option behind it.

    The last token of the prompt predicts the first of every option, so it stands at the head of each branch.
    """
    prompt = render_prompt(tokenizer, [ranking.prompt])
    head = len(prompt) - 1
    tokens, mask, branches = [prompt[:head]], [np.zeros(head, bool)], [np.zeros(head, np.uint8)]
    for branch, option in enumerate(ranking.answers, 1):
        ids, learnt = render(tokenizer, [ranking.prompt, option])
        tokens.append(ids[head:])
        mask.append(learnt[head:])
        branches.append(np.full(len(ids) - head, branch, np.uint8))
    return {
        "id": ranking.id,
        "source": ranking.source,
        "letter": ranking.letter,
        "tokens": np.concatenate(tokens),
        "mask": np.concatenate(mask),
        "branches": np.concatenate(branches),
    }
