"""`python -m ghost_jax.sweep`: settings by seeds, refusals before anything starts, pooled tables, and real sweeps."""

import argparse
import itertools
import json
import math
import os
import shlex
import shutil
import signal
import sys
import time

import pytest
from ml_collections import ConfigDict

from ghost_jax.config import load as config_lib
from ghost_jax.core.atomic_io import locked
from ghost_jax.core.errors import STOPPED_BY_WATCH, UsageError, UserError
from ghost_jax.runs import run_dir
from ghost_jax.sweep import Task, config_of, run_all, tasks_of
from ghost_jax.sweeps import results as sweep_table
from ghost_jax.sweeps.grid import Setting, Sweep, grid, load
from ghost_jax.sweeps.jobs import start, stop
from tests.conftest import ROOT, TINY, both_stages, score_of, set_all, updates_of

SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.py"))
NANO = "configs/chat_v5.py:nano"
LR = "configs/sweeps/lr.py:nano"
SMALL = both_stages(TINY)


def sweep_text(settings: dict[str, dict], options: str = "") -> str:
    """Returns a sweep file of the nano chat run with these overrides by name."""
    listed = ", ".join(f"Setting({name!r}, {NANO!r}, {overrides!r})" for name, overrides in settings.items())
    return f"from ghost_jax.sweeps.grid import *\nget_sweep = lambda preset: Sweep([{listed}], {options})\n"


def test_a_sweep_runs_every_combination_with_every_seed_the_first_seed_first():
    settings = grid(NANO, {"data.mixture.mcq": (0, 5), "init_tokens": ("mean", "random")})
    names = ["mcq=0,init_tokens=mean", "mcq=0,init_tokens=random", "mcq=5,init_tokens=mean", "mcq=5,init_tokens=random"]
    assert [setting.name for setting in settings] == names
    runs = Sweep(settings, seeds=(0, 7)).runs()
    assert [run.name for run in runs] == [f"{name}-seed{seed}" for seed in (0, 7) for name in names]
    assert runs[6].overrides == {"data.mixture.mcq": "5", "init_tokens": "mean", "seed": "7"}


@pytest.mark.parametrize("preset", ["", ":nano"], ids=["full", "nano"])
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_configs_of_every_sweep_of_the_project_are_valid(monkeypatch, tmp_path, path, preset):
    monkeypatch.chdir(ROOT)
    sweep = load(f"{path}{preset}")
    tasks = tasks_of(sweep, tmp_path, [("keep", "3")], None)  # loads, overrides and validates every config
    assert len(tasks) == len(sweep.settings) * len(sweep.seeds)


RATE = {"a": {"optim.peak_lr": 0.001}}
# What is wrong -> the text of a sweep file; what the message must name
REFUSALS = {
    "a faulty file": ("1 / 0", "ZeroDivisionError"),
    "a seed twice": (sweep_text({"a": {}}, "seeds=(1, 1)"), "a-seed1"),
    "no such config": (sweep_text({"a": {}}).replace("chat_v5", "nope"), "configs/nope.py"),
    "an unknown key of a setting": (sweep_text({"a": {"stepz": 3}}), '"steps"'),
    "a key of the command line": (sweep_text({"a": {"keep": 2}}), "--config.keep"),
    "a name with a slash": (sweep_text({"a/b": {}}), '"a/b"'),
    "an axis that is not set": (sweep_text(RATE, "axis='optim.peek_lr'"), "optim.peek_lr"),
    "an unknown metric": (sweep_text(RATE, "metrics=('val_los',)"), "val_los;"),
    "two bases of one name": (sweep_text({"a": {}, "b": {"base.steps": 7}}), "pretrain_v05-nano"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_mistake_is_refused_before_anything_starts(tmp_path, name):
    text, part = REFUSALS[name]
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(UsageError) as refusal:
        tasks_of(load(str(tmp_path / "own.py")), tmp_path, [("keep", "3")], None)
    assert part in str(refusal.value)


def test_a_folder_in_use_or_of_another_config_is_refused(ghost, tmp_path):
    run = load(LR).runs()[0]
    run_dir.open_run(tmp_path / run.name, config_of(run, [("steps", "9")]))
    with pytest.raises(UserError, match=r"steps is 9 there and 40 here.*--runs"):
        tasks_of(load(LR), tmp_path, [], None)
    free = tmp_path / "free"
    with locked(free / ".lock", refusal="in use"):
        assert str(free) in ghost.refused_here("ghost_jax.sweep", f"--config={LR}", f"--runs={free}")


def test_a_local_job_shares_the_cores_and_what_the_user_set_wins(tmp_path, monkeypatch):
    monkeypatch.delenv("NPROC", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    names = ("OMP_NUM_THREADS", "NPROC", "XLA_CLIENT_MEM_FRACTION")
    command = [sys.executable, "-c", f"import os; print(*map(os.environ.get, {names}))"]
    assert start(command, tmp_path / "log", share=2, jobs=2).wait(60) == 0
    cores = max(1, len(os.sched_getaffinity(0)) // 2)
    assert (tmp_path / "log").read_text().split() == ["77", str(cores), "0.450"]


def test_a_job_that_does_not_stop_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("ghost_jax.sweeps.jobs.STOP_SECONDS", 0.5)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(99)"
    job = start([sys.executable, "-c", deaf], tmp_path / "log", share=1, jobs=1)
    while not (tmp_path / "log").read_text():
        time.sleep(0.02)
    stop([job])
    assert job.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize("tried", ["stopped.json", "data.json", ""])
def test_a_base_that_failed_stops_the_runs_on_it_and_a_run_that_failed_before_stops_none(tmp_path, tried):
    def task(name: str, code: int, *written: str) -> Task:
        script = f'[open(path, \'w\').write(\'{{"step": 2, "reason": ""}}\') for path in {written}]; exit({code})'
        (tmp_path / name).mkdir()
        return Task(name, [sys.executable, "-c", script], ConfigDict(), tmp_path / name, base)

    base = tmp_path / "base"
    base.mkdir()
    (base / "data.json").touch()
    os.utime(base / "data.json", (0, 0))  # of an earlier sweep
    fails = task("a", STOPPED_BY_WATCH, *([str(base / tried)] if tried else []))
    works = task("b", 0, str(base / "status.json"), str(tmp_path / "b" / "status.json"))
    with locked(tmp_path / ".lock") as lock:
        assert run_all([fails, works], 1, lock) == {"a": "failed", "b": "not started" if tried else "finished"}


SETTINGS = {"sound": {}, "diverges": {"optim.peak_lr": 1e30, "optim.clip_norm": 1e30}, "fails": {"mesh.data": 3}}


@pytest.mark.slow
def test_failures_are_isolated_a_stop_is_a_result_and_what_ended_is_only_reported(ghost, tiny_run, tmp_path):
    folder = tmp_path / "with a space"
    shutil.copytree(tiny_run.base, folder / tiny_run.base.name)
    shutil.copytree(tiny_run.workdir, folder / "sound-seed0")
    file = tmp_path / "own.py"
    file.write_text(sweep_text(SETTINGS, "seeds=(0,)"))
    command = ["ghost_jax.sweep", f"--config={file}", f"--runs={folder}", *SMALL]
    result = ghost.here(*command, "--jobs=2", check=False)  # its runs are processes
    assert result.returncode == 1
    assert "fails-seed0" in result.stderr
    assert "sound-seed0" not in result.stderr
    assert "The loss of update" in result.stdout, "why it was stopped"
    assert not (folder / "sound-seed0.log").exists(), "it was finished"

    def states() -> dict[str, dict]:
        rows = json.loads((folder / "sweep.json").read_text())["settings"]
        return {row["setting"]: row["states"] for row in rows}

    ended = {"sound": {"finished": 1}, "diverges": {"stopped": 1}}
    assert states() == ended | {"fails": {"failed": 1}}
    (sound, *_) = json.loads((folder / "sweep.json").read_text())["settings"]
    last, score = json.loads(updates_of(folder / "sound-seed0")[-1]), score_of(folder / "sound-seed0")
    assert sound["val_loss"]["mean"] == last["val_loss"]
    assert sound["accuracy"]["mean"] == score["headline"]["accuracy"]
    assert "THIS IS NOT CTIBENCH" in (folder / "sweep.md").read_text()

    logs = {path: path.read_text() for path in folder.glob("*.log")}
    file.write_text(sweep_text({name: SETTINGS[name] for name in ended}, "seeds=(0,)"))
    ghost.here(*command)
    assert {path: path.read_text() for path in folder.glob("*.log")} == logs, "nothing was started"
    assert states() == ended
    assert "evals.ctibench.orders" in ghost.here(*command, "--config.evals.ctibench.orders=published").stdout


@pytest.mark.slow
def test_a_sweep_that_is_asked_to_stop_stops_its_runs_and_resumes(ghost, tmp_path):
    folder = tmp_path / "runs"
    long = set_all({"base.steps": 60, "base.eval_every": 60, "base.save_every": 10})
    file = tmp_path / "own.py"
    file.write_text(sweep_text({"a": {}}, "seeds=(0, 1)"))
    command = ["ghost_jax.sweep", f"--config={file}", f"--runs={folder}", "--jobs=2", *SMALL, *long]
    ghost.stop_at(ghost.start(*command), folder / "pretrain_v05-nano", 20, signal.SIGTERM)
    with run_dir.locked(folder / "pretrain_v05-nano"):
        pass  # no process is left in it
    ghost(*command)
    assert "resuming " in (folder / "a-seed0.log").read_text()
    assert "is trained first" not in (folder / "a-seed1.log").read_text(), "it waited for the base"


def test_a_dry_run_prints_commands_that_can_be_typed_and_starts_nothing(ghost, tmp_path):
    folder, file = tmp_path / "with a space", tmp_path / "own.py"
    file.write_text(sweep_text(SETTINGS, "seeds=(0, 1)"))
    command = ["ghost_jax.sweep", f"--config={file}", f"--runs={folder}", "--dry_run", "--config.steps=5"]
    commands = [shlex.split(line) for line in ghost.here(*command).stdout.splitlines()]
    assert [words[-1] for words in commands] == [
        f"--workdir={folder / name}-seed{seed}" for seed in (0, 1) for name in SETTINGS
    ]
    config, _ = config_lib.parse(argparse.ArgumentParser(), commands[4][3:-1])
    assert (config.optim.peak_lr, config.seed, config.steps) == (1e30, 1, 5)
    assert not folder.exists()


CONFIG = {"stage": "chat", "steps": 40, "batch_size": 4, "model": {}, "data": {"seq_len": 8}}


def write_run(workdir, *, rate: float, loss: float, accuracy: float, orders: int = 4, **more) -> None:
    """Writes the records that a table reads, as a run leaves them."""
    (workdir / "evals").mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps(CONFIG | {"optim": {"peak_lr": rate}}))
    losses = {10: {}, 20: {"val_loss": 7.5}, 40: {"val_loss": loss}}  # two validations make a curve
    lines = [{"step": step, "tokens_per_s": 64.0, **values} for step, values in losses.items()]
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
        cropped = {"prompts_cropped": 3 if number == 2 else None, "n": 2, "predicted": ["ABCD", "DCBA"]}
        write_run(tmp_path / run.name, rate=rate, loss=3 + 0.1 * number, accuracy=0.25 + 0.01 * number, **cropped)
    states = {run.name: "finished" for run in sweep.runs()} | {"peak_lr=0.01-seed2": "stopped"}
    return sweep, tmp_path, states


def test_the_table_pools_finished_seeds_and_notes_what_is_not_pooled(recorded):
    (header, first, second), notes = sweep_table.write(*recorded)
    losses, accuracies = "3.200 ± 0.497", ["27.0", "22.0 to 32.0", "25.0 to 29.0"]  # of 3.0, 3.2 and 3.4
    assert list(first) == ["peak_lr=0.001", "40", "0.001", losses, *accuracies, "40", "3 chance", "3"]
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


def test_a_sweep_without_a_result_is_written_all_the_same(tmp_path, recwarn):
    (_, row), _ = sweep_table.write(Sweep([Setting("alone", NANO)], seeds=(4,)), tmp_path, {"alone-seed4": "failed"})
    assert row[-1] == "1 failed"
    assert not recwarn.list


def test_a_loss_that_is_not_finite_is_not_pooled(recorded):
    sweep, folder, states = recorded
    path = folder / "peak_lr=0.01-seed0" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 41, "loss": 5.0, "tokens_per_s": 320.0, "val_loss": null}\n')
    (header, _, second), _ = sweep_table.write(sweep, folder, states)
    assert dict(zip(header, second, strict=True))["val loss"] == "3.300 (1 of 2)"  # of the other finished seed


def test_accuracies_on_other_questions_are_not_pooled_and_runs_that_differ_are_named(recorded):
    sweep, folder, states = recorded
    place = folder / "peak_lr=0.001-seed1"
    score = json.loads((place / "evals" / "ctibench.json").read_text())
    score["items"] |= {"name": "held-out questions", "sha256": "0" * 64}
    (place / "evals" / "ctibench.json").write_text(json.dumps(score))
    (place / "environment.json").write_text(json.dumps({"git_commit": "abc", "resumed": [{"git_commit": "def"}]}))
    (header, first, _), notes = sweep_table.write(sweep, folder, states)
    cells = dict(zip(header, first, strict=True))
    assert (cells["accuracy, %"], cells["top letter, %"], cells["val loss"]) == ("—", "—", "3.200 ± 0.497")
    for part in ("held-out questions (00000000)", "code: abc, then def (peak_lr=0.001-seed1); not rec"):
        assert any(part in note for note in notes), part


def test_a_picture_has_no_interval_of_few_seeds_every_metric_and_a_place_for_every_setting(tmp_path):
    metrics = tuple(f"val_loss{name}" for name in ("", "_shared", "_qa", "_mcq", "_cot"))
    settings = grid(NANO, {"optim.peak_lr": (0.001, 0.01), "optim.clip_norm": (1.0, 2.0)})
    sweep = Sweep(settings, seeds=(0, 1), axis="optim.peak_lr", metrics=metrics, name="two-keys")
    for run in sweep.runs():
        write_run(tmp_path / run.name, rate=0.001, loss=3.0, accuracy=0.25)
        lines = (tmp_path / run.name / "metrics.jsonl").read_text().splitlines()
        last = json.loads(lines[-1]) | dict.fromkeys(metrics, 3.0)
        (tmp_path / run.name / "metrics.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]))
    rows = sweep_table.rows_of(sweep, tmp_path, {run.name: "finished" for run in sweep.runs()})
    above, below = sweep_table.picture(sweep, rows).axes
    assert len(below.get_legend().get_texts()) == len(metrics)
    (means,) = [line for line in above.lines if line.get_marker() == "o"]
    assert (means.get_xdata().tolist(), means.get_linestyle()) == ([0, 1, 2, 3], "None")
    ends = [line.get_ydata() for line in above.lines if line.get_marker() == "_"]
    assert ends
    assert all(math.isnan(end) for end in itertools.chain(*ends))
