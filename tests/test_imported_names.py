"""An imported vocabulary has its own names for begin, end and padding of a text; no command needs ours."""

import argparse
import ast
import json
from pathlib import Path

import numpy as np
import pytest

from evals.overlap.store_text import parts_of
from ghost_jax.chat import open_run
from ghost_jax.data.builders import pretrain
from ghost_jax.export import write_model
from ghost_jax.hub.vocabulary import read_vocabulary
from ghost_jax.inference.sampling import Sampling
from ghost_jax.model.config import ModelConfig
from ghost_jax.server.served import Model
from ghost_jax.text.chat_format import Message, render_prompt
from ghost_jax.text.tokenizer import ASSISTANT, END, ROLES, SPECIALS, USER, Tokenizer, load
from tests.test_contamination import write_dataset
from tests.test_export import make_run
from tests.test_layout import MODULES
from tests.test_vocabulary import foreign_vocabulary, save_vocabulary

ENDS = 0  # the id of <|endoftext|>, which begins and ends every text there


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, tuple[Path, Tokenizer]]:
    """Run directories of an imported base and of a chat model made of it, with their vocabularies."""
    folder = tmp_path_factory.mktemp("runs")
    vocabulary = foreign_vocabulary()
    save_vocabulary(folder / "there", vocabulary)
    base = read_vocabulary(folder / "there", vocabulary.get_vocab_size())
    for kind, tokenizer in (("base", base), ("chat", base.with_chat_tokens(["hello"]))):
        shape = ModelConfig(layers=1, width=32, heads=2, mlp_dim=48, vocab_size=tokenizer.vocab_size, context=64)
        make_run(folder / kind, shape, tokenizer)
    return {kind: (folder / kind, load(folder / kind / "tokenizer.json")) for kind in ("base", "chat")}


def test_a_vocabulary_knows_its_ids_by_what_they_do(runs):
    (_, base), (_, chat) = runs.values()
    assert not any(base.has(name) for name in ("<|pad|>", "<|unk|>", *ROLES))
    for tokenizer in (base, chat):
        assert tokenizer.bos_id == tokenizer.eos_id == tokenizer.pad_id == ENDS
    assert (base.template, base.end_ids, base.special_ids) == (None, [ENDS], [ENDS, 1])
    assert chat.decode(render_prompt(chat, [Message("user", "hello")])) == f"{USER}hello{END}{ASSISTANT}"
    assert (chat.end_ids, chat.special_ids) == ([chat.id(END), ENDS], [ENDS, 1, *map(chat.id, ROLES)])


def test_no_special_token_is_in_an_answer_of_an_imported_chat_model(runs):
    flags = argparse.Namespace(workdir=runs["chat"][0], max_new_tokens=24, seed=0, jsonl=False)
    conversation, _ = open_run(flags, Sampling(temperature=3.0), None)
    answers = [each["answer"] for each in conversation.answers(["hello", "attackers?"], 0)]
    assert any(answers)
    assert not any(name in answer for answer in answers for name in ("<|endoftext|>", "<|im_start|>", *ROLES))


@pytest.mark.parametrize("kind", ["base", "chat"])
def test_an_imported_model_is_served_and_exported_with_its_own_names(runs, tmp_path, kind):
    workdir, tokenizer = runs[kind]
    model = Model.load(workdir, rows=1, waiting=1, most=8)
    assert model.ids("hello")[0] == ENDS
    assert model.begins([ENDS])
    assert ENDS in model.stops

    write_model(tmp_path, workdir, "float32")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert {settings[f"{name}_token"] for name in ("bos", "eos", "pad")} == {"<|endoftext|>"}
    assert "unk_token" not in settings
    ends = [tokenizer.id(END), ENDS] if kind == "chat" else ENDS
    for file in ("config.json", "generation_config.json"):
        found = json.loads((tmp_path / file).read_text())
        assert (found["bos_token_id"], found["eos_token_id"], found["pad_token_id"]) == (ENDS, ends, ENDS)
    assert read_vocabulary(tmp_path, tokenizer.vocab_size).sha256 == tokenizer.sha256


def test_documents_are_split_and_found_again_by_the_vocabularys_own_ends(runs, tmp_path):
    _, tokenizer = runs["base"]
    texts = ["the attackers", "send phishing mails", "hello world"]
    rows = list(pretrain.windows(texts, tokenizer, "train", 5, source="documents"))
    ids = np.concatenate([rows[0]["tokens"], *(row["tokens"][1:] for row in rows[1:])])
    assert "<|endoftext|><|endoftext|>send phishing mails" in tokenizer.decode(ids)
    (part,) = parts_of(write_dataset(tmp_path, tokenizer, "pretrain", {"train": rows}))
    assert "<|endoftext|>send phishing mails" in [text.text for text in part.texts]


def test_only_the_vocabulary_names_begin_end_and_padding():
    """Elsewhere such a name would be looked up in a vocabulary that has another one."""
    names = {"PAD", "BOS", "EOS", "UNK", "SPECIALS"}
    for module, path in MODULES.items():
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        found = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names} & names
        found |= {node.value for node in nodes if isinstance(node, ast.Constant) and node.value in SPECIALS}
        allowed = module.startswith(("ghost_jax.text", "ghost_jax.hub.vocabulary"))
        assert allowed or not found, f"{module} names {found}"
