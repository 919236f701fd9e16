"""Statistics of scored answers: clustered intervals, paired differences of runs, and spreads over seeds."""

import math
import statistics
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from scipy.special import stdtr, stdtrit

from ghost_jax.runs.evaluation import Accuracy, Control

LEVEL = 0.95
ENOUGH_SEEDS = 3  # fewer values give no interval over seeds
_ROUNDING = 1e-12  # means of thirds over seeds do not cancel to the last bit; no true spread is as small

Found = TypeVar("Found", bound=Accuracy)
Clusters = Sequence[str] | Sequence[tuple[str, str]]


def clustered_interval(correct: np.ndarray, clusters: Clusters) -> tuple[float, float, float]:
    """Returns the mean credit and its 95% interval, clustered by the page a question comes from.

    Questions from one page are right or wrong together, so N items carry less than N items' worth of evidence. With n
    clusters of N_g items, mean m, and m_g the mean without cluster g,

        SE² = (n - 1) / n · Σ_g (m_g - m)²,    G = N² / Σ_g N_g²,    interval = m ± t_{G-1; 0.975} · SE,

    clipped to [0, 1]: the jackknife, with the effective number of clusters G (Carter, Schnepel & Steigerwald 2017).
    Clusters of one size have G = n and the usual clustered error (Liang & Zeger 1986; Miller 2024, "Adding Error Bars
    to Evals"). That error is far too small where one cluster has most items, since it draws the mean to itself. One
    cluster has the interval (0, 1). Where all is right or all is wrong, the interval is the exact one of G trials.
    Other credits that are all equal give an interval of width zero.

    Args:
      correct: [N] credit of each item in [0, 1], the mean over its orders.
      clusters: [N] name of each item's cluster; an item named "" is a cluster of its own. Or [N] pairs of names for two
        groupings at once (`_two_way`).

    Raises:
      ValueError: there are no items, the lengths differ, or a credit is outside [0, 1].
    """
    mean, error, g = _clustered(_credits(correct), clusters)
    if g == 1:
        return mean, 0.0, 1.0
    if mean in (0.0, 1.0):
        least = ((1 - LEVEL) / 2) ** (1 / g)  # Clopper & Pearson (1934): all of g trials alike
        return (mean, least, 1.0) if mean else (mean, 0.0, 1 - least)
    half_width = float(stdtrit(g - 1, (1 + LEVEL) / 2)) * error
    return mean, max(0.0, mean - half_width), min(1.0, mean + half_width)


def accuracy_of(credits: np.ndarray, clusters: Clusters, kind: type[Found] = Accuracy, **more: Any) -> Found:
    """Returns the mean of [N] credits with its clustered interval, as a record of this kind with `more` fields."""
    mean, low, high = clustered_interval(credits, clusters)
    return kind(accuracy=mean, ci95=(low, high), **more)


def _credits(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("credits must lie in [0, 1]")
    return values


def _clustered(values: np.ndarray, clusters: Sequence[Hashable]) -> tuple[float, float, float]:
    """The mean of [N] values, its error, which is infinite for one cluster, and the effective number of clusters G."""
    if len(clusters) and isinstance(clusters[0], tuple):
        return _two_way(values, clusters)
    if values.ndim != 1 or len(values) == 0 or len(values) != len(clusters):
        raise ValueError(f"expected [N] credits and N clusters, got {values.shape} and {len(clusters)}")
    index_of: dict[Hashable, int] = {}
    cluster = [index_of.setdefault(name or row, len(index_of)) for row, name in enumerate(clusters)]
    n, mean = len(index_of), float(values.mean())
    if n == 1:
        return mean, math.inf, 1
    sizes = np.bincount(cluster)  # [n]
    shifts = np.bincount(cluster, weights=values - mean) / (len(values) - sizes)  # [n] of the mean without a cluster
    error = math.sqrt((n - 1) / n * np.sum(shifts**2))
    return mean, error if error > _ROUNDING else 0.0, len(values) ** 2 / int(np.sum(sizes**2))


def _two_way(values: np.ndarray, clusters: Sequence[tuple[str, str]]) -> tuple[float, float, float]:
    """`_clustered` by two groupings at once: SE² = SE²_first + SE²_second - SE²_both, and G is the smaller number.

    Cameron, Gelbach & Miller (2011, "Robust inference with multiway clustering"). The error is at least that of either
    grouping alone.
    """
    both = ["\0".join(pair) for pair in clusters]
    (mean, first, g), (_, second, h), (_, joint, _) = (
        _clustered(values, names) for names in (*zip(*clusters, strict=True), both)
    )
    if min(g, h) == 1:
        return mean, math.inf, 1
    return mean, max(first, second, math.sqrt(max(0.0, first**2 + second**2 - joint**2))), min(g, h)


# ---- Two runs on the same items ----


@dataclass(frozen=True)
class Difference:
    """The mean difference of two runs' credits on the same items, as fractions."""

    mean: float  # above zero where the run is better than its reference
    ci95: tuple[float, float]  # its interval, clustered and clipped to [-1, 1]
    p: float  # two-sided p-value of no difference
    # the true difference that would have p < 0.05 four times in five; None without any spread, or above 1
    detectable: float | None


def paired_difference(credits: np.ndarray, reference: np.ndarray, clusters: Clusters, *, of: int = 1) -> Difference:
    """Returns by how much [N] credits are higher than a reference's [N] on the same items.

    Mean d and SE of the differences are as for `clustered_interval`; with G clusters t = d / SE has G - 1 degrees of
    freedom, and the minimum detectable effect at 80% power and 5% (Bloom 1995), corrected for the number `of`
    comparisons, is

        detectable = (t_{G-1; 1 - 0.025 / of} + t_{G-1; 0.8}) · SE.

    One cluster gives the interval (-1, 1) and p = 1. Differences d without any spread give p = 1 where they are zero,
    else that of the sign test, 2^(1 - G), and an interval of width zero, or from 0 to d while p is not below 0.05.
    """
    mean, error, g = _clustered(_credits(credits) - _credits(reference), clusters)
    if g == 1:
        return Difference(mean, (-1.0, 1.0), 1.0, None)
    if error == 0:
        p = 1.0 if abs(mean) < _ROUNDING else 2.0 ** (1 - g)
        return Difference(mean, (mean, mean) if p < 0.05 else (min(mean, 0.0), max(mean, 0.0)), p, None)
    reach, power = float(stdtrit(g - 1, 0.975)), float(stdtrit(g - 1, 0.8))
    ci95 = (max(-1.0, mean - reach * error), min(1.0, mean + reach * error))
    detectable = (float(stdtrit(g - 1, 1 - 0.025 / of)) + power) * error
    p = 2 * float(stdtr(g - 1, -abs(mean) / error))
    return Difference(mean, ci95, p, detectable if detectable <= 1 else None)


def control_of(credits: np.ndarray, control: np.ndarray, clusters: Clusters, **more: Any) -> Control:
    """Returns the accuracy of a control with [N] credits, and the paired gain of [N] credits over it."""
    gain = paired_difference(credits, control, clusters)
    return accuracy_of(control, clusters, Control, gain=gain.mean, gain_ci95=gain.ci95, **more)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for their number, in their own order (Holm 1979)."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


# ---- Several seeds ----


def pool(values: Sequence[float]) -> dict | None:
    """Returns n, mean, sd, min, max and `ci95` over the values of several seeds; None where there are none.

    `ci95` is Student's t-interval of the mean, None for fewer than ENOUGH_SEEDS values. One value has no sd.
    """
    if not values:
        return None
    n, mean = len(values), statistics.fmean(values)
    sd = statistics.stdev(values) if n > 1 else None
    half = float(stdtrit(n - 1, 0.975)) * sd / math.sqrt(n) if n >= ENOUGH_SEEDS else None
    ci95 = None if half is None else [mean - half, mean + half]
    return {"n": n, "mean": mean, "sd": sd, "min": min(values), "max": max(values), "ci95": ci95}
