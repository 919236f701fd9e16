"""Attention as pure functions: rotary positions, masks, full sequences, and queries to a cache.

Shapes: B sequences, T tokens, H heads, G heads of keys and values, K head width; of a cache, S slots.
"""

import math

import jax
import jax.numpy as jnp

from ghost_jax.model.config import ModelConfig
from ghost_jax.model.dense import kept, transposed

# Queries of a block, whose weights fit a processor's cache; later keys are not computed for it. Long sequences have
# larger blocks, because each block is compiled.
BLOCK, MOST_BLOCKS = 128, 8
MASKED = -1e30  # logit without weight: exp() of it is exactly zero, and unlike -inf it has a gradient

CosSin = tuple[jax.Array, jax.Array]  # each [B, T, 1, K/2] float32
KeysValues = tuple[jax.Array, jax.Array]  # each [..., B, G, T, K]


def rope_cos_sin(positions: jax.Array, config: ModelConfig) -> CosSin:
    """Returns the cosines and sines of rotary angles at positions [B, T], once for all layers and heads."""
    angles = positions[..., None, None].astype(jnp.float32) * rope_frequencies(config)
    return jnp.cos(angles), jnp.sin(angles)


def rope_frequencies(config: ModelConfig) -> jax.Array:
    """Returns the angle between positions t and t + 1 of each pair of a head's dimensions, [K/2] radians."""
    c, half = config, config.head_width // 2
    frequency = c.rope_base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if c.rope_factor == 1:
        return frequency
    turns = c.rope_context / (2 * math.pi) * frequency
    unchanged = jnp.clip((turns - c.rope_low) / (c.rope_high - c.rope_low), 0, 1)
    return frequency * (unchanged + (1 - unchanged) / c.rope_factor)


@jax.custom_vjp
def apply_rope(x: jax.Array, cos_sin: CosSin) -> jax.Array:
    """Applies rotary positions to x [B, T, H, K]; the halves of K are the pairs.

    Its gradient is the rotation back. Positions have none.
    """
    return _rotated(x, *cos_sin)


def _rotated(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    half = x.shape[-1] // 2
    left, right = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)


def _rope_backward(cos_sin: CosSin, to_y: jax.Array) -> tuple[jax.Array, None]:
    cos, sin = cos_sin
    return _rotated(to_y, cos, -sin), None


apply_rope.defvjp(lambda x, cos_sin: (apply_rope(x, cos_sin), cos_sin), _rope_backward)


def gather_positions(x: jax.Array, at: jax.Array) -> jax.Array:
    """Returns x [B, T, ...] at positions [B, R]: [B, R, ...]."""
    return jnp.take_along_axis(x, at.reshape(*at.shape, *[1] * (x.ndim - 2)), axis=1)


def attention_mask(segments: jax.Array | None, branches: jax.Array | None) -> jax.Array | None:
    """Returns which query may attend to which key, [B, 1, T, T], or None where only causality limits it.

    A token attends to its own segment and segment 0, and of these to its own branch and branch 0.
    """
    mask = None
    for ids in (segments, branches):
        if ids is not None:
            allowed = (ids[:, None, :] == 0) | (ids[:, :, None] == ids[:, None, :])
            mask = allowed if mask is None else mask & allowed
    return None if mask is None else mask[:, None]


def query_mask(mask: jax.Array | None, at: jax.Array, length: int) -> jax.Array:
    """Returns the causal mask [B, 1, R, T] of the queries at positions [B, R], from that of `attention_mask`."""
    earlier = jnp.arange(length) <= at[:, :, None]
    return (earlier if mask is None else earlier & gather_positions(mask[:, 0], at))[:, None]


def causal_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Returns the causal attention [B, T, H, K] of q [B, T, H, K] to k and v [B, T, G, K].

    Weights [B, H, T, T] are never held: they are computed for a block of queries at a time, and in the backward pass
    again from the logarithm of their sum (Dao et al. 2022, "FlashAttention", arXiv 2205.14135).

    Args:
      mask: [B, 1, T, T] of `attention_mask`; None for causality alone. Every token attends to itself.
    """
    sharing = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(each, sharing, axis=2) if sharing > 1 else each for each in (k, v))
    return _attention(*(each.swapaxes(1, 2) for each in (q, k, v)), mask).swapaxes(1, 2)


@jax.custom_vjp
def _attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    return _forward(q, k, v, mask)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, tuple]:
    """Returns the attention [B, H, T, K] of q, k and v [B, H, T, K], and the operands of its gradient."""
    parts, log_sums = [], []
    v_columns = transposed(v, 0, 1, 3, 2)
    for start, end in _blocks(q.shape[2]):
        scores = _scores(q, k, mask, start, end)
        largest = jnp.max(scores, axis=2)
        weights = jnp.exp(scores - largest[:, :, None])
        total = jnp.sum(weights, axis=2)  # [B, H, block]
        values = _product("bhks,bhst->bhkt", v_columns[..., :end], weights.astype(v.dtype))
        parts.append((values / total[:, :, None]).astype(q.dtype))
        log_sums.append(largest + jnp.log(total))
    attended = kept(transposed(jnp.concatenate(parts, axis=3), 0, 1, 3, 2))
    log_sum = kept(jnp.concatenate(log_sums, axis=2))
    return attended, (q, k, v, mask, attended, log_sum)


def _backward(operands: tuple, to_attended: jax.Array) -> tuple:
    q, k, v, mask, attended, log_sum = operands
    through = jnp.sum(attended.astype(jnp.float32) * to_attended.astype(jnp.float32), axis=-1)  # [B, H, T]
    k_columns = transposed(k, 0, 1, 3, 2)
    to_q, to_k, to_v = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for start, end in _blocks(q.shape[2]):
        block = slice(start, end)
        weights = jnp.exp(_scores(q, k, mask, start, end) - log_sum[:, :, None, block])
        to_weights = _product("bhsk,bhtk->bhst", v[:, :, :end], to_attended[:, :, block])
        to_scores = weights * (to_weights - through[:, :, None, block]) / math.sqrt(q.shape[-1])
        weights, to_scores = weights.astype(q.dtype), to_scores.astype(q.dtype)
        to_q.append(_product("bhks,bhst->bhkt", k_columns[..., :end], to_scores))
        to_k = to_k.at[:, :, :end].add(_product("bhst,bhtk->bhsk", to_scores, q[:, :, block]))
        to_v = to_v.at[:, :, :end].add(_product("bhst,bhtk->bhsk", weights, to_attended[:, :, block]))
    to_q = transposed(jnp.concatenate(to_q, axis=3).astype(q.dtype), 0, 1, 3, 2)
    return to_q, to_k.astype(q.dtype), to_v.astype(q.dtype), None


_attention.defvjp(_forward, _backward)


def _blocks(length: int) -> list[tuple[int, int]]:
    """Returns the first query of each block and one past its last."""
    size = max(BLOCK, math.ceil(length / MOST_BLOCKS))
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _scores(q: jax.Array, k: jax.Array, mask: jax.Array | None, start: int, end: int) -> jax.Array:
    """Returns the scores [B, H, S, block] of a block of queries; keys first is the faster product."""
    scores = _product("bhsk,bhtk->bhst", k[:, :, :end], q[:, :, start:end]) / math.sqrt(q.shape[-1])
    allowed = jnp.arange(end)[:, None] <= jnp.arange(start, end)
    if mask is not None:
        allowed = allowed & mask[:, :, start:end, :end].swapaxes(2, 3)
    return jnp.where(allowed, scores, MASKED)


def _product(shapes: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(shapes, a, b, preferred_element_type=jnp.float32)


def cached_attention(q: jax.Array, past: KeysValues, new: KeysValues, mask: jax.Array) -> jax.Array:
    """Returns the attention [B, T, H, K] of queries q [B, T, H, K] to S cached keys and values and to T new ones.

    The cache is much the larger and is not copied to join the two. Heads of queries that share a head of keys are
    further queries to it.

    Args:
      past, new: keys and values, [B, G, S, K] and [B, G, T, K].
      mask: [B, 1, T, S + T].
    """
    (rows, length, heads, width), groups = q.shape, new[0].shape[1]
    sharing = heads // groups
    q = q.reshape(rows, length, groups, sharing, width).swapaxes(2, 3).reshape(rows, length * sharing, groups, width)
    mask = jnp.repeat(mask, sharing, axis=2)
    scores = jnp.concatenate([_product("bthk,bhsk->bhts", q, k) for k, _ in (past, new)], axis=-1)
    weights = jax.nn.softmax(jnp.where(mask, scores / math.sqrt(q.shape[-1]), MASKED)).astype(q.dtype)
    of_past, of_new = jnp.split(weights, [past[0].shape[2]], axis=-1)
    attended = _product("bhts,bhsk->bthk", of_past, past[1]) + _product("bhts,bhsk->bthk", of_new, new[1])
    attended = attended.astype(q.dtype).reshape(rows, length, sharing, groups, width)
    return attended.swapaxes(2, 3).reshape(rows, length, heads, width)
