"""ghost_jax/model/attention.py: attention in blocks computes that of a full matrix and holds less; rotary waves."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghost_jax.model.attention import BLOCK, MOST_BLOCKS, attention_mask, causal_attention, rope_frequencies
from ghost_jax.model.config import ModelConfig

ROWS, HEADS, WIDTH = 2, 4, 16


def inputs(length, groups=HEADS, dtype=jnp.float32, rows=ROWS):
    rng = np.random.default_rng(0)
    shapes = [(rows, length, heads, WIDTH) for heads in (HEADS, groups, groups)]
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)


def packed(length):
    """Returns a mask of rows that hold three conversations each."""
    segments = np.sort(np.random.default_rng(1).integers(1, 4, (ROWS, length)), axis=1)
    return attention_mask(jnp.asarray(segments), None)


def value_and_gradients(attention, arrays):
    """Returns the attention, and the gradients of a sum that weighs each of its elements differently."""
    weights = jnp.asarray(np.random.default_rng(2).standard_normal(arrays[0].shape), jnp.float32)

    def weighed(*arrays):
        attended = attention(*arrays)
        return jnp.sum(attended.astype(jnp.float32) * weights), attended

    gradients, attended = jax.jit(jax.grad(weighed, argnums=(0, 1, 2), has_aux=True))(*arrays)
    return (attended, *gradients)


@pytest.mark.parametrize(
    ("length", "groups", "mask"),
    [(1, HEADS, None), (BLOCK - 1, 2, packed), (2 * BLOCK + 37, 2, None), (MOST_BLOCKS * BLOCK + 1, HEADS, None)],
)
def test_attention_in_blocks_is_that_of_a_full_matrix(length, groups, mask):
    arrays, mask = inputs(length, groups), mask and mask(length)

    def full(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, implementation="xla")

    found, expected = (value_and_gradients(each, arrays) for each in (lambda *a: causal_attention(*a, mask), full))
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5), found, expected)


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
