"""ghost_jax/sweeps: the table, the pictures and the curves of a sweep, from the records of its runs."""

import json

import pytest

from ghost_jax.sweeps import results as sweep_table
from ghost_jax.sweeps.grid import Setting, Sweep, grid
from tests.conftest import ROOT

NANO = "configs/chat_v5.py:nano"
CONFIG = {"stage": "chat", "steps": 40, "batch_size": 4, "model": {}, "data": {"seq_len": 8}}
LINES = [  # 32 tokens an update
    {"step": 1, "loss": 9.0, "tokens_per_s": 1.0},
    {"step": 10, "loss": 8.0, "tokens_per_s": 32.0},
    {"step": 20, "loss": 7.0, "tokens_per_s": 64.0, "val_loss": 7.5},
    {"step": 30, "loss": 6.0, "tokens_per_s": 320.0},
    {"step": 40, "loss": 5.0, "tokens_per_s": 320.0, "val_loss": 5.5},
]


def write_run(workdir, *, rate: float, loss: float, accuracy: float, orders: int = 4, **more) -> None:
    """Writes the records that a table reads, as a run leaves them."""
    (workdir / "evals").mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps(CONFIG | {"optim": {"peak_lr": rate}}))
    lines = [*LINES[:-1], LINES[-1] | {"val_loss": loss}]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    score = json.loads((ROOT / "evals" / "records" / "chat_v3-seed0" / "evals" / "ctibench.json").read_text())
    score["headline"] = {"accuracy": accuracy, "ci95": [accuracy - 0.02, accuracy + 0.02], "orders": ["ABCD"] * orders}
    score |= {"letter_share": {"A": 0.1, "B": 0.4, "C": 0.3, "D": 0.2}, "verdict": "chance"}
    (workdir / "evals" / "ctibench.json").write_text(json.dumps(score | more))


@pytest.fixture
def recorded(tmp_path):
    """A sweep of two rates with three seeds each, one of which was stopped."""
    rates = grid(NANO, {"optim.peak_lr": (0.001, 0.01)})
    sweep = Sweep(rates, seeds=(0, 1, 2), axis="optim.peak_lr", metrics=("val_loss",), name="rates-nano")
    for number, run in enumerate(sweep.runs()):
        rate = run.setting.overrides["optim.peak_lr"]
        cropped = {"prompts_cropped": 3, "n": 2, "predicted": ["ABCD", "DCBA"]} if number == 2 else {}
        write_run(tmp_path / run.name, rate=rate, loss=3 + 0.1 * number, accuracy=0.25 + 0.01 * number, **cropped)
    states = {run.name: "finished" for run in sweep.runs()} | {"peak_lr=0.01-seed2": "stopped"}
    return sweep, tmp_path, states


def test_the_table_pools_finished_seeds_and_notes_what_is_not_pooled(recorded):
    (header, first, second), notes = sweep_table.write(*recorded)
    assert dict(zip(header, first, strict=True)) == {
        "setting": "peak_lr=0.001",
        "steps": "40",
        "rate": "0.001",
        "val loss": "3.200 ± 0.497",  # of 3.0, 3.2 and 3.4
        "accuracy, %": "27.0",
        "95% interval": "22.0 to 32.0",
        "min to max": "25.0 to 29.0",
        "top letter, %": "40",
        "verdict": "3 chance",
        "runs": "3",
    }
    cells = dict(zip(header, second, strict=True))
    assert (cells["val loss"], cells["95% interval"], cells["min to max"]) == ("3.200", "—", "26.0 to 28.0")
    assert cells["runs"] == "2 finished, 1 stopped"
    for part in ("one seed", "peak_lr=0.01-seed2", "peak_lr=0.001-seed1, 3 of 8 prompts"):
        assert any(part in note for note in notes), part


def test_a_single_seed_has_the_interval_of_its_items_and_a_single_order_is_named(tmp_path):
    sweep = Sweep([Setting("alone", NANO)], seeds=(4,), metrics=("val_loss",))
    write_run(tmp_path / "alone-seed4", rate=0.1, loss=3.0, accuracy=0.3, orders=1)
    (header, row), notes = sweep_table.write(sweep, tmp_path, {"alone-seed4": "finished"})
    cells = dict(zip(header, row, strict=True))
    assert cells["accuracy, %"] == "30.0 (one order)"
    assert (cells["95% interval"], cells["min to max"]) == ("28.0 to 32.0 (items)", "—")
    assert any("one seed" in note for note in notes)


def test_a_loss_that_is_not_finite_is_not_pooled(recorded):
    sweep, folder, states = recorded
    path = folder / "peak_lr=0.01-seed0" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 41, "loss": 5.0, "tokens_per_s": 320.0, "val_loss": null}\n')
    (header, _, second), _ = sweep_table.write(sweep, folder, states)
    assert dict(zip(header, second, strict=True))["val loss"] == "3.300"  # of the other finished seed
