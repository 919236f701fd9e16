"""ghost_jax/data/retrieval/mcq_baselines.py: the credits of baselines without knowledge."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghost_jax.data.items.items import Item
from ghost_jax.data.retrieval.mcq_baselines import (
    all_of_the_above,
    always,
    credits_of,
    longest,
    overlapping,
    popular,
    shortest,
)

OPTIONS = [("aa", "b", "cc", "d"), ("x", "yyy", "zz"), ("one", "two")]


def credits(baseline, answers, options=OPTIONS, question="?") -> list[float]:
    items = [Item("", question, offered, gold) for offered, gold in zip(options, answers, strict=True)]
    return credits_of(baseline, items).tolist()


@pytest.mark.parametrize(
    ("baseline", "answers", "expected"),
    [
        (always(1), [1, 0, 1], [1, 0, 1]),
        (always(3), [3, 2, 1], [1, 0, 0]),  # a letter that a question does not have is wrong
        (longest, [0, 1, 0], [1 / 2, 1, 1 / 2]),
        (longest, [1, 2, 1], [0, 0, 1 / 2]),
        (shortest, [1, 0, 1], [1 / 2, 1, 1 / 2]),
        (shortest, [0, 1, 0], [0, 0, 1 / 2]),
        (popular({"aa": 1, "yyy": 2, "x": 2}), [0, 1, 1], [1, 1 / 2, 1 / 2]),
    ],
)
def test_ties_share_a_credit(baseline, answers, expected):
    assert credits(baseline, answers) == expected
    assert credits(baseline, [], []) == []


def test_overlap_counts_each_content_word_once_and_no_function_word():
    question = "Which flaw of the kernel is a use of freed memory?"
    options = ("the of is a which", "memory memory memory", "Use of MEMORY", "kernel")
    assert [credits(overlapping, [gold], [options], question)[0] for gold in range(4)] == [0, 0, 1, 0]


@pytest.mark.parametrize(("question", "credit"), [("Which follows?", 1), ("Which does NOT follow?", 1 / 3)])
def test_all_of_the_above_is_chosen_where_it_stands_unless_the_question_is_negated(question, credit):
    options = ("Crash", "Exit", "All of the above")
    assert credits(all_of_the_above, [2], [options], question) == [credit]
    assert credits(all_of_the_above, [0], [("None of the above", "Exit")], question) == [1 / 2]


words = st.text("ab c", max_size=6)
asked = st.lists(st.tuples(words, st.lists(words, min_size=2, max_size=6)), max_size=5)


@given(asked, st.dictionaries(words, st.integers(0, 3)))
def test_a_baseline_has_one_answer_for_the_options_of_a_question_in_any_order(drawn, popularity):
    for baseline in (longest, shortest, overlapping, popular(popularity)):
        for question, options in drawn:
            share = baseline(Item("", question, tuple(options), 0))
            assert share.sum() == pytest.approx(1)
            assert baseline(Item("", question, tuple(options[::-1]), 0)).tolist() == share[::-1].tolist()
