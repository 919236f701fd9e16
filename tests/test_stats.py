"""evals/analysis/stats.py: intervals and tests against the textbook, SciPy and a simulation."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import binomtest, t, ttest_1samp, ttest_rel

from evals.analysis.stats import clustered_interval, holm, paired_difference, pool

credit = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
pairs = st.lists(st.tuples(credit, credit), min_size=2, max_size=40)
FIVE = ["a", "a", "b", "c", "c"]


@given(st.lists(credit, min_size=2, max_size=40))
@example([1.0] * 9)
@example([0.25] * 9)
def test_an_item_a_cluster_is_the_plain_t_interval(correct):
    mean, low, high = clustered_interval(correct, [""] * len(correct))
    assert mean == pytest.approx(np.mean(correct))
    if mean in (0, 1):
        exact = binomtest(int(mean) * len(correct), len(correct)).proportion_ci(method="exact")
        assert (low, high) == pytest.approx((exact.low, exact.high))
    elif np.std(correct) == 0:
        assert (low, high) == pytest.approx((mean, mean))
    else:
        plain = ttest_1samp(correct, popmean=0.5).confidence_interval()
        assert (low, high) == pytest.approx((max(0, plain.low), min(1, plain.high)))
    assert clustered_interval(correct, [f"page {row}" for row in range(len(correct))]) == (mean, low, high)


def test_an_interval_and_a_difference_by_hand():
    # Clusters {1, 1}, {0}, {1, 0}: mean 3/5, and without each 1/3, 3/4 and 2/3. SE² = 2/3 · Σ (the difference)², and
    # t has 25 / (4 + 1 + 4) - 1 degrees of freedom.
    credits = np.array([1, 1, 0, 1, 0])
    error, freedom = (2 / 3 * (0.8**2 / 9 + 0.6**2 / 16 + 0.2**2 / 9)) ** 0.5, 16 / 9
    reach = t.ppf(0.975, freedom)
    half = reach * error / 10
    assert clustered_interval(credits / 10 + 0.44, FIVE) == pytest.approx((0.5, 0.5 - half, 0.5 + half))
    difference = paired_difference(credits, [0] * 5, FIVE)
    assert difference.mean == pytest.approx(0.6)
    assert difference.ci95 == (pytest.approx(0.6 - reach * error), 1.0)
    assert difference.p == pytest.approx(2 * t.sf(0.6 / error, freedom))
    assert difference.detectable is None, "no difference is above 1"
    detectable = paired_difference(credits / 10, [0] * 5, FIVE).detectable
    assert detectable == pytest.approx((reach + t.ppf(0.8, freedom)) * error / 10)


@pytest.mark.parametrize("sizes", [[5] * 30, [100] + [1] * 30, [50] + [1] * 50])
def test_intervals_cover_where_one_page_has_most_items(sizes):
    rng, covered, equal = np.random.default_rng(0), 0, 0
    pages = np.repeat(np.arange(len(sizes)), sizes)

    def drawn(rates):
        return (rng.random(len(pages)) < rates[pages]).astype(float)

    for _ in range(200):
        credits, other = (drawn(rng.beta(0.9, 1.4, len(sizes))) for _ in range(2))
        _, low, high = clustered_interval(credits, [str(page) for page in pages])
        covered += low <= 0.9 / 2.3 <= high
        low, high = paired_difference(credits, other, [str(page) for page in pages]).ci95
        equal += low <= 0 <= high
    assert min(covered, equal) >= 0.9 * 200


def test_one_cluster_has_no_spread_and_rounding_is_none():
    assert clustered_interval([1.0, 0.0], ["a", "a"]) == (0.5, 0.0, 1.0)
    assert clustered_interval([0.0, 1.0, 1.0], [("all", name) for name in "abc"])[1:] == (0.0, 1.0)
    difference = paired_difference([1, 1, 1], [0, 1, 0], ["a", "a", "a"])
    assert (difference.ci95, difference.p, difference.detectable) == ((-1.0, 1.0), 1.0, None)
    seeds = np.array([[0, 1 / 3, 2 / 3], [1 / 3, 2 / 3, 0], [2 / 3, 0, 1 / 3]])
    assert paired_difference(seeds.mean(axis=0), [1 / 3] * 3, ["", "", ""]).p == 1, "thirds that cancel"


def test_two_groupings_at_once_cover_the_mean_and_add_their_errors():
    rng, covered = np.random.default_rng(1), 0
    pages, sets = np.arange(400) % 80, np.arange(400) // 4
    names = [(f"page {page}", f"set {one}") for page, one in zip(pages, sets, strict=True)]
    for _ in range(300):
        shift = 0.6 * rng.standard_normal(80)[pages] + 0.6 * rng.standard_normal(100)[sets]
        credits = (rng.standard_normal(400) + shift > 0).astype(float)
        _, low, high = clustered_interval(credits, names)
        covered += low <= 0.5 <= high
    assert 0.92 <= covered / 300 <= 0.985

    def error(clusters, g: int) -> float:
        _, low, high = clustered_interval(credits, clusters)
        return (high - low) / 2 / t.ppf(0.975, g - 1)

    by_page, by_set = (error([pair[way] for pair in names], g) for way, g in ((0, 80), (1, 100)))
    by_both = error(list(map(str, names)), len(set(names)))
    assert error(names, 80) ** 2 == pytest.approx(by_page**2 + by_set**2 - by_both**2)
    assert error(names, 80) > max(by_page, by_set)
    assert error([(page, page) for page, _ in names], 80) == pytest.approx(by_page)


@pytest.mark.parametrize(
    ("credits", "clusters"), [([], []), ([1, 0], ["a"]), ([2, 0], ["", ""]), ([np.nan, 0], ["", ""])]
)
def test_credits_outside_their_range_or_without_clusters_are_refused(credits, clusters):
    with pytest.raises(ValueError):
        clustered_interval(credits, clusters)
    with pytest.raises(ValueError):
        paired_difference(credits, credits, clusters)


@given(pairs)
@example([(1.0, 0.75)] * 6)
@example([(0.0, 1.0)] * 5)
def test_an_item_a_cluster_is_the_paired_t_test(both):
    ours, reference = np.array(both).T
    difference = paired_difference(ours, reference, [""] * len(both))
    assert difference.mean == pytest.approx(np.mean(ours) - np.mean(reference))
    if np.std(ours - reference) == 0:
        assert difference.p == (1 if difference.mean == 0 else 2.0 ** (1 - len(both)))
        widest = difference.mean if difference.p < 0.05 else 0
        assert difference.ci95 == pytest.approx(sorted((widest, difference.mean)))
        assert difference.detectable is None
    else:
        plain = ttest_rel(ours, reference)
        interval = plain.confidence_interval(0.95)
        assert difference.p == pytest.approx(plain.pvalue)
        assert difference.ci95 == pytest.approx((max(-1, interval.low), min(1, interval.high)))


@given(pairs, st.integers(1, 8))
def test_the_interval_excludes_zero_where_p_is_small_and_mirrors_with_the_sign(both, size):
    ours, reference = np.array(both).T
    pages = [f"page {row // size}" for row in range(len(both))]
    there, back = paired_difference(ours, reference, pages), paired_difference(reference, ours, pages)
    assert there.ci95 == pytest.approx((-back.ci95[1], -back.ci95[0]))
    assert (there.mean, there.p, there.detectable) == pytest.approx((-back.mean, back.p, back.detectable))
    assert there.ci95[0] <= there.mean <= there.ci95[1]
    if abs(there.p - 0.05) > 1e-9:
        assert (there.p < 0.05) == (there.ci95[0] > 0 or there.ci95[1] < 0)


def test_holm_by_hand():
    # Sorted: 0.01 · 4, 0.02 · 3, 0.025 · 2 raised to 0.06, 0.9 · 1
    assert holm([0.025, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([0.5, 0.9, 0.9]) == [1.0, 1.0, 1.0]
    assert holm([]) == []


def test_pool():
    assert pool([]) is None
    assert pool([2.0]) == {"n": 1, "mean": 2.0, "sd": None, "min": 2.0, "max": 2.0, "ci95": None}
    assert pool([1.0, 2.0])["ci95"] is None, "two seeds are too few for an interval"
    three = pool([3.0, 1.0, 2.0])
    plain = ttest_1samp([3.0, 1.0, 2.0], popmean=0).confidence_interval(0.95)
    assert three.pop("ci95") == pytest.approx([plain.low, plain.high])
    assert three == {"n": 3, "mean": 2.0, "sd": 1.0, "min": 1.0, "max": 3.0}
