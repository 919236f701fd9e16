"""model/lora.py: adapters alone are trained and kept, and added to their base they are the model, here and in peft."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from huggingface_hub import ModelCard

from ghost_jax.core.errors import UserError
from ghost_jax.export import write_model
from ghost_jax.hub.peft import BASE
from ghost_jax.model.config import ModelConfig
from ghost_jax.model.lora import Lora
from ghost_jax.model.transformer import Transformer, named_leaves
from ghost_jax.training.checkpoint import Checkpoints
from ghost_jax.training.loading import ADAPTED, load_adapted, load_model
from tests.conftest import losses_of, set_all, tiny_chat
from tests.models import drawn, one_device

SHAPE = ModelConfig(layers=2, width=32, heads=4, mlp_dim=48, vocab_size=120, context=32)
LORA = Lora(rank=3, alpha=6.0, targets="attention|down", old_vocab=117)
WITH_LORA = {"lora.rank": 4, "lora.targets": "attention/(qkv|out)|down", "steps": 4, "save_every": 2}


@pytest.mark.parametrize("scan", [False, True], ids=["blocks", "stacked"])
def test_a_kernel_has_the_product_of_its_adapters_added_and_only_chosen_ones_have_any(scan):
    model = dataclasses.replace(SHAPE, scan=scan, kv_heads=2)
    params = drawn(model, 0.2)
    trained = LORA.init(params, model, jax.random.key(0))
    assert {name.rpartition("/")[0].split("/")[-1] for name in trained if "/" in name} == {"q", "kv", "out", "down"}
    np.testing.assert_array_equal(trained["embedding"]["rows"], params["embedding"][117:120])
    tokens = np.arange(10)[None]
    before = Transformer(model).apply({"params": params}, tokens)
    np.testing.assert_array_equal(Transformer(model).apply({"params": LORA.merge(params, trained)}, tokens), before)
    trained = jax.tree.map(lambda leaf: np.random.default_rng(1).standard_normal(leaf.shape, np.float32), trained)
    merged = LORA.merge(params, trained)
    name = "blocks/attention/out/kernel" if scan else "block_1/attention/out/kernel"
    parts = trained[name]["a"], trained[name]["b"], named_leaves(params)[name], named_leaves(merged)[name]
    a, b, kernel, added = (part[1] if scan else part for part in parts)  # a [H, K, r], b [r, D]
    np.testing.assert_allclose(added, kernel + 2.0 * np.einsum("hkr,rd->hkd", a, b), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(merged["embedding"][117:120], trained["embedding"]["rows"])
    np.testing.assert_array_equal(merged["embedding"][:117], params["embedding"][:117])


@pytest.fixture(scope="module")
def adapted(ghost, tiny_run, tmp_path_factory):
    workdir = tiny_run.beside_base(tmp_path_factory.mktemp("lora"))
    ghost.here(*tiny_chat(workdir, *set_all(WITH_LORA)))
    return workdir


def test_a_run_keeps_adapters_alone_and_loads_as_one_model(adapted, tiny_run):
    with Checkpoints(adapted, keep=0, read_only=True) as checkpoints:
        names = checkpoints.record(checkpoints.latest)["params"]
    assert {name.rpartition("/")[2] for name in names} == {"a", "b", "rows"}
    assert len(losses_of(adapted)) == 4
    model, params, _ = load_model(adapted, one_device())
    _, grown, (lora, trained), _ = load_adapted(adapted, one_device())
    _, base, _ = load_model(tiny_run.base, one_device())
    here, there = (named_leaves(tree) for tree in (params, base))
    changed = np.asarray(here["block_0/attention/qkv/kernel"]) - there["block_0/attention/qkv/kernel"]
    assert np.abs(changed).max() > 0
    assert np.linalg.matrix_rank(changed.reshape(model.width, -1), tol=1e-6) <= 4
    up = "block_0/feed_forward/up/kernel"
    np.testing.assert_array_equal(here[up], there[up])
    np.testing.assert_allclose(lora.merge(grown, trained)["embedding"], params["embedding"], atol=1e-6)


def test_adapters_are_trained_and_validated_on_any_mesh(ghost, adapted, tiny_run, tmp_path):
    workdir = tiny_run.beside_base(tmp_path)
    ghost.here(*tiny_chat(workdir, *set_all(WITH_LORA | {"mesh.fsdp": 2, "mesh.tensor": 2, "steps": 2})))
    for here, there in zip(losses_of(workdir), losses_of(adapted)[:2], strict=True):
        assert here["loss"] == pytest.approx(there["loss"], rel=1e-4)


def test_a_run_of_adapters_is_resumed_bit_for_bit(ghost, adapted, tiny_run, tmp_path):
    workdir = shutil.copytree(adapted, tiny_run.beside_base(tmp_path))
    (workdir / "status.json").unlink()
    shutil.rmtree(workdir / "checkpoints" / "4")
    assert "after update 2" in ghost.here(*tiny_chat(workdir, *set_all(WITH_LORA))).stdout
    assert losses_of(workdir) == losses_of(adapted)


@pytest.mark.parametrize("flags", [("--format=peft",), ("--format=gguf", "--dtype=q8_0"), ()])
def test_the_command_exports_adapters_and_the_whole_with_a_card(ghost, adapted, tmp_path, flags):
    ghost.here("ghost_jax.export", f"--workdir={adapted}", f"--out={tmp_path / 'out'}", *flags)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    expected = {"--format=peft": "peft", "--format=gguf": "gguf"}.get((*flags, "")[0], "transformers")
    assert card.data.library_name == expected


def test_a_base_that_is_gone_is_named(adapted, tmp_path):
    alone = shutil.copytree(adapted, tmp_path / "alone")
    base = (alone / json.loads((alone / ADAPTED).read_text())["base"]).resolve()
    with pytest.raises(UserError, match=base.name):
        load_model(alone, one_device())


def test_peft_computes_the_same(adapted, tmp_path):
    write_model(tmp_path, adapted, "float32", "peft")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "k_proj", "o_proj", "q_proj", "v_proj"]
    torch = pytest.importorskip("torch", reason="torch is not installed: what peft computes is not compared")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / BASE)
    model, params, _ = load_model(adapted, one_device())
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, (1, 20))
    expected = np.asarray(Transformer(dataclasses.replace(model, dtype="float32")).apply({"params": params}, tokens))
    with torch.no_grad():
        there = peft.PeftModel.from_pretrained(base, tmp_path)(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(there, expected[..., : model.vocab_size], atol=1e-3)
