"""The only renderer: messages to ids and a loss mask, for training, evaluation and chat alike.

A conversation is `<|ghost_user|>…<|ghost_end|><|ghost_assistant|>…<|ghost_end|>`, without BOS. The loss is over the
assistant's content and its end token.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ghost_jax.text.tokenizer import ASSISTANT, END, USER, Tokenizer

VERSION = 1  # raise it when the same messages give other ids or another mask


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One turn. `role` is "user" or "assistant"; without `train`, an assistant's turn is not learnt."""

    role: str
    content: str
    train: bool = True


def render(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[np.ndarray, np.ndarray]:
    """Returns `(ids [T] int32, mask [T] bool)`; the mask marks the tokens that the model is trained to produce."""
    ids: list[int] = []
    mask: list[bool] = []
    for message in messages:
        content = tokenizer.encode(message.content)
        answers = message.role == "assistant"
        ids += [tokenizer.id(ASSISTANT if answers else USER), *content, tokenizer.id(END)]
        mask += [False] + [answers and message.train] * (len(content) + 1)
    return np.asarray(ids, np.int32), np.asarray(mask, bool)


def render_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> np.ndarray:
    """Returns ids `[T]` that end with the assistant's role token: the next id is the first of the answer."""
    ids, _ = render(tokenizer, messages)
    return np.append(ids, np.int32(tokenizer.id(ASSISTANT)))
