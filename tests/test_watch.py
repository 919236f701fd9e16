"""The watch of ghost_jax/runs/logger.py: which validation losses are a divergence."""

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from ghost_jax.runs.logger import divergence

RECORDED = (3.175, 3.285, 3.403)  # of the study's run that was stopped by hand at update 300
nan, inf = math.nan, math.inf


def lines(*losses: float, share: float = 1.0) -> list[dict]:
    """The metrics of a run that evaluates every 100 updates and logs once in between."""
    evaluated = [{"step": 100 * i, "loss": 3.0, "val_loss": x, "val_share": share} for i, x in enumerate(losses, 1)]
    between = [{"step": 100 * i + 50, "loss": 9.0} for i in range(len(losses))]
    return sorted(evaluated + between, key=lambda line: line["step"])


def test_a_loss_over_fewer_records_does_not_count():
    assert divergence(lines(*RECORDED, share=0.5), 3) is None
    assert divergence(lines(3.0, nan, share=0.5), 3) is not None, "one that is not finite counts always"
    assert divergence([{"step": i, "val_loss": loss} for i, loss in enumerate(RECORDED)], 3) is None
    full, sample = lines(*RECORDED), {"step": 250, "val_loss": 2.0, "val_share": 0.1}
    assert divergence([*full[:4], sample, *full[4:]], 3) is not None
    assert divergence([*full, sample | {"step": 350, "val_loss": 9.0}], 3) is None, "the newest one decides"


# Quarters, so that equal losses are common.
losses = st.lists(st.integers(0, 12).map(lambda quarters: quarters / 4) | st.sampled_from([nan, inf]), max_size=8)


@given(losses, st.integers(2, 5))
def test_a_divergence_is_a_tail_of_strictly_rising_losses_or_one_that_is_not_finite(values, evaluations):
    tail = values[-evaluations:]
    rising = len(tail) == evaluations and all(b > a or not math.isfinite(b) for a, b in itertools.pairwise(tail))
    diverged = rising or bool(values and not math.isfinite(values[-1]))
    assert (divergence(lines(*values), evaluations) is not None) == diverged
