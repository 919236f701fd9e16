"""evals/stats.py: the clustered interval against the textbook and a simulation, and the signs of a letter latch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from evals.stats import balanced_accuracy, clustered_interval, letter_share, recall_by_letter

credits = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=2, max_size=40)


# ---- The clustered interval ----


@given(credits, st.sampled_from([0.8, 0.95, 0.99]))
def test_an_item_a_cluster_is_the_plain_t_interval(correct, level):
    mean, low, high = clustered_interval(correct, [""] * len(correct), level)
    assert mean == pytest.approx(np.mean(correct))
    if np.std(correct) == 0:
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


# ---- Letters ----


def test_letter_share():
    assert letter_share(np.array([[0, 2], [2, 2]]), k=4) == [0.25, 0, 0.75, 0]
    assert letter_share([0, 1, -1, 23], k=2) == [0.25, 0.25]
    with pytest.raises(ValueError):
        letter_share([], k=4)


def test_recall_and_balanced_accuracy():
    gold, predicted = [0, 0, 0, 2, 2], [0, 0, 1, 2, -1]
    assert recall_by_letter(gold, predicted, k=4) == [2 / 3, None, 1 / 2, None]
    assert balanced_accuracy(gold, predicted, k=4) == pytest.approx(7 / 12)
    with pytest.raises(ValueError):
        recall_by_letter([0, 1], [0], k=2)
    with pytest.raises(ValueError):
        balanced_accuracy([], [], k=2)


@given(st.integers(2, 10), st.integers(0, 9), st.lists(st.integers(0, 9)))
def test_a_constant_letter_has_a_balanced_accuracy_of_one_in_k(k, letter, more):
    gold = [*range(k), *(index % k for index in more)]  # every letter is gold at least once
    assert balanced_accuracy(gold, [letter % k] * len(gold), k) == pytest.approx(1 / k)
