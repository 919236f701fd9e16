"""The only renderer: messages to ids and a loss mask, for training, evaluation and chat alike.

A conversation is `<|ghost_user|>…<|ghost_end|><|ghost_assistant|>…<|ghost_end|>`, behind BOS where an imported
vocabulary puts it in front of a text. One with a chat template has that one's tokens instead. The loss is over the
assistant's content and its end token.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ghost_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One turn. `role` is "user", "assistant", or "system" of the first; without `train`, an answer is not learnt."""

    role: str
    content: str
    train: bool = True


def render(tokenizer: Tokenizer, messages: Sequence[Message], then: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Returns `(ids [T] int32, mask [T] bool)`; the mask marks the tokens that the model is trained to produce.

    `then` is the role whose turn begins behind the last one. A system turn is put in front of the first user turn, a
    blank line between, where the chat format has no place for it.
    """
    template = tokenizer.template
    if messages and messages[0].role == "system" and " system" not in template.between:
        system, first, *others = messages
        messages = [Message("user", f"{system.content}\n\n{first.content}"), *others]
    ids: list[int] = []
    mask: list[bool] = []
    before, learnt = "", False
    for message in [*messages, Message(then, "")]:
        given, text = template.between[f"{before} {message.role}"]
        content = tokenizer.encode(text + (message.content.strip() if template.strips else message.content))
        ids += [*given, *content]
        mask += [learnt, *[False] * len(given)][: len(given)]  # an answer's end is learnt, and nothing behind it
        before, learnt = message.role, message.role == "assistant" and message.train
        mask += [learnt] * len(content)
    return np.asarray(ids, np.int32), np.asarray(mask, bool)


def render_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> np.ndarray:
    """Returns ids `[T]` behind which the assistant's turn begins: the next id is the first of the answer."""
    return render(tokenizer, messages, "assistant")[0]
