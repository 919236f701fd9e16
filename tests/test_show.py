"""`python -m ghost_jax.data.show` marks the supervised tokens."""

import pytest

from ghost_jax.data.show import drawn
from ghost_jax.text import chat_format, tokenizer
from ghost_jax.text.chat_format import Message
from tests.conftest import TINY, set_all

SHOW = ["ghost_jax.data.show", "--config=configs/chat_v5.py:nano"]
SHOW += set_all(TINY) + set_all({f"base.{key}": value for key, value in TINY.items()})


def test_the_first_records_are_printed_with_supervised_tokens_in_brackets(ghost):
    printed = ghost.here(*SHOW, "-n", "4").stdout
    shown = printed[printed.index("tokens, ") :]
    assert shown.count("⟦") == shown.count("⟧") == 4
    for supervised in (part.split("⟧")[0] for part in shown.split("⟦")[1:]):
        assert supervised.endswith("<|ghost_end|>")
        assert "ghost_user" not in supervised
    assert "<|ghost_assistant|>⟦" in shown
    assert "-n is 0" in ghost.refused_here(*SHOW, "-n", "0", code=2)


@pytest.mark.parametrize("seq_len", [3, 8, 512])
def test_colours_mark_supervised_and_cropped_tokens(seq_len):
    vocabulary = tokenizer.train(["What lies? A mail lies."], 300).with_chat_tokens([])
    tokens, mask = chat_format.render(vocabulary, [Message("user", "What\nlies?"), Message("assistant", "A mail.")])
    text = drawn({"tokens": tokens, "mask": mask}, vocabulary, seq_len, coloured=True)
    cropped = sum("strike" in str(span.style) for span in text.spans)
    assert cropped == max(0, len(tokens) - (seq_len + 1))
    if not cropped:
        green = "".join(text.plain[span.start : span.end] for span in text.spans if "green" in str(span.style))
        assert green == "A mail.<|ghost_end|>"
        assert "⟦" not in text.plain
        assert "⏎\n" in text.plain
