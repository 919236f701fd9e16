"""evals/analysis/stats.py: intervals and tests against the textbook, SciPy and simulations, and signs of one letter."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_1samp, ttest_rel

from evals.analysis.stats import (
    McNemar,
    clustered_interval,
    holm,
    mcnemar,
    paired_difference,
    pool,
)

credit = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
credits = st.lists(credit, min_size=2, max_size=40)
pairs = st.lists(st.tuples(credit, credit), min_size=2, max_size=40)
p_values = st.lists(st.floats(0, 1), max_size=12)


# ---- The clustered interval ----


@given(credits, st.sampled_from([0.8, 0.95, 0.99]))
def test_an_item_a_cluster_is_the_plain_t_interval(correct, level):
    mean, low, high = clustered_interval(correct, [""] * len(correct), level)
    assert mean == pytest.approx(np.mean(correct))
    if mean in (0, 1):
        exact = binomtest(int(mean) * len(correct), len(correct)).proportion_ci(level, method="exact")
        assert (low, high) == pytest.approx((exact.low, exact.high) if len(correct) > 1 else (0, 1))
    elif np.std(correct) == 0:
        assert (low, high) == pytest.approx((mean, mean))
    else:
        plain = ttest_1samp(correct, popmean=0.5).confidence_interval(level)
        assert (low, high) == pytest.approx((max(0, plain.low), min(1, plain.high)))
    assert clustered_interval(correct, [f"page {row}" for row in range(len(correct))], level) == (mean, low, high)


def test_by_hand():
    # Clusters {1, 1}, {0}, {1, 0}: mean 3/5, residual sums 0.8, -0.6, -0.2, so SE² = 3/2 · 1.04 / 25 = 0.0624 and
    # t with 2 degrees of freedom at 80% is 1.885618.
    mean, low, high = clustered_interval([1, 1, 0, 1, 0], ["a", "a", "b", "c", "c"], level=0.8)
    assert mean == pytest.approx(0.6)
    assert high == 1.0
    assert low == pytest.approx(0.6 - 1.885618 * 0.0624**0.5)


def test_duplicated_items_add_no_evidence():
    correct = np.array([1, 0, 1, 1, 0, 1, 0, 0, 1, 1], dtype=float)
    pages = [f"page {row}" for row in range(10)]
    once = clustered_interval(correct, pages)
    doubled = clustered_interval(np.repeat(correct, 2), np.repeat(pages, 2).tolist())
    naive = clustered_interval(np.repeat(correct, 2), [""] * 20)
    assert doubled == pytest.approx(once)
    assert doubled[2] - doubled[1] > naive[2] - naive[1]


@pytest.mark.parametrize(("correct", "clusters"), [([1.0], [""]), ([1.0, 0.0], ["a", "a"])])
def test_one_cluster_says_nothing(correct, clusters):
    assert clustered_interval(correct, clusters) == (np.mean(correct), 0.0, 1.0)


def test_coverage():
    # 40 pages of 5 questions; a page's own difficulty is Beta(2, 3), so the true accuracy is 0.4.
    rng = np.random.default_rng(0)
    pages = [f"page {page}" for page in range(40) for _ in range(5)]
    clustered, naive = [], []
    for _ in range(1000):
        correct = rng.random(200) < np.repeat(rng.beta(2, 3, size=40), 5)
        for covered, clusters in ((clustered, pages), (naive, [""] * 200)):
            _, low, high = clustered_interval(correct, clusters)
            covered.append(low <= 0.4 <= high)
    assert 0.92 < np.mean(clustered) < 0.975
    assert np.mean(naive) < 0.91


@pytest.mark.parametrize(
    ("correct", "clusters", "level"),
    [([], [], 0.95), ([1, 0], ["a"], 0.95), ([2, 0], ["", ""], 0.95), ([np.nan, 0], ["", ""], 0.95), ([1], [""], 95)],
)
def test_what_is_no_scored_benchmark(correct, clusters, level):
    with pytest.raises(ValueError):
        clustered_interval(correct, clusters, level)


# ---- Two runs on the same items ----


@given(pairs)
def test_an_item_a_cluster_is_the_paired_t_test(both):
    ours, reference = np.array(both).T
    difference = paired_difference(ours, reference, [""] * len(both))
    assert difference.mean == pytest.approx(np.mean(ours) - np.mean(reference))
    if np.std(ours - reference) == 0:
        assert difference.p == (1 if difference.mean == 0 else 2.0 ** (1 - len(both)))
        low, high = sorted((0, difference.mean))
        alone = (difference.mean, difference.mean)
        assert difference.ci95 == pytest.approx(alone if difference.p < 0.05 else (low, high))
        assert difference.detectable is None
    else:
        plain = ttest_rel(ours, reference)
        interval = plain.confidence_interval(0.95)
        assert difference.p == pytest.approx(plain.pvalue)
        assert difference.ci95 == pytest.approx((max(-1, interval.low), min(1, interval.high)))


@given(pairs, st.integers(1, 8))
def test_the_other_way_round_only_the_sign_changes(both, size):
    ours, reference = np.array(both).T
    pages = [f"page {row // size}" for row in range(len(both))]
    there, back = paired_difference(ours, reference, pages), paired_difference(reference, ours, pages)
    assert there.mean == -back.mean
    assert there.ci95 == pytest.approx((-back.ci95[1], -back.ci95[0]))
    assert (there.p, there.detectable) == pytest.approx((back.p, back.detectable))


@given(pairs, st.integers(1, 8))
def test_the_interval_excludes_zero_exactly_where_p_is_small(both, size):
    ours, reference = np.array(both).T
    difference = paired_difference(ours, reference, [f"page {row // size}" for row in range(len(both))])
    assert difference.ci95[0] <= difference.mean <= difference.ci95[1]
    if abs(difference.p - 0.05) > 1e-9:
        assert (difference.p < 0.05) == (difference.ci95[0] > 0 or difference.ci95[1] < 0)


def test_a_difference_by_hand():
    # The differences 1, 1, 0, 1, 0 in the clusters of `test_by_hand`: mean 3/5, SE² = 0.0624; t with 2 degrees of
    # freedom at 97.5% is 4.302653, at 80% 1.060660, and P(|t| > x) = 1 - x / √(x² + 2) with x² = 0.36 / 0.0624.
    difference = paired_difference([1, 1, 0, 1, 0], [0, 0, 0, 0, 0], ["a", "a", "b", "c", "c"])
    assert difference.mean == pytest.approx(0.6)
    assert difference.ci95 == (pytest.approx(0.6 - 4.302653 * 0.0624**0.5), 1.0)
    squared = 0.36 / 0.0624
    assert difference.p == pytest.approx(1 - (squared / (squared + 2)) ** 0.5)
    assert difference.detectable == pytest.approx((4.302653 + 1.060660) * 0.0624**0.5)


def test_one_page_says_nothing_of_a_difference():
    difference = paired_difference([1, 1, 1], [0, 1, 0], ["a", "a", "a"])
    assert (difference.ci95, difference.p, difference.detectable) == ((-1.0, 1.0), 1.0, None)


def test_thirds_that_cancel_are_no_difference():
    seeds = np.array([[0, 1 / 3, 2 / 3], [1 / 3, 2 / 3, 0], [2 / 3, 0, 1 / 3]])
    difference = paired_difference(seeds.mean(axis=0), [1 / 3] * 3, ["", "", ""])
    assert difference.p == 1.0


def test_2500_items_with_30_percent_discordant_tell_3_points_apart():
    ours, reference = np.zeros(2500), np.zeros(2500)
    ours[:375] = reference[375:750] = 1
    assert paired_difference(ours, reference, [""] * 2500).detectable == pytest.approx(0.031, abs=0.0005)


def test_a_detectable_difference_is_found_four_times_in_five():
    # 60 pages of 5 questions whose differences share the page's own share of luck
    rng = np.random.default_rng(0)
    pages = [f"page {page}" for page in range(60) for _ in range(5)]

    def drawn(shift: float):
        luck = np.repeat(rng.normal(0, 0.05, 60), 5) + rng.normal(0, 0.1, 300)
        return paired_difference(np.clip(0.5 + shift + luck, 0, 1), [0.5] * 300, pages)

    shift = np.mean([drawn(0.0).detectable for _ in range(200)])
    assert np.mean([drawn(shift).p < 0.05 for _ in range(1000)]) == pytest.approx(0.8, abs=0.04)
    assert np.mean([drawn(0.0).p < 0.05 for _ in range(1000)]) == pytest.approx(0.05, abs=0.025)


@pytest.mark.parametrize(
    ("ours", "reference", "clusters"),
    [([1, 0], [1], ["", ""]), ([], [], []), ([2, 0], [0, 0], ["", ""]), ([1], [np.nan], [""]), ([1, 0], [1, 0], [""])],
)
def test_what_cannot_be_paired(ours, reference, clusters):
    with pytest.raises(ValueError):
        paired_difference(ours, reference, clusters)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 20))
def test_mcnemar_is_the_binomial_test_of_the_discordant_items(gained, lost, alike):
    ours = np.repeat([1, 0, 1, 0], [gained, lost, alike, alike])
    reference = np.repeat([0, 1, 1, 0], [gained, lost, alike, alike])
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(ours, reference) == McNemar(gained, lost, pytest.approx(expected))


def test_mcnemar_by_hand():
    # 6 coins, all heads or all tails: 2 / 64
    assert mcnemar([1] * 6 + [0], [0] * 7) == McNemar(6, 0, pytest.approx(2 / 64))


@pytest.mark.parametrize(("ours", "reference"), [([1, 0], [1]), ([0.25, 1], [0, 1]), ([0, 1], [np.nan, 1])])
def test_mcnemar_is_of_one_answer_an_item(ours, reference):
    with pytest.raises(ValueError):
        mcnemar(ours, reference)


def test_holm_by_hand():
    # Sorted: 0.01 · 4, 0.02 · 3, 0.025 · 2 raised to 0.06, 0.9 · 1
    assert holm([0.025, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([0.4, 0.6]) == pytest.approx([0.8, 0.8])
    assert holm([0.5, 0.9, 0.9]) == [1.0, 1.0, 1.0]
    assert holm([]) == []


@given(p_values)
def test_holm_lies_between_no_correction_and_that_of_bonferroni(given_p):
    corrected = holm(given_p)
    assert all(p <= q <= min(1, len(given_p) * p) for p, q in zip(given_p, corrected, strict=True))
    order = np.argsort(given_p, kind="stable")
    assert all(np.diff(np.array(corrected)[order]) >= 0), "a smaller p stays the smaller"
    if given_p:
        assert min(corrected) == min(1, len(given_p) * min(given_p))


# ---- Several seeds ----


def test_pool():
    assert pool([]) is None
    assert pool([2.0]) == {"n": 1, "mean": 2.0, "sd": None, "min": 2.0, "max": 2.0, "ci95": None}
    assert pool([1.0, 2.0])["ci95"] is None, "two seeds are too few for an interval"
    three = pool([3.0, 1.0, 2.0])
    assert (three["n"], three["mean"], three["sd"], three["min"], three["max"]) == (3, 2.0, 1.0, 1.0, 3.0)
    plain = ttest_1samp([3.0, 1.0, 2.0], popmean=0).confidence_interval(0.95)
    assert three["ci95"] == pytest.approx([plain.low, plain.high])


def test_two_groupings_at_once_count_what_hangs_together_in_either():
    rng = np.random.default_rng(0)
    credits = rng.random(60)
    pages, sets = [f"page {row % 20}" for row in range(60)], [f"set {row // 4}" for row in range(60)]
    alone = [f"item {row}" for row in range(60)]
    one = clustered_interval(credits, pages)
    assert clustered_interval(credits, list(zip(pages, pages, strict=True))) == pytest.approx(one)
    assert clustered_interval(credits, list(zip(pages, alone, strict=True))) == pytest.approx(one)
    widths = [clustered_interval(credits, names)[2] for names in (pages, sets, list(zip(pages, sets, strict=True)))]
    assert widths[2] >= max(widths[:2]) - 1e-12
    assert clustered_interval(credits, [("all", name) for name in sets])[1:] == (0.0, 1.0)


def test_intervals_of_two_groupings_cover_as_often_as_they_say():
    """Credits with an effect of the page and one of the option set: the 95% interval holds the mean 19 times in 20."""
    rng, covered = np.random.default_rng(1), 0
    pages, sets = np.arange(400) % 80, np.arange(400) // 4
    names = [(f"page {page}", f"set {one}") for page, one in zip(pages, sets, strict=True)]
    for _ in range(300):
        shift = 0.6 * rng.standard_normal(80)[pages] + 0.6 * rng.standard_normal(100)[sets]
        credits = (rng.standard_normal(400) + shift > 0).astype(float)
        _, low, high = clustered_interval(credits, names)
        covered += low <= 0.5 <= high
    assert 0.92 <= covered / 300 <= 0.985
