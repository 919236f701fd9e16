"""What is minimised: the masked language-model loss, and beside it two objectives of multiple choice.

Each objective is a sum and a denominator until the last moment. A mean would not add up across micro-batches and
devices that hold different numbers of supervised tokens, letters and questions; sums over the denominators of the
whole batch do, and their gradients with them.
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
    return cross_entropy_sum(hidden, *_against(model, params, batch)), jnp.sum(batch["weights"])


def denominators(batch: dict) -> dict[str, jax.Array]:
    """Returns what each objective of a whole batch is a mean over, at least 1.

    "lm": the sum of weights. "letter": the records with a gold letter. "ranking": the ranked questions. An objective
    whose fields the batch lacks has none. All depend on the data alone, so they are known before the first micro-batch.
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
    """Returns `(loss, {objective: its own part})` of a micro-batch; over all of a batch's both add up to the batch's.

    The parts are in nats, each over its denominator and not yet weighted; the loss is their weighted sum. What weighs
    nothing is not computed.

    Args:
      batch: some rows, with the fields of `ghost_jax.data.packing.fill` that the objectives read.
      denominators: those of the whole batch.
      objective: the weight of each of `OBJECTIVES`; one that is absent weighs nothing.
        "lm": cross-entropy of the supervised tokens.
        "letter": cross-entropy of the gold letter among the letters alone, where the answer's letter is predicted.
        "ranking": cross-entropy of the gold option in the softmax over the options' log-probabilities, each the mean
        over the option's tokens, its end included. By their sum the shortest option would be the likeliest, by more
        than a young model can learn.
      letter_ids: ids [K] of the letters A, B, C …
      dropout_key: given where the model has dropout.

    Raises:
      KeyError: an objective weighs something and the batch lacks its fields.
    """
    weighs = {name for name in OBJECTIVES if objective.get(name, 0.0) > 0}
    hidden = _hidden(model, params, batch, dropout_key)
    parts = {}
    table, targets, weights, vocab_size, shards = _against(model, params, batch)
    if "ranking" in weighs:
        losses = cross_entropy(hidden, table, targets, vocab_size, shards)
        parts["ranking"] = _ranking(losses, batch)
        if "lm" in weighs:
            parts["lm"] = jnp.sum(losses * weights)
    elif "lm" in weighs:
        parts["lm"] = cross_entropy_sum(hidden, table, targets, weights, vocab_size, shards)
    if "letter" in weighs:
        # From the hidden states again: columns taken out of the logits would cost another [B, T, V] going backward.
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
        batch.get("positions"),
        batch.get("segments"),
        batch.get("branches"),
        deterministic=dropout_key is None,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
        method="hidden",
    )


def _against(model: Transformer, params: dict, batch: dict) -> tuple[jax.Array, jax.Array, jax.Array, int, int]:
    """Returns what hidden states are compared with: table, targets, their weights, vocabulary, parts of the batch."""
    table = params[tables_of(model.config)[-1]]
    shards = batch_shards(model.rows.mesh) if model.rows else 1
    return table, batch["targets"], batch["weights"], model.config.vocab_size, shards


def _option_starts(batch: dict) -> jax.Array:
    """Returns where [B, T] the first token of a ranked option is predicted: its branch begins there.

    A prompt, of branch 0, stands between the options of two questions.
    """
    before = jnp.pad(batch["branches"][:, :-1], ((0, 0), (1, 0)))
    return (batch["ranked"] > 0) & (batch["branches"] != before)


def _ranking(losses: jax.Array, batch: dict) -> jax.Array:
    """Returns the sum over ranked questions of -log softmax(options' log-probabilities)[gold].

    How many questions a row holds is not known when this is compiled. So each place sums over its own option, the start
    of each option stands for it, and the start of a gold one compares it with all of its question.
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
