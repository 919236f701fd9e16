"""The only renderer: messages to ids and a loss mask, for training, evaluation and chat alike.

A conversation is `<|ghost_user|>…<|ghost_end|><|ghost_assistant|>…<|ghost_end|>`, without BOS. The loss falls on the
assistant's content and its end token alone.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ghost_jax.text.tokenizer import ASSISTANT, END, USER, Tokenizer

LETTERS = "ABCDEFGHIJ"


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One turn. `role` is "user" or "assistant"."""

    role: str
    content: str


def render(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[np.ndarray, np.ndarray]:
    """Returns `(ids [T] int32, mask [T] bool)`; the mask marks the tokens that the model is trained to produce."""
    ids: list[int] = []
    mask: list[bool] = []
    for message in messages:
        content = tokenizer.encode(message.content)
        supervised = message.role == "assistant"
        ids += [tokenizer.id(ASSISTANT if supervised else USER), *content, tokenizer.id(END)]
        mask += [False] + [supervised] * (len(content) + 1)
    return np.asarray(ids, np.int32), np.asarray(mask, bool)


def render_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> np.ndarray:
    """Returns ids `[T]` that end with the assistant's role token: the next id is the answer's first."""
    ids, _ = render(tokenizer, messages)
    return np.append(ids, np.int32(tokenizer.id(ASSISTANT)))


def letter_question(question: str, options: Sequence[str]) -> str:
    """Returns the user turn of a multiple-choice question with 2 to 10 options."""
    letters = LETTERS[: len(options)]
    named = ", ".join(letters[:-1]) + f", or {letters[-1]}" if len(options) > 2 else " or ".join(letters)
    lines = [f"Pick the best answer ({named}) and reply with its letter.", f"Question: {question}"]
    lines += [f"{letter}) {option}" for letter, option in zip(letters, options, strict=True)]
    return "\n".join([*lines, "Answer:"])


def letter_ids(tokenizer: Tokenizer, count: int = 4) -> np.ndarray:
    """Returns the ids `[count]` of the letters at the first position of the assistant's turn.

    Each is checked in a fully rendered conversation, bare and with text behind it ("B", "B. Because …"): the letter
    must be one id there, and the same in both. Raises AssertionError otherwise, since every score would be wrong.
    """
    ids = []
    question = Message("user", letter_question("Which?", [f"option {i}" for i in range(count)]))
    prompt = render_prompt(tokenizer, [question])
    for letter in LETTERS[:count]:
        for answer in (letter, f"{letter}. It is."):
            full, _ = render(tokenizer, [question, Message("assistant", answer)])
            assert np.array_equal(full[: len(prompt)], prompt), "the prompt changes with the answer"
            first = int(full[len(prompt)])
            assert tokenizer.decode([first]) == letter, f"{letter} is not one token in {answer!r}"
        ids.append(first)
    return np.asarray(ids, np.int32)
