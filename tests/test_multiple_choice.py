"""ghost_jax/text/mcq_format.py: where the letters are, and how each layout asks and answers."""

import numpy as np
import pytest

from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.text.chat_format import Message, render, render_prompt
from ghost_jax.text.mcq_format import LAYOUTS, LETTERS, answer, ask, letter_ids

CORPUS = ["A. B. C. D. E. the quick brown fox jumps; one two three, Question: Which? Answer:\n", "Pick the best answer"]
LETTERED = [layout for layout in LAYOUTS if layout != "cloze"]


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_lib.train(CORPUS * 20, 400).with_chat_tokens(["hello"])


@pytest.mark.parametrize("count", range(2, 11))
@pytest.mark.parametrize("layout", LETTERED)
def test_letters_are_single_tokens_whatever_follows_them(tokenizer, count, layout):
    ids = letter_ids(tokenizer, count, layout)
    assert [tokenizer.decode([i]) for i in ids] == list(LETTERS[:count])
    question = Message("user", ask("Why?", ["one"] * count, layout))
    start = len(render_prompt(tokenizer, [question]))
    for letter, expected in zip(LETTERS, ids, strict=False):
        for text in ("", "Because.", letter):
            full, _ = render(tokenizer, [question, Message("assistant", answer(letter, text, layout))])
            assert full[start] == expected, text


def test_a_letter_behind_its_option_is_the_token_that_answers(tokenizer):
    options = ["one", "two", "three", "four"]
    prompt = render_prompt(tokenizer, [Message("user", ask("Which?", options, "letter_after"))])
    for i in letter_ids(tokenizer, 4, "letter_after"):
        assert np.sum(prompt == i) >= 1


def test_a_vocabulary_that_hides_a_letter_is_refused():
    hiding = tokenizer_lib.train(CORPUS, 300).with_chat_tokens(["B."])
    with pytest.raises(AssertionError, match="B is not one token"):
        letter_ids(hiding)


def test_the_layouts_read_as_trained():
    options = ["one", "two", "three"]
    head = "Pick the best answer (A, B, or C) and reply with its letter.\nQuestion:"
    asked = {layout: ask("Which?", options, layout) for layout in LAYOUTS}
    assert asked["classic"] == f"{head} Which?\nA) one\nB) two\nC) three\nAnswer:"
    assert asked["letter_after"] == f"{head} Which?\n- one [A]\n- two [B]\n- three [C]\nAnswer:"
    assert asked["options_only"] == asked["classic"].replace(" Which?", "")
    assert asked["cloze"] == "Question: Which?\nAnswer:"
    assert "(A or B)" in ask("Which?", ["one", "two"])


def test_too_many_options_are_refused():
    with pytest.raises(ValueError):
        ask("Which?", ["x"] * 11)


@pytest.mark.parametrize("layout", LETTERED)
def test_an_answer_begins_with_its_letter(layout):
    assert (answer("B", "", layout), answer("B", "two", layout)) == ("B", "B. two")


def test_a_cloze_is_answered_with_the_text_alone():
    assert answer("B", "two", "cloze") == "two"
