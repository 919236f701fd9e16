"""ghost_jax/model: counts, the forward pass written again in NumPy, masks, loops over blocks, growth."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghost_jax.model import transformer
from ghost_jax.model.config import SIZES, ModelConfig
from ghost_jax.model.transformer import Transformer
from ghost_jax.training.loss import loss_sum
from tests.models import abstract, drawn, named

V05 = ModelConfig(layers=2, width=32, heads=4, mlp_dim=48, vocab_size=100, context=32)  # 100 of 128 rows are real
V04 = dataclasses.replace(V05, generation="v04")
SHARED = dataclasses.replace(V05, kv_heads=2, head_dim=12, tied=False, rope_base=50_000.0, norm_eps=1e-3)
both_generations = pytest.mark.parametrize("config", [V05, V04], ids=["v05", "v04"])
initial = jax.jit(transformer.init, static_argnums=0)


@functools.cache
def build(config: ModelConfig) -> dict:
    params = drawn(config, 0.2)
    params["embedding"][config.vocab_size :] = 0.0
    return params


def tokens_of(config: ModelConfig, rows: int = 3, length: int = 12) -> np.ndarray:
    return np.random.default_rng(1).integers(0, config.vocab_size, (rows, length)).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def apply(config: ModelConfig, params: dict, *batch: np.ndarray) -> jax.Array:
    return Transformer(config).apply({"params": params}, *batch)


def logits_of(config: ModelConfig, params: dict, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(apply(config, params, tokens))


def count(config: ModelConfig) -> int:
    """The number of parameters of the built model, without the padding rows of its tables."""
    padding = (config.padded_vocab - config.vocab_size) * config.width * len(transformer.tables_of(config))
    return sum(leaf.size for leaf in jax.tree.leaves(abstract(config))) - padding


PUBLISHED = {"nano": 1_330_304, "mini": 6_923_520, "small36m": 35_670_528, "base350m": 341_099_520, "v04": 45_174_784}


def test_a_named_size_has_the_published_number_of_parameters():
    assert {name: count(config) for name, config in SIZES.items()} == PUBLISHED
    assert {name: config.parameters() for name, config in SIZES.items()} == PUBLISHED


@pytest.mark.parametrize("change", [{"attention_bias": False}, {"scan": True}, {"generation": "v04"}, {"tied": False}])
def test_the_arithmetic_count_is_that_of_the_built_model(change):
    for config in (dataclasses.replace(V05, **change), dataclasses.replace(SHARED, **change)):
        assert count(config) == config.parameters()


def test_a_record_holds_later_fields_only_where_they_differ():
    before = {"layers", "width", "heads", "mlp_dim", "vocab_size", "context", "generation", "attention_bias"}
    before |= {"dropout", "dtype", "remat", "scan"}  # the keys of existing records
    assert V05.record().keys() == before
    assert SHARED.record().keys() == before | {"kv_heads", "head_dim", "tied", "rope_base", "norm_eps"}
    assert ModelConfig(**SHARED.record()) == SHARED


def numpy_forward(config: ModelConfig, params: dict, tokens: np.ndarray) -> np.ndarray:
    """The v0.5 model from its description: pre-norm, RoPE on halves, SwiGLU, tied head. Returns logits [B, T, V]."""

    def norm(x, scale):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale

    def rope(x):  # [B, T, H, K]; dimensions i and i + K/2 are one complex number that turns with the position
        half = x.shape[-1] // 2
        turn = np.exp(1j * np.outer(np.arange(x.shape[1]), 10_000.0 ** (-np.arange(half) / half)))
        turned = (x[..., :half] + 1j * x[..., half:]) * turn[None, :, None, :]
        return np.concatenate([turned.real, turned.imag], axis=-1).astype(np.float32)

    p = jax.tree.map(np.asarray, params)
    x = p["embedding"][tokens]
    future = np.triu(np.ones((tokens.shape[1],) * 2, bool), k=1)
    for i in range(config.layers):
        block = p[f"block_{i}"]
        h = norm(x, block["attention_norm"]["scale"])
        qkv = np.einsum("btd,dchk->cbthk", h, block["attention"]["qkv"]["kernel"])
        q, k, v = qkv + block["attention"]["qkv"]["bias"][:, None, None]
        scores = np.einsum("bthk,bshk->bhts", rope(q), rope(k)) / math.sqrt(q.shape[-1])
        scores = np.where(future, -np.inf, scores)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        attended = np.einsum("bhts,bshk->bthk", weights, v)
        x = x + np.einsum("bthk,hkd->btd", attended, block["attention"]["out"]["kernel"])
        x = x + block["attention"]["out"]["bias"]
        h = norm(x, block["feed_forward_norm"]["scale"])
        gate = h @ block["feed_forward"]["gate"]["kernel"]
        swish = gate / (1 + np.exp(-gate))
        x = x + (swish * (h @ block["feed_forward"]["up"]["kernel"])) @ block["feed_forward"]["down"]["kernel"]
    return norm(x, p["final_norm"]["scale"]) @ p["embedding"].T


def test_the_v05_forward_is_the_one_written_in_numpy():
    params, tokens = build(V05), tokens_of(V05)
    logits, expected = logits_of(V05, params, tokens), numpy_forward(V05, params, tokens)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(logits[..., :100], expected[..., :100], rtol=1e-4, atol=1e-4)


@both_generations
def test_a_token_affects_all_later_ones_by_its_position_and_no_earlier_one(config):
    params, tokens = build(config), tokens_of(config)
    before = logits_of(config, params, tokens)
    for changed in (0, 5, 11):
        other = tokens.copy()
        other[:, changed] = (other[:, changed] + 1) % config.vocab_size
        after = logits_of(config, params, other)
        np.testing.assert_array_equal(before[:, :changed], after[:, :changed])
        assert (np.abs(before - after).max(axis=-1)[:, changed:] > 1e-6).all()
    swapped = tokens[:, [1, 0, *range(2, 12)]]
    assert np.abs(before[:, -1] - logits_of(config, params, swapped)[:, -1]).max() > 1e-4


@both_generations
@pytest.mark.parametrize(("changed", "affected"), [(1, [1, 2, 3, 4, 5, 6, 7, 8]), (4, [4]), (6, [6, 7, 8])])
def test_a_branch_affects_itself_alone_and_the_prompt_all_of_its_segment(config, changed, affected):
    branches = np.array([[0, 0, 0, 1, 1, 2, 2, 2, 2, 0, 0, 0]], np.int32)
    segments = np.array([[1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2]], np.int32)
    tokens = tokens_of(config, rows=1)
    other = tokens.copy()
    other[:, changed] = (other[:, changed] + 1) % config.vocab_size
    positions = np.arange(12)[None]
    before, after = (apply(config, build(config), each, positions, segments, branches) for each in (tokens, other))
    assert np.flatnonzero(np.abs(np.asarray(before - after))[0].max(-1)).tolist() == affected


@both_generations
def test_padding_rows_get_no_probability_and_no_gradient(config):
    params, tokens = build(config), tokens_of(config)
    probabilities = np.asarray(jax.nn.softmax(logits_of(config, params, tokens)))
    assert not probabilities[..., config.vocab_size :].any()
    batch = {"tokens": tokens, "targets": np.roll(tokens, -1, axis=1), "weights": np.ones(tokens.shape, np.float32)}
    grads = jax.jit(jax.grad(lambda p: loss_sum(Transformer(config), p, batch)[0]))(params)
    assert not np.asarray(grads["embedding"])[config.vocab_size :].any()
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))


def test_a_sequence_longer_than_the_context_is_an_error():
    with pytest.raises(ValueError, match=r"33.*32"):
        logits_of(V05, build(V05), np.zeros((1, 33), np.int32))


@both_generations
def test_bfloat16_computes_about_the_same_from_float32_parameters(config):
    half = dataclasses.replace(config, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract(half))} == {jnp.dtype("float32")}
    logits, exact = (logits_of(each, build(config), tokens_of(config))[..., :100] for each in (half, config))
    assert logits.dtype == np.float32
    assert 0 < np.abs(logits - exact).max() < 0.05 * np.abs(exact).max()  # bfloat16 has 8 bits: 0.4% an operation


def test_heads_that_share_keys_compute_what_repeated_keys_do_in_every_way():
    params, tokens = build(SHARED), tokens_of(SHARED)
    repeated = jax.tree.map(np.asarray, params)
    for i in range(SHARED.layers):
        attention = repeated[f"block_{i}"]["attention"]
        q, kv = attention.pop("q"), attention.pop("kv")
        keys = {kind: np.repeat(kv[kind], SHARED.heads // SHARED.kv_heads, axis=-2) for kind in kv}
        attention["qkv"] = {kind: np.concatenate([q[kind][..., None, :, :], keys[kind]], axis=-3) for kind in q}
    expected = logits_of(dataclasses.replace(SHARED, kv_heads=0), repeated, tokens)
    np.testing.assert_allclose(logits_of(SHARED, params, tokens), expected, atol=1e-4)
    scanned = dataclasses.replace(SHARED, scan=True)
    np.testing.assert_allclose(logits_of(scanned, transformer.stack_blocks(params), tokens), expected, atol=1e-4)

    @functools.partial(jax.jit, static_argnames=("method", "slots"))
    def apply_to(method: str, *arguments, **others):
        return Transformer(SHARED).apply(
            {"params": jax.tree.map(jnp.asarray, params)}, *arguments, **others, method=method
        )

    full = apply_to("hidden", tokens)
    at = np.array([[3, 11], [0, 5], [7, 8]])
    there = np.take_along_axis(np.asarray(full), at[..., None], axis=1)
    np.testing.assert_allclose(apply_to("hidden", tokens, at=at), there, atol=1e-4)
    lengths = np.array([8, 5, 6])
    first, cache = apply_to("prefill", tokens[:, :8], lengths, slots=12)
    assert cache.keys.shape == (SHARED.layers, 3, SHARED.kv_heads, 12, SHARED.head_dim)
    following = np.take_along_axis(tokens, lengths[:, None] + np.arange(3), axis=1)
    then, _ = apply_to("extend", following, cache)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(first[row, :length], full[row, :length], atol=1e-4)
        np.testing.assert_allclose(then[row], full[row, length : length + 3], atol=1e-4)


@functools.cache
def logits_and_gradient(config: ModelConfig) -> tuple:
    """Logits of packed rows, and the gradient of their mean square, both for unstacked blocks."""
    tokens, segments = tokens_of(config), np.arange(12)[None] // 5 + np.zeros((3, 1), int)

    def total(params: dict) -> tuple:
        logits = Transformer(config).apply({"params": params}, tokens, None, segments)[..., : config.vocab_size]
        return jnp.square(logits).mean(), logits

    params = build(dataclasses.replace(config, remat=False, scan=False))
    params = transformer.stack_blocks(params) if config.scan else jax.tree.map(jnp.asarray, params)
    gradient, logits = jax.jit(jax.grad(total, has_aux=True))(params)
    return transformer.unstack_blocks(gradient) if config.scan else gradient, logits


@pytest.mark.parametrize(("config", "remat", "scan"), [(V05, True, False), (V05, False, True), (V04, True, True)])
def test_logits_and_gradients_are_the_same_by_scan_and_by_remat(config, remat, scan):
    found = logits_and_gradient(dataclasses.replace(config, remat=remat, scan=scan))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, logits_and_gradient(config))


@pytest.mark.parametrize(("remat", "times"), [(False, 1), (True, 2)])
def test_a_backward_pass_computes_no_product_again_without_remat(remat, times):
    config = dataclasses.replace(V05, layers=1, remat=remat)
    hidden, tokens = functools.partial(Transformer(config).apply, method="hidden"), tokens_of(config)
    program = str(jax.make_jaxpr(jax.grad(lambda params: hidden({"params": params}, tokens).sum()))(abstract(config)))
    shapes = {"up and gate": f"3,12,{config.mlp_dim}", "qkv": f"3,12,3,{config.heads},{config.head_width}"}
    counts = {name: program.count(f"f32[{shape}] = dot_general") for name, shape in shapes.items()}
    # The gradient of the input of `down` has the shape of up and gate, and is one product more.
    assert counts == {"up and gate": 2 * times + 1, "qkv": times}


def test_blocks_are_stacked_in_their_order_and_start_as_the_same_numbers_either_way():
    params = drawn(dataclasses.replace(V05, layers=11), 0.2)  # "block_10" sorts before "block_2"
    stacked = transformer.stack_blocks(params)
    for layer in (2, 10):
        ours, theirs = (
            stacked["blocks"]["attention"]["out"]["bias"][layer],
            params[f"block_{layer}"]["attention"]["out"],
        )
        np.testing.assert_array_equal(ours, theirs["bias"])
    jax.tree.map(np.testing.assert_array_equal, transformer.unstack_blocks(stacked), params)
    apart, looped = (initial(dataclasses.replace(V05, scan=scan), jax.random.key(3)) for scan in (False, True))
    jax.tree.map(np.testing.assert_array_equal, looped, transformer.stack_blocks(apart))
    first, second = looped["blocks"]["feed_forward"]["up"]["kernel"]
    assert abs(float(jnp.vdot(first, second))) < 0.2 * float(jnp.vdot(first, first)), "layers share their draw"


@pytest.mark.parametrize(("scan", "remat"), [(False, False), (True, False), (True, True)])
def test_each_layer_drops_units_of_its_own(scan, remat):
    # Each block adds one to every unit of the residual stream, so a unit holds the number of layers that kept it.
    config = dataclasses.replace(V05, dropout=0.5, scan=scan, remat=remat)
    params = jax.tree.map(np.zeros_like, build(V05))
    params["final_norm"]["scale"][:] = 1
    for i in range(config.layers):
        params[f"block_{i}"]["attention"]["out"]["bias"][:] = 1
    how = {"deterministic": False, "rngs": {"dropout": jax.random.key(0)}, "method": "hidden"}
    params = transformer.stack_blocks(params) if scan else params
    hidden = jax.jit(lambda params, tokens: Transformer(config).apply({"params": params}, tokens, **how))(
        params, tokens_of(config)
    )
    counts = np.bincount(np.round(2 * hidden / hidden.max(-1, keepdims=True)).astype(int).ravel()) / hidden.size
    np.testing.assert_allclose(counts, [0.25, 0.5, 0.25], atol=0.06)


@pytest.mark.parametrize("config", [V05, V04, SHARED], ids=["v05", "v04", "shared"])
def test_kernels_that_write_to_the_residual_stream_start_smaller(config):
    config = dataclasses.replace(config, width=128, mlp_dim=256, head_dim=32)
    params = initial(config, jax.random.key(0))
    for name, leaf in named(params).items():
        if name.endswith("/kernel"):
            expected = 0.02 / math.sqrt(2 * config.layers) if "/out/" in name or "/down/" in name else 0.02
            assert float(leaf.std()) == pytest.approx(expected, rel=0.05), name
    for name in transformer.tables_of(config):
        assert float(params[name][: config.vocab_size].std()) == pytest.approx(0.02, rel=0.05)
        assert not params[name][config.vocab_size :].any()


@pytest.mark.parametrize("config", [V05, SHARED], ids=["tied", "untied"])
@pytest.mark.parametrize("added", [32, 0])
def test_new_tokens_start_near_the_mean_and_old_ones_stay(config, added):
    new, params = dataclasses.replace(config, vocab_size=100 + added), build(config)
    grown = jax.jit(lambda params, key: transformer.grow_vocabulary(params, config, new, key))(
        params, jax.random.key(7)
    )
    noises = []
    for name in transformer.tables_of(config):
        before, after = np.asarray(params[name]), np.asarray(grown[name])
        assert after.shape == (new.padded_vocab, new.width)
        np.testing.assert_array_equal(after[:100], before[:100])
        assert not after[new.vocab_size :].any()
        noises.append(after[100 : new.vocab_size] - before[:100].mean(axis=0))
    if added:
        assert noises[0].std() == pytest.approx(0.001, rel=0.08)
        assert len({row.tobytes() for noise in noises for row in noise}) == added * len(noises)
    for tree in (grown := dict(grown), params := dict(params)):
        for name in transformer.tables_of(config):
            tree.pop(name)
    jax.tree.map(np.testing.assert_array_equal, grown, params)
