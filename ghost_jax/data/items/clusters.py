"""Which items are dependent: those of one page, those with the same options, and items connected through others.

Items of one page are right or wrong together. Items with the same options reveal one another: generated questions come
in sets of four with the same four options, each gold once, so that three of them give away the fourth.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

from ghost_jax.data.items.items import Item

FORM = 1 / 5  # share of the items; an option set that more of them offer is a form of answers, such as yes and no


def components(items: Sequence[Item], *, by_question: bool = False) -> list[str]:
    """Returns the name of each item's component: the smallest of the pages that pages and option sets connect.

    The page is the item's url, or its id where that is empty. The option set is the set of its texts, in any order. An
    option set that more than `FORM` of the items offer, and more items than it has options, connects nothing. With
    `by_question`, the same question connects its items as well.
    """
    offered = [frozenset(item.options) for item in items]
    times = Counter(offered)
    root: dict[str, str] = {}  # page -> a smaller page of its component, or itself
    page_of: dict[frozenset[str] | str, str] = {}  # option set, question -> a page that has it

    def smallest(page: str) -> str:
        while root.setdefault(page, page) != page:
            root[page] = page = root[root[page]]
        return page

    for item, texts in zip(items, offered, strict=True):
        page = item.url or item.id
        smallest(page)
        connecting = [texts] if times[texts] <= max(FORM * len(items), len(item.options)) else []
        for each in [*connecting, *[" ".join(item.question.casefold().split())] * by_question]:
            low, high = sorted((smallest(page), smallest(page_of.setdefault(each, page))))
            root[high] = low
    return [smallest(item.url or item.id) for item in items]


def clusters_of(items: Sequence[Item]) -> list[str] | list[tuple[str, str]]:
    """Returns the cluster of each item for an interval: its page, or its id where it has none.

    Where more than `FORM` of the items share their options with an item of another page, as generated questions do, the
    cluster is a pair, page and option set: `evals.analysis.stats` then clusters by both.
    """
    pages = [item.url or item.id for item in items]
    offered = [frozenset(item.options) for item in items]
    pages_of = defaultdict(set)
    for page, texts in zip(pages, offered, strict=True):
        pages_of[texts].add(page)
    shared = sum(1 < len(pages_of[texts]) <= FORM * len(items) for texts in offered)
    if shared <= FORM * len(items):
        return pages
    return [(page, "\0".join(sorted(texts))) for page, texts in zip(pages, offered, strict=True)]
