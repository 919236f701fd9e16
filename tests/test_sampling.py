"""sampling.py: tokens come as often as they are probable, and no token that was ruled out comes at all."""

import jax
import numpy as np
import pytest

from ghost_jax.core.errors import UsageError
from ghost_jax.inference.sampling import GREEDY, Sampling, choose, cut, penalised
from ghost_jax.model.transformer import MASKED

pytestmark = pytest.mark.usefixtures("compile_quickly")

LOGITS = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.05]))


def shares(sampling: Sampling, logits: np.ndarray = LOGITS, draws: int = 4000) -> np.ndarray:
    padded = np.append(logits, MASKED)
    rows = np.broadcast_to(padded, (draws, len(padded))).astype(np.float32)
    *scalars, _ = sampling.scalars()
    chosen = np.asarray(jax.jit(choose)(rows, jax.random.split(jax.random.key(0), draws), *scalars))
    assert chosen.max() < len(logits)  # a padding row is never drawn
    return np.bincount(chosen, minlength=len(logits)) / draws


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0), [0.4, 0.3, 0.15, 0.1, 0.05]),
        (Sampling(0.5), np.square([0.4, 0.3, 0.15, 0.1, 0.05]) / 0.285),
        (Sampling(1.0, top_k=2), [4 / 7, 3 / 7, 0, 0, 0]),
        (Sampling(1.0, top_k=5), [0.4, 0.3, 0.15, 0.1, 0.05]),
        (Sampling(1.0, top_k=50), [0.4, 0.3, 0.15, 0.1, 0.05]),
        (Sampling(1.0, top_k=10**30), [0.4, 0.3, 0.15, 0.1, 0.05]),
        (Sampling(1e30), [0.2] * 5),
        (Sampling(1e300), [0.2] * 5),
        (Sampling(1.0, top_p=1e-300), [1, 0, 0, 0, 0]),
        (Sampling(1.0, top_p=0.69), [4 / 7, 3 / 7, 0, 0, 0]),
        (Sampling(1.0, top_p=0.71), [0.4 / 0.85, 0.3 / 0.85, 0.15 / 0.85, 0, 0]),
        (Sampling(1.0, top_p=1e-6), [1, 0, 0, 0, 0]),
        (Sampling(1.0, top_k=3, top_p=0.8), [4 / 7, 3 / 7, 0, 0, 0]),  # of the three left, 0.82 are in two
        (Sampling(0.5, top_p=0.85), [0.64, 0.36, 0, 0, 0]),  # the temperature comes first
        (GREEDY, [1, 0, 0, 0, 0]),
    ],
)
def test_tokens_are_drawn_as_often_as_they_are_probable(sampling, expected):
    drawn, expected = 4000 * shares(sampling), 4000 * np.asarray(expected)
    possible = expected > 0
    assert not drawn[~possible].any()
    chi_square = np.sum(np.square(drawn - expected)[possible] / expected[possible])
    assert chi_square < 23.5  # the 99.99th percentile with four degrees of freedom


def test_a_cut_keeps_what_is_as_probable_as_the_last_one_kept():
    logits = np.array([[1.0, 3.0, 1.0, 3.0, 0.0, MASKED]], np.float32)
    limited = jax.jit(cut)

    def kept(top_k: int, top_p: float) -> list[int]:
        return np.flatnonzero(np.asarray(limited(logits, top_k, top_p))[0] > MASKED).tolist()

    assert [kept(k, 1.0) for k in (1, 2, 3, 5, 0)] == [[1, 3], [1, 3], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    assert [kept(0, p) for p in (0.1, 0.8, 0.9, 0.9999)] == [[1, 3], [1, 3], [0, 1, 2, 3], [0, 1, 2, 3, 4]]


def test_a_cut_is_that_of_a_sorted_vocabulary():
    logits = 3 * np.random.default_rng(0).standard_normal((8, 1000)).astype(np.float32)
    limited = jax.jit(cut)
    for top_k, top_p in ((1, 1.0), (40, 1.0), (0, 0.9), (100, 0.5), (0, 0.01)):
        got = np.asarray(limited(logits, top_k, top_p)) > MASKED
        for row, kept in zip(logits.astype(np.float64), got, strict=True):
            order = np.argsort(-row)[: top_k or None]
            share = np.exp(row[order]) / np.exp(row[order]).sum()
            count = 1 + np.searchsorted(np.cumsum(share), top_p) if top_p < 1 else len(order)
            assert set(np.flatnonzero(kept)) == set(order[:count])


def test_a_penalty_makes_what_was_seen_less_probable_on_either_side_of_zero():
    logits, seen = np.array([[2.0, -2.0, 2.0, -2.0, 0.0]]), np.array([[True, True, False, False, True]])
    np.testing.assert_allclose(penalised(logits, seen, 4.0), [[0.5, -8.0, 2.0, -2.0, 0.0]])
    np.testing.assert_array_equal(penalised(logits, seen, 1.0), logits)


def test_a_value_that_32_bits_do_not_hold_becomes_the_nearest_that_they_do():
    *_, much = Sampling(repetition_penalty=1e300).scalars()
    *_, little = Sampling(repetition_penalty=1e-300).scalars()
    assert (much, little) == (np.finfo(np.float32).max, np.finfo(np.float32).tiny)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"repetition_penalty": 0.0},
    ],
    ids=str,
)
def test_a_sampling_that_chooses_nothing_is_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Sampling(**wrong)
