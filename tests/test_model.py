"""ghost_jax/model: counts, causality, padding rows, and a forward pass written again in NumPy."""

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

V05 = ModelConfig(layers=2, width=32, heads=4, mlp_dim=48, vocab_size=100, context=32)  # 100 of 128 rows are real
V04 = dataclasses.replace(V05, generation="v04")
SHARED = dataclasses.replace(V05, kv_heads=2, head_dim=12, tied=False, rope_base=50_000.0, norm_eps=1e-3)
both_generations = pytest.mark.parametrize("config", [V05, V04], ids=["v05", "v04"])


initial = jax.jit(transformer.init, static_argnums=0)


@functools.cache
def build(config: ModelConfig) -> dict:
    """Random everywhere: what starts as zeros or ones (biases, scales) would hide an error there."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        return np.float32(path[-1].key == "scale") + 0.2 * rng.standard_normal(leaf.shape, np.float32)

    params = jax.tree_util.tree_map_with_path(draw, jax.eval_shape(lambda: initial(config, jax.random.key(0))))
    params["embedding"][config.vocab_size :] = 0.0
    return params


pytestmark = pytest.mark.usefixtures("compile_quickly")


def tokens_of(config: ModelConfig, rows: int = 3, length: int = 12) -> np.ndarray:
    return np.random.default_rng(1).integers(0, config.vocab_size, (rows, length)).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def apply(config: ModelConfig, params: dict, tokens: np.ndarray) -> jax.Array:
    return Transformer(config).apply({"params": params}, tokens)


def logits_of(config: ModelConfig, params: dict, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(apply(config, params, tokens))


# ---- Sizes ----


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("nano", 1_330_304),
        ("mini", 6_923_520),
        ("small36m", 35_670_528),
        ("base350m", 341_099_520),
        ("v04", 45_174_784),
    ],
)
def test_a_named_size_has_the_published_number_of_parameters(name, parameters):
    config = SIZES[name]
    built = jax.eval_shape(lambda key: transformer.init(config, key), jax.random.key(0))
    assert transformer.count(built, config) == parameters
    assert config.parameters() == parameters
    assert config.context >= 512


def test_every_named_size_is_counted_here():
    assert set(SIZES) == {"nano", "mini", "small36m", "base350m", "v04"}


@both_generations
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("attention_bias", [True, False])
def test_the_arithmetic_count_is_that_of_the_built_model(config, attention_bias, scan):
    config = dataclasses.replace(config, attention_bias=attention_bias, scan=scan)
    built = jax.eval_shape(lambda key: transformer.init(config, key), jax.random.key(0))
    assert transformer.count(built, config) == config.parameters()


# ---- The forward pass ----


def numpy_forward(config: ModelConfig, params: dict, tokens: np.ndarray) -> np.ndarray:
    """The v0.5 model from its description: pre-norm, RoPE on halves, SwiGLU, tied head. Returns logits [B, T, V]."""

    def norm(x, scale):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale

    def rope(x):  # [B, T, H, K]; dimension i and i + K/2 are one complex number that turns with the position
        half = x.shape[-1] // 2
        turn = np.exp(1j * np.outer(np.arange(x.shape[1]), 10_000.0 ** (-np.arange(half) / half)))
        turned = (x[..., :half] + 1j * x[..., half:]) * turn[None, :, None, :]
        return np.concatenate([turned.real, turned.imag], axis=-1).astype(np.float32)

    p = jax.tree.map(np.asarray, params)
    x = p["embedding"][tokens]
    length = tokens.shape[1]
    future = np.triu(np.ones((length, length), bool), k=1)
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
    assert np.abs(expected).max() > 0.5  # else a tolerance of 1e-4 says little
    np.testing.assert_allclose(logits[..., :100], expected[..., :100], rtol=1e-4, atol=1e-4)


@both_generations
@pytest.mark.parametrize("changed", [0, 5, 11])
def test_no_token_sees_a_later_one(config, changed):
    params, tokens = build(config), tokens_of(config)
    other = tokens.copy()
    other[:, changed] = (other[:, changed] + 1) % config.vocab_size
    before, after = logits_of(config, params, tokens), logits_of(config, params, other)
    np.testing.assert_array_equal(before[:, :changed], after[:, :changed])
    assert (np.abs(before - after).max(axis=-1)[:, changed:] > 1e-6).all()  # and every later one sees it


@both_generations
def test_positions_matter(config):
    # Without positions, a causal layer could not tell the order of two tokens before the last.
    params, tokens = build(config), tokens_of(config)
    swapped = tokens.copy()
    swapped[:, [0, 1]] = swapped[:, [1, 0]]
    assert np.abs(logits_of(config, params, tokens)[:, -1] - logits_of(config, params, swapped)[:, -1]).max() > 1e-4


@both_generations
def test_padding_rows_get_no_probability_and_no_gradient(config):
    params, tokens = build(config), tokens_of(config)
    probabilities = np.asarray(jax.nn.softmax(logits_of(config, params, tokens)))
    assert probabilities.shape[-1] == 128
    assert (probabilities[..., config.vocab_size :] == 0).all()
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)

    batch = {"tokens": tokens, "targets": np.roll(tokens, -1, axis=1), "weights": np.ones(tokens.shape, np.float32)}
    grads = jax.jit(jax.grad(lambda p: loss_sum(Transformer(config), p, batch)[0]))(params)
    assert (np.asarray(grads["embedding"])[config.vocab_size :] == 0).all()
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))


def test_a_sequence_longer_than_the_context_is_an_error():
    with pytest.raises(ValueError, match="33 tokens do not fit a context of 32"):
        logits_of(V05, build(V05), np.zeros((1, 33), np.int32))


@both_generations
def test_bfloat16_computes_about_the_same_from_float32_parameters(config):
    half = dataclasses.replace(config, dtype="bfloat16")
    abstract = jax.eval_shape(lambda: initial(half, jax.random.key(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract)} == {jnp.dtype("float32")}
    params = build(config)
    tokens = tokens_of(config)
    logits = apply(half, params, tokens)
    assert logits.dtype == jnp.float32
    exact = logits_of(config, params, tokens)[..., : config.vocab_size]
    error = np.asarray(logits)[..., : config.vocab_size] - exact
    assert 0 < np.abs(error).max() < 0.05 * np.abs(exact).max()  # bfloat16 has 8 bits: 0.4% an operation


# ---- Models made elsewhere ----


def repeated(params: dict) -> dict:
    """The parameters of `SHARED` as those of a model in which every query has keys and values of its own."""
    params = jax.tree.map(np.asarray, params)
    for i in range(SHARED.layers):
        attention = params[f"block_{i}"]["attention"]
        q, kv = attention.pop("q"), attention.pop("kv")
        keys = {kind: np.repeat(kv[kind], SHARED.heads // SHARED.kv_heads, axis=-2) for kind in kv}
        attention["qkv"] = {kind: np.concatenate([q[kind][..., None, :, :], keys[kind]], axis=-3) for kind in q}
    return params


def test_heads_that_share_keys_are_those_of_a_model_that_repeats_them():
    params, tokens = build(SHARED), tokens_of(SHARED)
    alone = dataclasses.replace(SHARED, kv_heads=0)
    expected = logits_of(alone, repeated(params), tokens)
    np.testing.assert_allclose(logits_of(SHARED, params, tokens), expected, atol=1e-4)
    looped = dataclasses.replace(SHARED, scan=True)
    np.testing.assert_allclose(logits_of(looped, transformer.stack_blocks(params), tokens), expected, atol=1e-4)

    @functools.partial(jax.jit, static_argnames=("method", "slots"))
    def apply_to(method: str, *arguments, **others):
        here = jax.tree.map(jnp.asarray, params)  # a NumPy table takes no traced tokens
        return Transformer(SHARED).apply({"params": here}, *arguments, **others, method=method)

    whole = apply_to("hidden", tokens)
    at = np.array([[3, 11], [0, 5], [7, 8]])
    there = apply_to("hidden", tokens, at=at)
    np.testing.assert_allclose(there, np.take_along_axis(np.asarray(whole), at[..., None], axis=1), atol=1e-4)
    lengths = np.array([8, 5, 6])
    first, cache = apply_to("prefill", tokens[:, :8], lengths, slots=12)
    assert cache.keys.shape == (SHARED.layers, 3, SHARED.kv_heads, 12, SHARED.head_dim)
    following = np.take_along_axis(tokens, lengths[:, None] + np.arange(3), axis=1)
    then, _ = apply_to("extend", following, cache)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(first[row, :length], whole[row, :length], atol=1e-4)
        np.testing.assert_allclose(then[row], whole[row, length : length + 3], atol=1e-4)


@pytest.mark.parametrize("change", [{"rope_base": 1e4}, {"norm_eps": 1e-6}, {"rope_factor": 8.0, "rope_context": 16}])
def test_each_constant_of_a_model_made_elsewhere_is_used(change):
    params, tokens = build(SHARED), tokens_of(SHARED)
    other = logits_of(dataclasses.replace(SHARED, **change), params, tokens)
    assert np.abs(other - logits_of(SHARED, params, tokens))[..., : SHARED.vocab_size].max() > 1e-3


def test_a_head_of_its_own_is_counted_and_its_padding_rows_are_zero():
    params = initial(SHARED, jax.random.key(0))
    assert transformer.count(params, SHARED) == SHARED.parameters()
    assert not params["unembedding"][SHARED.vocab_size :].any()
    assert params["unembedding"][: SHARED.vocab_size].any(axis=-1).all()


def test_a_record_holds_what_only_models_made_elsewhere_set_where_they_do():
    before = {"layers", "width", "heads", "mlp_dim", "vocab_size", "context", "generation", "attention_bias"}
    before |= {"dropout", "dtype", "remat", "scan"}  # the keys of the records that are there already
    assert V05.record().keys() == before
    assert SHARED.record().keys() == before | {"kv_heads", "head_dim", "tied", "rope_base", "norm_eps"}
    for config in (*SIZES.values(), SHARED):
        assert ModelConfig(**config.record()) == config


# ---- One loop over stacked blocks, and blocks computed again ----


@functools.cache
def logits_and_gradient(config: ModelConfig) -> tuple:
    """Logits of packed rows, and the gradient of their mean square, both as if the blocks were not stacked."""
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
    expected_gradient, expected = logits_and_gradient(config)
    gradient, logits = logits_and_gradient(dataclasses.replace(config, remat=remat, scan=scan))
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, expected_gradient)


@pytest.mark.parametrize("scan", [False, True])
def test_a_block_starts_as_the_same_numbers_in_a_loop_and_apart(scan):
    drawn = transformer.init(dataclasses.replace(V05, scan=scan), jax.random.key(3))
    expected = transformer.init(dataclasses.replace(V05, scan=not scan), jax.random.key(3))
    expected = transformer.stack_blocks(expected) if scan else transformer.unstack_blocks(expected)
    jax.tree.map(np.testing.assert_array_equal, drawn, expected)


@pytest.mark.parametrize(("remat", "times"), [(False, 1), (True, 2)])
def test_a_backward_pass_computes_no_product_again_unless_asked_to(remat, times):
    config = dataclasses.replace(V05, layers=1, remat=remat)
    tokens, abstract = tokens_of(config), jax.eval_shape(lambda: transformer.init(config, jax.random.key(0)))
    hidden = functools.partial(Transformer(config).apply, method="hidden")
    program = str(jax.make_jaxpr(jax.grad(lambda params: hidden({"params": params}, tokens).sum()))(abstract))
    made = {"up and gate": f"3,12,{config.mlp_dim}", "qkv": f"3,12,3,{config.heads},{config.head_width}"}
    counts = {name: program.count(f"f32[{shape}] = dot_general") for name, shape in made.items()}
    # The gradient of what `down` makes has the shape of up and gate, and is one product more.
    assert counts == {"up and gate": 2 * times + 1, "qkv": times}


def test_stacking_is_undone_by_unstacking_whatever_the_number_of_layers():
    config = dataclasses.replace(V05, layers=11)  # "block_10" sorts before "block_2"
    params = build(config)
    stacked = transformer.stack_blocks(params)
    abstract = jax.eval_shape(lambda: transformer.init(dataclasses.replace(config, scan=True), jax.random.key(0)))
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, abstract)
    np.testing.assert_array_equal(
        stacked["blocks"]["attention"]["out"]["bias"][2], params["block_2"]["attention"]["out"]["bias"]
    )
    jax.tree.map(np.testing.assert_array_equal, transformer.unstack_blocks(stacked), params)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("scan", [False, True])
def test_each_layer_drops_units_of_its_own(scan, remat):
    # Blocks that add one to every unit, in the residual stream alone: a unit then tells how many layers kept it.
    config = dataclasses.replace(V05, dropout=0.5, scan=scan, remat=remat)
    params = jax.tree.map(np.zeros_like, build(V05))
    params["final_norm"]["scale"][:] = 1
    for i in range(config.layers):
        params[f"block_{i}"]["attention"]["out"]["bias"][:] = 1
    model = Transformer(config)
    hidden = jax.jit(
        lambda params, tokens, key: model.apply(
            {"params": params}, tokens, deterministic=False, rngs={"dropout": key}, method="hidden"
        )
    )(transformer.stack_blocks(params) if scan else params, tokens_of(config), jax.random.key(0))
    counts = np.bincount(np.round(2 * hidden / hidden.max(-1, keepdims=True)).astype(int).ravel()) / hidden.size
    np.testing.assert_allclose(counts, [0.25, 0.5, 0.25], atol=0.06)


# ---- Branches ----


@functools.partial(jax.jit, static_argnums=0)
def branched(config: ModelConfig, params: dict, tokens: jax.Array, segments: jax.Array, branches: jax.Array):
    return Transformer(config).apply({"params": params}, tokens, None, segments, branches)


@both_generations
@pytest.mark.parametrize(("changed", "seen_by"), [(1, [1, 2, 3, 4, 5, 6, 7, 8]), (4, [4]), (6, [6, 7, 8])])
def test_a_branch_is_seen_by_itself_alone_and_the_prompt_by_all(config, changed, seen_by):
    branches = np.array([[0, 0, 0, 1, 1, 2, 2, 2, 2, 0, 0, 0]], np.int32)
    segments = np.array([[1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2]], np.int32)
    params, tokens = build(config), tokens_of(config, rows=1)
    other = tokens.copy()
    other[:, changed] = (other[:, changed] + 1) % config.vocab_size
    before, after = (branched(config, params, each, segments, branches) for each in (tokens, other))
    assert np.flatnonzero(np.abs(np.asarray(before - after))[0].max(-1)).tolist() == seen_by


# ---- Initialisation and growth ----


@both_generations
@pytest.mark.parametrize("scan", [False, True])
def test_kernels_that_write_to_the_residual_stream_start_smaller(config, scan):
    config = dataclasses.replace(config, width=128, mlp_dim=256, layers=2, scan=scan)
    params = initial(config, jax.random.key(0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith("/kernel"):
            expected = 0.02 / math.sqrt(2 * config.layers) if "/out/" in name or "/down/" in name else 0.02
            assert float(leaf.std()) == pytest.approx(expected, rel=0.05), name
    assert float(params["embedding"][: config.vocab_size].std()) == pytest.approx(0.02, rel=0.05)
    assert not params["embedding"][config.vocab_size :].any()
    if scan:
        first, second = params["blocks"]["feed_forward"]["up"]["kernel"]
        assert abs(float(jnp.vdot(first, second))) < 0.1 * float(jnp.vdot(first, first)), "layers share their draw"


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("added", [32, 0])
def test_new_tokens_start_as_the_average_one_and_old_ones_stay(added, scan):
    old = dataclasses.replace(V05, width=64, scan=scan)
    new = dataclasses.replace(old, vocab_size=old.vocab_size + added)
    params = build(old)
    grow = jax.jit(lambda params, key: transformer.grow_vocabulary(params, old, new, key))
    grown = grow(params, jax.random.key(7))

    before, after = np.asarray(params["embedding"]), np.asarray(grown["embedding"])
    assert after.shape == (new.padded_vocab, 64)
    np.testing.assert_array_equal(after[:100], before[:100])
    assert not after[new.vocab_size :].any()
    if added:
        noise = after[100 : new.vocab_size] - before[:100].mean(axis=0)  # 32 x 64 draws
        assert abs(noise.mean()) < 5 * 0.001 / math.sqrt(noise.size)
        assert noise.std() == pytest.approx(0.001, rel=0.08)
        assert len({row.tobytes() for row in noise}) == added
    tokens = tokens_of(old)
    np.testing.assert_allclose(
        logits_of(new, grown, tokens)[..., :100], logits_of(old, params, tokens)[..., :100], atol=1e-6
    )
    rest = [{key: value for key, value in tree.items() if key != "embedding"} for tree in (params, grown)]
    jax.tree.map(np.testing.assert_array_equal, *rest)


def test_a_head_of_its_own_grows_with_the_embedding_by_draws_of_its_own():
    new = dataclasses.replace(SHARED, vocab_size=SHARED.vocab_size + 32)
    params = build(SHARED)
    grown = transformer.grow_vocabulary(params, SHARED, new, jax.random.key(7))
    noise = []
    for table in ("embedding", "unembedding"):
        after = np.asarray(grown[table])
        assert after.shape == (new.padded_vocab, new.width)
        np.testing.assert_array_equal(after[: SHARED.vocab_size], params[table][: SHARED.vocab_size])
        assert not after[new.vocab_size :].any()
        noise.append(after[SHARED.vocab_size : new.vocab_size] - params[table][: SHARED.vocab_size].mean(axis=0))
    assert 0 < max(np.abs(each).max() for each in noise) < 0.01
    assert np.abs(noise[0] - noise[1]).max() > 1e-4
