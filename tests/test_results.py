"""launch/results: the campaign's figures are looked up in records, and a record that is absent is an error."""

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
    """The records of three seeds of a setting, and of two rotations of an exposure run."""
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
    for turn in range(2):
        run = tmp_path / "campaign" / "exposure" / f"rotation{turn}-seed0" / "evals"
        run.mkdir(parents=True)
        counts = [10] * 8 + [100] * 8 if turn else [100] * 8 + [10] * 8
        credits = [float(count == 100 or row % 4 == 0) for row, count in enumerate(counts)]
        ids = [f"tactic/{row // 4}/{row % 4}" for row in range(16)]
        recall = {"ids": ids, "exposures": counts, "credits": {"statement": credits, "question": [0.5] * 16}}
        (run / "recall.json").write_text(json.dumps(recall))
    return tmp_path


def test_a_figure_is_the_mean_over_seeds_from_the_lowest_to_the_highest_end_of_their_intervals(records):
    assert results.filled("{{items facts known facts}} questions", records) == "1,156 questions"
    text = results.filled("It says {{facts known facts headline}} and knows {{facts known facts cloze.pmi}}.", records)
    assert text == "It says 26.0 (25.0 to 28.0, 3 seeds) and knows 61.0 (55.0 to 65.0, 3 seeds)."


@pytest.mark.parametrize(
    "asked",
    [
        "facts unknown facts headline",
        "facts known facts cloze.sum",
        "nowhere known facts headline",
        "facts known",
        "items facts unknown facts",
    ],
)
def test_what_no_record_answers_is_an_error_that_names_it(records, asked):
    with pytest.raises(UserError, match=asked.split()[-2] if asked.startswith("items") else asked.split()[0]):
        results.filled(f"{{{{{asked}}}}}", records)


def test_the_readings_are_a_table_with_a_row_a_setting(records):
    header, _, row = results.filled("{{readings facts}}", records).splitlines()
    assert row.split(" | ")[1:5] == [
        "26.0 (25.0 to 28.0, 3 seeds)",
        "61.0 (55.0 to 65.0, 3 seeds)",
        "50.0 (40.0 to 60.0, 3 seeds)",
        "90%",
    ]
    assert header.count("|") == row.count("|")


def test_recall_is_pooled_over_rotations(records):
    found = results.recall_by_exposure(Folder(records / "campaign" / "exposure"))
    assert {count: row[:2] for count, row in found["statement"].items()} == {10: (16, 0.25), 100: (16, 1.0)}
    assert {count: row[1] for count, row in found["question"].items()} == {10: 0.5, 100: 0.5}
    table = results.filled("{{exposure exposure}}", records)
    assert "100 times" in table
    assert results.exposure_picture([Folder(records / "campaign" / "exposure")]).axes


def test_core_hours_are_tokens_over_their_rate_on_both_cores(records):
    assert float(results.filled("{{hours facts}}", records)) == pytest.approx(2 * 90 * 8 * 50 / 5 / 3600, abs=0.05)
    assert results.readings_picture(Folder(records / "campaign" / "facts")).axes
