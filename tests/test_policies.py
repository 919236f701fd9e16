"""evals/policies.py: the figures that a model of CTIBench has to beat, and that the cyclic orders are balanced."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.items import LETTERS, Item, cyclic_orders, parse_order, read_items
from evals.policies import always, longest, policies
from ghost_jax.errors import UserError


def item(k: int, answer: int, options: tuple[str, ...] | None = None) -> Item:
    return Item("1", "Which?", options or tuple(LETTERS[:k]), answer)


# ---- CTIBench MCQ as published ----


@pytest.fixture(scope="module")
def ctibench(ghost_data):
    return read_items(ghost_data / "ctibench" / "cti-mcq.tsv")


@pytest.fixture(scope="module")
def cyclic(ctibench):
    return policies(ctibench, cyclic_orders(4))


def test_one_order_rewards_a_constant_letter(cyclic):
    single = {name: accuracies["single_order"] for name, accuracies in cyclic.items()}
    assert single.pop("longest") == pytest.approx(0.4265, abs=5e-5)
    assert single == {"always_A": 0.1496, "always_B": 0.3252, "always_C": 0.3712, "always_D": 0.1540}


def test_the_cyclic_orders_put_every_constant_at_exactly_a_quarter(cyclic):
    every = {name: accuracies["all_orders"] for name, accuracies in cyclic.items()}
    assert every.pop("longest") == pytest.approx(cyclic["longest"]["single_order"], abs=1e-12)
    assert every == dict.fromkeys(("always_A", "always_B", "always_C", "always_D"), 0.25)


def test_four_random_orders_are_not_balanced(ctibench):
    orders = [parse_order(name, k=4) for name in ("ABCD", "CBDA", "DCAB", "BDCA")]
    table = policies(ctibench, orders)
    percent = [round(100 * table[f"always_{letter}"]["all_orders"], 2) for letter in "ABC"]
    assert percent == [20.72, 23.85, 30.43]


# ---- On hand-written items ----


def test_always_and_longest_credits():
    items = [item(4, 2), item(3, 0, ("long", "long", "s")), item(3, 2, ("long", "long", "s")), item(2, 1, ("a", "bb"))]
    np.testing.assert_array_equal(always(2)(items), [1, 0, 1, 0])
    np.testing.assert_array_equal(longest(items), [1 / 4, 1 / 2, 0, 1])


def test_items_of_different_sizes_are_each_asked_in_their_own_orders():
    table = policies([item(2, 0), item(3, 2)], [*cyclic_orders(2), *cyclic_orders(3)])
    assert list(table) == ["always_A", "always_B", "always_C", "longest"]
    assert table["always_A"] == {"single_order": 1 / 2, "all_orders": 5 / 12}
    assert table["always_C"] == {"single_order": 1 / 2, "all_orders": 1 / 6}


def test_what_is_refused():
    with pytest.raises(UserError, match="no items"):
        policies([], cyclic_orders(4))
    with pytest.raises(UserError, match="has 3 options, but the orders given are: ABCD, BCDA, CDAB, DABC"):
        policies([item(3, 0)], cyclic_orders(4))


@given(st.integers(2, 10).flatmap(lambda k: st.tuples(st.just(k), st.lists(st.integers(0, k - 1), min_size=1))))
def test_over_the_cyclic_orders_a_constant_is_exactly_one_in_k(case):
    k, golds = case
    table = policies([item(k, gold) for gold in golds], cyclic_orders(k))
    assert [table[f"always_{letter}"]["all_orders"] for letter in LETTERS[:k]] == [1 / k] * k


@given(st.lists(st.tuples(st.lists(st.text("ab", max_size=4), min_size=2, max_size=5), st.integers(0, 1)), min_size=1))
def test_the_longest_option_does_not_care_about_the_order(drawn):
    items = [item(len(options), answer, tuple(options)) for options, answer in drawn]
    orders = [order for k in range(2, 6) for order in cyclic_orders(k)]
    found = policies(items, orders)["longest"]
    assert found["all_orders"] == pytest.approx(found["single_order"])
    assert found["single_order"] == pytest.approx(longest(items).mean())
