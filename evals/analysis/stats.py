"""Statistics of scored answers: intervals that know which items hang together, pairs of runs, spreads of seeds."""

import math
import statistics
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr, stdtr, stdtrit

ENOUGH_SEEDS = 3  # below, a spread over seeds is not worth an interval
_ROUNDING = 1e-12  # means of thirds over seeds do not cancel to the last bit; no true spread is as small


Clusters = Sequence[str] | Sequence[tuple[str, str]]


def clustered_interval(correct: np.ndarray, clusters: Clusters, level: float = 0.95) -> tuple[float, float, float]:
    """Mean credit and its confidence interval, with standard errors clustered by the page a question comes from.

    Questions written from one page are right or wrong together, so N items carry less than N items' worth of evidence.
    With G clusters and mean m,

        SE² = G / (G - 1) · Σ_g (Σ_{i in g} (correct_i - m))² / N²,    interval = m ± t_{G-1} · SE,

    clipped to [0, 1]. This is the linearised ("sandwich") variance of Liang & Zeger (1986, "Longitudinal data analysis
    using generalized linear models"), recommended for evaluations by Miller (2024, "Adding Error Bars to Evals"), with
    the usual small-sample factor and Student's t with G - 1 degrees of freedom. With an item a cluster it is the plain
    t-interval.

    Args:
      correct: [N] credit of each item in [0, 1]; one item asked in several orders is one credit, their mean.
      clusters: [N] name of each item's cluster; an item named "" is a cluster of its own. Or [N] pairs of names, where
        items hang together in two ways (`_two_way`).
      level: confidence, between 0 and 1.

    Returns:
      (mean, low, high), as fractions. One cluster (so also one item) says nothing about the spread between clusters:
      its interval is (0, 1). Where all is right or all is wrong, it is the exact one of G trials. Other credits that
      are all equal, such as a constant letter's over the cyclic orders, give an interval of width zero.

    Raises:
      ValueError: there are no items, the lengths differ, a credit is outside [0, 1], or the level outside (0, 1).
    """
    correct = np.asarray(correct, dtype=np.float64)
    if not ((correct >= 0) & (correct <= 1)).all():
        raise ValueError("credits must lie in [0, 1]")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    mean, error, g = _clustered(correct, clusters)
    if g == 1:
        return mean, 0.0, 1.0
    if mean in (0.0, 1.0):
        least = ((1 - level) / 2) ** (1 / g)  # Clopper & Pearson (1934): all of g trials alike
        return (mean, least, 1.0) if mean else (mean, 0.0, 1 - least)
    half_width = float(stdtrit(g - 1, (1 + level) / 2)) * error
    return mean, max(0.0, mean - half_width), min(1.0, mean + half_width)


def _clustered(values: np.ndarray, clusters: Sequence[Hashable]) -> tuple[float, float, int]:
    """Mean of [N] values, its standard error clustered as `clustered_interval` says, and the number of clusters G.

    The error of a single cluster is infinite: it says nothing about the spread between clusters.
    """
    if len(clusters) and isinstance(clusters[0], tuple):
        return _two_way(values, clusters)
    if values.ndim != 1 or len(values) == 0 or len(values) != len(clusters):
        raise ValueError(f"expected [N] credits and N clusters, got {values.shape} and {len(clusters)}")
    index_of: dict[Hashable, int] = {}
    cluster = [index_of.setdefault(name or row, len(index_of)) for row, name in enumerate(clusters)]
    g, mean = len(index_of), float(values.mean())
    if g == 1:
        return mean, math.inf, g
    residual_sums = np.bincount(cluster, weights=values - mean)  # [G]
    error = math.sqrt(g / (g - 1) * np.sum(residual_sums**2)) / len(values)
    return mean, error if error > _ROUNDING else 0.0, g


def _two_way(values: np.ndarray, clusters: Sequence[tuple[str, str]]) -> tuple[float, float, int]:
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
    """The mean difference of two runs' credits on the same items, as fractions.

    Attributes:
      mean: above zero where the run is better than the one it is set against.
      ci95: its interval, clustered and clipped to [-1, 1].
      p: two-sided p-value of no difference.
      detectable: the true difference that would come out at p < 0.05 four times in five; None where there is no spread
        to tell it from: for one cluster, or differences that are all equal.
    """

    mean: float
    ci95: tuple[float, float]
    p: float
    detectable: float | None


def paired_difference(credits: np.ndarray, reference: np.ndarray, clusters: Clusters) -> Difference:
    """Returns by how much [N] credits are higher than a reference's [N] on the same items.

    Both runs find the same items hard, so the difference on each item varies less than the credits do. Its mean d
    and SE are as for `clustered_interval`; with G clusters t = d / SE has G - 1 degrees of freedom, and

        detectable = (t_{G-1; 0.975} + t_{G-1; 0.8}) · SE,

    about 2.8 · SE: the minimum detectable effect at 80% power and 5% (Bloom 1995, "Minimum detectable effects").

    One cluster gives the interval (-1, 1) and p = 1. Differences d without any spread give p = 1 where they are zero,
    else that of the sign test, 2^(1 - G), and an interval of width zero, or from 0 to d while p is not below 0.05.

    Raises:
      ValueError: there are no items, the lengths differ, or a credit is outside [0, 1].
    """
    credits, reference = np.asarray(credits, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if credits.shape != reference.shape:
        raise ValueError(f"the credits {credits.shape} and those of the reference {reference.shape} differ in shape")
    for values in (credits, reference):
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError("credits must lie in [0, 1]")
    mean, error, g = _clustered(credits - reference, clusters)
    if g == 1:
        return Difference(mean, (-1.0, 1.0), 1.0, None)
    if error == 0:
        p = 1.0 if abs(mean) < _ROUNDING else 2.0 ** (1 - g)
        return Difference(mean, (mean, mean) if p < 0.05 else (min(mean, 0.0), max(mean, 0.0)), p, None)
    reach, power = float(stdtrit(g - 1, 0.975)), float(stdtrit(g - 1, 0.8))
    ci95 = (max(-1.0, mean - reach * error), min(1.0, mean + reach * error))
    return Difference(mean, ci95, 2 * float(stdtr(g - 1, -abs(mean) / error)), (reach + power) * error)


@dataclass(frozen=True)
class McNemar:
    """The items on which one of two runs alone is right.

    Attributes:
      gained: how many the run has right and its reference wrong.
      lost: how many the run has wrong and its reference right.
      p: two-sided exact p-value of both being as likely.
    """

    gained: int
    lost: int
    p: float


def mcnemar(correct: np.ndarray, reference: np.ndarray) -> McNemar:
    """Returns the exact test of McNemar (1947) on [N] answers of two runs, each right or wrong.

    Were both runs alike, each item on which they disagree would be a fair coin: p is twice the smaller tail of a
    binomial of one half, at most 1. It needs one answer an item. Credits over several orders are fractions, and the
    sign of their difference is no substitute: a run that is right on a quarter of the items and a collapsed one, which
    has a quarter of each item, are equally good, but the latter is ahead on three items of four. Items count as
    independent here, whatever page they come from.

    Raises:
      ValueError: the shapes differ, or an answer is neither right (1) nor wrong (0).
    """
    correct, reference = np.asarray(correct, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if correct.shape != reference.shape:
        raise ValueError(f"the answers {correct.shape} and those of the reference {reference.shape} differ in shape")
    if not (np.isin(correct, (0, 1)).all() and np.isin(reference, (0, 1)).all()):
        raise ValueError("an answer is right (1) or wrong (0)")
    gained, lost = int(np.sum(correct > reference)), int(np.sum(correct < reference))
    return McNemar(gained, lost, min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5))))


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for how many there are, in their own order (Holm 1979).

    With m of them, the i-th smallest (from 0) is multiplied by m - i, raised to the corrected one before it, and cut at
    1. To call everything below 0.05 a difference is then wrong anywhere in the table with probability 5% at most.
    """
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


# ---- Several seeds ----


def pool(values: Sequence[float]) -> dict | None:
    """Returns n, mean, sd, min, max and `ci95` over the values of several seeds; None where there are none.

    With n values, mean m and standard deviation s, ci95 = m ± t_{n-1} · s / √n; None for fewer than ENOUGH_SEEDS. One
    value has no sd.
    """
    if not values:
        return None
    n, mean = len(values), statistics.fmean(values)
    sd = statistics.stdev(values) if n > 1 else None
    half = float(stdtrit(n - 1, 0.975)) * sd / math.sqrt(n) if n >= ENOUGH_SEEDS else None
    ci95 = None if half is None else [mean - half, mean + half]
    return {"n": n, "mean": mean, "sd": sd, "min": min(values), "max": max(values), "ci95": ci95}
