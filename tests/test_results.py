"""launch/results: the figures of the campaign are look-ups in records, and an absent record is an error."""

import json

import pytest

from ghost_jax.core.errors import UserError
from launch import results
from launch.results import Folder

BY_LETTERS = {0: (0.25, 0.25, 0.25), 1: (0.26, 0.25, 0.27), 2: (0.27, 0.26, 0.28)}


def accuracy(mean: float, low: float, high: float) -> dict:
    return {"accuracy": mean, "ci95": [low, high]}


@pytest.fixture
def records(tmp_path):
    """The records of three seeds of a setting with their base, and of two rotations of an exposure run."""
    for seed, letters in BY_LETTERS.items():
        run = tmp_path / "campaign" / "facts" / f"known-seed{seed}"
        (run / "evals").mkdir(parents=True)
        score = {
            "n": 1156,
            "headline": accuracy(*letters),
            "letter_share": {"A": 0.9, "B": 0.1},
            "cloze": {"pmi": accuracy(0.6 + seed / 100, 0.55, 0.65), "ranked": accuracy(0.5, 0.4, 0.6)},
        }
        for name in ("facts", "ctibench"):
            (run / "evals" / f"{name}.json").write_text(json.dumps(score))
    base = tmp_path / "campaign" / "facts" / "pretrain_facts-nano"
    base.mkdir()
    config = {"stage": "pretrain", "model": {}, "optim": {}, "steps": 90, "batch_size": 8, "data": {"seq_len": 50}}
    (base / "config.json").write_text(json.dumps(config))
    (base / "metrics.jsonl").write_text('{"step": 1, "loss": 1, "tokens_per_s": 5.0}\n' * 3)
    for turn, counts in enumerate(([100] * 8 + [10] * 8, [10] * 8 + [100] * 8)):
        run = tmp_path / "campaign" / "exposure" / f"rotation{turn}-seed0" / "evals"
        run.mkdir(parents=True)
        credits = [float(count == 100 or row % 4 == 0) for row, count in enumerate(counts)]
        ids = [f"tactic/{row // 4}/{row % 4}" for row in range(16)]
        recall = {"ids": ids, "exposures": counts, "credits": {"statement": credits, "question": [0.5] * 16}}
        (run / "recall.json").write_text(json.dumps(recall))
    return tmp_path


def test_a_figure_is_the_mean_over_seeds_with_the_outermost_ends_of_their_intervals(records):
    text = "{{items facts known facts}} questions: {{facts known facts headline}}, {{facts known facts cloze.pmi}}"
    figures = "1,156 questions: 26.0 (25.0 to 28.0, 3 seeds), 61.0 (55.0 to 65.0, 3 seeds)"
    assert results.filled(text, records) == figures
    assert float(results.filled("{{hours facts}}", records)) == pytest.approx(2 * 90 * 8 * 50 / 5 / 3600, abs=0.05)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ("facts unknown facts headline", "unknown"),
        ("facts known facts cloze.sum", "cloze.sum"),
        ("nowhere known facts headline", "nowhere"),
        ("facts known", "facts known"),
        ("items facts unknown facts", "unknown"),
    ],
)
def test_a_look_up_that_no_record_answers_is_an_error_that_names_it(records, asked, named):
    with pytest.raises(UserError, match=named):
        results.filled(f"{{{{{asked}}}}}", records)


def test_the_readings_are_a_table_and_a_picture_with_a_row_a_setting(records):
    header, _, row = results.filled("{{readings facts}}", records).splitlines()
    letters, cloze, ranking = (
        f"{each}, 3 seeds)" for each in ("26.0 (25.0 to 28.0", "61.0 (55.0 to 65.0", "50.0 (40.0 to 60.0")
    )
    assert row.strip("| ").split(" | ") == ["known", letters, cloze, ranking, "90%", letters, cloze]
    assert header.count("|") == row.count("|")
    (axes,) = results.readings_picture(Folder(records / "campaign" / "facts")).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["known"]
    assert [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"] == pytest.approx([26, 61, 50])


def test_recall_is_pooled_over_rotations(records):
    folder = Folder(records / "campaign" / "exposure")
    found = results.recall_by_exposure(folder)
    assert {count: row[:2] for count, row in found["statement"].items()} == {10: (16, 0.25), 100: (16, 1.0)}
    assert {count: row[1] for count, row in found["question"].items()} == {10: 0.5, 100: 0.5}
    assert "| 100 times | 16 | 100.0 (" in results.filled("{{exposure exposure}}", records)
    (axes,) = results.exposure_picture(folder).axes
    assert [list(line.get_ydata()) for line in axes.lines if line.get_marker() == "o"] == [[25, 100], [50, 50]]
