"""Learning-rate schedules; AdamW and Muon without the rate, which is an argument of the step."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

# Updates since the peak, their number at the last update (1 or more), and how many of them "wsd" decays, to the part of
# the way from the peak to the least rate. In Python: JAX may have been started without a CPU.
SCHEDULES: dict[str, Callable[[int, int, int], float]] = {
    "cosine": lambda done, updates, _: (1 - math.cos(math.pi * done / updates)) / 2,
    "wsd": lambda done, updates, decay: max(0.0, 1 - (updates - done) / min(decay, updates)),
    "constant": lambda *_: 0.0,
    "linear": lambda done, updates, _: done / updates,
}


def schedule(
    peak_lr: float, min_lr: float, warmup_steps: int, steps: int, *, name: str = "cosine", decay_share: float = 0.2
) -> Callable[[int], float]:
    """Returns update number (from 0) -> learning rate: linear warm-up to the peak, then one of `SCHEDULES`.

    Update 0 has the rate `peak / warmup`, update `warmup - 1` the peak, and the last one, `steps - 1`, `min_lr`. A run
    that is no longer than its warm-up ends at the peak.

    Args:
      name: "cosine" and "linear" decay over all updates; "wsd" stays at the peak and decays linearly in the last
        `decay_share` of all updates; "constant" stays.
    """
    top = max(min(warmup_steps, steps) - 1, 0)  # the first update at the peak
    decay, part_at = max(round(decay_share * steps), 1), SCHEDULES[name]

    def rate(update: int) -> float:
        if update <= top:
            return peak_lr * (update + 1) / (top + 1)
        return peak_lr + (min_lr - peak_lr) * part_at(min(update, steps - 1) - top, max(steps - 1 - top, 1), decay)

    return rate


def adamw(b1: float, b2: float, weight_decay: float, clip_norm: float) -> optax.GradientTransformation:
    """Returns gradients -> the direction of AdamW, to be scaled by minus the learning rate.

    Args:
      b1, b2: decay rates of the first and second moment.
      weight_decay: factor of a matrix that is added to its direction; norms, biases and embeddings do not decay.
      clip_norm: the global norm that gradients are clipped to; 0 for no clipping.
    """
    return _clipped_and_decayed(optax.scale_by_adam(b1=b1, b2=b2), weight_decay, clip_norm)


MUON_MOMENTUM = 0.95
# The RMS of AdamW's directions as measured by Liu et al.: Muon's are scaled to it, and use the same learning rates.
MUON_RMS = 0.2
# Input and output axes of each kernel, from the last axis, so that one row serves single and stacked blocks. Any other
# axis is a batch of separate matrices: the layers of stacked blocks, and q, k and v of a fused kernel.
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
    0.2 sqrt(max(inputs, outputs)), so that its RMS is that of AdamW's directions. Arguments are those of `adamw`.
    (`optax.contrib.muon` would give the other parameters Nesterov momentum, which `adamw` has not.)

    Raises ValueError, on use, for a kernel that `MUON_AXES` does not list.

    Source: Jordan et al. 2024 (kellerjordan.github.io/posts/muon), Liu et al. 2025 (arXiv 2502.16982).
    """
    by_muon = optax.chain(
        scale_by_muon(beta=MUON_MOMENTUM, weight_dimension_numbers=muon_axes),
        optax.stateless(lambda updates, _: jax.tree.map(_scale_rms, updates, muon_axes(updates))),
    )
    split = optax.partition(
        {"muon": by_muon, "adamw": optax.scale_by_adam(b1=b1, b2=b2)},
        lambda params: jax.tree.map(lambda matrix: "muon" if matrix else "adamw", is_matrix(params)),
    )
    return _clipped_and_decayed(split, weight_decay, clip_norm)


def muon_axes(params: Any) -> Any:
    """Returns the tree of `MuonDimensionNumbers` of a tree of kernels; ValueError where `MUON_AXES` has none."""

    def of(path: tuple, leaf: jax.Array) -> MuonDimensionNumbers:
        if path[-2].key not in MUON_AXES:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"{name} {leaf.shape} has no axes for Muon; add a row to MUON_AXES in {__name__}")
        return MUON_AXES[path[-2].key]

    return jax.tree_util.tree_map_with_path(of, params)


def _scale_rms(update: jax.Array, axes: MuonDimensionNumbers) -> jax.Array:
    fans = (math.prod(update.shape[axis] for axis in np.atleast_1d(each)) for each in axes)
    return MUON_RMS * math.sqrt(max(fans)) * update


def is_matrix(params: Any) -> Any:
    """Returns the tree of bools that is True for matrices of blocks and the adapters `a` and `b` to them, False for
    norms, biases and embeddings.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in ("kernel", "a", "b"), params)


def _clipped_and_decayed(
    direction: optax.GradientTransformation, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    return optax.chain(clip, direction, optax.add_decayed_weights(weight_decay, mask=is_matrix))


# `optim.name` of a config -> the optimizer of (b1, b2, weight_decay, clip_norm).
OPTIMIZERS = {"adamw": adamw, "muon": muon}
