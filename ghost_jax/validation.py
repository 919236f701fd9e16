"""Validation losses: of the run's own mix, and of every dataset together, which all recipes share."""

from collections.abc import Callable
from pathlib import Path

import jax
from jax.sharding import Mesh

from ghost_jax.data import mixture, store
from ghost_jax.model.transformer import Transformer
from ghost_jax.parallel.hosts import local_rows, to_global
from ghost_jax.parallel.mesh import batch_sharding
from ghost_jax.step import make_eval_step


def make_validation(
    model: Transformer,
    abstract_params: dict,
    mesh: Mesh,
    examples: Path,
    multipliers: dict[str, float],
    *,
    batch_size: int,
    seq_len: int,
    records: int,
) -> Callable[[dict], dict[str, float]]:
    """Returns `params -> losses` in nats a supervised token.

    `val_loss` is over the datasets that the mix holds, each once, whatever its multiplier. `val_loss_shared` is over
    all datasets of the store, mixed in or not, so that the losses of two recipes compare; `val_loss_<name>` is one
    dataset's. At most `records` of a dataset are read, the same ones each time.
    """
    held_out = {
        name: mixture.validation_batches(examples, name, batch_size=batch_size, seq_len=seq_len, records=records)
        for name in store.manifest(examples)["datasets"]
    }
    eval_step = make_eval_step(model, abstract_params, mesh)
    rows = batch_sharding(mesh)

    def of(params: dict, batches: list[dict]) -> tuple[float, float]:
        parts = [eval_step(params, to_global(local_rows(batch), rows)) for batch in batches]
        total, weight = jax.tree.map(lambda *xs: sum(float(x) for x in xs), *parts)
        return total, weight

    def validate(params: dict) -> dict[str, float]:
        sums = {name: of(params, batches) for name, batches in held_out.items() if batches}
        own = {name: pair for name, pair in sums.items() if multipliers.get(name, 0) > 0}
        losses = {"val_loss": _mean(own)} if own else {}
        if len(sums) > 1:
            losses["val_loss_shared"] = _mean(sums)
            losses |= {f"val_loss_{name}": total / weight for name, (total, weight) in sums.items()}
        return losses

    return validate


def _mean(sums: dict[str, tuple[float, float]]) -> float:
    return sum(total for total, _ in sums.values()) / sum(weight for _, weight in sums.values())
