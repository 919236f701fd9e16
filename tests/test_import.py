"""import_model.py and hub: a Llama made elsewhere computes here what it computes there, by its own vocabulary."""

import argparse
import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from evals.overlap.store_text import parts_of
from ghost_jax.chat import open_run
from ghost_jax.core.errors import UserError
from ghost_jax.data.builders import pretrain
from ghost_jax.export import write_model
from ghost_jax.hub import llama
from ghost_jax.hub.vocabulary import read_vocabulary
from ghost_jax.hub.weights import FILE, INDEX
from ghost_jax.import_model import read_model, write_run
from ghost_jax.inference.sampling import Sampling
from ghost_jax.parallel.mesh import make_mesh
from ghost_jax.server import served
from ghost_jax.server.served import Model
from ghost_jax.text.tokenizer import END, ROLES, Tokenizer
from ghost_jax.training.loading import load_model
from tests.models import slow
from tests.test_contamination import write_dataset
from tests.test_export import CHAT, MODELS, V05, export, hugging_face, make_run, ours, theirs
from tests.test_vocabulary import PROMPT, foreign_vocabulary, save_vocabulary

LLAMAS = [name for name in MODELS if name != "v04"]
__all__ = ["hugging_face"]  # a fixture


@pytest.mark.parametrize("name", [*LLAMAS[1:3], slow(LLAMAS[0]), slow(LLAMAS[3])])
def test_an_export_is_imported_bit_for_bit_and_exported_byte_for_byte(tmp_path, name):
    params, out = export(tmp_path, MODELS[name])
    model, found, tokenizer, _ = read_model(out)
    assert model == dataclasses.replace(MODELS[name], scan=False)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert tokenizer.sha256 == CHAT.sha256
    run, again = tmp_path / "imported", tmp_path / "again"
    run.mkdir()
    again.mkdir()
    write_run(run, "imported", out)
    write_model(again, run, "float32")
    for file in (FILE, "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (again / file).read_bytes() == (out / file).read_bytes(), file
    configs = [json.loads((folder / "config.json").read_text()) for folder in (out, again)]
    assert [config.pop("ghost_jax")["run"] for config in configs] == ["run", "imported"]
    assert configs[0] == configs[1]


LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}
SHAPES = {
    "as SmolLM2": {
        "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 36, "tie_word_embeddings": True,
        "rope_theta": 100_000.0, "rms_norm_eps": 1e-5,
    },
    "untied, wide heads": {"num_key_value_heads": 1, "head_dim": 24, "attention_bias": True, "rope_theta": 500_000.0},
    "as Qwen 2.5": {"model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": True, "rope_theta": 1e6},
    "as Llama 3.2": {
        "num_key_value_heads": 2, "head_dim": 24, "tie_word_embeddings": True, "rope_theta": 100.0,
        "rope_scaling": LLAMA3,
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_a_random_llama_computes_what_transformers_computes(hugging_face, tmp_path, shape):
    import torch

    save_vocabulary(tmp_path, foreign_vocabulary())
    torch.manual_seed(0)
    common = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    common |= {"vocab_size": 330, "max_position_embeddings": 64, "initializer_range": 0.2, "tie_word_embeddings": False}
    kind = "Qwen2" if "model_type" in SHAPES[shape] else "Llama"
    config = getattr(hugging_face, f"{kind}Config")(**common | SHAPES[shape])
    there = getattr(hugging_face, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in there.named_parameters():
            if "bias" in name or "norm" in name:  # which start as zeros and ones
                parameter.add_(0.2 * torch.randn_like(parameter))
    there.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="20KB")
    model, params, tokenizer, files = read_model(tmp_path)
    assert len(files) > 1
    assert model.vocab_size == tokenizer.vocab_size == 330
    ids = tokenizer.encode(PROMPT)
    expected = theirs(hugging_face, tmp_path, ids, dtype=torch.float32)
    assert np.abs(expected).max() > 2  # else a tolerance of 1e-4 says little
    np.testing.assert_allclose(ours(model, params, ids), expected, rtol=0, atol=1e-4)


CONFIG = llama.config_of(V05)
NOT_COMPUTED = {
    "model_type": "gpt2", "mlp_bias": True, "hidden_act": "gelu", "quantization_config": {}, "sliding_window": 4096,
    "residual_multiplier": 0.22, "auto_map": {"AutoModel": "own.Model"},
}  # fmt: skip
INVALID = {
    "vocab_size": None, "max_position_embeddings": 2**31, "num_hidden_layers": 0, "hidden_size": 32.5,
    "intermediate_size": True, "rope_theta": float("inf"), "tie_word_embeddings": "false", "num_key_value_heads": 3,
}  # fmt: skip
REFUSED = [
    ("architectures", {"architectures": ["LlamaForTokenClassification"]}),
    *((key, {key: value}) for key, value in (NOT_COMPUTED | INVALID).items()),
    ("layers is 1000000000", {"num_hidden_layers": 10**9}),
    ("rope_theta", {"rope_theta": 10**400}),
    ("linear", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    ("partial_rotary_factor", {"rope_parameters": {"partial_rotary_factor": 0.5}}),
    ("factor", {"rope_scaling": {"rope_type": "llama3"}}),
    ("low_freq_factor", {"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}),
    ("rope_scaling", {"rope_scaling": [8.0]}),
]


@pytest.mark.parametrize(("named", "change"), REFUSED)
def test_a_config_that_our_model_does_not_compute_is_refused_by_its_field(named, change):
    with pytest.raises(UserError, match=named):
        llama.model_of(CONFIG | change)


def test_a_null_in_an_optional_field_is_its_absence():
    optional = ("head_dim", "num_key_value_heads", "attention_bias", "rope_theta")
    for key in ("quantization_config", "rope_scaling", *optional):
        assert llama.model_of(CONFIG | {key: None}) == llama.model_of({k: v for k, v in CONFIG.items() if k != key})
    assert llama.model_of(CONFIG | {"rope_scaling": {"rope_type": None, "factor": None}}) == llama.model_of(CONFIG)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return export(tmp_path_factory.mktemp("checkpoint"), V05)[1]


@pytest.fixture
def copy(checkpoint, tmp_path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "copy")


def replace(folder: Path, tensors: dict[str, np.ndarray | None]) -> None:
    kept = {name: values for name, values in (load_file(folder / FILE) | tensors).items() if values is not None}
    save_file(kept, folder / FILE)


def shard(folder: Path, moved: dict[str, str] | None = None) -> None:
    """Splits the weights over two files; the index names other places for those that are `moved`."""
    tensors, places = load_file(folder / FILE), {}
    (folder / FILE).unlink()
    names = sorted(tensors)
    for file, held in (("model-1.safetensors", names[:4]), ("model-2.safetensors", names[4:])):
        save_file({name: tensors[name] for name in held}, folder / file)
        places |= dict.fromkeys(held, file)
    write_index(folder, places | (moved or {}))


def write_index(folder: Path, places: object) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


def edit_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


K, NORM, HEAD = "model.layers.1.self_attn.k_proj.weight", "model.norm.weight", "lm_head.weight"
DAMAGES = [
    ("config.json", lambda folder: (folder / "config.json").write_text("[]")),
    ("config.json", lambda folder: (folder / "config.json").unlink()),
    ("holds no checkpoint", lambda folder: (folder / "config.json").write_text("[" * 100_000)),
    (K, lambda folder: replace(folder, {K: None})),
    ("F32 [9, 32]", lambda folder: replace(folder, {K: np.zeros((9, 32), np.float32)})),
    ("I8 [32, 32]", lambda folder: replace(folder, {K: np.zeros((32, 32), np.int8)})),
    (NORM, lambda folder: replace(folder, {NORM: np.array([1.0] * 31 + [np.inf], np.float32)})),
    (HEAD, lambda folder: replace(folder, {HEAD: np.zeros((CHAT.vocab_size, 32), np.float32)})),
    ("adapter", lambda folder: replace(folder, {"adapter": np.zeros(3, np.float32)})),
    ("two checkpoints", lambda folder: write_index(folder, {K: "model-1.safetensors"})),
    (INDEX, lambda folder: write_index(folder, [FILE])),
    (f"{INDEX} is corrupt", lambda folder: (folder / INDEX).write_text("[" * 100_000)),
    ("hold fewer", lambda folder: edit_config(folder, vocab_size=1 << 20)),
    ("hold fewer", lambda folder: edit_config(folder, num_hidden_layers=512)),
    ("layer_types 5", lambda folder: edit_config(folder, model_type="qwen2", layer_types=5)),
    ("model-9.safetensors", lambda folder: shard(folder, {K: "model-9.safetensors"})),
    (f"{NORM} in model-1.safetensors", lambda folder: shard(folder, {NORM: "model-1.safetensors"})),
    (FILE, lambda folder: (folder / FILE).write_text("\x08")),
    ("pickle", lambda folder: (folder / FILE).rename(folder / "pytorch_model.bin")),
]


@pytest.mark.parametrize(("named", "damage"), DAMAGES, ids=[named for named, _ in DAMAGES])
def test_a_checkpoint_that_is_not_complete_is_refused_with_the_reason(copy, named, damage):
    damage(copy)
    with pytest.raises(UserError, match=re.escape(named)):
        read_model(copy)


def test_a_tied_head_written_twice_computed_buffers_and_several_files_are_read(copy, checkpoint):
    embedding = load_file(copy / FILE)["model.embed_tokens.weight"]
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    replace(copy, {HEAD: embedding, buffer: np.ones(8, np.float32)})
    shard(copy)
    model, params, *_ = read_model(copy)
    assert model == V05
    jax.tree.map(np.testing.assert_array_equal, params, read_model(checkpoint)[1])


def test_the_command_makes_a_finished_run_and_overwrites_none(ghost, checkpoint, tmp_path):
    workdir, new = tmp_path / "runs" / "llama", tmp_path / "new"
    command = ("ghost_jax.import_model", f"--from={checkpoint}", f"--workdir={workdir}")
    ghost.here(*command)
    model, params, step = load_model(workdir, make_mesh())
    assert (model, step) == (V05, 0)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), read_model(checkpoint)[1])
    files = {"config.json", "data.json", "environment.json", "status.json", "tokenizer.json", "checkpoints"}
    assert {path.name for path in workdir.iterdir()} == files
    assert str(workdir) in ghost.refused_here(*command)
    assert "nowhere" in ghost.refused_here(command[0], "--from=nowhere", f"--workdir={new}")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


ENDS = 0  # the id of <|endoftext|>, which begins and ends every text there


def foreign_base(folder: Path) -> Tokenizer:
    """Returns the foreign vocabulary as a base model has it, its files in `folder`."""
    vocabulary = foreign_vocabulary()
    save_vocabulary(folder, vocabulary)
    return read_vocabulary(folder, vocabulary.get_vocab_size())


@pytest.mark.parametrize("kind", ["base", "chat"])
def test_an_imported_model_is_served_asked_and_exported_with_its_own_names(monkeypatch, tmp_path, kind):
    base, run = foreign_base(tmp_path / "there"), tmp_path / "run"
    tokenizer = base if kind == "base" else base.with_chat_tokens(["hello"])
    make_run(run, dataclasses.replace(V05, vocab_size=tokenizer.vocab_size), tokenizer)
    model = Model.load(run, rows=1, waiting=1, most=8)
    assert model.ids("hello").tolist() == tokenizer.encode("hello"), "its vocabulary puts nothing in front of a text"
    assert model.ids("").tolist() == [ENDS]
    assert ENDS in model.stops
    monkeypatch.setattr(served, "MOST_SLOTS", 96)
    assert Model.load(run, rows=4, waiting=1, most=8).context == 24 < model.context

    if kind == "chat":
        flags = argparse.Namespace(workdir=run, max_new_tokens=24, seed=0, jsonl=False, book="closed")
        conversation, _ = open_run(flags, Sampling(temperature=3.0))
        answers = [each["answer"] for each in conversation.answers(["hello", "attackers?"], 0)]
        assert any(answers)
        assert not any(name in answer for answer in answers for name in ("<|endoftext|>", "<|im_start|>", *ROLES))

    write_model(tmp_path, run, "float32")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert {settings[f"{name}_token"] for name in ("bos", "eos", "pad")} == {"<|endoftext|>"}
    assert "unk_token" not in settings
    ends = [tokenizer.id(END), ENDS] if kind == "chat" else ENDS
    for file in ("config.json", "generation_config.json"):
        found = json.loads((tmp_path / file).read_text())
        assert (found["bos_token_id"], found["eos_token_id"], found["pad_token_id"]) == (ENDS, ends, ENDS)
    assert read_vocabulary(tmp_path, tokenizer.vocab_size).sha256 == tokenizer.sha256


def test_documents_are_split_and_found_again_by_the_vocabularys_own_ends(tmp_path):
    tokenizer, texts = foreign_base(tmp_path / "there"), ["the attackers", "send phishing mails", "hello world"]
    rows = list(pretrain.windows(texts, tokenizer, "train", 5, source="documents"))
    ids = np.concatenate([rows[0]["tokens"], *(row["tokens"][1:] for row in rows[1:])])
    assert "<|endoftext|><|endoftext|>send phishing mails" in tokenizer.decode(ids)
    (part,) = parts_of(write_dataset(tmp_path / "store", tokenizer, "pretrain", {"train": rows}))
    assert "<|endoftext|>send phishing mails" in [text.text for text in part.texts]
