"""The training loss: next-token prediction on the supervised tokens, and two objectives of multiple choice.

Each objective is a sum and a denominator: means would not add up across micro-batches and devices with different
numbers of supervised tokens, letters and questions, and sums over the denominators of the full batch do.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ghost_jax.model.transformer import MASKED, Transformer, tables_of
from ghost_jax.parallel.mesh import batch_shards
from ghost_jax.training.cross_entropy import cross_entropy, cross_entropy_sum

OBJECTIVES = ("lm", "letter", "ranking")


def loss_sum(model: Transformer, params: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
    """Returns `(sum of weighted cross-entropies in nats, sum of weights)`: the language-model loss, for validation.

    Args:
      batch: `tokens` [B, T] int32, `targets` [B, T] int32 (the next token) and `weights` [B, T] float32 (zero where
        nothing is learnt); of packed rows also `positions` and `segments` [B, T] int32.
    """
    hidden = _hidden(model, params, batch, None)
    return cross_entropy_sum(hidden, *_head_and_targets(model, params, batch)), jnp.sum(batch["weights"])


def denominators(batch: dict) -> dict[str, jax.Array]:
    """Returns the denominator of each objective of a full batch, at least 1, from the data alone.

    "lm": the sum of weights. "letter": the records with a gold letter. "ranking": the ranked questions. An objective
    whose fields the batch lacks has none.
    """
    sums = {"lm": jnp.sum(batch["weights"])}
    if "letters" in batch:
        sums["letter"] = jnp.sum(batch["letters"] > 0)
    if "ranked" in batch:
        sums["ranking"] = jnp.sum(_option_starts(batch) & (batch["ranked"] == 2))
    return {name: jnp.maximum(total.astype(jnp.float32), 1.0) for name, total in sums.items()}


def loss(
    model: Transformer,
    params: dict,
    batch: dict,
    denominators: Mapping[str, jax.Array],
    objective: Mapping[str, float],
    letter_ids: np.ndarray,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns `(loss, {objective: its part})` of a micro-batch; over all micro-batches both add up to the batch's.

    The parts are in nats, each over its denominator and not yet weighted; the loss is their weighted sum. An objective
    without weight is not computed.

    Args:
      batch: some rows, with the fields of `ghost_jax.data.packing.fill` that the objectives read.
      denominators: those of the full batch.
      objective: the weights of `OBJECTIVES`; an absent one is 0.
        "lm": cross-entropy of the supervised tokens.
        "letter": cross-entropy of the gold letter among the letters alone, where the answer's letter is predicted.
        "ranking": cross-entropy of the gold option in the softmax over the options' log-probabilities, each the mean
        over the option's tokens, its end included; their sum would favour the shortest option.
      letter_ids: ids [K] of the letters A, B, C …
      dropout_key: of a model with dropout.

    Raises KeyError where the batch lacks the fields of an objective with a weight.
    """
    wanted = {name for name in OBJECTIVES if objective.get(name, 0.0) > 0}
    hidden = _hidden(model, params, batch, dropout_key)
    parts = {}
    table, targets, weights, vocab_size, shards = _head_and_targets(model, params, batch)
    if "ranking" in wanted:
        losses = cross_entropy(hidden, table, targets, vocab_size, shards)
        parts["ranking"] = _ranking(losses, batch)
        if "lm" in wanted:
            parts["lm"] = jnp.sum(losses * weights)
    elif "lm" in wanted:
        parts["lm"] = cross_entropy_sum(hidden, table, targets, weights, vocab_size, shards)
    if "letter" in wanted:
        # From the hidden states: columns of the full logits would cost another [B, T, V] in the backward pass.
        scores = model.apply({"params": params}, hidden, letter_ids, method="head")  # [B, T, K]
        gold = batch["letters"]
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, jnp.maximum(gold - 1, 0))
        parts["letter"] = jnp.sum(jnp.where(gold > 0, losses, 0.0))
    parts = {name: total / denominators[name] for name, total in parts.items()}
    return sum(objective[name] * part for name, part in parts.items()), parts


def _hidden(model: Transformer, params: dict, batch: dict, dropout_key: jax.Array | None) -> jax.Array:
    """Returns the last hidden states [B, T, D]."""
    return model.apply(
        {"params": params},
        batch["tokens"],
        *(batch.get(name) for name in ("positions", "segments", "branches")),
        deterministic=dropout_key is None,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
        method="hidden",
    )


def _head_and_targets(model: Transformer, params: dict, batch: dict) -> tuple:
    """Returns the arguments of `cross_entropy_sum` behind the hidden states."""
    table = params[tables_of(model.config)[-1]]
    shards = batch_shards(model.rows.mesh) if model.rows else 1
    return table, batch["targets"], batch["weights"], model.config.vocab_size, shards


def _option_starts(batch: dict) -> jax.Array:
    """Returns where [B, T] the first token of a ranked option is predicted: where its branch begins.

    A prompt, of branch 0, lies between the options of two questions.
    """
    before = jnp.pad(batch["branches"][:, :-1], ((0, 0), (1, 0)))
    return (batch["ranked"] > 0) & (batch["branches"] != before)


def _ranking(losses: jax.Array, batch: dict) -> jax.Array:
    """Returns the sum over ranked questions of -log softmax(options' log-probabilities)[gold].

    The number of questions in a row is unknown at compile time. So each position sums over its own option, the start of
    each option represents it, and the start of a gold one is compared with all options of its question.
    """
    segments = batch.get("segments", jnp.zeros_like(batch["branches"]))
    same_question = segments[:, :, None] == segments[:, None, :]  # [B, T, T], as in attention
    same_option = same_question & (batch["branches"][:, :, None] == batch["branches"][:, None, :])
    of_option = same_option & (batch["ranked"] > 0)[:, None, :]
    option = -jnp.sum(jnp.where(of_option, losses[:, None, :], 0.0), axis=-1)  # [B, T]
    option = option / jnp.maximum(jnp.sum(of_option, axis=-1), 1)
    starts = _option_starts(batch)
    rivals = jnp.where(same_question & starts[:, None, :], option[:, None, :], MASKED)
    question_losses = jax.nn.logsumexp(rivals, axis=-1) - option
    return jnp.sum(jnp.where(starts & (batch["ranked"] == 2), question_losses, 0.0))
