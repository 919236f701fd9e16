"""ghost_jax/import_model.py and ghost_jax/hf: a Llama from elsewhere computes here what it computes there."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from ghost_jax.checkpoint import load_model
from ghost_jax.errors import UserError
from ghost_jax.export import write_model
from ghost_jax.generate import Generator
from ghost_jax.hf.vocabulary import adopt
from ghost_jax.hf.weights import INDEX
from ghost_jax.import_model import read_model, write_run
from ghost_jax.model.sizes import ModelConfig
from ghost_jax.parallel.mesh import make_mesh
from ghost_jax.text.tokenizer import BOS, EOS, ROLES, load
from tests.test_export import CHAT, MODELS, V05, hugging_face, make_run, ours, theirs

LLAMAS = {name: model for name, model in MODELS.items() if model.generation == "v05"} | {
    "shared keys": dataclasses.replace(V05, kv_heads=1),
    "shared keys, scanned": dataclasses.replace(V05, kv_heads=2, attention_bias=False, scan=True),
    "a head of its own": dataclasses.replace(V05, tied=False),
}
PROMPT = "hello world, 1234 attackers 日本語\n\n"
__all__ = ["hugging_face"]  # a fixture

pytestmark = pytest.mark.usefixtures("compile_quickly")


def exported(tmp_path: Path, model: ModelConfig) -> tuple[dict, Path]:
    """The parameters of a run, and the folder it is exported to, which stands for a checkpoint from elsewhere."""
    params, out = make_run(tmp_path / "run", model, CHAT), tmp_path / "out"
    out.mkdir()
    write_model(out, tmp_path / "run", "float32", 10**9)
    return params, out


def foreign_vocabulary(size: int = 320, **changes) -> tokenizers.Tokenizer:
    """A byte-level BPE as others make them: digits apart, one token that both begins and ends a text."""
    vocabulary = tokenizers.Tokenizer(models.BPE())
    splitters = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    vocabulary.pre_tokenizer = pre_tokenizers.Sequence(splitters)
    vocabulary.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    names = ["<|endoftext|>", "<|im_start|>"]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=names, initial_alphabet=alphabet, show_progress=False)
    vocabulary.train_from_iterator(["hello world, the attackers send phishing mails"] * 5, trainer)
    for attribute, value in changes.items():
        setattr(vocabulary, attribute, value)
    return vocabulary


def save_vocabulary(folder: Path, vocabulary: tokenizers.Tokenizer, **settings) -> None:
    folder.mkdir(exist_ok=True)
    vocabulary.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|endoftext|>"}} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


# ---- There and back ----


@pytest.mark.parametrize("name", LLAMAS)
def test_what_was_exported_comes_back_bit_for_bit(tmp_path, name):
    params, out = exported(tmp_path, LLAMAS[name])
    model, found, tokenizer, _ = read_model(out)
    assert model == dataclasses.replace(LLAMAS[name], scan=False)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert tokenizer.sha256 == CHAT.sha256


@pytest.mark.parametrize("name", ["shared keys", "a head of its own", "v05 with stretched positions"])
def test_an_imported_run_is_exported_as_it_came(tmp_path, name):
    _, out = exported(tmp_path, LLAMAS[name])
    run, again = tmp_path / "imported", tmp_path / "again"
    run.mkdir()
    again.mkdir()
    write_run(run, "imported", out)
    write_model(again, run, "float32", 10**9)
    for file in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (again / file).read_bytes() == (out / file).read_bytes(), file
    configs = [json.loads((folder / "config.json").read_text()) for folder in (out, again)]
    assert [config.pop("ghost_jax")["run"] for config in configs] == ["run", "imported"]
    assert configs[0] == configs[1]


# ---- Parity with transformers ----

SHAPES = {
    "as SmolLM2": {
        "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 36, "tie_word_embeddings": True,
        "rope_theta": 100_000.0, "rms_norm_eps": 1e-5,
    },
    "untied": {"tie_word_embeddings": False, "rope_theta": 500_000.0},
    "attention bias": {"attention_bias": True, "tie_word_embeddings": True},
    "one head of keys, wide heads": {"num_key_value_heads": 1, "head_dim": 24, "attention_bias": True},
    "as Llama 3.2": {
        "num_key_value_heads": 2, "head_dim": 24, "tie_word_embeddings": True, "rope_theta": 100.0,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_a_random_llama_computes_what_transformers_computes(hugging_face, tmp_path, shape):
    import torch

    save_vocabulary(tmp_path, foreign_vocabulary())
    torch.manual_seed(0)
    common = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    common |= {"vocab_size": 330, "max_position_embeddings": 64, "initializer_range": 0.2}
    there = hugging_face.LlamaForCausalLM(hugging_face.LlamaConfig(**common | SHAPES[shape]))
    with torch.no_grad():
        for name, parameter in there.named_parameters():
            if "bias" in name or "norm" in name:  # which start as zeros and ones
                parameter.add_(0.2 * torch.randn_like(parameter))
    there.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="20KB")
    model, params, tokenizer, files = read_model(tmp_path)
    assert (model.rope_factor, model.rope_base) == (
        SHAPES[shape].get("rope_scaling", {"factor": 1})["factor"],
        SHAPES[shape].get("rope_theta", 10_000.0),
    )
    assert len(files) > 1
    assert model.vocab_size == tokenizer.vocab_size == 330

    ids = tokenizer.encode(PROMPT)
    expected = theirs(hugging_face, tmp_path, ids, dtype=torch.float32)
    assert np.abs(expected).max() > 2  # else a tolerance of 1e-4 says little
    np.testing.assert_allclose(ours(model, params, ids), expected, rtol=0, atol=1e-4)

    there = hugging_face.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    settings = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": 0, "pad_token_id": 0}
    text = there.generate(torch.tensor([ids]), **settings)[0].tolist()[len(ids) :]
    generate = Generator(model, params, make_mesh(), batch_size=1, new_tokens=16, stop_ids=[0])
    assert generate([np.array(ids)])[0].tolist() == [i for i in text if i]


# ---- Vocabularies ----


def test_a_vocabulary_from_elsewhere_keeps_its_ids_and_answers_to_our_names(tmp_path):
    vocabulary = foreign_vocabulary()
    save_vocabulary(tmp_path, vocabulary)
    count = vocabulary.get_vocab_size()
    tokenizer = adopt(tmp_path, count + 7)
    assert tokenizer.vocab_size == count + 7  # rows without a token have one now
    assert tokenizer.id(BOS) == tokenizer.id(EOS) == vocabulary.token_to_id("<|endoftext|>")
    assert tokenizer.encode(PROMPT) == vocabulary.encode(PROMPT).ids
    assert tokenizer.decode(tokenizer.encode(PROMPT)) == PROMPT
    assert tokenizer.id(EOS) not in tokenizer.encode("<|endoftext|>")  # a text cannot end itself

    tokenizer.save(tmp_path / "run.json")
    chat = load(tmp_path / "run.json").with_chat_tokens(["hello"])
    assert chat.id(EOS) == tokenizer.id(EOS)
    assert [chat.id(role) for role in ROLES] == [count + 7, count + 8, count + 9]
    assert chat.encode(PROMPT) == tokenizer.encode(PROMPT)  # "hello" was a token already


REFUSED_VOCABULARIES = {
    "no BPE": {"model": models.WordLevel({"a": 0}, "a")},
    "does not spell text in bytes": {"pre_tokenizer": pre_tokenizers.Metaspace()},
    "puts a blank before every text": {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)},
    "changes text before it reads it (NFC)": {"normalizer": normalizers.NFC()},
    "not spelt in the 256 bytes": {"model": models.BPE({"▁a": 0}, [])},
    "marks of where a word ends": {"model": models.BPE({"a": 0}, [], end_of_word_suffix="</w>")},
}


@pytest.mark.parametrize("why", REFUSED_VOCABULARIES)
def test_a_vocabulary_that_is_no_byte_level_bpe_is_refused_with_the_reason(tmp_path, why):
    save_vocabulary(tmp_path, foreign_vocabulary(**REFUSED_VOCABULARIES[why]))
    with pytest.raises(UserError) as refusal:
        adopt(tmp_path, 400)
    assert why in str(refusal.value)


def test_a_vocabulary_that_is_absent_broken_too_large_or_without_an_end_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no tokenizer"):
        adopt(tmp_path, 400)
    save_vocabulary(tmp_path, foreign_vocabulary())
    with pytest.raises(UserError, match="of another model"):
        adopt(tmp_path, 200)
    for no_token in (None, 3, {"content": 3}, "</s>"):
        save_vocabulary(tmp_path, foreign_vocabulary(), eos_token=no_token)
        with pytest.raises(UserError, match="does not say which token ends a text"):
            adopt(tmp_path, 400)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(UserError, match=r"tokenizer_config\.json is broken"):
        adopt(tmp_path, 400)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is no tokenizer"):
        adopt(tmp_path, 400)


# ---- What is refused ----


def change_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_tensors(folder: Path, changed: dict, without: str = "") -> None:
    path = folder / "model.safetensors"
    tensors = {name: values for name, values in load_file(path).items() if name != without}
    save_file(tensors | changed, path)


K = "model.layers.1.self_attn.k_proj.weight"
LINEAR = {"rope_type": "linear", "factor": 2.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}
REFUSED = {
    "is a gpt2 model, and only the Llama": functools.partial(change_config, model_type="gpt2"),
    "rotary positions scaled by linear": functools.partial(change_config, rope_scaling=LINEAR),
    "rotary positions scaled by yarn": functools.partial(change_config, rope_parameters={"rope_type": "yarn"}),
    "lacks 'factor'": functools.partial(change_config, rope_scaling={"rope_type": "llama3"}),
    "the first must be below the second": functools.partial(change_config, rope_scaling=LLAMA3),
    "in a part of each head": functools.partial(change_config, rope_parameters={"partial_rotary_factor": 0.5}),
    "rope_scaling in config.json is no JSON object": functools.partial(change_config, rope_scaling=[8.0]),
    "0 as max_position_embeddings": functools.partial(change_config, max_position_embeddings=0),
    "-1 as num_hidden_layers": functools.partial(change_config, num_hidden_layers=-1),
    "32.5 as hidden_size": functools.partial(change_config, hidden_size=32.5),
    '"4" as num_attention_heads': functools.partial(change_config, num_attention_heads="4"),
    "0 as num_key_value_heads": functools.partial(change_config, num_key_value_heads=0),
    "true as intermediate_size": functools.partial(change_config, intermediate_size=True),
    "[] as vocab_size": functools.partial(change_config, vocab_size=[]),
    "2147483648 as max_position_embeddings": functools.partial(change_config, max_position_embeddings=2**31),
    "Infinity as rope_theta": functools.partial(change_config, rope_theta=float("inf")),
    '"1e-5" as rms_norm_eps': functools.partial(change_config, rms_norm_eps="1e-5"),
    '"false" as tie_word_embeddings': functools.partial(change_config, tie_word_embeddings="false"),
    "lacks 'vocab_size'": functools.partial(change_config, vocab_size=None),
    "config.json is no JSON object": lambda folder: (folder / "config.json").write_text("[]"),
    "index.json is broken": lambda folder: (folder / INDEX).write_text('{"weight_map": ["model.safetensors"]}'),
    "a bias in its feed-forward layers": functools.partial(change_config, mlp_bias=True),
    "the activation gelu": functools.partial(change_config, hidden_act="gelu"),
    "quantised weights": functools.partial(change_config, quantization_config={}),
    "no model can have": functools.partial(change_config, num_key_value_heads=3),
    "config.json asks for [48, 32]": functools.partial(change_config, head_dim=12),
    f"lacks the tensor {K}": functools.partial(change_tensors, changed={}, without=K),
    "is I8 [32, 32]": functools.partial(change_tensors, changed={K: np.zeros((32, 32), np.int8)}),
    "has 1 tensors that no Llama": functools.partial(change_tensors, changed={"adapter": np.zeros(3, np.float32)}),
    "damaged or cut short": lambda folder: (folder / "model.safetensors").write_bytes(b"\x08"),
    "Only safetensors are read": lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
    "holds no checkpoint": lambda folder: (folder / "config.json").unlink(),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return exported(tmp_path_factory.mktemp("checkpoint"), V05)[1]


@pytest.mark.parametrize("why", REFUSED)
def test_a_checkpoint_that_cannot_be_computed_is_refused_with_the_reason(checkpoint, tmp_path, why):
    folder = tmp_path / "broken"
    folder.mkdir()
    for path in checkpoint.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    REFUSED[why](folder)
    with pytest.raises(UserError) as refusal:
        read_model(folder)
    assert why in str(refusal.value)


def test_a_tied_head_that_is_written_twice_is_no_stranger(checkpoint, tmp_path):
    for path in checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    change_tensors(tmp_path, {"lm_head.weight": np.zeros((V05.vocab_size, 32), np.float32)})
    assert read_model(tmp_path)[0] == V05


# ---- The command ----


def test_the_command_makes_a_finished_run_and_overwrites_none(ghost, checkpoint, tmp_path):
    workdir, new, list_ = tmp_path / "runs" / "llama", tmp_path / "new", tmp_path / "list"
    list_.mkdir()
    (list_ / "config.json").write_text("[]")
    command = ("ghost_jax.import_model", f"--from={checkpoint}", f"--workdir={workdir}")
    assert "LlamaForCausalLM" in ghost(*command).stdout
    model, params, step = load_model(workdir, make_mesh())
    assert (model, step) == (V05, 0)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), read_model(checkpoint)[1])
    files = {"config.json", "data.json", "environment.json", "status.json", "tokenizer.json", "checkpoints"}
    assert {path.name for path in workdir.iterdir()} == files
    said = ghost.together(
        {
            "holds something already": lambda: ghost.refused(*command),
            "holds no checkpoint": lambda: ghost.refused(command[0], "--from=nowhere", f"--workdir={new}"),
            "is no JSON object": lambda: ghost.refused(command[0], f"--from={list_}", f"--workdir={new}"),
        }
    )
    for expected, paragraph in said.items():
        assert expected in paragraph
    assert not new.exists()
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.slow
def test_an_imported_model_is_tuned_and_scored_by_the_ordinary_commands(ghost, tmp_path):
    shape = dataclasses.replace(V05, kv_heads=2, tied=False, attention_bias=False, context=512)
    _, out = exported(tmp_path, shape)
    save_vocabulary(out, foreign_vocabulary(CHAT.vocab_size))
    runs = tmp_path / "runs"
    base, chat, again = runs / "llama", runs / "chat", runs / "again"
    ghost("ghost_jax.import_model", f"--from={out}", f"--workdir={base}")
    flags = [f"--config.{key}" for key in ("steps=2", "data.seq_len=128", "eval_every=2", "save_every=2")]
    tune = ("ghost_jax.train", "--config=configs/chat_v5.py:nano", f"--base={base}", f"--workdir={chat}", *flags)
    said = ghost(*tune).stdout
    assert "whatever llama was trained on" in said  # its data were not searched for the items
    model, _, step = load_model(chat, make_mesh())
    assert (model.kv_heads, model.tied, step) == (2, False, 2)
    score = json.loads((chat / "evals" / "ctibench.json").read_text())
    assert score["contamination"]["not_searched"] == ["whatever llama was trained on"]
    out = tmp_path / "exported"
    ghost("ghost_jax.export", f"--workdir={chat}", f"--out={out}")
    ghost("ghost_jax.import_model", f"--from={out}", f"--workdir={again}")
    jax.tree.map(
        np.testing.assert_array_equal,
        *(jax.device_get(load_model(run, make_mesh())[1]) for run in (chat, again)),
    )
    ghost("ghost_jax.report", f"--runs={runs}", f"--out={tmp_path / 'report'}")
    refused = ghost.refused(*tune[:2], f"--base={chat}", f"--workdir={runs / 'on a chat'}", code=2)
    assert "must be a base run" in refused
