"""`python -m ghost_jax.data.show`: a person sees which tokens are learnt."""

import pytest

from ghost_jax.data.show import drawn
from ghost_jax.text import chat_format, tokenizer
from ghost_jax.text.chat_format import Message
from tests.conftest import TINY, set_all

SHOW = ["ghost_jax.data.show", "--config=configs/chat_v5.py:nano"]
SHOW += set_all(TINY) + set_all({f"base.{key}": value for key, value in TINY.items()})


def test_the_first_records_are_printed_with_what_is_learnt_in_brackets(ghost):
    said = ghost(*SHOW, "-n", "4").stdout
    shown = said[said.index("tokens, ") :]
    assert shown.count(" learnt") == 4
    assert shown.count("⟦") == shown.count("⟧") == 4
    for learnt in (part.split("⟧")[0] for part in shown.split("⟦")[1:]):
        assert learnt.endswith("<|ghost_end|>")
        assert "ghost_user" not in learnt
    assert "<|ghost_assistant|>⟦" in shown


def test_no_record_is_refused(ghost):
    assert "-n is 0" in ghost.refused(*SHOW, "-n", "0", code=2)


@pytest.fixture(scope="module")
def vocabulary():
    return tokenizer.train(["What lies? A mail lies."], 300).with_chat_tokens([])


def example(vocabulary) -> dict:
    tokens, mask = chat_format.render(vocabulary, [Message("user", "What\nlies?"), Message("assistant", "A mail.")])
    return {"tokens": tokens, "mask": mask}


def test_colours_mark_the_very_tokens_that_are_learnt(vocabulary):
    text = drawn(example(vocabulary), vocabulary, seq_len=512, coloured=True)
    green = "".join(text.plain[span.start : span.end] for span in text.spans if "green" in str(span.style))
    assert green == "A mail.<|ghost_end|>"
    assert "⟦" not in text.plain
    assert "⏎\n" in text.plain


@pytest.mark.parametrize("room", [3, 8])
def test_what_a_row_has_no_room_for_is_struck_out(vocabulary, room):
    record = example(vocabulary)
    text = drawn(record, vocabulary, seq_len=room, coloured=True)
    struck = sum("strike" in str(span.style) for span in text.spans)
    assert struck == len(record["tokens"]) - (room + 1)
