"""Baselines fitted to the position, length and popularity of the gold option, and to the text that it shares with the
question.

Each is a conditional logit (`conditional_logit.py`), scored in 5-fold cross-validation: the weights that answer an item
were fitted on items of other components (`ghost_jax/data/items/items.py`), or of other option sets where one component
has more items than a fold should.
"""

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from evals.analysis.conditional_logit import fit
from evals.items.answers import Answers
from ghost_jax.data.items.items import Item, Order, components
from ghost_jax.data.retrieval.mcq_baselines import is_negated, runs_shared

FOLDS = 5
RIDGE = 1.0  # of standardised weights: far below the evidence of a hundred items, enough to bound those of ten
TIED = 1e-6  # scores this close are equal: rounding must not decide a tie


def answers(items: Sequence[Item], orders: Sequence[Sequence[Order]], *, popularity: bool, overlap: bool) -> Answers:
    """Returns the answers by position and length.

    With `popularity` also by how often a text is offered, and is gold in the training folds. Both are counted outside
    the component of the item: of four questions with the same four options, three would give away the fourth. With
    `overlap` also by the share of a text that the question has.
    """
    options = _Options(items)
    clues = [options.length(), *[options.overlap(items)] * overlap]
    asked = np.array([len(of_item) for of_item in orders])
    item = np.repeat(np.arange(len(orders)), asked)  # [C], C the cases: an item in an order
    k = options.real.shape[1]
    positions = np.array([(*order, *range(len(order), k)) for of_item in orders for order in of_item])
    letters = np.eye(k)[positions]  # [C, K, K]
    said = np.zeros(positions.shape)  # [C, K] the share of the answer that each letter has
    for fold in range(FOLDS):
        held_out = (options.fold == fold)[item]
        if not held_out.any():
            continue
        features = np.concatenate([*clues, *[options.popularity(fold)] * popularity], axis=-1)
        spread = features[options.real].std(axis=0)
        cases = np.concatenate([letters, (features / np.where(spread > 0, spread, 1))[item]], axis=-1)
        train = item[~held_out]
        weights = fit(cases[~held_out], options.real[train], options.answer[train], 1 / asked[train], RIDGE)
        shares = _shares(cases[held_out] @ weights, options.real[item[held_out]])
        said[held_out] = np.take_along_axis(shares, np.argsort(positions[held_out], axis=1), axis=1)
    in_items = np.split(said, np.cumsum(asked)[:-1])
    return Answers(orders, [rows[:, :count] for rows, count in zip(in_items, options.counts, strict=True)])


class _Options:
    """The options of N items as [N, K] arrays, K the most that one has; `real` is False where an item has fewer."""

    def __init__(self, items: Sequence[Item]):
        k = max(len(item.options) for item in items)
        component = components(items)
        padded = [item.options + (None,) * (k - len(item.options)) for item in items]
        self.counts = np.array([len(item.options) for item in items])
        self.real = np.arange(k) < self.counts[:, None]
        self.answer = np.array([item.answer for item in items])
        sizes = Counter(component)
        sets = ["\0".join(sorted(item.options)) for item in items]
        groups = [name if sizes[name] <= len(items) / FOLDS else of for name, of in zip(component, sets, strict=True)]
        self.fold = np.array([_fold_of(name) for name in groups])  # [N]
        self._lengths = np.array([[len(text or "") for text in offered] for offered in padded], dtype=float)
        self._text = _numbered(text for offered in padded for text in offered).reshape(-1, k)
        self._text_of_component = _numbered(
            (name, text) for name, offered in zip(component, padded, strict=True) for text in offered
        ).reshape(-1, k)

    def length(self) -> np.ndarray:
        """[N, K, 5] characters: their log, deviation and rank within the item; share of being longest, shortest."""
        lengths, real, counts = self._lengths, self.real, self.counts[:, None]
        mean = (lengths * real).sum(axis=1, keepdims=True) / counts
        spread = np.sqrt(((lengths - mean) ** 2 * real).sum(axis=1, keepdims=True) / counts)
        shorter = (lengths[:, :, None] > lengths[:, None, :]) & real[:, None, :]
        as_long = (lengths[:, :, None] == lengths[:, None, :]) & real[:, None, :]
        features = (
            np.log1p(lengths),
            np.divide(lengths - mean, spread, out=np.zeros_like(lengths), where=spread > 0),
            (shorter.sum(axis=2) + as_long.sum(axis=2) / 2) / counts,
            _shares(lengths, real),
            _shares(-lengths, real),
        )
        return np.stack(features, axis=-1)

    def overlap(self, items: Sequence[Item]) -> np.ndarray:
        """[N, K, 1] the share of the text that is in the question, negated where the question is."""
        shared = np.zeros((*self.real.shape, 1))
        for row, item in enumerate(items):
            found = [runs_shared(item.question, text) for text in item.options]
            shared[row, : len(found), 0] = np.negative(found) if is_negated(item.question) else found
        return shared

    def popularity(self, held_out: int) -> np.ndarray:
        """[N, K, 3] logs: how often other components offer the text, how often those outside a fold have it as gold,
        and the rate of that.
        """
        known = self.real & (self.fold != held_out)[:, None]
        gold = self._elsewhere(known & (np.arange(known.shape[1]) == self.answer[:, None]))
        offered = self._elsewhere(known)
        rate = (gold + 1 / self.counts[:, None]) / (offered + 1)  # a text that is new is gold once in K times
        return np.stack([np.log1p(self._elsewhere(self.real)), np.log1p(gold), np.log(rate)], axis=-1)

    def _elsewhere(self, counted: np.ndarray) -> np.ndarray:
        """[N, K] how many of the counted options [N, K] have this text in another component."""

        def times(names: np.ndarray) -> np.ndarray:
            return np.bincount(names.ravel(), weights=counted.ravel())[names]

        return times(self._text) - times(self._text_of_component)


def _shares(scores: np.ndarray, real: np.ndarray) -> np.ndarray:
    """[..., K] the share of the answer that each option has where the highest score is chosen; n that tie get 1/n."""
    scores = np.where(real, scores, -np.inf)
    best = scores >= scores.max(axis=-1, keepdims=True) - TIED
    return best / best.sum(axis=-1, keepdims=True)


def _numbered(names: Iterable[Hashable]) -> np.ndarray:
    """Each name's number, in order of first appearance."""
    number_of: dict[Hashable, int] = {}
    return np.array([number_of.setdefault(name, len(number_of)) for name in names])


def _fold_of(group: str) -> int:
    """The fold of a group of items by a hash of its name: the same one in every process and version of Python."""
    return int.from_bytes(hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()[:8]) % FOLDS
