"""launch/campaign: what is left is run, what has ended is kept and restored, and nothing else is changed."""

import json
import os
import time

import pytest

from ghost_jax.core.atomic_io import locked
from ghost_jax.core.errors import UserError
from launch import campaign
from launch.campaign import Part
from tests.conftest import ROOT

SWEEP = """
from ghost_jax.sweeps.grid import Setting, Sweep

def get_sweep(preset=""):
    return Sweep([Setting("one", "configs/chat_v5.py:nano"), Setting("two", "configs/chat_v5.py:nano")], seeds=(0, 1))
"""


def ended_run(folder, ending: str = "status.json") -> None:
    for name in ("config.json", "evals/ctibench.json", "checkpoints/weights"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    record = {"status.json": {"status": "finished"}, "stopped.json": {"step": 1, "reason": "diverged"}}[ending]
    (folder / ending).write_text(json.dumps(record))


@pytest.fixture
def part(tmp_path, monkeypatch):
    """A part of four runs; its records go to a folder of the test's own."""
    sweep = tmp_path / "few.py"
    sweep.write_text(SWEEP)
    monkeypatch.setattr(campaign, "RECORDS", tmp_path / "records")
    found = Part(str(sweep), "few", base_hours=1.0, run_hours=0.5)
    monkeypatch.setattr(campaign, "PARTS", (found,))
    return found


def test_what_has_ended_is_kept_without_weights_and_restored_on_another_machine(part, tmp_path):
    runs = tmp_path / "runs" / "few"
    assert campaign.left(tmp_path) == [(part, 4, 4, 1.0 + 4 * 0.5)]
    ended_run(runs / "pretrain_v05-nano")
    assert campaign.left(tmp_path) == [(part, 4, 4, 4 * 0.5)], "the base is there"
    ended_run(runs / "one-seed0")
    ended_run(runs / "two-seed0", "stopped.json")
    (runs / "one-seed1").mkdir()
    (runs / "one-seed1" / "config.json").write_text("{}")  # still at work
    campaign.keep(part, runs)
    records = tmp_path / "records" / "few"
    assert {path.name for path in records.iterdir()} == {"pretrain_v05-nano", "one-seed0", "two-seed0"}
    assert not list(records.rglob("checkpoints"))
    assert (records / "one-seed0" / "evals" / "ctibench.json").is_file()
    assert [missing for _, missing, *_ in campaign.left(tmp_path)] == [2]

    elsewhere = tmp_path / "elsewhere"
    campaign.restore(part, elsewhere)
    assert {path.name for path in elsewhere.iterdir()} == {"one-seed0", "two-seed0"}, "a base needs its weights"
    assert campaign.ended(elsewhere / "two-seed0")


def test_a_record_that_is_copied_in_part_is_no_run_and_a_failed_step_is_a_paragraph(part, tmp_path):
    record = tmp_path / "records" / "few" / "one-seed0"
    ended_run(record)
    os.mkfifo(record / "evals" / "pipe")  # the one file that cannot be copied
    with pytest.raises(OSError, match="pipe"):
        campaign.restore(part, tmp_path / "runs")
    assert not campaign.ended(tmp_path / "runs" / "one-seed0")
    python = campaign.python_of(tmp_path)
    for folder in (python.parent, tmp_path / "trees" / "few"):
        folder.mkdir(parents=True)
    (tmp_path / "records" / "few" / campaign.COMMIT).touch()
    python.symlink_to("/bin/false")
    python.with_name("pip").touch()
    with pytest.raises(UserError, match="pip"):
        campaign.set_up(tmp_path, part)


def test_the_list_and_a_start_without_data_make_nothing(ghost, tmp_path):
    folder = tmp_path / "campaign"
    ghost.here("launch.campaign", "--list", env={"CAMPAIGN": str(folder)})
    assert "GHOST_DATA" in ghost.here("launch.campaign", check=False, env={"CAMPAIGN": str(folder)}).stderr
    assert not folder.exists()


@pytest.mark.usefixtures("part")
def test_a_second_campaign_in_a_folder_is_refused(tmp_path, ghost):
    with locked(tmp_path / ".lock"):
        said = ghost.refused_here("launch.campaign", env={"CAMPAIGN": str(tmp_path), "GHOST_DATA": str(tmp_path)})
    assert str(tmp_path) in said
    assert not (tmp_path / "trees").exists()


def test_an_interrupted_campaign_stops_the_sweep_and_keeps_what_has_ended(part, tmp_path, monkeypatch):
    python = campaign.python_of(tmp_path)
    python.parent.mkdir(parents=True)
    run = tmp_path / "runs" / "few" / "one-seed0"
    python.write_text(  # a sweep that ends a run and waits until it is stopped
        f"#!/bin/sh\nmkdir {run}; echo {{}} > {run}/config.json; echo {{}} > {run}/status.json\n"
        f'trap "echo stopped > {tmp_path}/stopped; exit 1" TERM\n'
        f"nice > {tmp_path}/nice\nwhile true; do sleep 0.1; done\n"
    )
    python.chmod(0o755)
    real_sleep = time.sleep

    def interrupted(seconds: float) -> None:
        while not (tmp_path / "nice").is_file():
            real_sleep(0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr(campaign.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        campaign.run(part, tmp_path, ROOT, tmp_path)
    assert (tmp_path / "stopped").is_file()
    assert int((tmp_path / "nice").read_text()) == campaign.LOWEST
    assert (tmp_path / "records" / "few" / "one-seed0" / "status.json").is_file()
