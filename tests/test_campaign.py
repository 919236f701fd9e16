"""launch/campaign: what is left is run, what has ended is kept and restored, and nothing else is changed."""

import json
import signal
import time

import pytest

from launch import campaign
from launch.campaign import Part
from tests.conftest import ROOT

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
    found = Part(str(sweep), "few", base_hours=1.0, run_hours=0.5)
    monkeypatch.setattr(campaign, "PARTS", (found,))
    return found


def test_what_has_ended_is_kept_without_weights_and_restored_on_another_machine(part, tmp_path):
    runs = tmp_path / "runs" / "few"
    assert campaign.left(tmp_path) == [(part, 4, 4, 1.0 + 4 * 0.5)]
    ended_run(runs / "pretrain_v05-nano")
    assert campaign.left(tmp_path) == [(part, 4, 4, 4 * 0.5)], "the base is there"
    ended_run(runs / "one-seed0")
    ended_run(runs / "two-seed0", stopped=True)
    (runs / "one-seed1").mkdir()
    (runs / "one-seed1" / "config.json").write_text("{}")  # still at work
    campaign.keep(part, runs)
    records = tmp_path / "records" / "few"
    assert {path.name for path in records.iterdir()} == {"pretrain_v05-nano", "one-seed0", "two-seed0"}
    assert not list(records.rglob("checkpoints"))
    assert json.loads((records / "one-seed0" / "evals" / "ctibench.json").read_text()) == {"n": 1}
    assert [missing for _, missing, *_ in campaign.left(tmp_path)] == [2]

    elsewhere = tmp_path / "elsewhere"
    campaign.restore(part, elsewhere)
    assert {path.name for path in elsewhere.iterdir()} == {"one-seed0", "two-seed0"}, "a base needs its weights"
    assert campaign.ended(elsewhere / "two-seed0")


def test_every_part_is_a_sweep_whose_runs_have_names_of_their_own():
    folders = {}
    for each in campaign.PARTS:
        names = campaign.names_of(each)
        assert names
        shared = folders.setdefault(each.folder, set()) & set(names)
        assert not shared or each.sweep.startswith("configs/sweeps/latch"), "the latch sweep has the knowledge runs too"
        folders[each.folder] |= set(names)


def test_the_list_and_a_start_without_data_make_nothing(ghost, tmp_path):
    folder = tmp_path / "campaign"
    listed = ghost.here("launch.campaign", f"--folder={folder}", "--list").stdout
    assert all(each.sweep in listed for each in campaign.PARTS)
    result = ghost.here("launch.campaign", f"--folder={folder}", check=False)
    assert result.returncode == 1
    assert "GHOST_DATA" in result.stderr
    assert not folder.exists()


def test_a_request_to_stop_reaches_the_sweep_and_what_has_ended_is_kept(part, tmp_path, monkeypatch):
    """The sweep of this test is a process that ends a run and then waits to be stopped."""
    fake = tmp_path / "environment" / "bin" / "python"
    fake.parent.mkdir(parents=True)
    fake.write_text(
        "#!/bin/sh\n"
        'for word in "$@"; do case $word in --runs=*) runs=${word#--runs=};; esac; done\n'
        'mkdir -p "$runs/one-seed0"; echo {} > "$runs/one-seed0/config.json"; echo {} > "$runs/one-seed0/status.json"\n'
        f'trap "echo stopped > {tmp_path}/stopped; exit 1" TERM\n'
        f"nice > {tmp_path}/nice\n"
        "while true; do sleep 0.1; done\n"
    )
    fake.chmod(0o755)
    monkeypatch.setattr(campaign, "POLL_SECONDS", 0.1)

    def when_it_waits(number, frame):
        if (tmp_path / "nice").is_file():
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, when_it_waits)
    signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            campaign.run(part, tmp_path, ROOT, tmp_path)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    deadline = time.monotonic() + 10
    while not (tmp_path / "stopped").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (tmp_path / "stopped").is_file()
    assert int((tmp_path / "nice").read_text()) == 19
    assert (tmp_path / "records" / "few" / "one-seed0" / "status.json").is_file()
