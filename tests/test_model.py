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
from tests.models import abstract, build, drawn

V05 = ModelConfig(layers=2, width=32, heads=4, mlp_dim=48, vocab_size=100, context=32)  # 100 of 128 rows are real
V04 = dataclasses.replace(V05, generation="v04")
SHARED = dataclasses.replace(V05, kv_heads=2, head_dim=12, tied=False, rope_base=50_000.0, norm_eps=1e-3)
both_generations = pytest.mark.parametrize("config", [V05, V04], ids=["v05", "v04"])
initial = jax.jit(transformer.init, static_argnums=0)


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


def test_parameters_are_counted_as_published_and_as_built():
    assert {name: config.parameters() for name, config in SIZES.items()} == PUBLISHED
    for config in (*SIZES.values(), SHARED, dataclasses.replace(SHARED, attention_bias=False, context=1)):
        assert count(config) == config.parameters(), config


def test_a_record_holds_later_fields_only_where_they_differ():
    later = {"kv_heads", "head_dim", "tied", "rope_base", "norm_eps"}  # fields that older records do not have
    assert SHARED.record().keys() - V05.record().keys() == later
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

    x = params["embedding"][tokens]
    future = np.triu(np.ones((tokens.shape[1],) * 2, bool), k=1)
    for i in range(config.layers):
        block = params[f"block_{i}"]
        h = norm(x, block["attention_norm"]["scale"])
        attention, feed_forward = block["attention"], block["feed_forward"]
        qkv = np.einsum("btd,dchk->cbthk", h, attention["qkv"]["kernel"])
        q, k, v = qkv + attention["qkv"]["bias"][:, None, None]
        scores = np.einsum("bthk,bshk->bhts", rope(q), rope(k)) / math.sqrt(q.shape[-1])
        weights = np.where(future, 0.0, np.exp(scores))
        weights /= weights.sum(-1, keepdims=True)
        attended = np.einsum("bhts,bshk->bthk", weights, v)
        x = x + np.einsum("bthk,hkd->btd", attended, attention["out"]["kernel"]) + attention["out"]["bias"]
        h = norm(x, block["feed_forward_norm"]["scale"])
        gate = h @ feed_forward["gate"]["kernel"]
        swish = gate / (1 + np.exp(-gate))
        x = x + (swish * (h @ feed_forward["up"]["kernel"])) @ feed_forward["down"]["kernel"]
    return norm(x, params["final_norm"]["scale"]) @ params["embedding"].T


def test_the_v05_forward_is_the_one_written_in_numpy():
    params, tokens = build(V05), tokens_of(V05)
    logits, expected = logits_of(V05, params, tokens), numpy_forward(V05, params, tokens)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(logits[..., :100], expected[..., :100], rtol=1e-4, atol=1e-4)


@both_generations
@pytest.mark.parametrize(
    ("packed", "changed", "affected"),
    [
        (False, 0, range(12)),
        (False, 5, range(5, 12)),
        (True, 1, range(1, 9)),  # the prompt of both branches
        (True, 4, [4]),
        (True, 6, [6, 7, 8]),
    ],
)
def test_a_token_affects_the_later_ones_of_its_branch_and_no_other(config, packed, changed, affected):
    tokens, segments, branches = tokens_of(config, rows=1), None, None
    if packed:
        branches = np.array([[0, 0, 0, 1, 1, 2, 2, 2, 2, 0, 0, 0]], np.int32)
        segments = np.array([[1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2]], np.int32)
    other = tokens.copy()
    other[:, changed] = (other[:, changed] + 1) % config.vocab_size
    positions = np.arange(12)[None]
    before, after = (apply(config, build(config), each, positions, segments, branches) for each in (tokens, other))
    assert np.flatnonzero(np.abs(np.asarray(before - after))[0].max(-1)).tolist() == list(affected)


def test_learned_positions_tell_the_order_of_tokens():
    tokens = tokens_of(V04)
    swapped = tokens[:, [1, 0, *range(2, 12)]]
    last, other = (logits_of(V04, build(V04), each)[:, -1] for each in (tokens, swapped))
    assert np.abs(last - other).max() > 1e-4


def test_padding_rows_get_no_probability():
    probabilities = np.asarray(jax.nn.softmax(logits_of(V05, drawn(V05, 0.2), tokens_of(V05))))
    assert not probabilities[..., V05.vocab_size :].any()


def test_heads_that_share_keys_compute_what_repeated_keys_do_in_every_way():
    params, tokens = jax.tree.map(jnp.asarray, build(SHARED)), tokens_of(SHARED)
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
        return Transformer(SHARED).apply({"params": params}, *arguments, **others, method=method)

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

    params = jax.tree.map(jnp.asarray, build(dataclasses.replace(config, remat=False)))
    gradient, logits = jax.jit(jax.grad(total, has_aux=True))(params)
    return transformer.unstack_blocks(gradient) if config.scan else gradient, logits


@pytest.mark.parametrize(("config", "remat", "scan"), [(V05, True, False), (V05, False, True), (V04, True, True)])
def test_logits_and_gradients_are_the_same_by_scan_and_by_remat(config, remat, scan):
    found = logits_and_gradient(dataclasses.replace(config, remat=remat, scan=scan))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, logits_and_gradient(config))


@pytest.mark.parametrize(
    ("dtype", "remat", "times"), [("float32", False, 1), ("bfloat16", False, 1), ("float32", True, 2)]
)
def test_a_backward_pass_computes_no_product_again_without_remat(dtype, remat, times):
    config = dataclasses.replace(V05, layers=1, dtype=dtype, remat=remat)
    hidden, tokens = functools.partial(Transformer(config).apply, method="hidden"), tokens_of(config)
    program = str(jax.make_jaxpr(jax.grad(lambda params: hidden({"params": params}, tokens).sum()))(abstract(config)))
    shapes = {"up and gate": f"3,12,{config.mlp_dim}", "qkv": f"3,12,3,{config.heads},{config.head_width}"}
    counts = {name: program.count(f"f32[{shape}] = dot_general") for name, shape in shapes.items()}
    # The gradient of the input of `down` has the shape of up and gate, and is one product more.
    assert counts == {"up and gate": 2 * times + 1, "qkv": times}


def test_blocks_are_stacked_in_their_order_and_start_as_the_same_numbers_either_way():
    params = drawn(dataclasses.replace(V05, layers=11), 0.2)  # "block_10" sorts before "block_2"
    stacked = transformer.stack_blocks(params)
    biases = stacked["blocks"]["attention"]["out"]["bias"]
    np.testing.assert_array_equal(biases[2], params["block_2"]["attention"]["out"]["bias"])
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


@pytest.mark.parametrize("config", [V04, SHARED], ids=["v04", "shared"])
def test_kernels_that_write_to_the_residual_stream_start_smaller(config):
    config = dataclasses.replace(config, width=128, mlp_dim=256, head_dim=32)
    params = initial(config, jax.random.key(0))
    for name, leaf in transformer.named_leaves(params).items():
        if name.endswith("/kernel"):
            expected = 0.02 / math.sqrt(2 * config.layers) if "/out/" in name or "/down/" in name else 0.02
            assert float(leaf.std()) == pytest.approx(expected, rel=0.05), name
    for name in transformer.tables_of(config):
        assert float(params[name][: config.vocab_size].std()) == pytest.approx(0.02, rel=0.05)
        assert not params[name][config.vocab_size :].any()


def test_new_tokens_start_near_the_mean_and_old_ones_stay():
    new, params = dataclasses.replace(SHARED, vocab_size=132), build(SHARED)
    grow = jax.jit(lambda params, key: transformer.grow_vocabulary(params, SHARED, new, key))
    grown = grow(params, jax.random.key(7))
    noises = []
    for name in transformer.tables_of(SHARED):
        before, after = np.asarray(params[name]), np.asarray(grown[name])
        assert after.shape == (new.padded_vocab, new.width)
        np.testing.assert_array_equal(after[:100], before[:100])
        assert not after[132:].any()
        noises.append(after[100:132] - before[:100].mean(axis=0))
    assert noises[0].std() == pytest.approx(0.001, rel=0.08)
    assert len({row.tobytes() for noise in noises for row in noise}) == 2 * 32, "each row has noise of its own"
    rest = params.keys() - transformer.tables_of(SHARED)
    jax.tree.map(np.testing.assert_array_equal, *({name: tree[name] for name in rest} for tree in (grown, params)))
