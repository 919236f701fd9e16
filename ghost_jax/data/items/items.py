"""Multiple-choice items, the orders of their options, and which items are dependent.

Items of one page are right or wrong together. Items with the same options reveal one another: generated questions come
in sets of four with the same four options, each gold once, so that three of them give away the fourth.
`ghost_jax.data.items.formats` reads items from files.
"""

import dataclasses
import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from ghost_jax.core.errors import UsageError, UserError
from ghost_jax.text.mcq_format import LETTERS

Order = tuple[int, ...]  # order[i] is the new position of original option i
# Beside letters, the words of an option that names others: "Both A and B", "A, B, and C only", "Options (A) or (B)."
NAMING = re.compile(
    "above|all|and|answers|are|both|but|choices|correct|either|except|neither|none|nor|not|of|only|options?|or|the|true",
    re.IGNORECASE,
)
SHOWN_BLEMISHES = 10  # of a file, on screen; a report names all
FORM = 1 / 5  # share of the items; an option set that more of them offer is a form of answers, such as yes and no


@dataclasses.dataclass(frozen=True)
class Item:
    """One question with 2 to 10 options."""

    id: str  # its id in the file, or its place there, "line 58" or "item 58"
    # question, options: as published, in the published order; an option may be empty
    question: str
    options: tuple[str, ...]
    answer: int  # the index of the gold option
    url: str = ""  # the page the question was written from, "" where unknown. Items of one page are not independent.


@dataclasses.dataclass(frozen=True)
class Items:
    """A benchmark."""

    name: str  # what reports call it
    # path, sha256: its file and the hex digest of the file's bytes; "" if the items were made in memory
    path: str
    sha256: str
    items: tuple[Item, ...]  # every item of the file that is answered with one letter, in file order
    quirks: tuple[str, ...] = ()  # a sentence for each blemish that was kept, beginning with its place
    # a sentence for each item of the file that is not among the items, beginning with its place
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)


def blemishes(file: str, found: Sequence[str]) -> Iterator[str]:
    """Yields the first lines to print of the quirks of a file and of what is left out of it, and how many follow."""
    yield from (f"{file}, {each}" for each in found[:SHOWN_BLEMISHES])
    if len(found) > SHOWN_BLEMISHES:
        yield f"and {len(found) - SHOWN_BLEMISHES:,} more such places in {file}"


def cyclic_orders(k: int) -> list[Order]:
    """Returns the k cyclic shifts of k options: over them every option is at every position exactly once.

    A constant letter is therefore right in exactly 1/k of them, whatever the gold letters are.
    """
    return [tuple((original + shift) % k for original in range(k)) for shift in range(k)]


def every_order(k: int) -> list[Order]:
    """Returns all orders of k options, the published one first. Raises UsageError for k above 4."""
    if k > 4:
        raise UsageError(f"An item with {k} options has {math.factorial(k):,} orders. Ask it in the cyclic ones.")
    return list(itertools.permutations(range(k)))


def order_name(order: Order) -> str:
    """Returns the new letter of each original option in turn: (2, 1, 3, 0) is "CBDA"."""
    return "".join(LETTERS[position] for position in order)


def orders_per_item(names: Sequence[str]) -> int:
    """Returns in how many of the orders of these names each item was asked; a name has a letter for each option."""
    return max(Counter(map(len, names)).values())


def orders_label(names: Sequence[str]) -> str:
    """Returns what a score in the orders of these names is over: "over 4 orders", "over all orders", "order CBDA"."""
    each = orders_per_item(names)
    if len(set(map(len, names))) > 1:  # items differ in their number of options
        return "over all orders" if each > 1 else "one order"
    if each > 1:
        return f"over {each} orders"
    return "published order" if names[0] == LETTERS[: len(names[0])] else f"order {names[0]}"


def parse_order(name: str, k: int) -> Order:
    """Returns the order of k options that `order_name` calls `name`. Raises UserError where there is none."""
    if sorted(name) != list(LETTERS[:k]):
        raise UserError(
            f'"{name}" is not an order of {k} options. Name the new letter of each original option in turn, each of '
            f"{', '.join(LETTERS[:k])} once, for example {order_name(cyclic_orders(k)[1])}."
        )
    return tuple(LETTERS.index(letter) for letter in name)


def permute(item: Item, order: Sequence[int]) -> Item:
    """Returns the same item with its options in another order; the gold option stays gold.

    The letters in an option that names others, such as "Both A and B", follow them. Where an option so named names
    letters itself, such as "A only", the letters are those of statements in the question, and stay.
    """
    if sorted(order) != list(range(len(item.options))):
        raise ValueError(f"{tuple(order)} is not an order of the {len(item.options)} options of {item.id}")
    letter_of = dict(zip(LETTERS, order_name(order), strict=False))
    plain = {letter for letter, option in zip(LETTERS, item.options, strict=False) if not _named_in(option)}
    options = [item.options[order.index(position)] for position in range(len(order))]
    for place, option in enumerate(options):
        if (named := _named_in(option)) and named <= plain and option.strip() not in named:
            options[place] = re.sub(r"\b[A-J]\b", lambda letter: letter_of[letter[0]], option)
    return dataclasses.replace(item, options=tuple(options), answer=order[item.answer])


def _named_in(option: str) -> set[str]:
    """Returns the letters that an option names, if it says nothing else."""
    words = re.findall("[A-Za-z]+", option)
    letters = {word for word in words if word in LETTERS}
    alone = re.fullmatch("[A-Za-z ,()&/.]+", option) and all(map(NAMING.fullmatch, set(words) - letters))
    return letters if alone else set()


# ---- Dependent items: those of one page, those with the same options, and items connected through others ----


def components(items: Sequence[Item], *, by_question: bool = False) -> list[str]:
    """Returns the name of each item's component: the smallest of the pages that pages and option sets connect.

    The page is the item's url, or its id where that is empty. The option set is the set of its texts, in any order. An
    option set that more than `FORM` of the items offer, and more items than it has options, connects nothing. With
    `by_question`, the same words of the question connect its items as well.
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
        for each in [*connecting, *[" ".join(re.findall(r"\w+", item.question.casefold()))] * by_question]:
            low, high = sorted((smallest(page), smallest(page_of.setdefault(each, page))))
            root[high] = low
    return [smallest(item.url or item.id) for item in items]


def clusters_of(items: Sequence[Item]) -> list[str] | list[tuple[str, str]]:
    """Returns the cluster of each item for an interval: its page, or its id where it has none.

    Where more than `FORM` of the items share their options with an item of another page, as generated questions do, the
    cluster is a pair, page and option set: `evals.analysis.stats` then clusters by both. A form of answers, as in
    `components`, is no set.
    """
    pages = [item.url or item.id for item in items]
    offered = [frozenset(item.options) for item in items]
    pages_of = defaultdict(set)
    for page, texts in zip(pages, offered, strict=True):
        pages_of[texts].add(page)
    connects = [1 < len(pages_of[texts]) <= max(FORM * len(items), len(texts)) for texts in offered]
    if sum(connects) <= FORM * len(items):
        return pages
    forms = [len(pages_of[texts]) > 1 and not each for texts, each in zip(offered, connects, strict=True)]
    sets = ["\0".join(sorted(texts)) for texts in offered]
    return [(page, page if form else texts) for page, texts, form in zip(pages, sets, forms, strict=True)]
