"""The watch of ghost_jax/runs/logger.py: which validation losses are a divergence."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghost_jax.runs.logger import divergence, rises

RECORDED = (3.175, 3.285, 3.403)  # of the study's run that was stopped by hand at update 300
nan, inf = math.nan, math.inf


def lines(*losses: float, share: float = 1.0) -> list[dict]:
    """The metrics of a run that evaluates every 100 updates and logs once in between."""
    evaluated = [{"step": 100 * i, "loss": 3.0, "val_loss": x, "val_share": share} for i, x in enumerate(losses, 1)]
    between = [{"step": 100 * i + 50, "loss": 9.0} for i in range(len(losses))]
    return sorted(evaluated + between, key=lambda line: line["step"])


@pytest.mark.parametrize(
    ("losses", "expected"),
    [((), 0), (RECORDED, 2), ((3.0, 3.1, 3.1, 3.2), 1), ((3.0, nan, nan), 2), ((nan, 3.0), 0), ((inf, 3.0, 3.1), 1)],
)
def test_rises_are_counted_back_from_the_newest_loss(losses, expected):
    assert rises(losses) == expected


def test_the_recorded_divergence_is_found_at_its_third_evaluation():
    history = lines(*RECORDED)
    assert [divergence(history[:i], 3) for i in range(6)] == [None] * 6
    assert all(part in divergence(history, 3) for part in ("3.175 → 3.285 → 3.403", "100, 200, 300"))
    assert divergence(lines(3.5, 3.4, 3.45, 3.5, 3.55), 2).count("→") == 1


@pytest.mark.parametrize("bad", [nan, inf, -inf])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_loss_that_is_not_finite_is_found_at_once(bad, share):
    assert f"update 200 is {bad}" in divergence(lines(3.0, bad, share=share), 3)
    assert divergence(lines(bad, 3.0, share=share), 3) is None


def test_a_loss_over_fewer_records_does_not_count():
    assert divergence(lines(*RECORDED, share=0.5), 3) is None
    assert divergence([{"step": i, "val_loss": loss} for i, loss in enumerate(RECORDED)], 3) is None
    full, sample = lines(*RECORDED), {"step": 250, "val_loss": 2.0, "val_share": 0.1}
    assert divergence([*full[:4], sample, *full[4:]], 3) is not None
    assert divergence([*full, sample | {"step": 350, "val_loss": 9.0}], 3) is None, "the newest one decides"


quarters = st.lists(st.integers(0, 12).map(lambda quarters: quarters / 4), max_size=8)  # equal losses are common


@given(quarters, st.integers(2, 5))
def test_a_verdict_is_a_tail_of_strictly_rising_losses(values, evaluations):
    tail = values[-evaluations:]
    rising = len(tail) == evaluations and all(a < b for a, b in itertools.pairwise(tail))
    assert (divergence(lines(*values), evaluations) is not None) == rising
