"""The answers to items: the orders that each was asked in, and the share of the answer that each letter has there.

A model scores every letter, a published file names one, a baseline may tie between several. All three become shares, so
that they are measured alike.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ghost_jax.core.errors import UserError
from ghost_jax.data.items.items import LETTERS, Item, Order, cyclic_orders, every_order

# name -> the orders of an item by its number of options
ORDERS: dict[str, Callable[[int], list[Order]]] = {
    "cyclic": cyclic_orders,
    "published": lambda k: cyclic_orders(k)[:1],
    "all": every_order,
}


def without_thoughts(text: str) -> str:
    """Returns a reply without what precedes "</think>" or follows a "<think>" that does not end."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def orders_of(items: Sequence[Item], name: str) -> list[list[Order]]:
    """Returns the orders of each item by their name in `ORDERS`."""
    of_size = functools.cache(ORDERS[name])
    return [of_size(len(item.options)) for item in items]


@dataclass(frozen=True)
class Answers:
    """The answers to N items, each asked in orders of its own number of options."""

    orders: Sequence[Sequence[Order]]  # of each item, its O orders; single-order figures are of the first
    # of each item, [O, K] the share of the answer that each letter has: 1 for one letter, 1/n for each of n that tie, 0
    # for all where no letter was answered
    said: Sequence[np.ndarray]
    # of each item, [O, K] the log-probability of each letter; None where only letters are known
    log_probs: Sequence[np.ndarray] | None = None

    @classmethod
    def from_log_probs(cls, orders: Sequence[Sequence[Order]], log_probs: Sequence[np.ndarray]) -> "Answers":
        """Returns the answers by a log-probability, or any score, of each letter; the highest letter is the answer.

        A score of -inf ranks last; where all letters have it, they tie. Raises UserError where a score is NaN or inf.
        """
        if not all((scores < np.inf).all() for scores in log_probs):
            raise UserError("Some scores of letters are NaN or inf: the model's parameters are not finite. Retrain it.")
        # Equal scores instead, because a softmax of nothing but -inf is NaN.
        log_probs = [np.where(np.isneginf(each).all(axis=-1, keepdims=True), 0.0, each) for each in log_probs]
        highest = [scores == scores.max(axis=-1, keepdims=True) for scores in log_probs]
        return cls(orders, [best / best.sum(axis=-1, keepdims=True) for best in highest], log_probs)

    @classmethod
    def from_letters(cls, orders: Sequence[Sequence[Order]], letters: Sequence[Sequence[int]]) -> "Answers":
        """Returns the answers given as the index of a letter in each order; -1 where none was answered."""
        said = [
            (np.arange(len(asked[0])) == np.asarray(answered)[:, None]).astype(float)
            for asked, answered in zip(orders, letters, strict=True)
        ]
        return cls(orders, said)

    @classmethod
    def from_options(cls, orders: Sequence[Sequence[Order]], scores: Sequence[np.ndarray]) -> "Answers":
        """Returns the answers by a score of each option [K], the same in every order."""
        by_letter = [
            np.asarray(of_options, float)[np.argsort(asked, axis=1)]
            for of_options, asked in zip(scores, orders, strict=True)
        ]
        return cls.from_log_probs(orders, by_letter)

    def credits(self, items: Sequence[Item]) -> list[np.ndarray]:
        """Returns of each item [O] the credit in each order: the share of the answer that the gold letter has."""
        return [
            said[np.arange(len(said)), gold] for said, gold in zip(self.said, self.gold_letters(items), strict=True)
        ]

    def mean_credits(self, items: Sequence[Item]) -> np.ndarray:
        """Returns the credit [N] of each item, its mean over the orders."""
        return np.array([each.mean() for each in self.credits(items)])

    def first_credits(self, items: Sequence[Item]) -> np.ndarray:
        """Returns the credit [N] of each item in its first order."""
        return np.array([each[0] for each in self.credits(items)])

    def gold_letters(self, items: Sequence[Item]) -> list[np.ndarray]:
        """Returns of each item [O] the index of the gold letter in each order."""
        return [
            np.array([order[item.answer] for order in asked]) for item, asked in zip(items, self.orders, strict=True)
        ]

    def options(self) -> list[np.ndarray]:
        """Returns of each item [O, K] the share of the answer that each option has, in the published order."""
        return [
            np.take_along_axis(said, np.array(asked), axis=1)
            for said, asked in zip(self.said, self.orders, strict=True)
        ]

    def spelled(self) -> list[str]:
        """Returns the letters of each item, one an order: of those that tie the first, "-" for no letter."""
        return ["".join(LETTERS[row.argmax()] if row.any() else "-" for row in said) for said in self.said]
