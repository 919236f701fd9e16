"""hub/vocabulary.py: only a byte-level BPE that decodes every text to itself is read, and it keeps its ids."""

import json
import re
from pathlib import Path
from unittest.mock import Mock

import pytest
import tokenizers
from gguf import TokenType
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from ghost_jax.core.errors import UserError
from ghost_jax.hub import gguf
from ghost_jax.hub.vocabulary import files_of, read_vocabulary
from ghost_jax.text.chat_format import Message, render
from ghost_jax.text.tokenizer import BOS, EOS, ROLES, load, train

PROMPT = "hello world, 1234 attackers 日本語\n\n"


def foreign_vocabulary(size: int = 320) -> tokenizers.Tokenizer:
    """A byte-level BPE as others make them: digits apart, one token that both begins and ends a text."""
    vocabulary = tokenizers.Tokenizer(models.BPE())
    splitters = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    vocabulary.pre_tokenizer = pre_tokenizers.Sequence(splitters)
    vocabulary.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    names = ["<|endoftext|>", "<|im_start|>"]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=names, initial_alphabet=alphabet, show_progress=False)
    vocabulary.train_from_iterator(["hello world, the attackers send phishing mails"] * 5, trainer)
    return vocabulary


def save_vocabulary(folder: Path, vocabulary: tokenizers.Tokenizer, **settings) -> None:
    folder.mkdir(exist_ok=True)
    vocabulary.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|endoftext|>"}} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPLIT = {"type": "Split", "pattern": {"Regex": "[^\\s\\p{L}]+"}, "behavior": "Isolated", "invert": False}
TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}


def sequence(*parts: dict, of: str = "pretokenizers") -> dict:
    return {"type": "Sequence", of: parts}


def added(content: str, number: int = 290, **flags) -> list[dict]:
    return [{"id": number, "content": content, **TOKEN, **flags}]


def changed(folder: Path, **change) -> Path:
    """A folder with the foreign vocabulary, changed in these fields, settings and added tokens."""
    save_vocabulary(folder, foreign_vocabulary(290), **change.pop("settings", {}))
    path = folder / "tokenizer.json"
    vocabulary = json.loads(path.read_text())
    change["model"] = vocabulary["model"] | change.get("model", {})
    change["added_tokens"] = vocabulary["added_tokens"] + change.get("added_tokens", [])
    path.write_text(json.dumps(vocabulary | change))
    return folder


def vocab_with(**tokens: int) -> dict:
    return {"vocab": json.loads(foreign_vocabulary(290).to_str())["model"]["vocab"] | tokens}


LOWERED = sequence(sequence(of="normalizers"), {"type": "Lowercase"}, of="normalizers")
CUTS = SPLIT | {"pattern": {"String": "~~"}, "behavior": "Removed"}
TOOL = {"290": {"content": "<tool>", **TOKEN}}
REFUSED = [
    ('normalizer.type is "NFKC"', {"normalizer": {"type": "NFKC"}}),
    ('normalizer.normalizers[1].type is "Lowercase"', {"normalizer": LOWERED}),
    ('pre_tokenizer.pretokenizers[0].type is "Whitespace"', {"pre_tokenizer": sequence({"type": "Whitespace"}, BYTES)}),
    ("pre_tokenizer has 0 parts", {"pre_tokenizer": None}),
    ("pre_tokenizer.add_prefix_space is true", {"pre_tokenizer": BYTES | {"add_prefix_space": True}}),
    ('pre_tokenizer.pretokenizers[0].behavior is "Removed"', {"pre_tokenizer": sequence(CUTS, BYTES)}),
    ('decoder.type is "WordPiece"', {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}),
    ('model.end_of_word_suffix is "</w>"', {"model": {"end_of_word_suffix": "</w>"}}),
    ("model.vocab lacks '!'", {"model": {"vocab": {"a": 0}, "merges": []}}),
    ("model.vocab has '▁a'", {"model": vocab_with(**{"▁a": 290})}),
    ("zq", {"model": {"merges": [["z", "q"]]}}),
    ("rstrip of the added token '<tool>' is true", {"added_tokens": added("<tool>", rstrip=True)}),
    ("the added token 'é'", {"added_tokens": added("é")}),
    ("'<tool>' has the id 290", {"added_tokens": added("<tool>", 291)}),
    ("gaps", {"model": vocab_with(zq=291)}),
    ("add_prefix_space in tokenizer_config.json", {"settings": {"add_prefix_space": True}}),
    ("'<tool>' as 290", {"settings": {"added_tokens_decoder": TOOL}}),
    ("tokenizer_config", {"settings": {"added_tokens_decoder": ["<tool>"]}}),
    *(("eos_token", {"settings": {"eos_token": token}}) for token in (None, 3, {"content": 3}, "</s>")),
]


@pytest.mark.parametrize(("why", "change"), REFUSED)
def test_a_vocabulary_that_loses_text_or_its_end_is_refused_with_the_field_and_its_value(tmp_path, why, change):
    with pytest.raises(UserError, match=rf"tokenizer\.json.*{re.escape(why)}"):
        read_vocabulary(changed(tmp_path, **change), 400)


MERGES = [" ".join(pair) for pair in json.loads(foreign_vocabulary(290).to_str())["model"]["merges"]]
NEUTRAL = {"dropout": 0.0, "end_of_word_suffix": "", "byte_fallback": True, "unk_token": "?", "later": None}
VALID = {
    "split as Llama 3": {"pre_tokenizer": sequence(SPLIT, BYTES | {"use_regex": False})},
    "no normalizer, no decoder": {"normalizer": sequence(of="normalizers"), "decoder": None},
    "neutral fields": {"model": NEUTRAL},
    "merges as strings": {"model": {"merges": MERGES}},
    "a token in texts": {"added_tokens": added("<tool>", single_word=True, normalized=True)},
    "a special token that strips": {"added_tokens": added("<tool>", special=True, lstrip=True)},
}


@pytest.mark.parametrize("what", VALID)
def test_a_valid_vocabulary_decodes_every_text_to_itself_and_always_gives_the_same_ids(tmp_path, what):
    tokenizer = read_vocabulary(changed(tmp_path, **VALID[what]), 400)
    for text in (PROMPT, "a <tool> b  ~~ <tool>", "\t é <|endoftext|> ", "the attackers send phishing mails " * 4):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(tokenizer.encode(text) == ids for _ in range(20))


def test_a_vocabulary_keeps_its_ids_and_neither_cuts_nor_pads_a_text(tmp_path):
    vocabulary = foreign_vocabulary()
    ids, count = vocabulary.encode(PROMPT).ids, vocabulary.get_vocab_size()
    vocabulary.enable_truncation(3)
    vocabulary.enable_padding(length=9)
    save_vocabulary(tmp_path, vocabulary)
    tokenizer = read_vocabulary(tmp_path, count + 7)
    chat = tokenizer.with_chat_tokens(["hello"])  # a token already
    assert tokenizer.encode(PROMPT) == chat.encode(PROMPT) == ids
    assert tokenizer.vocab_size == chat.id(ROLES[0]) == count + 7, "reserved tokens fill the rows"
    assert tokenizer.id(BOS) == chat.id(EOS) == vocabulary.token_to_id("<|endoftext|>")
    assert tokenizer.id(EOS) not in tokenizer.encode("<|endoftext|>"), "a text cannot end itself"
    with pytest.raises(UserError, match=f"{count - 1} rows"):
        read_vocabulary(tmp_path, count - 1)


def test_the_end_of_a_text_is_what_the_files_name_and_never_comes_from_a_text(tmp_path):
    without = {"eos_token": None, "bos_token": None}
    older = changed(tmp_path / "older", added_tokens=added("</s>"), settings=without)
    (older / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    tokenizer = read_vocabulary(older, 400)
    assert tokenizer.bos_id == tokenizer.eos_id == tokenizer.pad_id == 290
    assert tokenizer.eos_id not in tokenizer.encode("one</s>two")
    named = [token for number, name in enumerate((BOS, EOS), 290) for token in added(name, number, special=True)]
    tokenizer = read_vocabulary(changed(tmp_path / "named as ours", added_tokens=named), 330)
    assert tokenizer.bos_id == tokenizer.eos_id == tokenizer.id(EOS) == 0


def test_a_document_of_our_own_base_begins_with_bos_in_exports_and_a_conversation_does_not(tmp_path):
    ours = train([PROMPT], 300)
    for tokenizer, first in ((ours, ours.bos_id), (ours.with_chat_tokens([]), ours.encode(PROMPT)[0])):
        tokenizer.save(tmp_path / "run.json")
        spelled = files_of(json.loads((tmp_path / "run.json").read_text()), tokenizer, 64)["tokenizer.json"]
        assert tokenizers.Tokenizer.from_str(json.dumps(spelled)).encode(PROMPT).ids[0] == first


@pytest.mark.parametrize("begins", [True, False])
def test_what_tokenizer_config_says_of_bos_holds_for_texts_conversations_and_exports(tmp_path, begins):
    foreign = foreign_vocabulary()
    if not begins:
        first = {"single": "<|endoftext|> $A", "special_tokens": [("<|endoftext|>", 0)]}
        foreign.post_processor = processors.TemplateProcessing(**first)
    save_vocabulary(tmp_path, foreign, add_bos_token=begins)
    base = read_vocabulary(tmp_path, foreign.get_vocab_size())
    base.with_chat_tokens([]).save(tmp_path / "run.json")
    chat = load(tmp_path / "run.json")
    assert base.begins_texts == chat.begins_texts == begins
    assert (render(chat, [Message("user", "x")])[0][0] == base.bos_id) == begins
    assert chat.template.text.startswith("{{ bos_token }}") == begins
    for name, content in files_of(json.loads((tmp_path / "run.json").read_text()), chat, 64).items():
        (tmp_path / name).write_text(json.dumps(content))
    assert read_vocabulary(tmp_path, chat.vocab_size).sha256 == chat.sha256
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "chat_template.jinja").write_text(settings.pop("chat_template"))  # as newer transformers save it
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert read_vocabulary(tmp_path, chat.vocab_size).sha256 == chat.sha256
    base.save(tmp_path / "run.json")
    spelled = files_of(json.loads((tmp_path / "run.json").read_text()), base, 64)["tokenizer.json"]
    theirs = tokenizers.Tokenizer.from_str(json.dumps(spelled))
    assert theirs.encode(PROMPT).ids == [base.bos_id] * begins + base.encode(PROMPT)


def test_a_bos_in_any_script_is_found_in_the_post_processor(tmp_path):
    name, foreign = "<｜begin▁of▁sentence｜>", foreign_vocabulary()
    foreign.add_special_tokens([name])
    first = {"single": f"{name} $A", "special_tokens": [(name, foreign.token_to_id(name))]}
    foreign.post_processor = processors.TemplateProcessing(**first)
    save_vocabulary(tmp_path, foreign, bos_token=name)
    chat = read_vocabulary(tmp_path, foreign.get_vocab_size()).with_chat_tokens([])
    assert render(chat, [Message("user", "x")])[0][0] == foreign.token_to_id(name)


def test_a_gguf_file_begins_documents_alone_with_bos_and_types_added_tokens(tmp_path):
    foreign = foreign_vocabulary()
    foreign.add_tokens([tokenizers.AddedToken("<tool>", normalized=False)])
    save_vocabulary(tmp_path, foreign)
    without = read_vocabulary(tmp_path, foreign.get_vocab_size())
    begins = {"single": "<|endoftext|> $A", "special_tokens": [("<|endoftext|>", 0)]}
    foreign.post_processor = processors.TemplateProcessing(**begins)
    save_vocabulary(tmp_path, foreign)
    base = read_vocabulary(tmp_path, foreign.get_vocab_size())
    for tokenizer, adds in ((without, False), (base, True), (base.with_chat_tokens(["xyzzy"]), False)):
        writer = Mock()
        tokenizer.save(tmp_path / "run.json")
        gguf._add_vocabulary(writer, tokenizer, json.loads((tmp_path / "run.json").read_text()))
        writer.add_add_bos_token.assert_called_once_with(adds)
        (types,) = writer.add_token_types.call_args.args
        assert types[tokenizer.id("<tool>")] == TokenType.USER_DEFINED
        assert not tokenizer.has("xyzzy") or types[tokenizer.id("xyzzy")] == TokenType.NORMAL
