"""Attention in blocks is that of a whole matrix of weights, forward and backward, and holds less; rotary waves."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghost_jax.model.attention import BLOCK, MOST_BLOCKS, attend_causally, frequencies_of, visibility
from ghost_jax.model.config import ModelConfig

ROWS, HEADS, WIDTH = 2, 4, 16


def inputs(length, groups=HEADS, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = (ROWS, length, HEADS, WIDTH), (ROWS, length, groups, WIDTH), (ROWS, length, groups, WIDTH)
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)


def packed(length):
    """Returns a mask of rows that hold three conversations each."""
    segments = np.sort(np.random.default_rng(1).integers(1, 4, (ROWS, length)), axis=1)
    return visibility(jnp.asarray(segments), None)


def value_and_gradients(attention, arrays):
    """Returns the attention, and the gradients of a sum that weighs each of its elements differently."""
    weights = jnp.asarray(np.random.default_rng(2).standard_normal(arrays[0].shape), jnp.float32)

    def weighed(*arrays):
        attended = attention(*arrays)
        return jnp.sum(attended.astype(jnp.float32) * weights), attended

    gradients, attended = jax.jit(jax.grad(weighed, argnums=(0, 1, 2), has_aux=True))(*arrays)
    return (attended, *gradients)


@pytest.mark.parametrize("groups", [HEADS, 2], ids=["own keys", "shared keys"])
@pytest.mark.parametrize("mask", [None, packed], ids=["all", "packed"])
@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, 2 * BLOCK + 37, MOST_BLOCKS * BLOCK + 1])
def test_it_is_the_attention_of_a_whole_matrix(length, mask, groups):
    arrays, visible = inputs(length, groups), mask and mask(length)

    def whole(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, mask=visible, is_causal=True, implementation="xla")

    expected = value_and_gradients(whole, arrays)
    for ours, theirs in zip(
        value_and_gradients(lambda *a: attend_causally(*a, visible), arrays), expected, strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)


def test_bfloat16_loses_no_more_than_its_own_rounding():
    exact = value_and_gradients(lambda *a: attend_causally(*a, None), inputs(2 * BLOCK))
    rounded = value_and_gradients(lambda *a: attend_causally(*a, None), inputs(2 * BLOCK, dtype=jnp.bfloat16))
    for ours, theirs in zip(rounded, exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        assert jnp.max(jnp.abs(ours.astype(jnp.float32) - theirs)) < 0.03 * jnp.max(jnp.abs(theirs))


def test_less_is_held_than_a_matrix_of_weights_and_its_gradient():
    arrays = inputs(8 * BLOCK)
    loss = jax.jit(jax.grad(lambda *a: jnp.sum(attend_causally(*a, None)), argnums=(0, 1, 2)))
    matrix = ROWS * HEADS * (8 * BLOCK) ** 2 * 4
    assert loss.lower(*arrays).compile().memory_analysis().temp_size_in_bytes < 2 * matrix


def test_long_waves_are_stretched_short_ones_are_not_and_those_between_in_part():
    plain = ModelConfig(layers=1, width=32, heads=4, mlp_dim=48, vocab_size=100, rope_base=100.0)
    stretched = dataclasses.replace(plain, rope_factor=8.0, rope_context=64, rope_low=0.5, rope_high=5.0)
    before, after = frequencies_of(plain), frequencies_of(stretched)
    turns = np.array([64 / (2 * math.pi) * 100.0 ** (-i / 4) for i in range(4)])
    assert turns[0] > 5 > turns[1] > turns[2] > 0.5 > turns[3]
    share = (turns - 0.5) / 4.5
    expected = [1, share[1] + (1 - share[1]) / 8, share[2] + (1 - share[2]) / 8, 1 / 8]
    np.testing.assert_allclose(after / before, expected, rtol=1e-6)
