"""ghost_jax/training/divergence.py: what counts as a rise, and which histories of losses end in a verdict."""

import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghost_jax.runs import metrics
from ghost_jax.runs.metrics import MetricsLog
from ghost_jax.training.divergence import rises, verdict

RECORDED = (3.175, 3.285, 3.403)  # of the study's run that was stopped by hand at update 300
nan, inf = math.nan, math.inf


def lines(*losses: float, share: float = 1.0) -> list[dict]:
    """The metrics of a run that evaluates every 100 updates and logs once in between."""
    evaluated = [{"step": 100 * i, "loss": 3.0, "val_loss": x, "val_share": share} for i, x in enumerate(losses, 1)]
    between = [{"step": 100 * i + 50, "loss": 9.0} for i in range(len(losses))]
    return sorted(evaluated + between, key=lambda line: line["step"])


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((), 0),
        ((3.0,), 0),
        (RECORDED, 2),
        ((3.0, 3.0), 0),
        ((3.0, 3.1, 3.1, 3.2), 1),  # equal losses are no rise
        ((3.0, 3.1, 3.2, 3.1), 0),
        ((3.0, 3.1, 3.2, 2.9, 3.0), 1),  # a dip starts anew
        ((3.0, nan), 1),
        ((3.0, nan, nan), 2),
        ((3.0, inf, inf), 2),
        ((nan, 3.0), 0),
        ((inf, 3.0, 3.1), 1),
    ],
)
def test_rises_are_counted_back_from_the_newest_loss(losses, expected):
    assert rises(losses) == expected


def test_the_recorded_divergence_is_seen_at_its_third_evaluation():
    history = lines(*RECORDED)
    assert [verdict(history[:i], 3) for i in range(6)] == [None] * 6
    assert verdict(history, 3) == (
        "The validation loss rose over 3 evaluations in a row: 3.175 → 3.285 → 3.403 (updates 100, 200, 300)."
    )


@pytest.mark.parametrize("evaluations", [2, 3, 4])
def test_only_the_last_evaluations_are_named(evaluations):
    said = verdict(lines(3.5, 3.4, 3.45, 3.5, 3.55), evaluations)
    assert said.count("→") == evaluations - 1
    assert said.endswith("500).")


@pytest.mark.parametrize(
    "losses",
    [
        (3.175, 3.285),
        (3.175, 3.285, 3.285),
        (3.175, 3.285, 3.403, 3.402),
        (3.175, 3.285, 3.2, 3.403),
        (3.403, 3.285, 3.175),
    ],
)
def test_fewer_rises_are_no_divergence(losses):
    assert verdict(lines(*losses), 3) is None


@pytest.mark.parametrize("bad", [nan, inf, -inf])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_loss_that_is_no_number_is_seen_at_once(bad, share):
    assert verdict(lines(3.0, bad, share=share), 3) == f"The validation loss after update 200 is {bad}."
    assert verdict(lines(bad, share=share), 3) == f"The validation loss after update 100 is {bad}."
    assert verdict(lines(bad, 3.0, share=share), 3) is None


def test_a_loss_over_fewer_records_does_not_count():
    assert verdict(lines(*RECORDED, share=0.5), 3) is None
    assert verdict([{"step": i, "val_loss": loss} for i, loss in enumerate(RECORDED)], 3) is None
    whole, sample = lines(*RECORDED), {"step": 250, "val_loss": 2.0, "val_share": 0.1}
    assert verdict([*whole[:4], sample, *whole[4:]], 3) is not None, "a sample between them is passed over"
    assert verdict([*whole, sample | {"step": 350, "val_loss": 9.0}], 3) is None, "the newest one decides"


def test_losses_from_before_a_run_was_cut_count(tmp_path):
    with MetricsLog(tmp_path, 0) as log:
        for line in lines(*RECORDED[:2]):
            log.write(**line)
        log.write(250, loss=1.0, val_loss=1.0, val_share=1.0)  # after the checkpoint that the run goes on from
    with MetricsLog(tmp_path, 200) as log:
        log.write(**lines(*RECORDED)[-1])
    assert "3.175 → 3.285 → 3.403" in verdict(metrics.read(tmp_path), 3)


loss = st.integers(0, 12).map(lambda quarters: quarters / 4)  # few values, so that equal ones are common
losses = st.lists(loss, max_size=8)


@given(losses, st.integers(2, 5))
def test_a_verdict_is_a_tail_of_strictly_rising_losses(values, evaluations):
    tail = values[-evaluations:]
    rising = len(tail) == evaluations and all(a < b for a, b in itertools.pairwise(tail))
    assert (verdict(lines(*values), evaluations) is not None) == rising


@given(losses, loss, loss)
def test_one_more_loss_adds_one_rise_or_starts_anew(values, before, after):
    before_it = rises([*values, before])
    assert rises([*values, before, after]) == (before_it + 1 if after > before else 0)


@given(losses)
def test_what_is_read_back_from_a_file_is_judged_alike(values):
    history = lines(*values, nan)
    assert verdict([json.loads(json.dumps(line)) for line in history], 3) == verdict(history, 3)
