"""The learning rate of an update, and AdamW without it: the rate is an argument of the step, not part of it."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from ghost_jax.errors import UserError


def schedule(peak_lr: float, floor_lr: float, warmup_steps: int, steps: int) -> Callable[[int], float]:
    """Returns update number (from 0) -> learning rate: linear warm-up to the peak, then cosine to an absolute floor.

    Update 0 already has a rate, `peak / warmup`, and update `warmup - 1` is the first at the peak.
    """
    if not 0 <= floor_lr <= peak_lr:
        raise UserError(
            f"optim.floor_lr is {floor_lr}, but it must lie between 0 and optim.peak_lr ({peak_lr}): the rate decays "
            "from the peak to the floor."
        )
    warmup = min(warmup_steps, steps)
    parts, boundaries = [], []
    if warmup > 0:
        parts.append(optax.linear_schedule(peak_lr / warmup, peak_lr, max(warmup - 1, 1)))
        boundaries.append(warmup)
    if peak_lr == 0:
        parts.append(optax.constant_schedule(0.0))
    else:
        parts.append(optax.cosine_decay_schedule(peak_lr, max(steps - warmup, 1), alpha=floor_lr / peak_lr))
    joined = optax.join_schedules(parts, boundaries)

    def rate(update: int) -> float:
        # On the host: the rate travels into the compiled step as a number, so a sweep of rates compiles once.
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            return float(joined(update))

    return rate


def adamw(b1: float, b2: float, weight_decay: float, clip_norm: float) -> optax.GradientTransformation:
    """Returns gradients -> the direction of AdamW, to be scaled by minus the learning rate.

    Weight decay falls on matrices alone, not on norms, biases and embeddings.
    """

    def matrices(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.scale_by_adam(b1=b1, b2=b2),
        optax.add_decayed_weights(weight_decay, mask=matrices),
    )
