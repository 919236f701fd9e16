"""launch/results: the figures of the campaign are look-ups in records, and an absent record is an error."""

import shutil

import numpy as np
import pytest

from ghost_jax.core.atomic_io import read_json, write_json, write_text
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
            "baselines_over_orders": {"longest": 0.25, "own": seed},
            "cloze": {
                "pmi": accuracy(0.6 + seed / 100, 0.55, 0.65),
                "ranked": accuracy(0.5, 0.4, 0.6),
                "controls": {"question swapped": accuracy(0.3, 0.2, 0.4) | {"gain": 0.1, "gain_ci95": [0.05, 0.15]}},
            },
        }
        for name in ("facts", "ctibench"):
            write_json(facts / f"known-seed{seed}" / "evals" / f"{name}.json", score)
    config = {"stage": "pretrain", "model": {}, "optim": {}, "steps": 90, "batch_size": 8, "data": {"seq_len": 50}}
    write_json(facts / "pretrain_facts-nano" / "config.json", config)
    lines = '{"step": 30, "tokens_per_s": 2.0}\n{"step": 40, "tokens_per_s": 5.0}\n{"step": 60, "tokens_per_s": 5.0}\n'
    write_text(facts / "pretrain_facts-nano" / "metrics.jsonl", lines)  # stopped after two thirds
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
    gain = results.filled("{{facts known ctibench cloze.controls.question\nswapped.gain}}", records)  # over two lines
    assert gain == "10.0 (5.0 to 15.0, 3 seeds)"
    assert results.filled("{{baseline facts known facts longest}}", records) == "25.0"
    hours = 2 * 8 * 50 * (30 / 2 + 30 / 5) / 3600
    folder = records / "campaign" / "facts"
    for name in ("pretrain_pages-nano", "known-seed0", "other-seed0"):  # other stands on pretrain_pages alone
        shutil.copytree(folder / "pretrain_facts-nano", folder / name, dirs_exist_ok=True)
    config = read_json(folder / "other-seed0" / "config.json")
    for name, base in {"known": "pretrain_facts", "other": "pretrain_pages"}.items():
        standing = {"base": {"name": base, "preset": "nano"}}
        write_json(folder / f"{name}-seed0" / "config.json", config | standing)
    assert float(results.filled("{{hours facts known}}", records)) == pytest.approx(2 * hours, abs=0.05)
    assert float(results.filled("{{hours facts}}", records)) == pytest.approx(4 * hours, abs=0.05)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ("facts unknown facts headline", "unknown"),
        ("facts known facts cloze.sum", "cloze.sum"),
        ("nowhere known facts headline", "nowhere"),
        ("facts known", "facts known"),
        ("items facts unknown facts", "unknown"),
        ("baseline facts known facts shortest", "shortest"),
        ("baseline facts known facts own", "own"),
        ("facts known facts n", "known facts n"),
        ("facts known facts cloze.pmi.gain", "cloze.pmi.gain"),
        ("readings exposure", "facts"),
        ("exposure facts", "recall"),
        ("paired exposure facts rotation0 question", "rotation0"),
    ],
)
def test_a_look_up_that_no_record_answers_is_an_error_that_names_it(records, asked, named):
    with pytest.raises(UserError, match=named):
        results.filled(f"{{{{{asked}}}}}", records)


@pytest.mark.parametrize("changed", [{"n": 1156, "cloze": {}}, {"n": 1155}, {"n": 1156, "items": "others"}, None])
def test_seeds_are_pooled_only_where_all_were_asked_the_same(records, changed):
    place = records / "campaign" / "facts" / "known-seed1" / "evals" / "facts.json"
    if changed:
        write_json(place, read_json(place) | changed)
    else:  # it was stopped, and so not scored
        shutil.rmtree(place.parent)
    with pytest.raises(UserError, match=r"facts known facts.*not every run"):
        results.filled("{{facts known facts cloze.pmi}}", records)


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


def test_recall_is_paired_by_fact(records):
    larger = shutil.copytree(records / "campaign" / "exposure", records / "campaign" / "larger")
    place = larger / "rotation0-seed0" / "evals" / "recall.json"
    recall = read_json(place)
    recall["credits"]["question"] = [0.75] * 8 + [0.5] * 8  # two sets of four
    write_json(place, recall)
    assert results.filled("{{paired larger exposure rotation0 question}}", records) == "12.5 (-10.5 to 35.5)"
    write_json(place, recall | {"exposures": recall["exposures"][::-1]})
    with pytest.raises(UserError, match="exposure"):
        results.filled("{{paired larger exposure rotation0 question}}", records)


def test_help_writes_nothing(monkeypatch):
    monkeypatch.setattr(results, "write_text", lambda *_: pytest.fail("a file was written"))
    with pytest.raises(SystemExit):
        results.main(["--help"])
