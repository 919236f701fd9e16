"""Cross-entropy and log-probabilities over a large vocabulary, in chunks of tokens: no logits [B, T, V] are held.

At a vocabulary of 32,000 the logits of 4,096 tokens take 0.5 GB in float32, and a plain backward pass holds them
several times. Here a chunk's logits are freed after its losses and, where the sum is differentiated, its gradients,
which are computed with the losses (Hsu et al. 2024, "Liger Kernel", arXiv 2410.10989).

Shapes: B sequences, T tokens, D width, V padded vocabulary.
"""

import functools
import math

import jax
import jax.numpy as jnp

from ghost_jax.model.attention import MASKED
from ghost_jax.model.dense import transposed

# Tokens of one device in a chunk: 64 MB of float32 logits at a vocabulary of 32,000. Smaller chunks leave the matrix
# multiplications too thin.
CHUNK = 512


def cross_entropy(
    hidden: jax.Array, table: jax.Array, targets: jax.Array, vocab_size: int, shards: int = 1
) -> jax.Array:
    """Returns the cross-entropy [B, T] float32 in nats of each target. A backward pass computes the logits again.

    The table is rounded within a chunk, so that its gradient is added up over the chunks in its own type.

    Args:
      hidden: [B, T, D] in the compute type.
      table: [V, D], whose rows from `vocab_size` on are padding.
      targets: [B, T] int32.
      shards: the parts of B over devices.
    """

    @jax.checkpoint
    def of_chunk(chunk: tuple[jax.Array, jax.Array]) -> jax.Array:
        return _losses(_logits(chunk[0], table.astype(hidden.dtype), vocab_size), chunk[1])

    losses = jax.lax.map(of_chunk, _chunks((hidden, targets), shards))
    return _joined(losses, targets.shape)


def log_probabilities(
    hidden: jax.Array, table: jax.Array, targets: jax.Array, vocab_size: int, shards: int = 1
) -> jax.Array:
    """Returns the log-probabilities [B, T, K] float32 of targets [B, T, K].

    The logits of targets are products with the float32 table, whose factors a TPU would round by default: rows rounded
    to bfloat16 favour one letter by 0.05 nats in every prompt. Their common normaliser is of rounded rows. The other
    arguments are those of `cross_entropy`.
    """
    rows = table.astype(hidden.dtype)

    def of_chunk(chunk: tuple[jax.Array, jax.Array]) -> jax.Array:
        states, wanted = chunk
        logits = _logits(states, rows, vocab_size)
        exact = jnp.einsum("nd,nkd->nk", states.astype(jnp.float32), table[wanted], precision=jax.lax.Precision.HIGHEST)
        return exact - jax.nn.logsumexp(logits, axis=0)[:, None]

    return _joined(jax.lax.map(of_chunk, _chunks((hidden, targets), shards)), hidden.shape[:2])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def cross_entropy_sum(
    hidden: jax.Array, table: jax.Array, targets: jax.Array, weights: jax.Array, vocab_size: int, shards: int = 1
) -> jax.Array:
    """Returns Σ weights · cross-entropy, float32 [], of `cross_entropy`'s arguments and weights [B, T] float32.

    Its gradient is computed with it; that to the weights is zero, since they are data.
    """
    rows = table.astype(hidden.dtype)

    def of_chunk(total: jax.Array, chunk: tuple) -> tuple[jax.Array, None]:
        hidden, targets, weights = chunk
        return total + jnp.sum(weights * _losses(_logits(hidden, rows, vocab_size), targets)), None

    return jax.lax.scan(of_chunk, jnp.float32(0), _chunks((hidden, targets, weights), shards))[0]


def _sum_forward(
    hidden: jax.Array, table: jax.Array, targets: jax.Array, weights: jax.Array, vocab_size: int, shards: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    rows = table.astype(hidden.dtype)
    columns = transposed(rows, 1, 0)

    def of_chunk(carry: tuple, chunk: tuple) -> tuple[tuple, jax.Array]:
        total, to_table = carry
        hidden, targets, weights = chunk
        logits = _logits(hidden, rows, vocab_size)
        log_total = jax.nn.logsumexp(logits, axis=0)
        gold = jnp.arange(len(logits))[:, None] == targets
        total += jnp.sum(weights * (log_total - _of_targets(logits, targets)))
        to_logits = (weights * (jnp.exp(logits - log_total) - gold)).astype(hidden.dtype)
        to_table += jnp.einsum("vn,nd->vd", to_logits, hidden, preferred_element_type=jnp.float32)
        to_hidden = jnp.einsum("dv,vn->dn", columns, to_logits, preferred_element_type=jnp.float32)
        return (total, to_table), transposed(to_hidden.astype(hidden.dtype), 1, 0)

    zero = (jnp.float32(0), jnp.zeros(table.shape, jnp.float32))
    (total, to_table), to_hidden = jax.lax.scan(of_chunk, zero, _chunks((hidden, targets, weights), shards))
    return total, (_joined(to_hidden, targets.shape), to_table.astype(table.dtype))


def _sum_backward(vocab_size: int, shards: int, gradients: tuple, by: jax.Array) -> tuple:
    to_hidden, to_table = gradients
    return (by * to_hidden).astype(to_hidden.dtype), by * to_table, None, None


cross_entropy_sum.defvjp(_sum_forward, _sum_backward)


def _logits(hidden: jax.Array, rows: jax.Array, vocab_size: int) -> jax.Array:
    """Returns the logits [V, N] float32 of N tokens; vocabulary first is the faster product."""
    logits = jnp.einsum("vd,nd->vn", rows, hidden, preferred_element_type=jnp.float32)
    if len(rows) == vocab_size:
        return logits
    return jnp.where(jnp.arange(len(rows))[:, None] < vocab_size, logits, MASKED)


def _losses(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return jax.nn.logsumexp(logits, axis=0) - _of_targets(logits, targets)


def _of_targets(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits, targets[None], axis=0)[0]


def _chunks(arrays: tuple[jax.Array, ...], shards: int) -> tuple[jax.Array, ...]:
    """Returns arrays [B, T, ...] as zero-padded chunks [C, B * T / C, ...]; rows stay on their devices."""
    rows, length = arrays[0].shape[:2]
    size = max(1, min(length, CHUNK * shards // rows))
    count = math.ceil(length / size)
    size = math.ceil(length / count)  # so that the last one is not nearly empty

    def cut(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, count * size - length), *[(0, 0)] * (x.ndim - 2)))
        return x.reshape(rows, count, size, *x.shape[2:]).swapaxes(0, 1).reshape(count, rows * size, *x.shape[2:])

    return tuple(map(cut, arrays))


def _joined(chunks: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Returns chunks [C, B * T / C, ...] as [B, T, ...] of this B and T; the inverse of `_chunks`."""
    (rows, length), rest = shape, chunks.shape[2:]
    joined = chunks.reshape(len(chunks), rows, -1, *rest).swapaxes(0, 1)
    return joined.reshape(rows, -1, *rest)[:, :length]
