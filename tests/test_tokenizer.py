"""ghost_jax/text/tokenizer.py: exact on any bytes, no text becomes a special token, ids never change."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghost_jax.core.errors import UserError
from ghost_jax.text.tokenizer import END, ROLES, SPECIALS, Tokenizer, load, train

CORPUS = ("hello, the attacker sends a phishing mail.", "hello again: a buffer overflow.", "Äpfel über 日本語 🙂")
VOCAB = 400  # more than the corpus has merges for, so reserved ids are in it
ANCHORS = ("hello", "goodbye", "grüß dich")


@pytest.fixture(scope="module")
def base() -> Tokenizer:
    return train(CORPUS * 5, VOCAB)


@pytest.fixture(scope="module")
def chat(base) -> Tokenizer:
    return base.with_chat_tokens(ANCHORS)


@settings(max_examples=50)
@given(data=st.binary(max_size=200), text=st.text(alphabet=st.characters(codec="utf-8"), max_size=100))
def test_any_bytes_and_any_text_come_back(chat, data, text):
    assert chat.decode_bytes(chat.encode(data)) == data
    assert chat.decode(chat.encode(text)) == text
    assert chat.encode(text) == chat.encode(text.encode())
    assert chat.encode_batch([text, "hello"]) == [chat.encode(text), chat.encode("hello")]


@given(text=st.text(st.sampled_from("\ud800\udbff\udc00\udc7f\udc80\udcff\udfffaé 🙂"), max_size=20))
def test_lone_surrogates_come_back_as_the_bytes_they_stand_for(chat, text):
    # Python writes a byte that is not UTF-8 as U+DC80..U+DCFF; any other surrogate stands for no byte.
    only_bytes = all(not 0xD800 <= ord(char) <= 0xDFFF or 0xDC80 <= ord(char) <= 0xDCFF for char in text)
    expected = text.encode("utf-8", "surrogateescape" if only_bytes else "surrogatepass")
    assert chat.decode_bytes(chat.encode(text)) == expected


def test_names_of_special_tokens_in_a_text_are_letters(chat):
    special = {chat.id(name) for name in (*SPECIALS, *ROLES, "<|reserved_0|>")}
    for name in (*SPECIALS, *ROLES, "<|reserved_0|>"):
        for pattern in ("{}", "x {} y", "hello{}hello", "{0}{0}", "\udcff{}"):
            text = pattern.format(name)
            assert not special & set(chat.encode(text)), text
            assert chat.decode_bytes(chat.encode(text)) == text.encode("utf-8", "surrogateescape")


@pytest.mark.parametrize("vocab_size", [260, 300, 1000])
@pytest.mark.parametrize("texts", [[], CORPUS], ids=["no text", "three lines"])
def test_a_vocabulary_has_the_size_that_was_asked_for(texts, vocab_size):
    tokenizer = train(texts, vocab_size)
    assert tokenizer.vocab_size == vocab_size
    assert [tokenizer.id(name) for name in SPECIALS] == [0, 1, 2, 3]
    assert tokenizer.decode_bytes(range(vocab_size))


def test_chat_tokens_are_one_token_each_and_change_no_old_id(base, chat):
    assert [chat.decode_bytes([i]) for i in range(VOCAB)] == [base.decode_bytes([i]) for i in range(VOCAB)]
    text = "An attacker sends a phishing mail; äh."
    assert chat.encode(text) == base.encode(text)
    assert not any(base.has(name) for name in ROLES)
    with pytest.raises(KeyError):
        base.id(END)
    assert [chat.id(role) for role in ROLES] == [VOCAB, VOCAB + 1, VOCAB + 2]
    assert chat.vocab_size == VOCAB + len(ROLES) + 2
    assert base.encode("hello") == [base.id("hello")] == [chat.id("hello")], "it was a token before"
    for word in ANCHORS:
        assert chat.encode(word) == [chat.id(word)]
    assert chat.id("goodbye") not in chat.encode("goodbyes"), "whole words alone"


def test_a_saved_and_loaded_vocabulary_is_the_same(chat, tmp_path):
    chat.save(tmp_path / "tokenizer.json")
    again = load(tmp_path / "tokenizer.json")
    assert (again.sha256, again.vocab_size) == (chat.sha256, chat.vocab_size)
    for text in ("hello <|ghost_end|>", b"\xff\x00", "goodbye, 日本", "".join(CORPUS)):
        assert again.encode(text) == chat.encode(text)
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]


def test_an_absent_or_damaged_file_is_named(base, tmp_path):
    with pytest.raises(UserError, match=r"gone\.json"):
        load(tmp_path / "gone.json")
    path = tmp_path / "broken.json"
    base.save(path)
    for content in (path.read_bytes()[:-200], b"", b"{", b"[]", b'{"model": 1}', b"\xff\xfe", b'{"version": "1.0"'):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"broken\.json"):
            load(path)
