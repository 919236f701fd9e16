"""Statistics of scored answers: an interval that knows which items hang together, and the signs of a letter latch."""

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit


def clustered_interval(correct: np.ndarray, clusters: Sequence[str], level: float = 0.95) -> tuple[float, float, float]:
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
      clusters: [N] name of each item's cluster; an item named "" is a cluster of its own.
      level: confidence, between 0 and 1.

    Returns:
      (mean, low, high), as fractions. One cluster (so also one item) says nothing about the spread between clusters:
      its interval is (0, 1). Credits that are all equal show no spread and give an interval of width zero.

    Raises:
      ValueError: there are no items, the lengths differ, a credit is outside [0, 1], or the level outside (0, 1).
    """
    correct = np.asarray(correct, dtype=np.float64)
    if correct.ndim != 1 or len(correct) == 0 or len(correct) != len(clusters):
        raise ValueError(f"expected [N] credits and N clusters, got {correct.shape} and {len(clusters)}")
    if not ((correct >= 0) & (correct <= 1)).all():
        raise ValueError("credits must lie in [0, 1]")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")

    index_of: dict[str | int, int] = {}
    cluster = [index_of.setdefault(name or row, len(index_of)) for row, name in enumerate(clusters)]
    n, g, mean = len(correct), len(index_of), float(correct.mean())
    if g == 1:
        return mean, 0.0, 1.0
    residual_sums = np.bincount(cluster, weights=correct - mean)  # [G]
    standard_error = np.sqrt(g / (g - 1) * np.sum(residual_sums**2)) / n
    half_width = float(stdtrit(g - 1, (1 + level) / 2) * standard_error)
    return mean, max(0.0, mean - half_width), min(1.0, mean + half_width)


def letter_share(predicted: np.ndarray, k: int) -> list[float]:
    """Share of the answers that fall on each letter.

    Args:
      predicted: [...] indices of the answered letters; anything outside 0 to k - 1 is an answer that is no letter.
      k: number of letters.

    Returns:
      [k] fractions of all answers; they sum to less than 1 if some answers are no letter.

    Raises:
      ValueError: there are no answers.
    """
    predicted = np.asarray(predicted)
    if predicted.size == 0:
        raise ValueError("there are no answers")
    return [float(np.mean(predicted == letter)) for letter in range(k)]


def recall_by_letter(gold: np.ndarray, predicted: np.ndarray, k: int) -> list[float | None]:
    """Of the items whose gold is a letter, the fraction answered with it. A latch shows as one high and the rest low.

    Args:
      gold: [...] indices of the gold letters.
      predicted: [...] indices of the answered letters; anything outside 0 to k - 1 is simply wrong.
      k: number of letters.

    Returns:
      [k] fractions, None for a letter that is never gold.

    Raises:
      ValueError: the shapes differ.
    """
    gold, predicted = np.asarray(gold), np.asarray(predicted)
    if gold.shape != predicted.shape:
        raise ValueError(f"gold {gold.shape} and predicted {predicted.shape} differ in shape")
    return [
        float(np.mean(predicted[gold == letter] == letter)) if (gold == letter).any() else None for letter in range(k)
    ]


def balanced_accuracy(gold: np.ndarray, predicted: np.ndarray, k: int) -> float:
    """Mean recall over the letters that are gold at least once.

    Where all k are, a constant letter gets 1/k however unevenly gold is spread over them.

    Arguments as for `recall_by_letter`.

    Raises:
      ValueError: the shapes differ, or no gold is a letter.
    """
    recalls = [recall for recall in recall_by_letter(gold, predicted, k) if recall is not None]
    if not recalls:
        raise ValueError("no gold is a letter")
    return float(np.mean(recalls))
