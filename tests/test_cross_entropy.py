"""ghost_jax/training/cross_entropy.py: in chunks, the results and gradients of full logits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ghost_jax.training import cross_entropy as module
from ghost_jax.training.cross_entropy import cross_entropy, cross_entropy_sum, log_probabilities

VOCAB, PADDED, WIDTH = 97, 128, 16
# One token a chunk, and several chunks with a padded last one.
SHAPES = pytest.mark.parametrize(("rows", "length"), [(9, 4), (2, 11)])


def drawn(rows: int, length: int) -> tuple:
    rng = np.random.default_rng(length)
    hidden = rng.standard_normal((rows, length, WIDTH), np.float32)
    table = rng.standard_normal((PADDED, WIDTH), np.float32)
    targets = rng.integers(0, VOCAB, (rows, length)).astype(np.int32)
    weights = rng.random((rows, length), np.float32) * (rng.random((rows, length)) < 0.7)
    return hidden, table, targets, weights.astype(np.float32)


def plain(hidden, table, targets) -> jax.Array:
    logits = jnp.einsum("btd,vd->btv", hidden, table)[..., :VOCAB]
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 8)


@SHAPES
def test_log_probabilities_are_those_of_full_logits(rows, length):
    hidden, table, *_ = drawn(rows, length)
    targets = np.random.default_rng(1).integers(0, VOCAB, (rows, length, 3))
    table[VOCAB:] *= 100  # padding rows have no probability
    full = jax.nn.log_softmax(jnp.einsum("btd,vd->btv", hidden, table)[..., :VOCAB])
    found = jax.jit(lambda h, t: log_probabilities(h, t, targets, VOCAB))(hidden, table)
    np.testing.assert_allclose(found, np.take_along_axis(np.asarray(full), targets, axis=-1), rtol=2e-6, atol=1e-5)


def test_rounding_to_bfloat16_favours_no_target():
    hidden, table, *_ = drawn(2, 3)
    hidden = np.asarray(jnp.asarray(hidden, jnp.bfloat16).astype(jnp.float32))  # exact in both types
    targets = np.broadcast_to(np.arange(4), (2, 3, 4))
    exact, rounded = (
        np.asarray(log_probabilities(jnp.asarray(hidden, dtype), jnp.asarray(table), targets, VOCAB))
        for dtype in ("float32", "bfloat16")
    )
    np.testing.assert_allclose(np.diff(rounded), np.diff(exact), atol=1e-5)


@SHAPES
def test_losses_and_gradients_are_those_of_full_logits(rows, length):
    hidden, table, targets, weights = drawn(rows, length)

    def results(each, total):
        def objective(hidden, table):  # of losses, weighed by what is unknown before them, as for ranking
            losses = each(hidden, table)
            return jnp.sum(jnp.tanh(losses) * weights), losses

        ranked = jax.value_and_grad(objective, (0, 1), has_aux=True)
        return jax.jit(lambda h, t: (ranked(h, t), jax.value_and_grad(total, (0, 1))(h, t), total(h, t)))(hidden, table)

    found = results(
        lambda h, t: cross_entropy(h, t, targets, VOCAB),
        lambda h, t: 3 * cross_entropy_sum(h, t, targets, weights, VOCAB),
    )
    expected = results(lambda h, t: plain(h, t, targets), lambda h, t: 3 * jnp.sum(plain(h, t, targets) * weights))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-6, atol=5e-6), found, expected)
    assert not found[1][1][1][VOCAB:].any(), "padding rows have no gradient"


def test_in_bfloat16_the_gradient_to_the_table_is_summed_in_float32():
    hidden, table, targets, weights = drawn(2, 12)
    low = jnp.asarray(hidden, jnp.bfloat16)
    gradients = jax.jit(jax.grad(cross_entropy_sum, (0, 1)), static_argnums=4)
    to_hidden, to_table = gradients(low, table, targets, weights, VOCAB)
    assert (to_hidden.dtype, to_table.dtype) == (jnp.bfloat16, jnp.float32)
    _, exact = gradients(low.astype(jnp.float32), table, targets, weights, VOCAB)
    np.testing.assert_allclose(to_table, exact, atol=0.05)
    hidden, table, targets, weights = drawn(2, 1000)  # 250 chunks, whose sum in bfloat16 would lose the small ones
    one = jax.jit(jax.grad(lambda h, t: jnp.sum(weights * cross_entropy(h, t, targets, VOCAB)), 1))
    far = [one(jnp.asarray(hidden, dtype), table) for dtype in ("bfloat16", "float32")]
    assert float(jnp.abs(far[0] - far[1]).max()) < 0.01 * float(jnp.abs(far[1]).max())


def test_no_logits_of_all_tokens_are_held(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 64)
    hidden, _, targets, weights = drawn(4, 256)
    table = np.zeros((8192, WIDTH), np.float32)

    def held(f) -> int:
        return jax.jit(jax.grad(f, (0, 1))).lower(hidden, table).compile().memory_analysis().temp_size_in_bytes

    logits = 4 * targets.size * len(table)
    assert held(lambda h, t: cross_entropy_sum(h, t, targets, weights, 8192)) < logits / 4
    assert held(lambda h, t: jnp.sum(cross_entropy(h, t, targets, 8192) ** 2)) < logits / 4


def test_the_logits_of_targets_are_exact_on_an_accelerator_too():
    hidden, targets = jnp.zeros((2, 8, WIDTH), jnp.bfloat16), np.zeros((2, 8, 4), int)
    step = jax.jit(lambda hidden, table: log_probabilities(hidden, table, targets, VOCAB))
    lines = step.lower(hidden, jnp.zeros((PADDED, WIDTH))).as_text().splitlines()
    of_float32 = [line for line in lines if "dot_general" in line and "bf16" not in line]
    assert [line.count("HIGHEST") for line in of_float32] == [2]  # both factors of one product
