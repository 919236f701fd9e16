"""Multiple-choice items, and asking them in other option orders. `evals.items.formats` reads them from files."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ghost_jax.core.errors import UsageError, UserError
from ghost_jax.text.mcq_format import LETTERS

Order = tuple[int, ...]  # order[i] is the new position of original option i


@dataclass(frozen=True)
class Item:
    """One question with 2 to 10 options.

    Attributes:
      id: names the item in its file: its id there, or its place, "line 58" or "item 58".
      question: the question as published.
      options: the options as published, in the published order; one may be empty.
      answer: the index of the gold option.
      url: the page the question was written from, "" where unknown. Items of one page are not independent.
    """

    id: str
    question: str
    options: tuple[str, ...]
    answer: int
    url: str = ""


@dataclass(frozen=True)
class Items:
    """A benchmark: its items in file order, where they came from, and what is odd about them.

    Attributes:
      name: what reports call it.
      path: the file, "" if the items were made in memory.
      sha256: hex digest of the file's bytes, "" if there is no file.
      items: every item of the file that is answered with one letter.
      quirks: a sentence for each blemish that was kept, beginning with its place, counted from 1.
      left_out: a sentence for each item of the file that is not among the items, beginning with its place.
    """

    name: str
    path: str
    sha256: str
    items: tuple[Item, ...]
    quirks: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)


def cyclic_orders(k: int) -> list[Order]:
    """The k cyclic shifts of k options: over them every option stands at every position exactly once.

    A constant letter is therefore right in exactly 1/k of them, whatever the gold letters are. That does not hold for a
    handful of random orders.
    """
    return [tuple((original + shift) % k for original in range(k)) for shift in range(k)]


def every_order(k: int) -> list[Order]:
    """All orders of k options, the published one first. Raises UsageError for k of more than 4: ten have 3,628,800."""
    if k > 4:
        raise UsageError(f"An item with {k} options has {math.factorial(k):,} orders. Ask it in the cyclic ones.")
    return list(itertools.permutations(range(k)))


def order_name(order: Order) -> str:
    """The new letter of each original option in turn: (2, 1, 3, 0) is "CBDA"."""
    return "".join(LETTERS[position] for position in order)


def parse_order(name: str, k: int) -> Order:
    """The order of k options that `order_name` calls `name`.

    Raises:
      UserError: the name is no permutation of the first k letters.
    """
    if sorted(name) != list(LETTERS[:k]):
        raise UserError(
            f'"{name}" is no order of {k} options. Name the new letter of each original option in turn, each of '
            f"{', '.join(LETTERS[:k])} once, for example {order_name(cyclic_orders(k)[1])}."
        )
    return tuple(LETTERS.index(letter) for letter in name)


def permute(item: Item, order: Sequence[int]) -> Item:
    """The same item with its options in another order; the gold text stays gold.

    Raises:
      ValueError: the order is not one of as many options as the item has.
    """
    if sorted(order) != list(range(len(item.options))):
        raise ValueError(f"{tuple(order)} is no order of the {len(item.options)} options of {item.id}")
    original_at = {position: original for original, position in enumerate(order)}
    options = tuple(item.options[original_at[position]] for position in range(len(order)))
    return Item(item.id, item.question, options, order[item.answer], item.url)
