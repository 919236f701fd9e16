"""Trivial baselines: what is scored without reading the question. A model that does not beat them knows nothing.

On CTIBench MCQ as published, always answering C scores 37.12%, the longest option 42.65%, and a fit to positions,
lengths and popular texts half of the questions. Over the cyclic orders every constant letter comes to exactly 25%,
which is why the headline is scored there; what looks at the options' texts is just as good at any letter.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from evals.analysis.fitted_baselines import position_length, position_length_popularity
from evals.items.answers import Answers
from evals.items.items import LETTERS, Item, Order
from ghost_jax.core.errors import UserError
from ghost_jax.data.retrieval import mcq_baselines

FITTED = {"position_length": position_length, "position_length_popularity": position_length_popularity}


def baseline_answers(items: Sequence[Item], orders: Sequence[Sequence[Order]]) -> dict[str, Answers]:
    """Returns the answers of every baseline, by its name.

    `always_A` up to the last letter of the items; `longest` and `shortest` in characters; `question_overlap`, the
    option with the most content words of its question; `option_popularity`, the option whose text the most items
    offer; and the two of `FITTED`, in cross-validation, fitted to all the orders that are asked. Of n options that
    tie, each has 1/n of the answer.

    Args:
      items: the items, in the published order of their options; any numbers of options may stand together.
      orders: the orders of each item, the published one or another first.

    Raises:
      UserError: there are no items.
    """
    items = tuple(items)
    if not items:
        raise UserError("There are no items to score. Give a file with at least one question.")
    constants = {
        f"always_{LETTERS[letter]}": Answers.from_letters(orders, [[letter] * len(asked) for asked in orders])
        for letter in range(max(len(item.options) for item in items))
    }
    # Items, not options: of two equal options of one item, both are offered by that one item.
    offered = mcq_baselines.times_offered([tuple(set(item.options)) for item in items])
    reading_options = {
        "longest": mcq_baselines.longest,
        "shortest": mcq_baselines.shortest,
        "question_overlap": mcq_baselines.overlapping,
        "option_popularity": mcq_baselines.popular(offered),
    }
    chosen = {name: _wherever_it_stands(_chosen(baseline, items), orders) for name, baseline in reading_options.items()}
    fitted = {name: _by_letter(shares_of(items, orders), orders) for name, shares_of in FITTED.items()}
    return constants | chosen | fitted


def baselines(items: Sequence[Item], orders: Sequence[Sequence[Order]]) -> dict[str, dict[str, float]]:
    """Returns for each baseline `single_order` and `all_orders`, its accuracies as fractions.

    `single_order` is of a baseline that is asked, and was fitted, in the first order of each item alone, so that it may
    know where the gold options of that order tend to stand. `all_orders` counts each item once, however many they are.

    Arguments and errors as for `baseline_answers`.
    """
    return _baselines(tuple(items), tuple(map(tuple, orders)))


@functools.lru_cache(4)  # an audit of several answers to the same items asks the same of each
def _baselines(items: tuple[Item, ...], orders: tuple[tuple[Order, ...], ...]) -> dict[str, dict[str, float]]:
    every = baseline_answers(items, orders)
    first = tuple(asked[:1] for asked in orders)
    single = every if first == orders else baseline_answers(items, first)
    return {
        name: {"single_order": _accuracy(single[name], items), "all_orders": _accuracy(every[name], items)}
        for name in every
    }


def _accuracy(answers: Answers, items: Sequence[Item]) -> float:
    """The mean credit. Credits of constants are whole numbers, so that with fractions the only rounding is the last:
    a constant over the cyclic orders is 1/k to the last bit."""
    earned = Counter()  # by the number of orders
    for credits in answers.credits(items):
        earned[len(credits)] += float(credits.sum())
    return float(sum(Fraction(credit) / orders for orders, credit in earned.items()) / len(items))


def _chosen(baseline: mcq_baselines.Baseline, items: Sequence[Item]) -> list[np.ndarray]:
    """Of each item [K] the share of the answer that each option has: what the baseline would earn were it gold."""
    shares = [np.zeros(len(item.options)) for item in items]
    for option in range(max(len(share) for share in shares)):
        rows = [row for row, share in enumerate(shares) if option < len(share)]
        credits = baseline(
            [items[row].question for row in rows], [items[row].options for row in rows], [option] * len(rows)
        )
        for row, credit in zip(rows, credits, strict=True):
            shares[row][option] = credit
    return shares


def _wherever_it_stands(shares: Sequence[np.ndarray], orders: Sequence[Sequence[Order]]) -> Answers:
    """The answers of a baseline that gives each option its share [K] in every order."""
    return _by_letter([[share] * len(asked) for share, asked in zip(shares, orders, strict=True)], orders)


def _by_letter(shares: Sequence[np.ndarray | list[np.ndarray]], orders: Sequence[Sequence[Order]]) -> Answers:
    """Answers from the share [O, K] of each option: a letter has that of the option that stands there."""
    said = [
        np.take_along_axis(np.asarray(share), np.argsort(asked, axis=1), axis=1)
        for share, asked in zip(shares, orders, strict=True)
    ]
    return Answers(orders, said)
