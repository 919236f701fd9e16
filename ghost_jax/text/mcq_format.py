"""How a multiple-choice question is asked and answered, for training, evaluation and chat alike.

The layout `classic` is the study's. In `letter_after` the letter follows its option, where a small model binds the two
better. `cloze` shows no options. `options_only` is a control: its accuracy needs no question.
"""

from collections.abc import Sequence

import numpy as np

from ghost_jax.text.chat_format import Message, render, render_prompt
from ghost_jax.text.tokenizer import Tokenizer

LETTERS = "ABCDEFGHIJ"
LAYOUTS = ("classic", "letter_after", "cloze", "options_only")


def ask(question: str, options: Sequence[str], layout: str = "classic") -> str:
    """Returns the user turn of a question with 2 to 10 options. Raises ValueError for another number of them."""
    if layout == "cloze":
        return f"Question: {question}\nAnswer:" if question else "Question:\nAnswer:"
    letters = LETTERS[: len(options)]
    named = ", ".join(letters[:-1]) + f", or {letters[-1]}" if len(options) > 2 else " or ".join(letters)
    # In letter_after no blank precedes the letter, so it is the same token as the answer.
    form = "- {option} [{letter}]" if layout == "letter_after" else "{letter}) {option}"
    lines = [f"Pick the best answer ({named}) and reply with its letter."]
    lines.append(f"Question: {question}" if question and layout != "options_only" else "Question:")
    lines += [form.format(letter=letter, option=option) for letter, option in zip(letters, options, strict=True)]
    return "\n".join([*lines, "Answer:"])


def with_context(prompt: str, passages: Sequence[str]) -> str:
    """Returns the user turn with the passages, one a line, before the question."""
    return "\n".join(["Context:", *(f"- {passage}" for passage in passages), "", prompt]) if passages else prompt


def answer(letter: str, text: str, layout: str = "classic") -> str:
    """Returns the assistant's turn: the letter, then the text if there is any; in a cloze the text alone."""
    if layout == "cloze":
        return text
    return f"{letter}. {text}" if text else letter


def cloze(
    tokenizer: Tokenizer, question: str, options: Sequence[str], passages: Sequence[str] = ()
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Returns the ids of a cloze without its last token, and behind it the ids [n] and mask [n] of each option's turn.

    The last token of the prompt predicts the first of every option, so it begins each. `passages` stand in front of the
    question.
    """
    asked = Message("user", with_context(ask(question, options, "cloze"), passages))
    prompt = render_prompt(tokenizer, [asked])[:-1]
    turns = [render(tokenizer, [asked, Message("assistant", answer("", text, "cloze"))]) for text in options]
    return prompt, [(ids[len(prompt) :], mask[len(prompt) :]) for ids, mask in turns]


def letter_ids(tokenizer: Tokenizer, count: int = 4, layout: str = "classic") -> np.ndarray:
    """Returns the ids `[count]` of the letters at the first position of the assistant's turn.

    Raises AssertionError where a letter is not one and the same id there in rendered conversations with the answers
    "B" and "B. Because …": every score would be wrong.
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
