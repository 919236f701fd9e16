"""data/items: orders of options, and which items are dependent, by page, by option set, and through others."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.items.ctibench import development_split, part_of
from ghost_jax.core.errors import UserError
from ghost_jax.data.items import items
from ghost_jax.data.items.formats import read_items
from ghost_jax.data.items.items import Item, clusters_of, components, cyclic_orders, order_name, parse_order, permute
from ghost_jax.text.mcq_format import LETTERS


def test_an_order_names_the_new_letter_of_each_original_option():
    assert [order_name(order) for order in cyclic_orders(4)] == ["ABCD", "BCDA", "CDAB", "DABC"]
    assert parse_order("CBDA", k=4) == (2, 1, 3, 0)
    moved = permute(Item("1", "Which?", ("a", "b", "c", "d"), answer=0), parse_order("CBDA", k=4))
    assert moved.options == ("d", "b", "a", "c")
    assert LETTERS[moved.answer] == "C"
    with pytest.raises(ValueError, match="4 options"):
        permute(moved, (0, 1, 2))


@pytest.mark.parametrize(
    ("option", "moved"),
    [
        ("Both A and B", "Both B and C"),
        ("A, B, and C.", "B, C, and D."),
        ("neither (B) nor (C)", "neither (C) nor (D)"),
        ("Only options A & C are correct", "Only options B & D are correct"),
        ("All of the above except C", "All of the above except D"),
        ("A or E", "A or E"),
        ("C and C++", "C and C++"),
        ("A and a half", "A and a half"),
        ("Plan A and B of the book", "Plan A and B of the book"),
    ],
)
def test_the_letters_in_an_option_that_names_others_follow_them(option, moved):
    item = Item("1", "Which?", ("one", "two", "three", option), answer=3)
    assert permute(item, cyclic_orders(4)[1]).options == (moved, "one", "two", "three")


@pytest.mark.parametrize("only", ["", " only"])
def test_letters_of_statements_in_the_question_stay(only):
    options = (f"A{only}", f"B{only}", "Both A and B", "Neither A nor B")
    moved = permute(Item("1", "A: fire is hot. B: ice is hot. Which is true?", options, answer=0), cyclic_orders(4)[1])
    assert sorted(moved.options) == sorted(options)


@pytest.mark.parametrize("name", ["", "ABC", "ABCC", "ABCE", "ABCDE", "abcd"])
def test_a_name_of_no_order_is_refused(name):
    with pytest.raises(UserError, match="4 options"):
        parse_order(name, k=4)


@given(st.lists(st.text("abc", max_size=3), min_size=2, max_size=10), st.data())
def test_permuting_preserves_the_gold_text_and_the_options(options, data):
    order = tuple(data.draw(st.permutations(range(len(options)))))
    item = Item("1", "Which?", tuple(options), data.draw(st.integers(0, len(options) - 1)), "u")
    moved = permute(item, order)
    assert moved.options[moved.answer] == item.options[item.answer]
    assert permute(moved, tuple(order.index(position) for position in range(len(order)))) == item


def test_over_the_cyclic_orders_every_option_is_once_at_every_position():
    for k in range(2, 11):
        orders = cyclic_orders(k)
        assert orders[0] == tuple(range(k))
        assert [sorted(positions) for positions in zip(*orders, strict=True)] == [list(range(k))] * k


def item(number: int, options: str, url: str = "") -> Item:
    return Item(f"line {number}", "Which?", tuple(options), 0, url)


def others(count: int) -> list[Item]:
    """Independent items, so that no option set is offered by a fifth of all."""
    return [item(1000 + number, f"{chr(5000 + number)}{chr(9000 + number)}") for number in range(count)]


def test_an_interval_is_clustered_by_page_and_by_options_too_where_many_items_share_theirs():
    items = [item(1, "abcd", "page 2"), item(2, "dcba", "page 1"), item(3, "efgh"), item(4, "efgh"), item(5, "wxyz")]
    assert clusters_of(items + others(30))[:5] == ["page 2", "page 1", "line 3", "line 4", "line 5"]
    sets_of_four = [item(number, "abcdefghijklmnop"[number // 4 * 4 :][:4], f"page {number}") for number in range(28)]
    pages, sets = zip(*clusters_of(sets_of_four), strict=True)
    assert len(set(pages)) == 28
    assert [sets.count(name) for name in sets[:4]] == [4] * 4
    assert clusters_of([item(number, "abcd", "page") for number in range(4)]) == ["page"] * 4
    forms = [item(100 + number, "yn") for number in range(30)]
    found = clusters_of([*sets_of_four, *sets_of_four, *forms])
    assert found[:2] == [*zip(pages, sets, strict=True)][:2]
    assert len(set(found[56:])) == len({second for _, second in found[56:]}) == 30, "a form of answers is no set"


def test_an_option_set_that_is_a_form_of_answers_connects_nothing():
    items = [item(number, ("yn", "ny")[number % 2]) for number in range(100)]
    assert len(set(components(items))) == 100
    assert len(set(components(items + others(399)))) == 100 + 399, "a fifth of all, and one more"
    assert len(set(components(items + others(400)))) == 1 + 400
    assert len(set(components([item(number, "abcd") for number in range(4)]))) == 1, "one set of four and nothing else"


drawn = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd"), st.integers(0, 3)), max_size=12)


@given(drawn, st.integers(0, 2**32 - 1))
def test_components_are_those_of_a_search_in_any_order(drawn, seed):
    items = [
        item(number, one + two.upper(), f"page {page}" if page else "") for number, (one, two, page) in enumerate(drawn)
    ]

    def connected(one: Item, other: Item) -> bool:
        return one.url == other.url != "" or set(one.options) == set(other.options)

    smallest = {each: each.url or each.id for each in items}
    for _ in items:  # after as many rounds, a name has reached every connected item
        for each in items:
            smallest[each] = min(smallest[other] for other in items if other == each or connected(each, other))
    isolated = others(5 * len(items))  # so that no option set is a form of answers
    mixed = random.Random(seed).sample([*items, *isolated], 6 * len(items))
    assert components(mixed) == [smallest.get(each, each.id) for each in mixed]


def test_the_clusters_and_the_splits_of_ctibench(ghost_data):
    ctibench = read_items(ghost_data / "ctibench" / "cti-mcq.tsv")
    items = ctibench.items
    assert len(set(components(items))) == 966
    assert clusters_of(items) == [each.url for each in items], "headline intervals are clustered by page"
    order = list(range(2500))
    random.Random(0).shuffle(order)
    assert [*map(list, development_split(ctibench))] == [order[:500], order[500:]]
    assert part_of(ctibench, "dev").items == tuple(items[row] for row in order[:500])
    assert part_of(ctibench, "test").items == tuple(items[row] for row in order[500:])
    assert part_of(ctibench, "all") is ctibench


def test_other_items_have_no_split():
    with pytest.raises(UserError, match="mine"):
        part_of(items.Items("mine", "mine.csv", "", (item(1, "abcd"),)), "dev")
