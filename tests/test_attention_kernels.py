"""ghost_jax/model/attention_kernels.py: which attention a run gets, and that splash computes what blocks do."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ghost_jax.config import load as config_lib
from ghost_jax.core.errors import UsageError
from ghost_jax.model import attention_kernels, transformer
from ghost_jax.model.attention import attention_mask, causal_attention
from ghost_jax.model.attention_kernels import LANES, Choice, choose, splash
from ghost_jax.model.config import ModelConfig
from ghost_jax.model.transformer import Transformer
from ghost_jax.parallel.mesh import batch_sharding, make_mesh
from ghost_jax.runs import run_dir
from ghost_jax.training import setup
from ghost_jax.training.checkpoint import identity_of
from ghost_jax.training.loss import loss_sum
from tests.conftest import ROOT
from tests.models import needs_eight
from tests.test_attention import HEADS, inputs, value_and_gradients

RUN = {"dtype": "bfloat16", "head_width": 128, "mask": "segments", "length": 512}  # every kernel can be used


@pytest.mark.parametrize(
    ("platform", "change", "kernel"),
    [
        ("cpu", {}, "blocks"),
        ("cuda before 8.0", {}, "blocks"),
        ("rocm", {}, "blocks"),
        ("cuda", {}, "cudnn"),
        ("cuda", {"mask": "causal", "length": 511}, "cudnn"),
        ("cuda", {"dtype": "float32"}, "blocks"),
        ("cuda", {"head_width": 160}, "blocks"),
        ("cuda", {"head_width": 36}, "blocks"),
        ("cuda", {"length": 511}, "blocks"),
        ("tpu", {}, "splash"),
        ("tpu", {"dtype": "float32", "head_width": 32, "mask": "causal", "length": LANES}, "splash"),
        ("tpu", {"mask": "branches"}, "blocks"),
        ("tpu", {"length": 500}, "blocks"),
    ],
)
def test_auto_is_the_kernel_of_the_platform_where_it_can_be_used_and_others_are_refused(platform, change, kernel):
    run = RUN | change
    chosen = choose("auto", platform, **run)
    assert chosen.name == kernel
    assert bool(chosen.fallback) == (kernel == "blocks" and platform != "cpu"), "a fallback has its reason"
    assert choose("blocks", platform, **run) == Choice("blocks")
    for other in {"cudnn", "splash"} - {kernel}:
        with pytest.raises(UsageError, match=r"model\.attention"):
            choose(other, platform, **run)


def config_of(name: str, **values: str) -> ConfigDict:
    config = config_lib.load(f"{ROOT}/configs/{name}.py:nano")
    config_lib.override_all(config, [(key.replace("__", "."), value) for key, value in values.items()])
    return config


@pytest.mark.parametrize(
    ("recipe", "values", "mask"),
    [
        ("pretrain_v05", {}, "causal"),
        ("chat_v5", {}, "segments"),
        ("chat_v5", {"data__packing": "false"}, "causal"),
        ("chat_v5", {"data__mixture__rank": "1.0"}, "branches"),
    ],
)
def test_a_config_determines_the_mask_of_its_rows(monkeypatch, recipe, values, mask):
    monkeypatch.setattr(attention_kernels, "choose", lambda *_, **run: run["mask"])
    assert setup.attention_of(config_of(recipe, **values), make_mesh()) == mask


def test_the_attention_decides_neither_the_recipe_nor_the_checkpoint(tmp_path):
    config = config_of("chat_v5")
    blocks, older = config_of("chat_v5", model__attention="blocks").to_dict(), config.to_dict()
    for model in (older["model"], older["base"]["model"]):
        del model["attention"]  # as in a run from before the key
    assert config_lib.recipe_of(blocks) == config_lib.recipe_of(config.to_dict()) == config_lib.recipe_of(older)
    (tmp_path / "config.json").write_text(json.dumps(older))
    run_dir.open_run(tmp_path, config)  # raises where it is another run
    before, splashed = ModelConfig(**older["model"]), ModelConfig(**older["model"], attention="splash")
    assert identity_of(before, "t", "d") == identity_of(splashed, "t", "d")


ROWS = 8


def packed(length: int) -> jax.Array:
    """Segments [B, T] as `packing.fill` makes them: from 1 on, and 0 behind the last. Row 0 is all padding."""
    segments = np.sort(np.random.default_rng(1).integers(1, 4, (ROWS, length)), axis=1)
    segments[1:, -5:] = segments[0] = 0
    return jnp.asarray(segments, jnp.int32)


def assert_same(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), ours, theirs)


@pytest.mark.parametrize(("length", "groups", "segments"), [(LANES, HEADS, None), (3 * LANES, 2, packed)])
def test_splash_is_attention_in_blocks_forward_and_backward(length, groups, segments):
    arrays, ids = inputs(length, groups, rows=ROWS), segments and segments(length)
    assert_same(
        value_and_gradients(lambda *a: splash(*a, ids, interpret=True), arrays),
        value_and_gradients(lambda *a: causal_attention(*a, attention_mask(ids, None)), arrays),
    )


@needs_eight
def test_a_model_trains_with_splash_on_a_mesh_as_with_blocks_on_one_device(monkeypatch):
    """Rows over fsdp, heads over tensor, each layer inside a scan and a remat."""
    monkeypatch.setitem(attention_kernels.KERNELS, "splash", functools.partial(splash, interpret=True))
    config = ModelConfig(layers=2, width=32, heads=HEADS, mlp_dim=48, vocab_size=97, context=LANES, scan=True)
    params = jax.tree.map(jnp.asarray, transformer.init(config, jax.random.key(0)))
    rng, segments = np.random.default_rng(2), packed(LANES)
    tokens, targets = (jnp.asarray(rng.integers(0, 97, segments.shape), jnp.int32) for _ in range(2))
    batch = {"tokens": tokens, "targets": targets, "weights": (segments > 0).astype(jnp.float32), "segments": segments}

    def gradient(attention, rows):
        model = Transformer(dataclasses.replace(config, attention=attention), rows)
        place = rows and (None, rows)
        return jax.jit(jax.value_and_grad(lambda p, b: loss_sum(model, p, b)[0]), in_shardings=place)(params, batch)

    splashed, ours = gradient("splash", batch_sharding(make_mesh(1, 2, 2, devices=jax.devices()[:4])))
    blocked, theirs = gradient("blocks", None)
    assert float(splashed) == pytest.approx(float(blocked), rel=1e-5)
    assert_same(ours, theirs)
