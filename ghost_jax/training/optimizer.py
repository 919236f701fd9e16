"""Schedules of the learning rate; AdamW and Muon without it, because it is an argument of the step; what is moved."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

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
    peak_lr: float, min_lr: float, warmup_steps: int, steps: int, *, name: str = "cosine", decay_share: float = 0.2
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
    joined = optax.join_schedules([warm_up, SCHEDULES[name](peak_lr, min_lr, steps - 1 - top, decay)], [top])

    def rate(update: int) -> float:
        # On the host: the rate travels into the compiled step as a number, so a sweep of rates compiles once.
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            return float(joined(update))

    return rate


def adamw(b1: float, b2: float, weight_decay: float, clip_norm: float) -> optax.GradientTransformation:
    """Returns gradients -> the direction of AdamW, to be scaled by minus the learning rate.

    Weight decay is applied to matrices only, not to norms, biases and embeddings.

    Args:
      b1, b2: decay rates of the first and second moment.
      weight_decay: what a weight is multiplied with and added to its direction.
      clip_norm: the global norm that gradients are clipped to; 0 for no clipping.
    """
    return _clipped_and_decayed(optax.scale_by_adam(b1=b1, b2=b2), weight_decay, clip_norm)


MUON_MOMENTUM = 0.95
# The RMS of AdamW's directions as measured by Liu et al.: Muon's are scaled to it, and take the same learning rates.
MUON_RMS = 0.2
# Input and output axes of each kernel. They count from the last axis, so that one row serves single and stacked blocks.
# Any other axis is a batch of separate matrices: the layers of stacked blocks, and q, k and v of a fused kernel.
MUON_AXES: dict[str, MuonDimensionNumbers] = {
    "qkv": MuonDimensionNumbers(-4, (-2, -1)),  # [D, 3, H, K]: three matrices [D, H K]
    "kv": MuonDimensionNumbers(-4, (-2, -1)),  # [D, 2, G, K]: two matrices [D, G K]
    "q": MuonDimensionNumbers(-3, (-2, -1)),  # [D, H, K]
    "out": MuonDimensionNumbers((-3, -2), -1),  # [H, K, D]
    "up": MuonDimensionNumbers(-2, -1),  # [D, F]
    "gate": MuonDimensionNumbers(-2, -1),  # [D, F]
    "down": MuonDimensionNumbers(-2, -1),  # [F, D]
}


def muon(b1: float, b2: float, weight_decay: float, clip_norm: float) -> optax.GradientTransformation:
    """Returns gradients -> the direction of Muon for matrices of blocks and of AdamW for all other parameters.

    A matrix's momentum (Nesterov, 0.95) is orthogonalized by five Newton-Schulz steps and scaled by
    0.2 sqrt(max(inputs, outputs)), so that its RMS is that of AdamW's directions and learning rates can be reused. The
    matrices are each layer's own, and q, k and v of a fused kernel are three. Clipping, weight decay and the learning
    rate are those of `adamw`.

    `optax.contrib.muon` would give the other parameters to AdamW with Nesterov momentum, which `adamw` has not; its
    parts are used instead, so that only the matrices differ between the two optimizers.

    Args:
      b1, b2: decay rates of the moments of AdamW.
      weight_decay, clip_norm: as in `adamw`.

    Raises:
      ValueError: on use, for a kernel that `MUON_AXES` does not list.

    Source: Jordan et al. 2024 (kellerjordan.github.io/posts/muon), Liu et al. 2025 (arXiv 2502.16982).
    """
    by_muon = optax.chain(
        scale_by_muon(beta=MUON_MOMENTUM, weight_dimension_numbers=muon_axes),
        optax.stateless(lambda updates, _: jax.tree.map(_scale_rms, updates, muon_axes(updates))),
    )

    def labels(params: Any) -> Any:
        return jax.tree.map(lambda matrix: "muon" if matrix else "adamw", matrices(params))

    split = optax.partition({"muon": by_muon, "adamw": optax.scale_by_adam(b1=b1, b2=b2)}, labels)
    return _clipped_and_decayed(split, weight_decay, clip_norm)


def muon_axes(params: Any) -> Any:
    """Returns the tree of `MuonDimensionNumbers` for a tree of kernels.

    Raises ValueError for a kernel that `MUON_AXES` does not list.
    """

    def of(path: tuple, leaf: jax.Array) -> MuonDimensionNumbers:
        if path[-2].key not in MUON_AXES:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"no axes for Muon are known of {name} {leaf.shape}; add a row to MUON_AXES in {__name__}")
        return MUON_AXES[path[-2].key]

    return jax.tree_util.tree_map_with_path(of, params)


def _scale_rms(update: jax.Array, axes: MuonDimensionNumbers) -> jax.Array:
    fans = (math.prod(update.shape[axis] for axis in np.atleast_1d(each)) for each in axes)
    return MUON_RMS * math.sqrt(max(fans)) * update


def matrices(params: Any) -> Any:
    """Returns the tree of bools that tells matrices of blocks from norms, biases and embeddings."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _clipped_and_decayed(
    direction: optax.GradientTransformation, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        direction,
        optax.add_decayed_weights(weight_decay, mask=matrices),
    )


# Name in a config (`optim.name`) -> (b1, b2, weight_decay, clip_norm) to the optimizer.
OPTIMIZERS: dict[str, Callable[[float, float, float, float], optax.GradientTransformation]] = {
    "adamw": adamw,
    "muon": muon,
}


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
