"""Validation losses: of the run's own mixture, and of the datasets that all recipes share."""

from collections.abc import Callable

import jax

from ghost_jax.config.load import SHARED
from ghost_jax.data import mixture
from ghost_jax.data.mixture import Mix
from ghost_jax.parallel.distributed import place
from ghost_jax.parallel.mesh import batch_sharding
from ghost_jax.training.setup import TrainSetup
from ghost_jax.training.step import make_eval_step


def make_validation(setup: TrainSetup, mix: Mix) -> Callable[[dict], dict[str, float]]:
    """Returns `params -> losses` in nats a supervised token.

    `val_loss` is over the datasets that the mixture holds at any time, each once, whatever its multiplier;
    `val_loss_<name>` is one dataset's. `val_loss_shared` is over those that every chat recipe is prepared with, mixed
    in or not, so that the losses of two recipes compare. Of a dataset the same `data.validation_records` are read;
    `val_share` is their share of the mixed datasets' validation records. A dataset without a supervised token in them
    has no loss.
    """
    records = setup.config.data.validation_records
    read = {name: mixture.validation_batches(mix, name, batch_size=setup.rows, records=records) for name in mix.stores}
    read = {name: batches for name, batches in read.items() if any(batch["weights"].any() for batch in batches)}
    sizes = [mixture.validation_size(mix, name) for name in mix.datasets]
    share = sum(min(size, records) for size in sizes) / max(sum(sizes), 1)
    eval_step = make_eval_step(setup.model, setup.shapes, setup.mesh)
    sharding = batch_sharding(setup.mesh)

    def sums_of(params: dict, batches: list[dict]) -> tuple[float, float]:
        parts = [eval_step(params, place(batch, sharding)) for batch in batches]
        return jax.tree.map(lambda *xs: sum(float(x) for x in xs), *parts)

    def losses_of(sums: dict[str, tuple[float, float]]) -> dict[str, float]:
        mixed = [sums[name] for name in sums if name in mix.datasets]
        shared = [sums[name] for name in sums if name in SHARED]
        losses = {"val_loss": _mean(mixed), "val_share": share} if mixed else {}
        if len(sums) > 1:
            losses |= {"val_loss_shared": _mean(shared)} if shared else {}
            losses |= {f"val_loss_{name}": total / weight for name, (total, weight) in sums.items()}
        return losses

    return lambda params: losses_of({name: sums_of(params, batches) for name, batches in read.items()})


def _mean(sums: list[tuple[float, float]]) -> float:
    return sum(total for total, _ in sums) / sum(weight for _, weight in sums)
