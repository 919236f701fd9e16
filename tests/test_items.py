"""evals/items/items.py: option orders, and that permuting an item keeps what it asks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.items.items import LETTERS, Item, cyclic_orders, order_name, parse_order, permute
from ghost_jax.core.errors import UserError


def test_order_names():
    assert [order_name(order) for order in cyclic_orders(4)] == ["ABCD", "BCDA", "CDAB", "DABC"]
    assert parse_order("CBDA", k=4) == (2, 1, 3, 0)
    assert order_name(parse_order("CBDA", k=4)) == "CBDA"


@pytest.mark.parametrize("name", ["", "ABC", "ABCC", "ABCE", "ABCDE", "abcd"])
def test_a_name_that_is_no_order(name):
    with pytest.raises(UserError, match="no order of 4 options"):
        parse_order(name, k=4)


def test_an_order_names_the_new_letter_of_each_original_option():
    item = Item("1", "Which?", ("a", "b", "c", "d"), answer=0)
    moved = permute(item, parse_order("CBDA", k=4))
    assert moved.options == ("d", "b", "a", "c")
    assert LETTERS[moved.answer] == "C"
    with pytest.raises(ValueError, match="no order of the 4 options"):
        permute(item, (0, 1, 2))


@st.composite
def items_and_orders(draw):
    options = draw(st.lists(st.text("abc", max_size=3), min_size=2, max_size=10))
    answer = draw(st.integers(0, len(options) - 1))
    return Item("1", "Which?", tuple(options), answer, "u"), tuple(draw(st.permutations(range(len(options)))))


@given(items_and_orders())
def test_permuting_preserves_the_gold_text_and_the_options(pair):
    item, order = pair
    moved = permute(item, order)
    assert moved.options[moved.answer] == item.options[item.answer]
    assert sorted(moved.options) == sorted(item.options)
    assert (moved.id, moved.question, moved.url) == (item.id, item.question, item.url)
    assert permute(moved, tuple(order.index(position) for position in range(len(order)))) == item


@given(st.integers(2, 10))
def test_over_the_cyclic_orders_every_option_stands_once_at_every_position(k):
    orders = cyclic_orders(k)
    assert len(set(orders)) == k
    assert orders[0] == tuple(range(k))
    for original in range(k):
        assert {order[original] for order in orders} == set(range(k))
