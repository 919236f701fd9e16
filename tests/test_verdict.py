"""evals/analysis/verdict.py: what a report's figures and controls allow to be said, and in which words."""

import pytest

from evals.analysis.verdict import CONTROLS, judged, verdict, words_of


def graded(
    accuracy: float,
    *,
    half: float = 0.02,
    controls: dict | None = None,
    missing: tuple = CONTROLS,
    gain: float | None = None,
) -> dict:
    """A report with these figures, over baselines that reach a quarter and, for the longest option, 0.4.

    `gain` is the lower bound of the paired gain over each control, `half` of every interval.
    """
    paired = {} if gain is None else {"gain": gain + half, "gain_ci95": [gain, gain + 2 * half]}
    return {
        "headline": {"accuracy": accuracy, "ci95": [accuracy - half, accuracy + half], "orders": ["AB"] * 4},
        "letter_share": dict.fromkeys("ABCD", 0.25),
        "no_letter": 0.0,
        "baselines_over_orders": {**{f"always_{letter}": 0.25 for letter in "ABCD"}, "longest": 0.4},
        "controls": {name: {"accuracy": value} | paired for name, value in (controls or {}).items()},
        "controls_missing": list(missing),
    }


RUN = {"options only": 0.5, "question swapped": 0.3}
ONE_MISSING = ("trained options-only",)


@pytest.mark.parametrize(
    ("report", "said", "words"),
    [
        (graded(0.27), "chance", "chance: not told apart from answering one letter"),
        (graded(0.35), "shortcut", "shortcut not excluded: not told apart from longest, which scores 40.00%"),
        (graded(0.9), "shortcut", "shortcut not excluded: above every baseline"),
        (graded(0.9, controls=RUN, missing=ONE_MISSING), "knowledge", "knowledge: wholly above options only (50.00%)"),
        (graded(0.9, controls=RUN, missing=()), "knowledge", "knowledge: "),
        (graded(0.51, controls=RUN, missing=ONE_MISSING), "shortcut", "shortcut not excluded: not told apart from opt"),
        (graded(0.51, controls=RUN, missing=()), "shortcut", "shortcut: not told apart from options only"),
        (graded(0.9, controls={"options only": 0.5}, missing=("question swapped",)), "shortcut", "shortcut not excl"),
        (graded(0.9, controls=RUN | {"trained options-only": 0.89}, missing=()), "shortcut", "shortcut: not told"),
    ],
)
def test_the_verdict_names_what_was_not_excluded(report, said, words):
    report |= {"verdict": verdict(report)}
    assert report["verdict"] == said
    assert words_of(report).startswith(words)
    missing = report["controls_missing"]
    assert words_of(report).endswith(f" Controls missing: {', '.join(missing)}.") == bool(missing)


LOW = {"options only": 0.26, "question swapped": 0.27}


@pytest.mark.parametrize(
    ("report", "said", "words"),
    [
        (
            graded(0.31, controls=LOW, missing=ONE_MISSING, gain=0.01),
            "gain",
            "gain: shown over every control that was run, but below longest, which scores 40.00%. Controls missing: ",
        ),
        (
            graded(0.41, controls=LOW, missing=(), gain=0.01),
            "gain",
            "gain: shown over every control that was run, but not wholly above longest, which scores 40.00%.",
        ),
        (graded(0.51, controls=RUN, missing=ONE_MISSING, gain=0.01), "gain", "gain: shown over every control that was"),
        (graded(0.43, controls=LOW, missing=ONE_MISSING, gain=0.01), "knowledge", "knowledge: wholly above longest"),
        (graded(0.31, controls=LOW, missing=ONE_MISSING, gain=0.0), "shortcut", "shortcut not excluded: not told"),
        (graded(0.31, controls=LOW, missing=(), gain=-0.01), "shortcut", "shortcut: not told apart from longest"),
        (graded(0.31, controls=LOW, missing=()), "shortcut", "shortcut: not told apart from longest"),
        (graded(0.31, controls={"options only": 0.26}, missing=CONTROLS[1:], gain=0.03), "shortcut", "shortcut not ex"),
        (graded(0.27, controls=LOW, missing=(), gain=0.01), "chance", "chance: "),
    ],
)
def test_a_gain_over_controls_is_told_from_knowledge_and_from_a_shortcut(report, said, words):
    report |= {"verdict": verdict(report)}
    assert report["verdict"] == said
    assert words_of(report).startswith(words)


def test_a_gain_over_two_controls_is_none_where_the_third_is_as_good():
    report = graded(0.31, controls=LOW, missing=(), gain=0.01)
    report["controls"]["trained options-only"] = {"accuracy": 0.31, "gain": 0.0, "gain_ci95": [-0.02, 0.02]}
    assert verdict(report) == "shortcut"


def test_a_collapse_is_no_gain():
    report = graded(0.31, controls=LOW, missing=(), gain=0.01) | {"letter_share": {"A": 0.61, "B": 0.39}}
    assert verdict(report) == "collapsed"


def test_one_letter_above_six_in_ten_is_collapsed_however_accurate():
    report = graded(0.9, controls=RUN, missing=()) | {"letter_share": {"A": 0.6, "B": 0.4}}
    assert verdict(report) == "knowledge"
    report["letter_share"] = {"A": 0.61, "B": 0.39}
    assert verdict(report) == "collapsed"


# ---- Two readings ----


def read_twice(cloze: float, *, letters: float = 0.25, chance: float = 0.25, gain: float | None = 0.01) -> dict:
    """A report with a cloze of this accuracy, its interval 0.1 to each side, and `gain` the lower bound of its gain."""
    controls = {} if gain is None else {"question swapped": {"accuracy": 0.25, "gain_ci95": [gain, gain + 0.2]}}
    found = {"accuracy": cloze, "ci95": [cloze - 0.1, cloze + 0.1]}
    return judged(
        graded(letters, controls=LOW, missing=ONE_MISSING, gain=-0.01)
        | {"cloze": {"primary": "pmi", "chance": chance, "controls": controls, "pmi": found, "sum": {"accuracy": 0.9}}}
    )


@pytest.mark.parametrize(
    ("report", "differs"),
    [
        (read_twice(0.57), True),
        (read_twice(0.57, gain=None), True),
        (read_twice(0.57, gain=0.0), False),
        (read_twice(0.34), False),
        (read_twice(0.57, chance=0.5), False),
        (read_twice(0.57, letters=0.35), False),
    ],
)
def test_cloze_is_set_beside_letters_that_say_nothing(report, differs):
    assert report["readings"]["differs"] is differs
    assert report["readings"]["cloze"] == {"accuracy": 0.57, "ci95": pytest.approx([0.47, 0.67])} or not differs
    assert ("It knows by cloze" in report["verdict_text"]) is differs


def test_what_cloze_shows_stands_between_the_verdict_and_the_missing_controls_with_what_is_above_it():
    said = "It knows by cloze what it cannot say in letters: 57.0% (47.0 to 67.0) against 25.0%."
    expected = f"chance: not told apart from answering one letter without reading. {said} Controls missing: trained"
    assert read_twice(0.57)["verdict_text"].startswith(expected)
    assert "(28.0 to 48.0) against 25.0%, not wholly above longest (40.0%)." in read_twice(0.38)["verdict_text"]
    few = read_twice(0.57) | {"baselines_over_orders": {"always_A": 0.9, "longest": 0.8}}
    assert "(47.0 to 67.0) against 25.0%, below longest (80.0%)." in words_of(few)


def test_a_report_without_cloze_or_of_before_it_had_a_chance_says_nothing_of_it():
    assert "readings" not in judged(graded(0.25))
    old = read_twice(0.57)
    del old["cloze"]["chance"], old["cloze"]["controls"]
    assert judged(old)["readings"]["differs"] is False
