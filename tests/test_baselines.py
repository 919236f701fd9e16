"""The baselines that a model has to beat: mcq_baselines.py, baselines.py, fitted_baselines.py and their figures."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from evals.analysis.baselines import FITTED, baseline_answers, baselines, nearest_trained
from evals.analysis.conditional_logit import fit
from evals.analysis.fitted_baselines import RIDGE
from evals.items.answers import orders_of
from ghost_jax.core.errors import UserError
from ghost_jax.data.items.formats import read_items
from ghost_jax.data.items.items import LETTERS, Item
from ghost_jax.data.retrieval.mcq_baselines import all_of_the_above, overlapping, sharing_parts


def over_orders(items: list[Item], name: str) -> float:
    return baselines(items, orders_of(items, "cyclic"))[name]["all_orders"]


def in_one_order(items: list[Item], name: str) -> float:
    return baselines(items, orders_of(items, "published"))[name]["single_order"]


def test_ctibench_as_published_and_in_the_cyclic_orders(ghost_data):
    items = read_items(ghost_data / "ctibench" / "cti-mcq.tsv").items
    table = baselines(items, orders_of(items, "cyclic"))
    assert {name: round(100 * accuracies["single_order"], 2) for name, accuracies in table.items()} == {
        "always_A": 14.96,
        "always_B": 32.52,
        "always_C": 37.12,
        "always_D": 15.40,
        "longest": 42.65,
        "shortest": 19.03,
        "all_of_the_above": 25.55,
        "question_overlap": 33.47,
        "word_part_overlap": 35.98,
        "option_popularity": 27.67,
        "position_length": 45.96,
        "position_length_popularity": 49.12,
        "position_length_popularity_overlap": 52.48,
    }
    every = {name: accuracies["all_orders"] for name, accuracies in table.items()}
    assert [every[f"always_{letter}"] for letter in "ABCD"] == [0.25] * 4
    for name in ("longest", "shortest", "question_overlap", "option_popularity"):
        assert every[name] == pytest.approx(table[name]["single_order"], abs=1e-12)
    for name in FITTED:
        assert 0.4 < every[name] < table[name]["single_order"] - 0.02, "the positions help no more"


def test_each_baseline_chooses_the_option_of_its_name_in_every_order():
    items = [
        Item("1", "What does malware steal?", ("malware", "a long password", "c", "pin"), 1),
        Item("2", "Which?", ("pin", "pin", "other"), 2),
    ]
    shares = {name: answers.options() for name, answers in baseline_answers(items, orders_of(items, "cyclic")).items()}
    expected = {
        "longest": ([0, 1, 0, 0], [0, 0, 1]),
        "shortest": ([0, 0, 1, 0], [1 / 2, 1 / 2, 0]),
        "all_of_the_above": ([1 / 4] * 4, [1 / 3] * 3),
        "question_overlap": ([1, 0, 0, 0], [1 / 3] * 3),
        "word_part_overlap": ([1, 0, 0, 0], [1 / 3] * 3),
        "option_popularity": ([0, 0, 0, 1], [1 / 2, 1 / 2, 0]),
    }
    for name, of_items in expected.items():
        for found, of_item in zip(shares[name], of_items, strict=True):
            np.testing.assert_allclose(found, [of_item] * len(found))


def test_overlap_counts_each_content_word_once_and_no_function_word_and_parts_of_words_are_shared():
    question = "Which flaw of the kernel is a use of freed memory?"
    options = ("the of is a which", "memory memory memory", "Use of MEMORY", "kernel")
    assert overlapping(Item("", question, options, 0)).tolist() == [0, 0, 1, 0]
    item = Item("", "Which weakness lets attackers inject commands?", ("Path Traversal", "Command Injection"), 1)
    assert (sharing_parts(item).tolist(), overlapping(item).tolist()) == ([0, 1], [1 / 2, 1 / 2])


def test_all_of_the_above_is_chosen_where_it_stands_unless_the_question_is_negated():
    options = ("Crash", "Exit", "All of the above")
    assert all_of_the_above(Item("", "Which follows?", options, 0)).tolist() == [0, 0, 1]
    assert all_of_the_above(Item("", "Which does NOT follow?", options, 0)).tolist() == [1 / 3] * 3
    assert all_of_the_above(Item("", "Which follows?", ("None of the above", "Exit"), 0)).tolist() == [1 / 2] * 2


def test_items_of_different_sizes_are_each_asked_in_their_own_orders():
    items = [Item("1", "Which?", ("A", "B"), 0), Item("1", "Which?", ("A", "B", "C"), 2)]
    table = baselines(items, orders_of(items, "cyclic"))
    assert list(table)[:4] == ["always_A", "always_B", "always_C", "longest"]
    assert table["always_A"] == {"single_order": 1 / 2, "all_orders": 5 / 12}
    assert table["always_C"] == {"single_order": 1 / 2, "all_orders": 1 / 6}
    with pytest.raises(UserError):
        baselines([], [])


@settings(max_examples=20)
@given(st.integers(2, 10).flatmap(lambda k: st.tuples(st.just(k), st.lists(st.integers(0, k - 1), min_size=1))))
def test_over_the_cyclic_orders_a_constant_is_exactly_one_in_k(case):
    k, golds = case
    items = [Item("1", "Which?", tuple(LETTERS[:k]), gold) for gold in golds]
    table = baselines(items, orders_of(items, "cyclic"))
    assert [table[f"always_{letter}"]["all_orders"] for letter in LETTERS[:k]] == [1 / k] * k


def written(answer_of, *, pages: int = 40, url: str = "page {}") -> list[Item]:
    """Five items a page with options of random lengths; `answer_of(page, lengths, rng) -> (answer, options)`."""
    rng = np.random.default_rng(0)
    items = []
    for number in range(5 * pages):
        answer, options = answer_of(number // 5, rng.permutation(np.arange(10, 50))[:4], rng)
        items.append(Item(str(number), "Which?", tuple(options), int(answer), url.format(number // 5)))
    return items


def shortest(page, lengths, rng):
    return lengths.argmin(), ["x" * length for length in lengths]


def gold_of_page(page, lengths, rng):
    """Each page has a text that is always its answer; no other page has it."""
    answer = rng.integers(4)
    return answer, [f"{page if place == answer else rng.integers(10**9):09}" for place in range(4)]


@pytest.mark.parametrize("url", ["page {}", "manual"])
def test_a_clue_of_length_is_found_on_many_pages_and_on_one(url):
    assert in_one_order(written(shortest, url=url), "position_length") > 0.95
    assert in_one_order(written(gold_of_page, url=url), "position_length_popularity") < 0.4


def test_a_clue_of_position_is_found_in_one_order_and_not_over_the_cyclic_orders():
    items = written(lambda page, lengths, rng: (rng.choice(4, p=[0.1, 0.1, 0.7, 0.1]), ["x" * 9] * 4))
    assert in_one_order(items, "position_length") == in_one_order(items, "always_C")
    assert over_orders(items, "position_length") == pytest.approx(0.25)


def test_items_of_one_page_do_not_answer_one_another_and_no_question_is_read():
    assert in_one_order(written(gold_of_page, url=""), "position_length_popularity") > 0.9
    items = written(gold_of_page)
    asked = [dataclasses.replace(one, question=f"{one.options[one.answer]}?") for one in items]
    assert in_one_order(items, "position_length_popularity") < 0.4
    for name in ("position_length", "position_length_popularity"):
        assert in_one_order(asked, name) == in_one_order(items, name)
    assert in_one_order(asked, "position_length_popularity_overlap") > 0.95


def test_the_nearest_trained_question_answers_by_names_that_are_alike():
    trained = [("Buffer Overflow (CWE-1)", 0), ("Path Traversal (CWE-2)", 1), ("Weak Hash (CWE-3)", 0)]
    asked = [("Heap Overflow (CWE-4)", 0), ("Relative Path Traversal (CWE-5)", 1)]
    form = "What can {} lead to?"
    known, new = (
        [Item("", form.format(name), ("crash", "leak"), gold) for name, gold in each] for each in (trained, asked)
    )
    other = Item("", "Who wrote it?", ("nobody", "somebody", "all"), 0)
    shares = nearest_trained([*new, other], known)
    assert [share.tolist() for share in shares] == [[1, 0], [0, 1], [1 / 3] * 3]
    assert nearest_trained([other], known)[0].tolist() == [1 / 3] * 3


@pytest.mark.parametrize("url", ["page {}", ""])
@pytest.mark.parametrize("name", FITTED)
def test_three_questions_with_the_same_options_do_not_answer_the_fourth(name, url):
    """Generated questions: four with the same options in other orders, each of its own page, each option gold once."""
    rng = np.random.default_rng(0)
    items = []
    for _ in range(34):
        options = [f"{rng.integers(10**9)}" + "!" * rng.integers(20) for _ in range(4)]
        for answer in range(4):
            order = rng.permutation(4)
            offered, page = tuple(options[place] for place in order), url.format(len(items))
            items.append(Item(str(len(items)), "Which?", offered, order.tolist().index(answer), page))
    assert over_orders(items, name) == pytest.approx(0.25, abs=0.005)
    assert in_one_order(items, name) == pytest.approx(0.25, abs=3 * (0.25 * 0.75 / len(items)) ** 0.5)


def test_a_frequent_answer_is_found_where_all_questions_have_the_same_options():
    rng = np.random.default_rng(0)
    items = [Item(str(row), "Is it?", ("yes", "no") if row % 2 else ("no", "yes"), 0) for row in range(200)]
    items = [dataclasses.replace(one, answer=one.options.index("yes" if rng.random() < 0.8 else "no")) for one in items]
    assert over_orders(items, "position_length_popularity") > 0.7


@pytest.mark.parametrize("name", FITTED)
def test_without_a_clue_the_fit_is_at_chance(name):
    items = written(lambda page, lengths, rng: (rng.integers(4), ["x" * length for length in lengths]), pages=200)
    assert in_one_order(items, name) == pytest.approx(0.25, abs=3 * (0.25 * 0.75 / 1000) ** 0.5)


def test_the_fitted_weights_are_the_best_and_a_ridge_shrinks_them():
    rng = np.random.default_rng(0)
    features, answer = rng.normal(size=(60, 5, 3)), rng.integers(2, size=60)
    real, counts_as = np.arange(5) < rng.integers(2, 6, size=60)[:, None], rng.choice([1, 1 / 4], size=60)

    def loss(weights):
        log_shares = log_softmax(np.where(real, features @ weights, -np.inf), axis=1)
        return RIDGE / 2 * weights @ weights - counts_as @ log_shares[np.arange(60), answer]

    best = fit(features, real, answer, counts_as, RIDGE)
    for step in (*np.eye(3), *-np.eye(3)):
        assert loss(best) < loss(best + 0.01 * step)
    assert abs(fit(features, real, answer, counts_as, 1e6)).max() < 0.01
    assert np.isfinite(fit(1000 * features, real, answer, counts_as, RIDGE)).all()
