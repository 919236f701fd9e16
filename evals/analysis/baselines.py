"""Baselines: answers without a model. Those of overlap compare words with the question; the others do not read it."""

import functools
from collections import Counter, defaultdict
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from evals.analysis import fitted_baselines
from evals.analysis.fitted_baselines import TIED
from evals.items.answers import Answers
from ghost_jax.core.errors import UserError
from ghost_jax.data.items.items import LETTERS, Item, Order
from ghost_jax.data.retrieval import mcq_baselines

BLOCK = 256  # items whose similarities are held at a time
# Whether the fit knows how popular texts are, and what they share with the question.
FITTED = {
    "position_length": {"popularity": False, "overlap": False},
    "position_length_popularity": {"popularity": True, "overlap": False},
    "position_length_popularity_overlap": {"popularity": True, "overlap": True},
}


def baseline_answers(items: Sequence[Item], orders: Sequence[Sequence[Order]]) -> dict[str, Answers]:
    """Returns the answers of every baseline of docs/scoring.md, by its name. Options that tie share the answer.

    Those of `FITTED` are fitted to all the orders. Raises UserError where there are no items.
    """
    if not items:
        raise UserError("There are no items to score. Give a file with at least one question.")
    of_options = {
        "longest": mcq_baselines.longest,
        "shortest": mcq_baselines.shortest,
        "all_of_the_above": mcq_baselines.all_of_the_above,
        "question_overlap": mcq_baselines.overlapping,
        "word_part_overlap": mcq_baselines.sharing_parts,
        "option_popularity": mcq_baselines.popular(mcq_baselines.times_offered(items)),
    }
    answers = {
        f"always_{LETTERS[letter]}": Answers.from_letters(orders, [[letter] * len(asked) for asked in orders])
        for letter in range(max(len(item.options) for item in items))
    }
    for name, baseline in of_options.items():
        answers[name] = Answers.from_options(orders, [baseline(item) for item in items])
    for name, clues in FITTED.items():
        answers[name] = fitted_baselines.answers(items, orders, **clues)
    return answers


def nearest_trained(items: Sequence[Item], trained: Sequence[Item]) -> list[np.ndarray]:
    """Returns of each item the share [K] of the answer that each option gets by the questions a run was tuned on.

    The score of an option is the similarity of the item's question to the nearest of those whose gold option it is: a
    model of what is asked about similar names does as well without the fact. Options without such a question have 0.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # not above: it takes a second

    offered = {option for item in items for option in item.options}
    kept = [each for each in trained if each.options[each.answer] in offered]
    if not kept:
        return [np.full(len(item.options), 1 / len(item.options)) for item in items]
    rows_of = defaultdict(list)  # gold option -> questions
    for row, each in enumerate(kept):
        rows_of[each.options[each.answer]].append(row)
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True)
    known, shares = vectorizer.fit_transform(each.question for each in kept), []
    for start in range(0, len(items), BLOCK):  # similarities of all pairs would take gigabytes
        block = items[start : start + BLOCK]
        similar = (vectorizer.transform(each.question for each in block) @ known.T).toarray()
        for item, row in zip(block, similar, strict=True):
            scores = np.array([row[rows_of[option]].max(initial=0.0) for option in item.options])
            best = scores >= scores.max() - TIED
            shares.append(best / best.sum())
    return shares


@functools.lru_cache(4)  # an audit of several answers to the same items asks the same of each
def _cached(items: tuple[Item, ...], orders: tuple[tuple[Order, ...], ...]) -> dict[str, dict[str, float]]:
    every = baseline_answers(items, orders)
    first = tuple(asked[:1] for asked in orders)
    single = every if first == orders else baseline_answers(items, first)
    return {
        name: {"single_order": _accuracy(single[name], items), "all_orders": _accuracy(every[name], items)}
        for name in every
    }


def baselines(items: Sequence[Item], orders: Sequence[Sequence[Order]]) -> dict[str, dict[str, float]]:
    """Returns for each baseline its accuracies `single_order` and `all_orders`, as fractions.

    `single_order` is asked, and fitted, in the first order of each item alone. Raises as `baseline_answers` does.
    """
    return _cached(tuple(items), tuple(map(tuple, orders)))


def _accuracy(answers: Answers, items: Sequence[Item]) -> float:
    """The mean credit; fractions leave one rounding, so that a constant over the cyclic orders is exactly 1/k."""
    earned = Counter()  # by the number of orders
    for credits in answers.credits(items):
        earned[len(credits)] += float(credits.sum())
    return float(sum(Fraction(credit) / orders for orders, credit in earned.items()) / len(items))
