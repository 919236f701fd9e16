"""launch/campaign: what is left is run, what has ended is kept and restored, and nothing else is changed."""

import json

import pytest

from launch import campaign
from launch.campaign import Part

SWEEP = """
from ghost_jax.sweeps.grid import Setting, Sweep

def get_sweep(preset=""):
    return Sweep([Setting("one", "configs/chat_v5.py:nano"), Setting("two", "configs/chat_v5.py:nano")], seeds=(0, 1))
"""


def ended_run(folder, *, stopped: bool = False) -> None:
    """Makes the directory of a run that has ended, with weights."""
    (folder / "evals").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "weights").write_text("heavy")
    (folder / "config.json").write_text("{}")
    (folder / "evals" / "ctibench.json").write_text('{"n": 1}')
    ending = {"stopped.json": {"step": 1, "reason": "diverged"}} if stopped else {"status.json": {"status": "finished"}}
    for name, content in ending.items():
        (folder / name).write_text(json.dumps(content))


@pytest.fixture
def part(tmp_path, monkeypatch):
    """A part of four runs; its records go to a folder of the test's own."""
    sweep = tmp_path / "few.py"
    sweep.write_text(SWEEP)
    monkeypatch.setattr(campaign, "RECORDS", tmp_path / "records")
    found = Part(str(sweep), "few")
    monkeypatch.setattr(campaign, "PARTS", (found,))
    return found


def test_what_has_ended_is_kept_without_weights_and_restored_on_another_machine(part, tmp_path):
    runs = tmp_path / "runs" / "few"
    assert len(campaign.left(part)) == 4
    ended_run(runs / "pretrain_v05-nano")
    ended_run(runs / "one-seed0")
    ended_run(runs / "two-seed0", stopped=True)
    (runs / "one-seed1").mkdir()
    (runs / "one-seed1" / "config.json").write_text("{}")  # still at work
    campaign.keep(part, runs)
    records = tmp_path / "records" / "few"
    assert {path.name for path in records.iterdir()} == {"pretrain_v05-nano", "one-seed0", "two-seed0"}
    assert not list(records.rglob("checkpoints"))
    assert json.loads((records / "one-seed0" / "evals" / "ctibench.json").read_text()) == {"n": 1}
    assert campaign.left(part) == ["one-seed1", "two-seed1"]

    elsewhere = tmp_path / "elsewhere"
    campaign.restore(part, elsewhere)
    assert {path.name for path in elsewhere.iterdir()} == {"one-seed0", "two-seed0"}, "a base needs its weights"
    assert campaign.ended(elsewhere / "two-seed0")
