"""ghost_jax/model/attention.py computes what a full matrix does and holds less; attention_kernels.py what it does."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from ml_collections import ConfigDict

from ghost_jax.config import load as config_lib
from ghost_jax.core.errors import UsageError
from ghost_jax.model import attention_kernels, transformer
from ghost_jax.model.attention import (
    BLOCK,
    MOST_BLOCKS,
    apply_rope,
    attention_mask,
    causal_attention,
    rope_cos_sin,
    rope_frequencies,
)
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

ROWS, HEADS, WIDTH = 4, 4, 16


def inputs(length, groups=HEADS, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = [(ROWS, length, heads, WIDTH) for heads in (HEADS, groups, groups)]
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)


def packed(length):
    """Segments [B, T] as `packing.fill` makes them: from 1 on, and 0 behind the last. Row 0 is all padding."""
    segments = np.sort(np.random.default_rng(1).integers(1, 4, (ROWS, length)), axis=1)
    segments[1:, -5:] = segments[0] = 0
    return jnp.asarray(segments, jnp.int32)


def value_and_gradients(attention, arrays):
    """Returns the attention, and the gradients of a sum that weighs each of its elements differently."""
    weights = jnp.asarray(np.random.default_rng(2).standard_normal(arrays[0].shape), jnp.float32)

    def weighed(*arrays):
        attended = attention(*arrays)
        return jnp.sum(attended.astype(jnp.float32) * weights), attended

    gradients, attended = jax.jit(jax.grad(weighed, argnums=(0, 1, 2), has_aux=True))(*arrays)
    return (attended, *gradients)


def assert_close(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), ours, theirs)


@pytest.mark.parametrize(
    ("length", "groups", "segments"),
    [(1, HEADS, None), (BLOCK - 1, 2, packed), (2 * BLOCK + 37, 2, None), (MOST_BLOCKS * BLOCK + 1, HEADS, None)],
)
def test_attention_in_blocks_is_that_of_a_full_matrix(length, groups, segments):
    arrays, mask = inputs(length, groups), attention_mask(segments and segments(length), None)

    def full(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, implementation="xla")

    blocks = value_and_gradients(lambda *a: causal_attention(*a, mask), arrays)
    assert_close(blocks, value_and_gradients(full, arrays))


def test_bfloat16_loses_no_more_than_its_own_rounding():
    exact, rounded = (
        value_and_gradients(lambda *a: causal_attention(*a, None), inputs(2 * BLOCK, dtype=dtype))
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    for ours, theirs in zip(rounded, exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        assert jnp.max(jnp.abs(ours.astype(jnp.float32) - theirs)) < 0.03 * jnp.max(jnp.abs(theirs))


def test_less_is_held_than_a_matrix_of_weights_and_its_gradient():
    arrays = inputs(8 * BLOCK)
    gradient = jax.jit(jax.grad(lambda *a: jnp.sum(causal_attention(*a, None)), argnums=(0, 1, 2)))
    matrix = ROWS * HEADS * (8 * BLOCK) ** 2 * 4
    assert gradient.lower(*arrays).compile().memory_analysis().temp_size_in_bytes < 2 * matrix


def test_long_waves_are_stretched_short_ones_are_not_and_those_between_in_part():
    plain = ModelConfig(layers=1, width=32, heads=4, mlp_dim=48, vocab_size=100, rope_base=100.0)
    stretched = dataclasses.replace(plain, rope_factor=8.0, rope_context=64, rope_low=0.5, rope_high=5.0)
    turns = np.array([64 / (2 * math.pi) * 100.0 ** (-i / 4) for i in range(4)])
    assert turns[0] > 5 > turns[1] > turns[2] > 0.5 > turns[3]
    share = (turns - 0.5) / 4.5
    expected = [1, share[1] + (1 - share[1]) / 8, share[2] + (1 - share[2]) / 8, 1 / 8]
    np.testing.assert_allclose(rope_frequencies(stretched) / rope_frequencies(plain), expected, rtol=1e-6)


def test_the_gradient_of_rotary_positions_is_the_derivative():
    config = ModelConfig(layers=1, width=32, heads=4, mlp_dim=48, vocab_size=100)
    cos_sin = rope_cos_sin(jnp.arange(6)[None], config)
    x, weights = (jax.random.normal(jax.random.key(seed), (1, 6, 4, 8)) for seed in range(2))
    check_grads(lambda x: jnp.sum(weights * apply_rope(x, cos_sin) ** 2), (x,), order=1, modes=["rev"], rtol=1e-2)


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


@pytest.mark.parametrize(("length", "groups", "segments"), [(LANES, HEADS, None), (3 * LANES, 2, packed)])
def test_splash_is_attention_in_blocks_forward_and_backward(length, groups, segments):
    arrays, ids = inputs(length, groups), segments and segments(length)
    assert_close(
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
    assert_close(ours, theirs)
