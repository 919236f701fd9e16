"""Attention in pure functions: rotary positions, who sees whom, whole sequences, and queries that look back at a cache.

Shapes: B sequences, T tokens, H heads, G heads of keys and values, K head width; of a cache, S slots.
"""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from ghost_jax.model.config import ModelConfig
from ghost_jax.model.dense import kept, transposed

# A block of queries, whose weights are held at once: they are less than a cache of the processor, and what stands
# behind a block is not computed for it. A long sequence has larger ones, because each is compiled for itself.
BLOCK, MOST_BLOCKS = 128, 8

MASKED = -1e30  # logit of what must get no weight: exp() of it is exactly zero, and unlike -inf it has a gradient

Angles = tuple[jax.Array, jax.Array]  # each [B, T, 1, K/2] float32: cosines, sines
KeysValues = tuple[jax.Array, jax.Array]  # each [..., B, G, T, K]


def angles_of(positions: jax.Array, config: ModelConfig) -> Angles:
    """Returns the cosines and sines of a model's rotary angles at positions [B, T].

    All layers share them. Left to each, they are made again for every head in every pass.
    """
    angles = positions[..., None, None].astype(jnp.float32) * frequencies_of(config)
    return jnp.cos(angles), jnp.sin(angles)


def frequencies_of(config: ModelConfig) -> jax.Array:
    """Returns by what angle each pair of a head's dimensions turns from one position to the next, [K/2] radians."""
    c, half = config, config.head_width // 2
    frequency = c.rope_base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if c.rope_factor == 1:
        return frequency
    turns = c.rope_context / (2 * math.pi) * frequency
    kept = jnp.clip((turns - c.rope_low) / (c.rope_high - c.rope_low), 0, 1)
    return frequency * (kept + (1 - kept) / c.rope_factor)


def rotate(x: jax.Array, angles: Angles) -> jax.Array:
    """Applies rotary positions to x [B, T, H, K] (the halves of K are the pairs)."""
    cos, sin = angles
    half = x.shape[-1] // 2
    left, right = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)


def taken(x: jax.Array, at: jax.Array) -> jax.Array:
    """Returns of x [B, T, ...] the places at [B, R]: [B, R, ...]."""
    return jnp.take_along_axis(x, at.reshape(*at.shape, *[1] * (x.ndim - 2)), axis=1)


def visibility(segments: jax.Array | None, branches: jax.Array | None) -> jax.Array | None:
    """Returns which place may see which, [B, 1, T, T] as (sees, is seen), or None where only causality limits it."""
    visible = None
    if segments is not None:
        visible = (segments[:, None, :] == 0) | (segments[:, :, None] == segments[:, None, :])
    if branches is not None:
        allowed = (branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :])
        visible = allowed if visible is None else visible & allowed
    return None if visible is None else visible[:, None]


def sights(visible: jax.Array | None, at: jax.Array, length: int) -> jax.Array:
    """Returns what the places at [B, R] see of `length` places, [B, 1, R, T], by `visibility` and causality."""
    earlier = jnp.arange(length) <= at[:, :, None]
    return (earlier if visible is None else earlier & taken(visible[:, 0], at))[:, None]


def attend_causally(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array | None) -> jax.Array:
    """Returns the attention [B, T, H, K] of q [B, T, H, K] to k and v [B, T, G, K]; no token sees a later one.

    Weights [B, H, T, T] are never held: block by block of the queries they are made, used and, going backward, made
    again from the logarithm of their sum (Dao et al. 2022, "FlashAttention", arXiv 2205.14135).

    Args:
      visible: [B, 1, T, T], who may see whom of what came before; None where all do. Everyone sees himself.
    """
    sharing = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(each, sharing, axis=2) if sharing > 1 else each for each in (k, v))
    return _attended(*(each.swapaxes(1, 2) for each in (q, k, v)), visible).swapaxes(1, 2)


@jax.custom_vjp
def _attended(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array | None) -> jax.Array:
    return _attended_and_kept(q, k, v, visible)[0]


def _attended_and_kept(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array | None) -> tuple[jax.Array, tuple]:
    """Returns the attention [B, H, T, K] of q, k and v [B, H, T, K], and what its gradient needs."""
    parts, log_sums = [], []
    v_columns = transposed(v, 0, 1, 3, 2)
    for start, end in _blocks(q.shape[2]):
        scores = _scores(q, k, visible, start, end)
        largest = jnp.max(scores, axis=2)
        weights = jnp.exp(scores - largest[:, :, None])
        total = jnp.sum(weights, axis=2)  # [B, H, block]
        seen = _product("bhks,bhst->bhkt", v_columns[..., :end], weights.astype(v.dtype))
        parts.append((seen / total[:, :, None]).astype(q.dtype))
        log_sums.append(largest + jnp.log(total))
    attended = kept(transposed(jnp.concatenate(parts, axis=3), 0, 1, 3, 2))
    log_sum = kept(jnp.concatenate(log_sums, axis=2))
    return attended, (q, k, v, visible, attended, log_sum)


def _gradients(operands: tuple, to_attended: jax.Array) -> tuple:
    q, k, v, visible, attended, log_sum = operands
    through = jnp.sum(attended.astype(jnp.float32) * to_attended.astype(jnp.float32), axis=-1)  # [B, H, T]
    k_columns = transposed(k, 0, 1, 3, 2)
    to_q, to_k, to_v = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for start, end in _blocks(q.shape[2]):
        here = slice(start, end)
        weights = jnp.exp(_scores(q, k, visible, start, end) - log_sum[:, :, None, here])
        to_weights = _product("bhsk,bhtk->bhst", v[:, :, :end], to_attended[:, :, here])
        to_scores = weights * (to_weights - through[:, :, None, here]) / math.sqrt(q.shape[-1])
        weights, to_scores = weights.astype(q.dtype), to_scores.astype(q.dtype)
        to_q.append(_product("bhks,bhst->bhkt", k_columns[..., :end], to_scores))
        to_k = to_k.at[:, :, :end].add(_product("bhst,bhtk->bhsk", to_scores, q[:, :, here]))
        to_v = to_v.at[:, :, :end].add(_product("bhst,bhtk->bhsk", weights, to_attended[:, :, here]))
    to_q = transposed(jnp.concatenate(to_q, axis=3).astype(q.dtype), 0, 1, 3, 2)
    return to_q, to_k.astype(q.dtype), to_v.astype(q.dtype), None


_attended.defvjp(_attended_and_kept, _gradients)


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    """Yields the blocks of queries of a sequence, first and one past the last."""
    size = max(BLOCK, math.ceil(length / MOST_BLOCKS))
    for start in range(0, length, size):
        yield start, min(start + size, length)


def _scores(q: jax.Array, k: jax.Array, visible: jax.Array | None, start: int, end: int) -> jax.Array:
    """Returns the scores [B, H, S, block] of a block of queries; the keys come first, which is the faster product."""
    scores = _product("bhsk,bhtk->bhst", k[:, :, :end], q[:, :, start:end]) / math.sqrt(q.shape[-1])
    seen = jnp.arange(end)[:, None] <= jnp.arange(start, end)
    if visible is not None:
        seen = seen & visible[:, :, start:end, :end].swapaxes(2, 3)
    return jnp.where(seen, scores, MASKED)


def _product(shapes: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(shapes, a, b, preferred_element_type=jnp.float32)


def attend(q: jax.Array, past: KeysValues, new: KeysValues, visible: jax.Array) -> jax.Array:
    """Returns the attention [B, T, H, K] of queries q [B, T, H, K] to S earlier keys and values and to T new ones.

    The two are never joined: the past is much the larger, and is read where it lies. Heads of queries that share one
    of keys are further queries to it.

    Args:
      past, new: keys and values, [B, G, S, K] and [B, G, T, K].
      visible: [B, 1, T, S + T], which of both each query sees.
    """
    (rows, length, heads, width), groups = q.shape, new[0].shape[1]
    sharing = heads // groups
    q = q.reshape(rows, length, groups, sharing, width).swapaxes(2, 3).reshape(rows, length * sharing, groups, width)
    visible = jnp.repeat(visible, sharing, axis=2)
    scores = [jnp.einsum("bthk,bhsk->bhts", q, k, preferred_element_type=jnp.float32) for k, _ in (past, new)]
    scores = jnp.concatenate(scores, axis=-1) / math.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(visible, scores, MASKED)).astype(q.dtype)
    of_past, of_new = jnp.split(weights, [past[0].shape[2]], axis=-1)
    parts = ((of_past, past[1]), (of_new, new[1]))
    attended = sum(
        jnp.einsum("bhts,bhsk->bthk", weight, v, preferred_element_type=jnp.float32) for weight, v in parts
    ).astype(q.dtype)
    return attended.reshape(rows, length, sharing, groups, width).swapaxes(2, 3).reshape(rows, length, heads, width)
