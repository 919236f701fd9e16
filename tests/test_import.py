"""import_model.py and hub: a Llama made elsewhere computes here what it computes there."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ghost_jax.core.errors import UserError
from ghost_jax.export import write_model
from ghost_jax.hub.llama import model_of
from ghost_jax.hub.weights import FILE, INDEX
from ghost_jax.import_model import read_model, write_run
from ghost_jax.inference.generate import Generator
from ghost_jax.parallel.mesh import make_mesh
from ghost_jax.training.loading import load_model
from tests.models import slow
from tests.test_export import CHAT, MODELS, V05, export, hugging_face, ours, theirs
from tests.test_vocabulary import PROMPT, foreign_vocabulary, save_vocabulary

LLAMAS = {name: model for name, model in MODELS.items() if model.generation == "v05"} | {
    "one head of keys": dataclasses.replace(V05, kv_heads=1),
    "shared keys, scanned": dataclasses.replace(V05, kv_heads=2, attention_bias=False, scan=True),
}
__all__ = ["hugging_face"]  # a fixture


@pytest.mark.parametrize("name", [*list(LLAMAS)[1:3], *map(slow, [*list(LLAMAS)[:1], *list(LLAMAS)[3:]])])
def test_an_export_is_imported_bit_for_bit_and_exported_byte_for_byte(tmp_path, name):
    params, out = export(tmp_path, LLAMAS[name])
    model, found, tokenizer, _ = read_model(out)
    assert model == dataclasses.replace(LLAMAS[name], scan=False)
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


SHAPES = {
    "as SmolLM2": {
        "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 36, "tie_word_embeddings": True,
        "rope_theta": 100_000.0, "rms_norm_eps": 1e-5,
    },
    "untied": {"tie_word_embeddings": False, "rope_theta": 500_000.0},
    "attention bias": {"attention_bias": True, "tie_word_embeddings": True},
    "one head of keys, wide heads": {"num_key_value_heads": 1, "head_dim": 24, "attention_bias": True},
    "as Qwen 2.5": {"model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": True, "rope_theta": 1e6},
    "as Llama 3.2": {
        "num_key_value_heads": 2, "head_dim": 24, "tie_word_embeddings": True, "rope_theta": 100.0,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_a_random_llama_computes_what_transformers_computes(hugging_face, tmp_path, shape):
    import torch

    save_vocabulary(tmp_path, foreign_vocabulary())
    torch.manual_seed(0)
    common = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    common |= {"vocab_size": 330, "max_position_embeddings": 64, "initializer_range": 0.2}
    kind = "Qwen2" if "model_type" in SHAPES[shape] else "Llama"
    config = getattr(hugging_face, f"{kind}Config")(**common | SHAPES[shape])
    there = getattr(hugging_face, f"{kind}ForCausalLM")(config)
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


def shard(folder: Path, moved: dict[str, str] | None = None, *, without: str = "", twice: str = "") -> None:
    """Splits the weights over two files; then the index names other places, or the tensors lie in another way."""
    tensors = load_file(folder / FILE)
    (folder / FILE).unlink()
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[:4], "model-2.safetensors": names[4:]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in {*held, *filter(None, [twice])}}, folder / file)
    places = {name: file for file, held in parts.items() for name in held if name != without} | (moved or {})
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


def config(key: str, value: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    return change


def tensor(name: str, values: np.ndarray | None) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / FILE)
        tensors.pop(name, None)
        save_file(tensors | ({} if values is None else {name: values}), folder / FILE)

    return change


def text(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


K, HEAD = "model.layers.1.self_attn.k_proj.weight", "lm_head.weight"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}
UNSUPPORTED = {
    "model_type": "gpt2", "mlp_bias": True, "hidden_act": "gelu", "quantization_config": {}, "sliding_window": 4096,
    "attn_logit_softcapping": 50.0, "rope_interleaved": True, "residual_multiplier": 0.22, "partial_rotary_factor": 0.2,
    "auto_map": {"AutoModel": "own.Model"}, "architectures": ["LlamaForTokenClassification"], "vocab_size": [],
    "max_position_embeddings": 0, "num_hidden_layers": -1, "hidden_size": 32.5, "num_attention_heads": "4",
    "intermediate_size": True, "rope_theta": float("inf"), "rms_norm_eps": "1e-5", "tie_word_embeddings": "false",
    "num_key_value_heads": 3,
}  # fmt: skip
REFUSED = [
    *((key, config(key, value)) for key, value in UNSUPPORTED.items()),
    ("max_position_embeddings 2147483648", config("max_position_embeddings", 2**31)),
    ("vocab_size", config("vocab_size", None)),
    ("linear", config("rope_scaling", {"rope_type": "linear", "factor": 2.0})),
    ("partial_rotary_factor", config("rope_parameters", {"partial_rotary_factor": 0.5})),
    ("factor", config("rope_scaling", {"rope_type": "llama3"})),
    ("low_freq_factor", config("rope_scaling", LLAMA3)),
    ("rope_scaling", config("rope_scaling", [8.0])),
    ("config.json", text("config.json", "[]")),
    ("config.json", lambda folder: (folder / "config.json").unlink()),
    ("[48, 32]", config("head_dim", 12)),
    (K, tensor(K, None)),
    ("I8 [32, 32]", tensor(K, np.zeros((32, 32), np.int8))),
    ("F64 [32, 32]", tensor(K, np.zeros((32, 32), np.float64))),
    (K, tensor(K, np.full((32, 32), np.nan, np.float16))),
    ("model.norm.weight", tensor("model.norm.weight", np.array([1.0] * 31 + [np.inf], np.float32))),
    (HEAD, tensor(HEAD, np.zeros((CHAT.vocab_size, 32), np.float32))),
    (HEAD, tensor(HEAD, np.zeros((9, 32), np.float32))),
    ("adapter", tensor("adapter", np.zeros(3, np.float32))),
    ("two checkpoints", text(INDEX, json.dumps({"weight_map": {K: "model-1.safetensors"}}))),
    (INDEX, text(INDEX, '{"weight_map": ["model.safetensors"]}')),
    ("model-9.safetensors", lambda folder: shard(folder, {K: "model-9.safetensors"})),
    (f"{K} in model-1.safetensors", lambda folder: shard(folder, {K: "model-1.safetensors"})),
    (f"{K} in model-2.safetensors", lambda folder: shard(folder, without=K)),
    (f"{K} in model-1.safetensors", lambda folder: shard(folder, twice=K)),
    (FILE, text(FILE, "\x08")),
    ("pickle", lambda folder: (folder / FILE).rename(folder / "pytorch_model.bin")),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return export(tmp_path_factory.mktemp("checkpoint"), V05)[1]


@pytest.fixture
def copy(checkpoint, tmp_path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "copy")


@pytest.mark.parametrize(("named", "break_"), REFUSED, ids=[named for named, _ in REFUSED])
def test_a_checkpoint_that_cannot_be_computed_is_refused_with_the_reason(copy, named, break_):
    break_(copy)
    with pytest.raises(UserError) as refusal:
        read_model(copy)
    assert named in str(refusal.value)


def test_a_tied_head_written_twice_computed_buffers_and_several_files_are_read(copy, checkpoint):
    embedding = load_file(copy / FILE)["model.embed_tokens.weight"]
    tensor("lm_head.weight", embedding)(copy)
    tensor("model.layers.0.self_attn.rotary_emb.inv_freq", np.ones(8, np.float32))(copy)
    shard(copy)
    model, params, *_ = read_model(copy)
    assert model == V05
    jax.tree.map(np.testing.assert_array_equal, params, read_model(checkpoint)[1])


def test_a_null_in_an_optional_field_is_its_absence(checkpoint):
    given = json.loads((checkpoint / "config.json").read_text())
    for key in (
        "quantization_config",
        "rope_scaling",
        "head_dim",
        "num_key_value_heads",
        "attention_bias",
        "rope_theta",
    ):
        assert model_of(given | {key: None}) == model_of({k: v for k, v in given.items() if k != key})
    assert model_of(given | {"rope_scaling": {"rope_type": None, "factor": None}}) == model_of(given)


def test_the_command_makes_a_finished_run_and_overwrites_none(ghost, checkpoint, tmp_path):
    workdir, new = tmp_path / "runs" / "llama", tmp_path / "new"
    command = ("ghost_jax.import_model", f"--from={checkpoint}", f"--workdir={workdir}")
    assert "LlamaForCausalLM" in ghost.here(*command).stdout
    model, params, step = load_model(workdir, make_mesh())
    assert (model, step) == (V05, 0)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), read_model(checkpoint)[1])
    files = {"config.json", "data.json", "environment.json", "status.json", "tokenizer.json", "checkpoints"}
    assert {path.name for path in workdir.iterdir()} == files
    assert str(workdir) in ghost.refused_here(*command)
    assert "nowhere" in ghost.refused_here(command[0], "--from=nowhere", f"--workdir={new}")
    assert not new.exists()
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.slow
def test_an_imported_model_is_tuned_and_scored_by_the_ordinary_commands(ghost, tmp_path):
    _, out = export(tmp_path, dataclasses.replace(V05, kv_heads=2, tied=False, attention_bias=False, context=512))
    save_vocabulary(out, foreign_vocabulary(CHAT.vocab_size))
    runs = tmp_path / "runs"
    base, chat, again, exported = runs / "llama", runs / "chat", runs / "again", tmp_path / "exported"
    ghost.here("ghost_jax.import_model", f"--from={out}", f"--workdir={base}")
    flags = [f"--config.{key}" for key in ("steps=2", "data.seq_len=128", "eval_every=2", "save_every=2")]
    tune = ("ghost_jax.train", "--config=configs/chat_v5.py:nano", f"--base={base}", f"--workdir={chat}", *flags)
    assert "whatever llama was trained on" in ghost(*tune).stdout  # its data were not searched for the items
    model, _, step = load_model(chat, make_mesh())
    assert (model.kv_heads, model.tied, step) == (2, False, 2)
    score = json.loads((chat / "evals" / "ctibench.json").read_text())
    assert score["contamination"]["not_searched"] == ["whatever llama was trained on"]
    ghost.here("ghost_jax.export", f"--workdir={chat}", f"--out={exported}")
    ghost.here("ghost_jax.import_model", f"--from={exported}", f"--workdir={again}")
    both = [jax.device_get(load_model(run, make_mesh())[1]) for run in (chat, again)]
    jax.tree.map(np.testing.assert_array_equal, *both)
    ghost.here("ghost_jax.report", f"--runs={runs}", f"--out={tmp_path / 'report'}")
    assert "base run" in ghost.refused(*tune[:2], f"--base={chat}", f"--workdir={runs / 'on a chat'}", code=2)
