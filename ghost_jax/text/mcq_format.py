"""How a multiple-choice question is put and answered: one place for training, evaluation and chat.

The classic layout is the study's. The others serve controls and comparisons: the letter behind its option, where a
small model binds the two better; the question alone, answered with the option's text; the options alone, whose
accuracy is what can be had without reading the question.
"""

from collections.abc import Sequence

import numpy as np

from ghost_jax.text.chat_format import Message, render, render_prompt
from ghost_jax.text.tokenizer import Tokenizer

VERSION = 1  # raise it when a question or an answer is put in other words

LETTERS = "ABCDEFGHIJ"
LAYOUTS = {
    "classic": "options as A) to D), answered with the letter",
    "letter_after": "the letter behind each option, answered with the letter",
    "cloze": "the question alone, answered with the option's text",
    "options_only": "the classic layout without its question: the control",
}


def ask(question: str, options: Sequence[str], layout: str = "classic") -> str:
    """Returns the user turn of a question with 2 to 10 options. Raises ValueError for another number of them."""
    if layout == "cloze":
        return f"Question: {question}\nAnswer:" if question else "Question:\nAnswer:"
    letters = LETTERS[: len(options)]
    named = ", ".join(letters[:-1]) + f", or {letters[-1]}" if len(options) > 2 else " or ".join(letters)
    # Without a blank before it, a letter behind an option is the very token that answers.
    form = "- {option} [{letter}]" if layout == "letter_after" else "{letter}) {option}"
    lines = [f"Pick the best answer ({named}) and reply with its letter."]
    lines.append(f"Question: {question}" if question and layout != "options_only" else "Question:")
    lines += [form.format(letter=letter, option=option) for letter, option in zip(letters, options, strict=True)]
    return "\n".join([*lines, "Answer:"])


def with_context(prompt: str, passages: Sequence[str]) -> str:
    """Returns the user turn with passages, each on one line, in front of the question; with none, as it was."""
    return "\n".join(["Context:", *(f"- {passage}" for passage in passages), "", prompt]) if passages else prompt


def answer(letter: str, text: str, layout: str = "classic") -> str:
    """Returns the assistant's turn: the letter, and behind it the text if there is any; the text alone in a cloze."""
    if layout == "cloze":
        return text
    return f"{letter}. {text}" if text else letter


def letter_ids(tokenizer: Tokenizer, count: int = 4, layout: str = "classic") -> np.ndarray:
    """Returns the ids `[count]` of the letters at the first position of the assistant's turn.

    Each is checked in a fully rendered conversation, bare and with text behind it ("B", "B. Because …"): the letter
    must be one id there, and the same in both. Raises AssertionError otherwise, since every score would be wrong.
    """
    ids = []
    question = Message("user", ask("Which?", [f"option {i}" for i in range(count)], layout))
    prompt = render_prompt(tokenizer, [question])
    for letter in LETTERS[:count]:
        for text in ("", "It is."):
            full, _ = render(tokenizer, [question, Message("assistant", answer(letter, text, layout))])
            assert np.array_equal(full[: len(prompt)], prompt), "the prompt changes with the answer"
            first = int(full[len(prompt)])
            assert tokenizer.decode([first]) == letter, f"{letter} is not one token before {text!r}"
        ids.append(first)
    return np.asarray(ids, np.int32)
