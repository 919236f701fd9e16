"""evals/items/clusters.py: which items hang together, by page, by option set, and through others."""

import random

from hypothesis import given
from hypothesis import strategies as st

from evals.items.clusters import clusters_of, components
from evals.items.formats import read_items
from evals.items.items import Item


def item(number: int, options: str, url: str = "") -> Item:
    return Item(f"line {number}", "Which?", tuple(options), 0, url)


def others(count: int) -> list[Item]:
    """Items that hang together with none, so that no option set is offered by a fifth of all."""
    return [item(1000 + number, f"{chr(5000 + number)}{chr(9000 + number)}") for number in range(count)]


def test_items_hang_together_by_page_by_options_in_any_order_and_through_others():
    items = [
        item(1, "abcd", "page 3"),
        item(2, "dcba", "page 2"),
        item(3, "efgh", "page 2"),
        item(4, "hefg"),
        item(5, "abce", "page 1"),
        item(6, "wxyz"),
    ]
    assert components(items + others(30))[:6] == ["line 4"] * 4 + ["page 1", "line 6"]


def test_an_interval_is_clustered_by_page_and_by_options_too_where_many_items_share_theirs():
    items = [item(1, "abcd", "page 2"), item(2, "dcba", "page 1"), item(3, "efgh"), item(4, "efgh"), item(5, "wxyz")]
    assert clusters_of(items + others(30))[:5] == ["page 2", "page 1", "line 3", "line 4", "line 5"]
    pairs = clusters_of(
        [item(number, "abcdefghijklmnop"[number // 4 * 4 :][:4], f"page {number}") for number in range(28)]
    )
    pages, sets = zip(*pairs, strict=True)
    assert len(set(pages)) == 28
    assert [sets.count(name) for name in sets[:4]] == [4] * 4
    of_one_page = [item(number, "abcd", "page") for number in range(4)]
    assert clusters_of(of_one_page) == ["page"] * 4


def test_options_that_are_the_form_of_all_answers_connect_nothing():
    items = [item(number, ("yn", "ny")[number % 2]) for number in range(100)]
    assert len(set(components(items))) == 100
    assert len(set(components(items + others(399)))) == 100 + 399, "a fifth of all, and one more"
    assert len(set(components(items + others(400)))) == 1 + 400
    assert len(set(components([item(number, "abcd") for number in range(4)]))) == 1, "one set of four and nothing else"


drawn = st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("abcdef"), st.integers(0, 4)), max_size=30)


@given(drawn, st.integers(0, 2**32 - 1))
def test_components_are_those_of_a_search_whatever_the_order(drawn, seed):
    items = [
        item(number, one + two.upper(), f"page {page}" if page else "") for number, (one, two, page) in enumerate(drawn)
    ]
    items += others(5 * len(items))  # so that every option set is one
    expected = {}
    for start in items:
        reached, queue = {start}, [start]
        while queue:
            here = queue.pop()
            new = {
                each
                for each in items
                if each.url == here.url != "" or frozenset(each.options) == frozenset(here.options)
            } - reached
            reached |= new
            queue += new
        expected[start] = min(each.url or each.id for each in reached)
    random.Random(seed).shuffle(items)
    assert components(items) == [expected[each] for each in items]


def test_ctibench_has_option_sets_on_several_pages(ghost_data):
    items = read_items(ghost_data / "ctibench" / "cti-mcq.tsv").items
    assert len({each.url for each in items}) == 1013
    assert len(set(components(items))) == 966
    assert clusters_of(items) == [each.url for each in items], "headline intervals are those of pages"
