"""The learning rate of an update, AdamW without it (the rate is an argument of the step), and what an update moved."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ghost_jax.model.transformer import unstack_blocks


def _wsd(peak: float, floor: float, updates: int, decay: int) -> optax.Schedule:
    decay = min(decay, updates)
    return optax.join_schedules(
        [optax.constant_schedule(peak), optax.linear_schedule(peak, floor, decay)], [updates - decay]
    )


# How the rate goes on from the peak: (peak, floor, updates from the peak to the last one, of which "wsd" decays).
SCHEDULES: dict[str, Callable[[float, float, int, int], optax.Schedule]] = {
    "cosine": lambda peak, floor, updates, _: optax.cosine_decay_schedule(peak, max(updates, 1), floor / (peak or 1)),
    "wsd": _wsd,
    "constant": lambda peak, *_: optax.constant_schedule(peak),
    "linear": lambda peak, floor, updates, _: optax.linear_schedule(peak, floor, updates),
}


def schedule(
    peak_lr: float, floor_lr: float, warmup_steps: int, steps: int, *, name: str = "cosine", decay_share: float = 0.2
) -> Callable[[int], float]:
    """Returns update number (from 0) -> learning rate: linear warm-up to the peak, then one of `SCHEDULES`.

    Update 0 already has a rate, `peak / warmup`, update `warmup - 1` is at the peak, and the last one, `steps - 1`, at
    the absolute floor. A run that is no longer than its warm-up ends at the peak.

    Args:
      name: "cosine" and "linear" decay all the way; "wsd" stays at the peak and decays linearly in the last
        `decay_share` of all updates; "constant" stays.
    """
    top = max(min(warmup_steps, steps) - 1, 0)  # the first update at the peak
    warm_up = optax.linear_schedule(peak_lr / (top + 1), peak_lr, top)
    decay = max(round(decay_share * steps), 1)
    joined = optax.join_schedules([warm_up, SCHEDULES[name](peak_lr, floor_lr, steps - 1 - top, decay)], [top])

    def rate(update: int) -> float:
        # On the host: the rate travels into the compiled step as a number, so a sweep of rates compiles once.
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            return float(joined(update))

    return rate


def adamw(b1: float, b2: float, weight_decay: float, clip_norm: float) -> optax.GradientTransformation:
    """Returns gradients -> the direction of AdamW, to be scaled by minus the learning rate.

    Weight decay falls on matrices alone, not on norms, biases and embeddings.

    Args:
      clip_norm: the global norm that gradients are clipped to; 0 for no clipping.
    """

    def matrices(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        optax.scale_by_adam(b1=b1, b2=b2),
        optax.add_decayed_weights(weight_decay, mask=matrices),
    )


def finite_or_same(old: Any, new: Any, ok: jax.Array) -> Any:
    """Returns the tree `new` where the scalar `ok` holds, else `old`: an update that is skipped moves nothing.

    Chosen leaf by leaf and not by multiplying with zero, because zero times NaN is NaN.
    """
    return jax.tree.map(lambda before, after: jnp.where(ok, after, before), old, new)


def norms_by_layer(params: dict, grads: dict) -> dict[str, jax.Array]:
    """Returns `param_norm/<layer>` and `grad_norm/<layer>`, Euclidean, for each block and other top-level name."""
    trees = {"param_norm": params, "grad_norm": grads}
    if "blocks" in params:
        trees = {kind: unstack_blocks(tree) for kind, tree in trees.items()}
    return {f"{kind}/{layer}": optax.global_norm(tree[layer]) for kind, tree in trees.items() for layer in tree}
