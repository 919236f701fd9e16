"""baselines.py and fitted_baselines.py: the figures that a model has to beat, and that they are fair ones."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax

from evals.analysis.baselines import FITTED, baseline_answers, baselines
from evals.analysis.fitted_baselines import RIDGE, conditional_logit
from evals.items.answers import orders_of
from evals.items.formats import read_items
from evals.items.items import LETTERS, Item, cyclic_orders, parse_order
from ghost_jax.core.errors import UserError


def item(k: int, answer: int, options: tuple[str, ...] | None = None) -> Item:
    return Item("1", "Which?", options or tuple(LETTERS[:k]), answer)


def in_one_order(items: list[Item], name: str) -> float:
    return baselines(items, orders_of(items, "published"))[name]["single_order"]


# ---- CTIBench MCQ as published ----


@pytest.fixture(scope="module")
def ctibench(ghost_data):
    return read_items(ghost_data / "ctibench" / "cti-mcq.tsv").items


@pytest.fixture(scope="module")
def cyclic(ctibench):
    return baselines(ctibench, orders_of(ctibench, "cyclic"))


def test_one_order_rewards_what_does_not_read_the_question(cyclic):
    percent = {name: round(100 * accuracies["single_order"], 2) for name, accuracies in cyclic.items()}
    assert percent == {
        "always_A": 14.96,
        "always_B": 32.52,
        "always_C": 37.12,
        "always_D": 15.40,
        "longest": 42.65,
        "shortest": 19.03,
        "question_overlap": 33.47,
        "option_popularity": 27.67,
        "position_length": 45.96,
        "position_length_popularity": 49.12,
    }


def test_the_cyclic_orders_put_every_constant_at_exactly_a_quarter(cyclic):
    every = {name: accuracies["all_orders"] for name, accuracies in cyclic.items()}
    assert [every[f"always_{letter}"] for letter in "ABCD"] == [0.25] * 4
    for name in ("longest", "shortest", "question_overlap", "option_popularity"):
        assert every[name] == pytest.approx(cyclic[name]["single_order"], abs=1e-12)
    for name in FITTED:  # what they knew of positions is gone
        assert 0.4 < every[name] < cyclic[name]["single_order"] - 0.02


def test_four_random_orders_are_not_balanced(ctibench):
    orders = [parse_order(name, k=4) for name in ("ABCD", "CBDA", "DCAB", "BDCA")]
    table = baselines(ctibench, [orders] * len(ctibench))
    percent = [round(100 * table[f"always_{letter}"]["all_orders"], 2) for letter in "ABC"]
    assert percent == [20.72, 23.85, 30.43]


# ---- Those that are as they are ----


def test_each_baseline_chooses_what_its_name_says():
    items = [
        Item("1", "What does malware steal?", ("malware", "a long password", "c", "pin"), 1),
        Item("2", "Which?", ("pin", "pin", "other"), 2),
    ]
    said = {name: answers.options() for name, answers in baseline_answers(items, orders_of(items, "cyclic")).items()}
    everywhere = {name: (each[0].mean(axis=0).tolist(), each[1].mean(axis=0).tolist()) for name, each in said.items()}
    assert everywhere["longest"] == ([0, 1, 0, 0], [0, 0, 1])
    assert everywhere["shortest"] == ([0, 0, 1, 0], [1 / 2, 1 / 2, 0])
    assert everywhere["question_overlap"] == ([1, 0, 0, 0], pytest.approx([1 / 3] * 3))
    assert everywhere["option_popularity"] == ([0, 0, 0, 1], [1 / 2, 1 / 2, 0])
    for name in ("longest", "shortest", "question_overlap", "option_popularity"):
        assert all(np.ptp(each, axis=0).max() == 0 for each in said[name]), "another option in another order"


def test_items_of_different_sizes_are_each_asked_in_their_own_orders():
    items = [item(2, 0), item(3, 2)]
    table = baselines(items, orders_of(items, "cyclic"))
    assert list(table)[:4] == ["always_A", "always_B", "always_C", "longest"]
    assert table["always_A"] == {"single_order": 1 / 2, "all_orders": 5 / 12}
    assert table["always_C"] == {"single_order": 1 / 2, "all_orders": 1 / 6}


def test_no_items_are_refused():
    with pytest.raises(UserError, match="no items"):
        baselines([], [])


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 10).flatmap(lambda k: st.tuples(st.just(k), st.lists(st.integers(0, k - 1), min_size=1))))
def test_over_the_cyclic_orders_a_constant_is_exactly_one_in_k(case):
    k, golds = case
    table = baselines([item(k, gold) for gold in golds], [cyclic_orders(k)] * len(golds))
    assert [table[f"always_{letter}"]["all_orders"] for letter in LETTERS[:k]] == [1 / k] * k


options_and_gold = st.lists(st.text("ab", max_size=4), min_size=2, max_size=10).flatmap(
    lambda options: st.tuples(st.just(options), st.integers(0, len(options) - 1), st.sampled_from(["", "p", "q", "r"]))
)


@settings(max_examples=40, deadline=None)
@given(st.lists(options_and_gold, min_size=1, max_size=12))
def test_whoever_reads_options_gives_one_whole_answer_in_every_order(drawn):
    items = [Item(str(row), "a b", tuple(options), gold, url) for row, (options, gold, url) in enumerate(drawn)]
    orders = orders_of(items, "cyclic")
    for name, answers in baseline_answers(items, orders).items():
        for one, said, asked in zip(items, answers.said, orders, strict=True):
            assert said.shape == (len(asked), len(one.options))
            if not name.startswith("always"):
                np.testing.assert_allclose(said.sum(axis=1), 1)


# ---- Those that are fitted ----


def written(answer_of, *, pages: int = 40, of_each: int = 5, url: str = "page {}") -> list[Item]:
    """Items with random lengths of options; `answer_of(page, lengths) -> (answer, options)` plants a clue."""
    rng = np.random.default_rng(0)
    items = []
    for number in range(pages * of_each):
        page = number // of_each
        lengths = rng.permutation(np.arange(10, 50))[:4]
        answer, options = answer_of(page, lengths, rng)
        items.append(Item(str(number), "Which?", tuple(options), int(answer), url.format(page)))
    return items


def test_a_clue_of_length_is_found():
    items = written(lambda page, lengths, rng: (lengths.argmin(), ["x" * length for length in lengths]))
    assert in_one_order(items, "position_length") > 0.95


def test_a_clue_of_position_is_found_and_the_cyclic_orders_take_it_away():
    items = written(lambda page, lengths, rng: (rng.choice(4, p=[0.1, 0.1, 0.7, 0.1]), ["x" * 9] * 4))
    found = baselines(items, orders_of(items, "cyclic"))["position_length"]
    assert found["single_order"] == baselines(items, orders_of(items, "published"))["always_C"]["single_order"]
    assert found["all_orders"] == pytest.approx(0.25)


def gold_of_page(page, lengths, rng):
    """Each page has a text that is always its answer; other pages do not know it."""
    answer = rng.integers(4)
    return answer, [f"{page if place == answer else rng.integers(10**9):09}" for place in range(4)]


def test_items_of_one_page_do_not_answer_one_another():
    assert in_one_order(written(gold_of_page, url=""), "position_length_popularity") > 0.9
    assert in_one_order(written(gold_of_page), "position_length_popularity") < 0.4


def in_sets_of_four(sets: int, *, url: str = "page {}") -> list[Item]:
    """Generated questions: four with the same options in other orders, each of its own page, each option gold once."""
    rng = np.random.default_rng(0)
    items = []
    for number in range(sets):
        options = [f"{rng.integers(10**9)}" + "!" * rng.integers(20) for _ in range(4)]
        for answer in range(4):
            order = rng.permutation(4)
            shown, page = tuple(options[place] for place in order), url.format(4 * number + answer)
            items.append(Item(str(len(items)), "Which?", shown, order.tolist().index(answer), page))
    return items


@pytest.mark.parametrize("url", ["page {}", ""])
@pytest.mark.parametrize("name", FITTED)
def test_three_questions_with_the_same_options_do_not_answer_the_fourth(name, url):
    items = in_sets_of_four(34, url=url)
    found = baselines(items, orders_of(items, "cyclic"))[name]
    assert found["all_orders"] == pytest.approx(0.25, abs=0.005)
    assert found["single_order"] == pytest.approx(0.25, abs=3 * (0.25 * 0.75 / len(items)) ** 0.5)


def test_what_is_mostly_true_is_found_where_all_questions_have_the_same_options():
    rng = np.random.default_rng(0)
    items = [Item(str(row), "Is it?", ("yes", "no") if row % 2 else ("no", "yes"), 0) for row in range(200)]
    items = [dataclasses.replace(one, answer=one.options.index("yes" if rng.random() < 0.8 else "no")) for one in items]
    assert baselines(items, orders_of(items, "cyclic"))["position_length_popularity"]["all_orders"] > 0.7


def test_with_one_component_nothing_is_fitted():
    items = written(lambda page, lengths, rng: (lengths.argmin(), ["x" * length for length in lengths]), url="manual")
    assert in_one_order(items, "position_length") == 0.25


def test_where_nothing_can_be_learnt_nothing_is_reached():
    items = written(lambda page, lengths, rng: (rng.integers(4), ["x" * length for length in lengths]), pages=200)
    for name in FITTED:
        assert in_one_order(items, name) == pytest.approx(0.25, abs=3 * (0.25 * 0.75 / 1000) ** 0.5)


def test_no_question_is_read():
    items = written(gold_of_page)
    asked = [dataclasses.replace(one, question=f"{one.options[one.answer]}?") for one in items]
    for name in FITTED:
        assert in_one_order(asked, name) == in_one_order(items, name)


def test_the_weights_are_those_that_a_general_optimizer_finds():
    rng = np.random.default_rng(0)
    features, answer = rng.normal(size=(60, 5, 3)), rng.integers(2, size=60)
    real, counts_as = np.arange(5) < rng.integers(2, 6, size=60)[:, None], rng.choice([1, 1 / 4], size=60)

    def loss(weights):
        log_shares = log_softmax(np.where(real, features @ weights, -np.inf), axis=1)
        return -counts_as @ log_shares[np.arange(60), answer] + RIDGE / 2 * weights @ weights

    expected = minimize(loss, np.zeros(3), tol=1e-10).x
    np.testing.assert_allclose(conditional_logit(features, real, answer, counts_as), expected, atol=1e-4)
    far = conditional_logit(100 * features, real, answer, counts_as)  # steps of Newton alone overshoot here
    assert np.isfinite(far).all()
