"""launch/results: the figures of the campaign are look-ups in records, and an absent record is an error."""

import numpy as np
import pytest

from ghost_jax.core.atomic_io import write_json, write_text
from ghost_jax.core.errors import UserError
from launch import results
from launch.results import Folder


def accuracy(mean: float, low: float, high: float) -> dict:
    return {"accuracy": mean, "ci95": [low, high]}


@pytest.fixture
def records(tmp_path):
    """The records of three seeds of a setting with their base, and of two rotations of an exposure run."""
    facts, exposure = tmp_path / "campaign" / "facts", tmp_path / "campaign" / "exposure"
    for seed, low, high in ((0, 0.25, 0.25), (1, 0.25, 0.27), (2, 0.26, 0.28)):
        score = {
            "n": 1156,
            "headline": accuracy(0.25 + seed / 100, low, high),
            "letter_share": {"A": 0.9, "B": 0.1},
            "cloze": {"pmi": accuracy(0.6 + seed / 100, 0.55, 0.65), "ranked": accuracy(0.5, 0.4, 0.6)},
        }
        for name in ("facts", "ctibench"):
            write_json(facts / f"known-seed{seed}" / "evals" / f"{name}.json", score)
    config = {"stage": "pretrain", "model": {}, "optim": {}, "steps": 90, "batch_size": 8, "data": {"seq_len": 50}}
    write_json(facts / "pretrain_facts-nano" / "config.json", config)
    write_text(facts / "pretrain_facts-nano" / "metrics.jsonl", '{"step": 1, "loss": 1, "tokens_per_s": 5.0}\n')
    for turn, counts in enumerate(([100] * 8 + [10] * 8, [10] * 8 + [100] * 8)):
        credits = [float(count == 100 or row % 4 == 0) for row, count in enumerate(counts)]
        ids = [f"tactic/{row // 4}/{row % 4}" for row in range(16)]
        recall = {"ids": ids, "exposures": counts, "credits": {"statement": credits, "question": [0.5] * 16}}
        write_json(exposure / f"rotation{turn}-seed0" / "evals" / "recall.json", recall)
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
        ("facts known facts n", "known facts n"),
        ("readings exposure", "facts"),
        ("exposure facts", "recall"),
    ],
)
def test_a_look_up_that_no_record_answers_is_an_error_that_names_it(records, asked, named):
    with pytest.raises(UserError, match=named):
        results.filled(f"{{{{{asked}}}}}", records)


def points_of(figure) -> list[np.ndarray]:
    (axes,) = figure.axes
    return [line.get_xydata() for line in axes.lines if line.get_marker() == "o"]


def test_the_readings_are_drawn_with_a_row_a_setting(records):
    points = points_of(results.readings_picture(Folder(records / "campaign" / "facts")))
    assert [accuracy for ((accuracy, _),) in points] == pytest.approx([26, 61, 50])


def test_recall_is_pooled_over_rotations_and_drawn(records):
    folder = Folder(records / "campaign" / "exposure")
    found = results.recall_by_exposure(folder)
    assert {count: row[:2] for count, row in found["statement"].items()} == {10: (16, 0.25), 100: (16, 1.0)}
    assert {count: row[1] for count, row in found["question"].items()} == {10: 0.5, 100: 0.5}
    points = points_of(results.exposure_picture(folder))
    assert [line.tolist() for line in points] == [[[10, 25], [100, 100]], [[10, 50], [100, 50]]]


def test_help_writes_nothing(monkeypatch):
    monkeypatch.setattr(results, "write_text", lambda *_: pytest.fail("a file was written"))
    with pytest.raises(SystemExit):
        results.main(["--help"])
