"""Choice of the next token: greedy, or drawn from what temperature, top-k and top-p leave."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ghost_jax.core.errors import UsageError
from ghost_jax.model.transformer import MASKED

SMALLEST, LARGEST = 1e-30, 1e30  # of what float32 holds, with room to multiply


@dataclasses.dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
      temperature: divides the logits; 0 takes the most probable token.
      top_k: draws from this many of the most probable tokens; 0 for all.
      top_p: draws from the most probable tokens, of those that `top_k` leaves, that together reach this probability
        (nucleus sampling, Holtzman et al. 2020). Tokens as probable as the last one kept are kept too.
      repetition_penalty: divides the positive logits of tokens already in the text and multiplies the others (Keskar
        et al. 2019); 1 for none. Stop tokens are exempt, since every turn of a conversation ends with one.

    Raises UsageError for a value out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        valid = {
            "temperature": (
                self.temperature == 0 or SMALLEST <= self.temperature <= LARGEST,
                f"0, for greedy, or {SMALLEST} to {LARGEST}",
            ),
            "top_k": (self.top_k >= 0, "0, for all tokens, or above"),
            "top_p": (SMALLEST <= self.top_p <= 1, "above 0 and at most 1"),
            "repetition_penalty": (SMALLEST <= self.repetition_penalty <= LARGEST, "above 0; 1 is none"),
        }
        for name, (holds, allowed) in valid.items():
            if not holds:
                raise UsageError(f"{name} is {getattr(self, name)}. It must be {allowed}.")


GREEDY = Sampling()


def columns(samplings: Sequence[Sampling]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the four values [B] of B rows, arguments of a compiled program that other values do not recompile."""
    top_k = [min(each.top_k, np.iinfo(np.int32).max) for each in samplings]
    others = ([getattr(each, name) for each in samplings] for name in ("temperature", "top_p", "repetition_penalty"))
    temperature, top_p, penalty = (np.array(values, np.float32) for values in others)
    return temperature, np.array(top_k, np.int32), top_p, penalty


def choose(logits: jax.Array, keys: jax.Array, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Returns the chosen ids [B] by logits [B, V] and the keys [B] of this one choice; `Sampling` has the rest, [B]."""
    most_probable = logits.argmax(axis=-1).astype(jnp.int32)

    def draw() -> jax.Array:
        divisor = jnp.where(temperature > 0, temperature, 1.0)[:, None]
        # Padding rows stay masked, and no quotient of the most probable token is below them.
        highest = logits.max(axis=-1, keepdims=True)
        scaled = jnp.where(logits > MASKED, (logits - highest) / divisor, MASKED)
        limits = ((top_k > 0) | (top_p < 1)).any()
        limited = jax.lax.cond(limits, lambda: crop(scaled, top_k[:, None], top_p[:, None]), lambda: scaled)
        drawn = jax.vmap(jax.random.categorical)(keys, limited).astype(jnp.int32)
        return jnp.where(temperature > 0, drawn, most_probable)

    return jax.lax.cond((temperature > 0).any(), draw, lambda: most_probable)


def crop(logits: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Returns logits [B, V] with the tokens masked that `top_k` and `top_p` [B, 1] rule out."""
    probability = jax.nn.softmax(logits)
    ones = jnp.ones_like(probability)
    allowed = probability >= _threshold(probability, ones, jnp.where(top_k > 0, top_k, ones.shape[-1]))
    probability = jnp.where(allowed, probability, 0.0)
    probability /= probability.sum(axis=-1, keepdims=True)
    # With top_p = 1 the sum may round to less than 1, or reach it before the last token.
    least = jnp.where(top_p < 1, _threshold(probability, probability, top_p), 0.0)
    return jnp.where(allowed & (probability >= least), logits, MASKED)


def _threshold(probability: jax.Array, weight: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the highest probability [B, 1] such that the tokens at least as probable have the target weight together.

    Bisects the bits of the float, because sorting 32 rows of a large vocabulary takes a CPU a second.
    """
    bits = jax.lax.bitcast_convert_type(probability, jnp.int32)  # ordered as non-negative floats are

    def halve(_: jax.Array, bounds: tuple) -> tuple:
        low, high = bounds
        middle = (low + high) // 2
        enough = jnp.sum(jnp.where(bits >= middle, weight, 0.0), axis=-1, keepdims=True) >= target
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low = jnp.zeros((len(bits), 1), jnp.int32)
    high = jnp.full_like(low, 1 << 30)  # above the bits of 1.0
    low, _ = jax.lax.fori_loop(0, 30, halve, (low, high))
    return jax.lax.bitcast_convert_type(low, jnp.float32)
