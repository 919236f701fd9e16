"""sampling.py: tokens are drawn as often as they are probable, and no token that was ruled out is drawn."""

import jax
import numpy as np
import pytest

from ghost_jax.core.errors import UsageError
from ghost_jax.inference.sampling import GREEDY, Sampling, choose, columns, crop
from ghost_jax.model.transformer import MASKED

SHARES = [0.4, 0.3, 0.15, 0.1, 0.05]
LOGITS = np.append(np.log(SHARES), MASKED).astype(np.float32)  # the last is a padding row
DRAWS = 4000
draw = jax.jit(choose)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0), SHARES),
        (Sampling(0.5), np.square(SHARES) / 0.285),
        (Sampling(1.0, top_k=2), [4 / 7, 3 / 7, 0, 0, 0]),
        (Sampling(1e30), [0.2] * 5),
        (Sampling(1.0, top_p=0.71), [0.4 / 0.85, 0.3 / 0.85, 0.15 / 0.85, 0, 0]),
        (Sampling(1.0, top_k=3, top_p=0.8), [4 / 7, 3 / 7, 0, 0, 0]),  # of the three left, 0.82 are in two
        (Sampling(0.5, top_p=0.85), [0.64, 0.36, 0, 0, 0]),  # the temperature comes first
        (GREEDY, [1, 0, 0, 0, 0]),
    ],
)
def test_tokens_are_drawn_as_often_as_they_are_probable(sampling, expected):
    rows = np.broadcast_to(LOGITS, (DRAWS, len(LOGITS)))
    *how, _ = columns([sampling] * DRAWS)
    drawn = np.bincount(np.asarray(draw(rows, jax.random.split(jax.random.key(0), DRAWS), *how)), minlength=5)
    expected = DRAWS * np.asarray(expected)
    possible = expected > 0
    assert len(drawn) == 5  # the padding row is never drawn
    assert not drawn[~possible].any()
    chi_square = np.sum(np.square(drawn - expected)[possible] / expected[possible])
    assert chi_square < 23.5  # the 99.99th percentile with four degrees of freedom


def test_the_least_temperature_takes_the_most_probable_token():
    logits = np.array([[-6.0, -5.0, -7.0, MASKED], [6.0, 5.0, 7.0, MASKED]], np.float32)
    *how, _ = columns([Sampling(1e-30)] * 2)
    assert np.asarray(draw(logits, jax.random.split(jax.random.key(0), 2), *how)).tolist() == [1, 2]


def test_a_crop_is_that_of_a_sorted_vocabulary_and_keeps_ties():
    logits = 3 * np.random.default_rng(0).standard_normal((8, 1000)).astype(np.float32)
    limited = jax.jit(crop)
    for top_k, top_p in ((1, 1.0), (40, 1.0), (0, 0.9), (100, 0.5), (0, 0.01)):
        got = np.asarray(limited(logits, top_k, top_p)) > MASKED
        for row, kept in zip(logits.astype(np.float64), got, strict=True):
            order = np.argsort(-row)[: top_k or None]
            share = np.exp(row[order]) / np.exp(row[order]).sum()
            count = 1 + np.searchsorted(np.cumsum(share), top_p) if top_p < 1 else len(order)
            assert set(np.flatnonzero(kept)) == set(order[:count])

    ties = np.array([[1.0, 3.0, 1.0, 3.0, 0.0, MASKED]], np.float32)
    for top_k, top_p, kept in ((1, 1.0, [1, 3]), (3, 1.0, [0, 1, 2, 3]), (0, 0.1, [1, 3]), (0, 0.9, [0, 1, 2, 3])):
        assert np.flatnonzero(np.asarray(limited(ties, top_k, top_p))[0] > MASKED).tolist() == kept


OUT_OF_RANGE = [("temperature", -0.1), ("temperature", float("nan")), ("temperature", 1e300), ("temperature", 1e-40)]
OUT_OF_RANGE += [("top_k", -1), ("top_p", 1e-300), ("top_p", 1.1)]
OUT_OF_RANGE += [("repetition_penalty", 0.0), ("repetition_penalty", 1e300)]


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused(name, value):
    with pytest.raises(UsageError, match=name):
        Sampling(**{name: value})
