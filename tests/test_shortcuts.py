"""ghost_jax/data/retrieval/mcq_baselines.py: what knowing nothing earns."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghost_jax.data.retrieval.mcq_baselines import (
    always,
    content_words,
    longest,
    overlapping,
    popular,
    shortest,
    times_gold,
    times_offered,
)

OPTIONS = [("aa", "b", "cc", "d"), ("x", "yyy", "zz"), ("one", "two")]


def credits(baseline, answers, options=OPTIONS, questions=("?", "?", "?")) -> list[float]:
    return baseline(questions, options, answers).tolist()


def test_a_constant_letter_is_right_or_wrong():
    assert credits(always(1), [1, 0, 1]) == [1, 0, 1]
    assert credits(always(3), [3, 2, 1]) == [1, 0, 0]  # a letter that a question does not have is wrong


def test_the_longest_and_the_shortest_share_ties():
    assert credits(longest, [0, 1, 0]) == [1 / 2, 1, 1 / 2]
    assert credits(longest, [1, 2, 1]) == [0, 0, 1 / 2]
    assert credits(shortest, [1, 0, 1]) == [1 / 2, 1, 1 / 2]
    assert credits(shortest, [0, 1, 0]) == [0, 0, 1 / 2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", set()),
        ("What is the use of it?", {"use"}),
        ("Use-after-free: FREE memory", {"use", "free", "memory", "after"}),
        ("Spearphishing Link (T1566.002).", {"spearphishing", "link", "t1566.002"}),
        ("CWE-79", {"cwe", "79"}),
    ],
)
def test_content_words(text, words):
    assert content_words(text) == words


def test_overlap_counts_each_content_word_once_and_no_function_word():
    question = "Which flaw of the kernel is a use of freed memory?"
    options = ("the of is a which", "memory memory memory", "Use of MEMORY", "kernel")
    assert [credits(overlapping, [gold], [options], [question])[0] for gold in range(4)] == [0, 0, 1, 0]
    tied = ("memory", "kernel", "nothing", "the")
    assert [credits(overlapping, [gold], [tied], [question])[0] for gold in range(4)] == [1 / 2, 1 / 2, 0, 0]
    assert credits(overlapping, [3], [tied], [""]) == [1 / 4]


def test_the_two_popularities_differ():
    options, answers = [("a", "b"), ("a", "c"), ("a", "b")], [1, 0, 1]
    assert times_offered(options) == {"a": 3, "b": 2, "c": 1}
    assert times_gold(options, answers) == {"b": 2, "a": 1}
    assert credits(popular(times_offered(options)), answers, options) == [0, 1, 0]
    assert credits(popular(times_gold(options, answers)), answers, options) == [1, 1, 1]


def test_what_the_reference_does_not_know_is_least_popular():
    assert credits(popular({"a": 1}), [0, 1, 1], [("a", "b"), ("a", "b"), ("b", "c")]) == [1, 0, 1 / 2]


def test_no_question_has_no_credit():
    assert credits(longest, [], [], []) == []


words = st.text("ab c", max_size=6)
asked = st.lists(st.tuples(words, st.lists(words, min_size=2, max_size=6)), max_size=5)


@given(asked, st.dictionaries(words, st.integers(0, 3)))
def test_whichever_option_is_gold_a_baseline_has_one_credit_to_give(drawn, popularity):
    for baseline in (longest, shortest, overlapping, popular(popularity), always(1)):
        for question, options in drawn:
            given_to = [baseline([question], [options], [gold]).item() for gold in range(len(options))]
            assert sum(given_to) == pytest.approx(1)
            earning = [credit for credit in given_to if credit]
            assert earning == [1 / len(earning)] * len(earning)


@given(asked, st.randoms(use_true_random=False))
def test_the_order_of_the_options_does_not_matter(drawn, rng):
    questions, options = [question for question, _ in drawn], [offered for _, offered in drawn]
    orders = [rng.sample(range(len(offered)), len(offered)) for offered in options]
    moved = [[offered[i] for i in order] for offered, order in zip(options, orders, strict=True)]
    for baseline in (longest, shortest, overlapping, popular(times_offered(options))):
        np.testing.assert_array_equal(
            baseline(questions, options, [order[0] for order in orders]), baseline(questions, moved, [0] * len(orders))
        )
