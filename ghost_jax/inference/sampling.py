"""How the next token is chosen: greedy, or drawn from what temperature, top k and top p leave."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ghost_jax.core.errors import UsageError
from ghost_jax.model.transformer import MASKED


@dataclasses.dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
      temperature: what logits are divided by; 0 takes the most probable token and draws nothing.
      top_k: only so many of the most probable tokens may be drawn; 0 for all.
      top_p: only the most probable tokens that together reach this probability may be drawn (nucleus sampling, Holtzman
        et al. 2020); of those left by `top_k`. Tokens as probable as the last one kept are kept too.
      repetition_penalty: what the logit of a token that stands in the prompt or the text is divided by where it is
        positive, and multiplied by where it is not (Keskar et al. 2019); 1 for none. A stop is never penalised, since
        every turn of a conversation ends with one.

    Raises UsageError for values that choose nothing.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"The temperature is {self.temperature}; it must be 0, for greedy, or above.")
        if self.top_k < 0:
            raise UsageError(f"top_k is {self.top_k}; it must be 0, for all tokens, or above.")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; it must be above 0 and at most 1.")
        if not 0 < self.repetition_penalty < float("inf"):
            raise UsageError(f"repetition_penalty is {self.repetition_penalty}; it must be above 0, and is 1 for none.")

    def scalars(self) -> tuple[np.float32, np.int32, np.float32, np.float32]:
        """Returns the values as arguments of a compiled program, and not its constants: others compile nothing.

        A value beyond what 32 bits hold becomes the nearest that they do.
        """
        top_k = min(self.top_k, np.iinfo(np.int32).max)  # which is all of any vocabulary
        least, most = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
        chosen = np.float32(min(self.temperature, most)), np.int32(top_k), np.float32(max(self.top_p, least))
        return *chosen, np.float32(min(max(self.repetition_penalty, least), most))


GREEDY = Sampling()


def choose(logits: jax.Array, keys: jax.Array, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Returns the chosen ids [B] by logits [B, V] and the keys [B] of this one choice; see `Sampling` for the rest."""

    def draw() -> jax.Array:
        scaled = jnp.where(logits > MASKED, logits / temperature, MASKED)  # no heat makes a padding row probable
        limited = jax.lax.cond((top_k > 0) | (top_p < 1), lambda: cut(scaled, top_k, top_p), lambda: scaled)
        return jax.vmap(jax.random.categorical)(keys, limited).astype(jnp.int32)

    return jax.lax.cond(temperature > 0, draw, lambda: logits.argmax(axis=-1).astype(jnp.int32))


def cut(logits: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Returns logits [B, V] without the tokens that `top_k` and `top_p` rule out; see `Sampling`."""
    probability = jax.nn.softmax(logits)
    ones = jnp.ones_like(probability)
    allowed = probability >= _least(probability, ones, jnp.where(top_k > 0, top_k, ones.shape[-1]))
    probability = jnp.where(allowed, probability, 0.0)
    probability /= probability.sum(axis=-1, keepdims=True)
    # Over all tokens the sum may round to less than 1, or reach it before the last one.
    least = jnp.where(top_p < 1, _least(probability, probability, top_p), 0.0)
    return jnp.where(allowed & (probability >= least), logits, MASKED)


def penalised(logits: jax.Array, seen: jax.Array, penalty: jax.Array) -> jax.Array:
    """Returns logits [B, V] with those of the tokens `seen` [B, V] made less probable; see `Sampling`."""
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def _least(probability: jax.Array, weight: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the highest [B, 1] of which it holds that the tokens at least as probable weigh the target together.

    Found by halving and not by sorting, which takes a CPU a second for 32 rows of a large vocabulary.
    """
    bits = jax.lax.bitcast_convert_type(probability, jnp.int32)  # in the order of floats that have no sign

    def halve(_: jax.Array, bounds: tuple) -> tuple:
        low, high = bounds
        middle = (low + high) // 2
        enough = jnp.sum(jnp.where(bits >= middle, weight, 0.0), axis=-1, keepdims=True) >= target
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low = jnp.zeros((len(bits), 1), jnp.int32)
    high = jnp.full_like(low, 1 << 30)  # above the bits of 1.0
    low, _ = jax.lax.fori_loop(0, 30, halve, (low, high))
    return jax.lax.bitcast_convert_type(low, jnp.float32)
