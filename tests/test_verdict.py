"""evals/analysis/verdict.py: what a report's figures and controls allow, and which rivals and controls it names."""

from dataclasses import replace

import pytest

from evals.analysis.report import report_of
from evals.analysis.verdict import CONTROLS, judged, words_of
from evals.items.answers import Answers
from ghost_jax.data.items.items import Item, Items
from ghost_jax.data.retrieval.mcq_baselines import NEAREST
from ghost_jax.runs.evaluation import Accuracy, Cloze, Control, Evaluation

ITEMS = Items("two questions", "", "", (Item("1", "Which?", ("a", "b"), 0), Item("2", "Which?", ("a", "b"), 1)))
REPORT = report_of(Answers.from_letters([[(0, 1)]] * 2, [[0], [1]]), ITEMS)
BASELINES = {**{f"always_{letter}": 0.25 for letter in "ABCD"}, "longest": 0.4}

OVERLAP = BASELINES | {"position_length_popularity": 0.3, "position_length_popularity_overlap": 0.35}

HIGH = {"options only": 0.5, "question swapped": 0.3}
LOW = {"options only": 0.26, "question swapped": 0.27}
ALL_HIGH = HIGH | {"trained options-only": 0.89}
ALL_LOW = LOW | {"trained options-only": 0.26}


def around(accuracy: float, half: float = 0.02) -> Accuracy:
    return Accuracy(accuracy=accuracy, ci95=(accuracy - half, accuracy + half))


def control(accuracy: float, gain: float) -> Control:
    """A control over which the paired gain has this lower bound."""
    found = around(accuracy)
    return Control(accuracy=accuracy, ci95=found.ci95, gain=gain + 0.02, gain_ci95=(gain, gain + 0.04))


def graded(accuracy: float, controls: dict[str, float] | None = None, gain: float = 0.0, **others) -> Evaluation:
    """A judged report with this accuracy, over baselines that reach a quarter and, for the longest option, 0.4."""
    controls = {name: control(value, gain) for name, value in (controls or {}).items()}
    found = around(accuracy)
    report = replace(
        REPORT,
        headline=replace(REPORT.headline, accuracy=accuracy, ci95=found.ci95),
        letter_share=dict.fromkeys("ABCD", 0.25),
        baselines_over_orders=BASELINES,
        controls=controls,
        controls_missing=tuple(name for name in CONTROLS if name not in controls),
    )
    return judged(replace(report, **others))


def mostly_a(share: float, recall: float) -> dict:
    return {"letter_share": {"A": share, "B": 0.2}, "recall": {"A": recall, "B": 0.3}}


@pytest.mark.parametrize(
    ("report", "verdict", "named"),
    [
        (graded(0.35), "shortcut", "below longest, which scores 40.00%"),
        (graded(0.9), "shortcut", "controls were not run"),
        (graded(0.9, HIGH, gain=0.01), "knowledge", "options only (50.00%)"),
        (graded(0.9, HIGH), "shortcut", "the gain over options only is not shown"),
        (graded(0.9, LOW, gain=0.1, baselines_over_orders=OVERLAP), "knowledge", "longest"),
        (graded(0.9, LOW, gain=0.04, baselines_over_orders=OVERLAP), "gain", "5.00 points that shared words add"),
        (graded(0.51, HIGH), "shortcut", "options only"),
        (graded(0.9, {"options only": 0.5}), "shortcut", "not excluded"),
        (graded(0.9, ALL_HIGH), "shortcut", "trained options-only"),
        (graded(0.31, LOW, gain=0.01), "gain", "below longest, which scores 40.00%"),
        (graded(0.41, ALL_LOW, gain=0.01), "gain", "not entirely above longest"),
        (graded(0.51, HIGH, gain=0.01), "gain", "options only"),
        (graded(0.43, LOW, gain=0.01), "knowledge", "longest"),
        (graded(0.31, LOW, gain=0.0), "shortcut", "longest"),
        (graded(0.31, {"options only": 0.26}, gain=0.03), "shortcut", "not excluded"),
        (graded(0.27, ALL_LOW, gain=0.01), "chance", "below longest, which scores 40.00%"),
        (graded(0.27, ALL_LOW), "chance", "not told apart from answering one letter"),
        (graded(0.05, ALL_LOW), "chance", "below answering one letter"),
        (graded(0.625, LOW, gain=0.01, **mostly_a(0.625, 1.0)), "knowledge", ""),  # half is known, and A the rest
        (graded(0.26, LOW, gain=0.01, **mostly_a(0.61, 0.61)), "collapsed", "61.0% of the answers are A"),
        (graded(0.38, LOW, gain=0.01, **mostly_a(0.55, 0.2)), "gain", ""),  # of few options, A is most that is wrong
        (graded(0.31, ALL_LOW, gain=0.01, **mostly_a(0.4, 0.4), no_letter=0.4), "collapsed", "66.7%"),
    ],
)
def test_the_verdict_names_the_best_rival_and_the_missing_controls(report, verdict, named):
    assert report.verdict == verdict
    assert named in report.verdict_text
    missing = f" Controls missing: {', '.join(report.controls_missing)}."
    assert report.verdict_text.endswith(missing) == bool(report.controls_missing)


def test_a_gain_over_two_controls_is_none_where_the_third_is_as_good():
    report = graded(0.31, LOW, gain=0.01)
    third = {"trained options-only": control(0.31, -0.02)}
    assert judged(replace(report, controls=report.controls | third)).verdict == "shortcut"


def read_twice(accuracy: float, *, letters: float = 0.25, chance: float = 0.25, gain: float | None = 0.01, **others):
    """A report with a cloze of this accuracy, its interval 0.1 to each side, and `gain` the lower bound of its gain."""
    controls = {} if gain is None else {"question swapped": control(0.25, gain)}
    found, other = around(accuracy, 0.1), around(0.9)
    cloze = Cloze(primary="pmi", chance=chance, controls=controls, pmi=found, sum=other, per_token=other)
    return graded(letters, LOW, gain=-0.01, cloze=cloze, **others)


@pytest.mark.parametrize(
    ("report", "differs"),
    [
        (read_twice(0.57), True),
        (read_twice(0.57, gain=None), False),
        (read_twice(0.57, gain=0.0), False),
        (read_twice(0.57, gain=0.04, baselines_over_orders=OVERLAP), False),
        (read_twice(0.57, gain=0.06, baselines_over_orders=OVERLAP), True),
        (read_twice(0.34), False),
        (read_twice(0.57, baselines_over_orders=BASELINES | {"word_part_overlap": 0.48}), False),
        (read_twice(0.57, baselines_over_orders=BASELINES | {NEAREST: 0.48}), False),
        (read_twice(0.57, chance=0.5), False),
        (read_twice(0.57, letters=0.35), False),
    ],
)
def test_cloze_differs_where_it_alone_is_above_chance_and_its_control(report, differs):
    assert report.readings.differs is differs
    assert (report.readings.letters.accuracy, report.readings.cloze) == (report.headline.accuracy, report.cloze.pmi)
    assert ("57.0% (47.0 to 67.0) against 25.0%" in report.verdict_text) is differs


def test_cloze_is_set_beside_the_best_baseline_that_reads_options():
    assert "longest" not in read_twice(0.57).verdict_text.partition("cloze")[2]
    assert "not entirely above longest (40.0%)" in read_twice(0.38).verdict_text
    few = replace(read_twice(0.57), baselines_over_orders={"always_A": 0.9, "longest": 0.8})
    assert "below longest (80.0%)" in words_of(few)
    assert graded(0.25).readings is None
