"""Multiple-choice items and the orders of their options. `ghost_jax.data.items.formats` reads items from files."""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence

from ghost_jax.core.errors import UsageError, UserError
from ghost_jax.text.mcq_format import LETTERS

Order = tuple[int, ...]  # order[i] is the new position of original option i


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


def parse_order(name: str, k: int) -> Order:
    """Returns the order of k options that `order_name` calls `name`. Raises UserError where there is none."""
    if sorted(name) != list(LETTERS[:k]):
        raise UserError(
            f'"{name}" is not an order of {k} options. Name the new letter of each original option in turn, each of '
            f"{', '.join(LETTERS[:k])} once, for example {order_name(cyclic_orders(k)[1])}."
        )
    return tuple(LETTERS.index(letter) for letter in name)


def permute(item: Item, order: Sequence[int]) -> Item:
    """Returns the same item with its options in another order; the gold text stays gold."""
    if sorted(order) != list(range(len(item.options))):
        raise ValueError(f"{tuple(order)} is not an order of the {len(item.options)} options of {item.id}")
    options = tuple(item.options[order.index(position)] for position in range(len(order)))
    return dataclasses.replace(item, options=options, answer=order[item.answer])
