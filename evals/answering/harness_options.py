"""The `generation_kwargs` that a task of lm-evaluation-harness may have."""

from collections.abc import Mapping

from ghost_jax.core.errors import UsageError, UserError
from ghost_jax.inference.sampling import Sampling

MOST_NEW = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first that is given counts
GENERATION = {"until", *MOST_NEW, "do_sample", "temperature", "top_k", "top_p", "repetition_penalty"}
DEFAULT_MOST_NEW = 256  # the harness's
# Options of other libraries, with the value at which they change no text. At that value they are accepted.
NEUTRAL = {
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences", "n", "best_of", "typical_p"), 1),
    **dict.fromkeys(("min_length", "min_new_tokens", "min_tokens", "no_repeat_ngram_size", "min_p"), 0),
    **dict.fromkeys(("diversity_penalty", "presence_penalty", "frequency_penalty"), 0),
}
NO_EFFECT = {"length_penalty", "early_stopping", "use_cache", "pad_token_id"}  # at any value, since there is one beam
SAMPLED_ONLY = {"top_k", "top_p", "min_p", "typical_p", "seed"}  # no effect where greedy


def generation_of(options: Mapping) -> tuple[list[str], int, Sampling]:
    """Returns the stop strings, the most new tokens and the sampling of a task's `generation_kwargs`.

    An option that is None is absent. As in the harness, decoding is greedy unless the temperature is above 0 and
    `do_sample` is not false.

    Raises UserError for an invalid value, and for an option that we lack, unless it has no effect.
    """
    given = {name: value for name, value in options.items() if value is not None}
    try:
        temperature = float(given.get("temperature", 0)) if given.get("do_sample", True) else 0.0
        if temperature == 0 or given.get("top_p") == 0:  # a top_p of 0 leaves the most probable token alone
            temperature = 0.0
            given = {name: value for name, value in given.items() if name not in SAMPLED_ONLY}
        top_k, top_p = int(given.get("top_k", 0)), float(given.get("top_p", 1))
        sampling = Sampling(temperature, top_k, top_p, float(given.get("repetition_penalty", 1)))
        new_tokens = int(next((given[name] for name in MOST_NEW if name in given), DEFAULT_MOST_NEW))
        until = given.get("until", [])
        until = [until] if isinstance(until, str) else [stop for stop in until if stop is not None]
        if new_tokens < 0 or not all(isinstance(stop, str) for stop in until):
            raise ValueError("the most new tokens are below 0, or until holds something that is not text")
    except (TypeError, ValueError, OverflowError, UsageError) as fault:
        raise UserError(
            f"A task's generation_kwargs, {dict(options)}, have an invalid value: {str(fault).rstrip('.')}. Correct it "
            "in the task's YAML file."
        ) from None
    unknown = sorted(name for name in given.keys() - GENERATION - NO_EFFECT if given[name] != NEUTRAL.get(name))
    if unknown:
        raise UserError(
            f"A task's generation_kwargs have {', '.join(unknown)}, which ghost_jax lacks. Remove them from the task; "
            f"it may have {', '.join(sorted(GENERATION))}."
        )
    return until, new_tokens, sampling
