"""ghost_jax/sweeps/curves.py: tokens and training time of each validation loss, by hand, and the picture of them."""

import json

import matplotlib.image
import pytest

from ghost_jax.sweeps import curves
from ghost_jax.sweeps import results as sweep_table
from ghost_jax.sweeps.grid import Setting, Sweep

CONFIG = {"stage": "pretrain", "steps": 40, "batch_size": 4, "model": {}, "data": {"seq_len": 8}}
LINES = [  # 32 tokens an update
    {"step": 1, "loss": 9.0, "tokens_per_s": 1.0},
    {"step": 10, "loss": 8.0, "tokens_per_s": 32.0},
    {"step": 20, "loss": 7.0, "tokens_per_s": 64.0, "val_loss": 7.5},
    {"step": 30, "loss": 6.0, "tokens_per_s": 320.0},
    {"step": 40, "loss": 5.0, "tokens_per_s": 320.0, "val_loss": 5.5},
]


def test_seconds_are_those_of_updates_after_the_first():
    assert curves.curve_of(CONFIG, LINES) == [
        {"step": 20, "tokens": 640, "seconds": pytest.approx(9 + 5), "val_loss": 7.5},
        {"step": 40, "tokens": 1280, "seconds": pytest.approx(9 + 5 + 1 + 1), "val_loss": 5.5},
    ]


def test_records_without_speeds_have_no_curve():
    assert curves.curve_of(CONFIG, [{"step": 1, "loss": 9.0}, {"step": 2, "loss": 8.0, "val_loss": 7.0}]) == []
    assert curves.curve_of({}, []) == []


@pytest.fixture
def sweep(tmp_path) -> Sweep:
    """Two configs with two settings each, two seeds a setting."""
    settings = [Setting(f"{size}-{name}", f"{size}.py") for size in ("small", "large") for name in ("a", "b")]
    found = Sweep(settings, seeds=(0, 1), metrics=("val_loss",), name="mine")
    for run in found.runs():
        (tmp_path / run.name).mkdir()
        (tmp_path / run.name / "config.json").write_text(json.dumps(CONFIG | {"optim": {"peak_lr": 0.1}}))
    return found


def write(sweep: Sweep, folder, lines: list[dict]) -> None:
    for run in sweep.runs():
        (folder / run.name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sweep_table.write(sweep, folder, {run.name: "finished" for run in sweep.runs()})


def test_each_config_has_its_panels_and_each_seed_a_curve(sweep, tmp_path):
    write(sweep, tmp_path, LINES)
    rows = json.loads((tmp_path / "sweep.json").read_text())["settings"]
    axes = curves.picture(rows).axes
    assert len(axes) == 4
    for number, panel in enumerate(axes):
        assert len(panel.lines) == 4
        x = [640 / 1e6, 1280 / 1e6] if number % 2 == 0 else [14 / 60, 16 / 60]
        assert all(list(line.get_xdata()) == pytest.approx(x) for line in panel.lines)
        assert all(list(line.get_ydata()) == [7.5, 5.5] for line in panel.lines)
    assert [text.get_text() for text in axes[2].get_legend().get_texts()] == ["large-a", "large-b"]
    assert matplotlib.image.imread(tmp_path / "curves.png").std() > 0
    assert "curves.png" in (tmp_path / "sweep.md").read_text()


def test_one_validation_loss_is_no_curve(sweep, tmp_path):
    write(sweep, tmp_path, LINES[:3])
    assert not (tmp_path / "curves.png").exists()
    assert "curves.png" not in (tmp_path / "sweep.md").read_text()
