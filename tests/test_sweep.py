"""`python -m ghost_jax.sweep`: a grid of real runs, stopped, gone on with, failing one by one, pooled in a table."""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import matplotlib.image
import pytest

import ghost_jax
from configs import chat_v5
from ghost_jax.config import load as config_lib
from ghost_jax.core.errors import UsageError, UserError
from ghost_jax.runs import run_dir
from ghost_jax.sweep import locked, tasks_of
from ghost_jax.sweeps import results as sweep_table
from ghost_jax.sweeps.grid import Setting, Sweep, grid, load
from ghost_jax.sweeps.jobs import Local, Submitted, stop
from tests.conftest import ROOT, TINY, WAIT, score_of, set_all, updates_of

HOUSE = sorted((ROOT / "configs" / "sweeps").glob("*.py"))
NANO = "configs/chat_v5.py:nano"
# The base is long enough to be stopped in the middle.
BASE = TINY | {"steps": 60, "eval_every": 60, "save_every": 10}
SMALL = set_all(TINY) + set_all({f"base.{key}": value for key, value in BASE.items()})


def sweep_file(path, settings: dict[str, dict], seeds=(0,)):
    """Writes a sweep file of the nano chat run with these overrides by name."""
    listed = ", ".join(f"Setting({name!r}, {NANO!r}, {overrides!r})" for name, overrides in settings.items())
    path.write_text(
        "from ghost_jax.sweeps.grid import Setting, Sweep\n\n\n"
        f"def get_sweep(preset=''):\n    return Sweep([{listed}], seeds={seeds!r})\n"
    )
    return path


# ---- Settings and seeds ----


def test_a_grid_is_every_combination_named_after_its_values():
    settings = grid(NANO, {"data.mixture.mcq": (0, 5), "init_tokens": ("mean", "random")})
    assert [setting.name for setting in settings] == [
        "mcq=0,init_tokens=mean",
        "mcq=0,init_tokens=random",
        "mcq=5,init_tokens=mean",
        "mcq=5,init_tokens=random",
    ]
    assert settings[2].overrides == {"data.mixture.mcq": 5, "init_tokens": "mean"}


def test_every_setting_is_run_with_every_seed_the_first_seed_of_all_first():
    runs = Sweep([Setting("a", NANO, {"steps": 9}), Setting("b", NANO)], seeds=(0, 7)).runs()
    assert [run.name for run in runs] == ["a-seed0", "b-seed0", "a-seed7", "b-seed7"]
    assert runs[2].overrides == {"steps": "9", "seed": "7"}


@pytest.mark.parametrize("preset", ["", "nano", "mini"])
@pytest.mark.parametrize("path", HOUSE, ids=lambda path: path.stem)
def test_the_sweeps_of_the_project_ask_for_what_there_is(monkeypatch, tmp_path, path, preset):
    monkeypatch.chdir(ROOT)
    sweep = load(f"{path}:{preset}" if preset else str(path))
    tasks = tasks_of(sweep, tmp_path, [("keep", "3")], None)  # loads, overrides and validates every config
    assert len(tasks) == len(sweep.settings) * len(sweep.seeds) >= 3 or (path.stem, preset) == ("size", "nano")
    assert sweep.name == f"{path.stem}-{preset or 'full'}"
    assert len(sweep.seeds) >= 3 or path.stem in ("ablation", "exposure")
    assert not list(tmp_path.iterdir())


def test_a_sweep_runs_from_any_folder_with_its_own_recipes_and_ours(monkeypatch, tmp_path):
    """Of two recipes of one name that beside the sweep file is taken."""
    own, elsewhere = tmp_path / "project" / "configs", tmp_path / "elsewhere"
    (own / "sweeps").mkdir(parents=True)
    elsewhere.mkdir()
    (own / "chat_v3.py").write_text("from configs import chat_v5\nget_config = chat_v5.get_config\n")
    (own / "sweeps" / "mine.py").write_text(
        "from configs import chat_v3\nfrom ghost_jax.sweeps.grid import Setting, Sweep\n"
        "assert chat_v3.get_config('nano').published.run == 'chat-v5'\n"
        "def get_sweep(preset):\n"
        "    return Sweep([Setting(name, f'configs/{name}.py:nano') for name in ('chat_v3', 'chat_v5')], seeds=(0,))\n"
    )
    monkeypatch.chdir(elsewhere)
    commands = [task.command for task in tasks_of(load(str(own / "sweeps" / "mine.py")), tmp_path, [], None)]
    assert [run_config(command).published.run for command in commands] == ["chat-v5", "chat-v5"]
    assert [command[3] for command in commands] == [
        f"--config={own / 'chat_v3.py'}:nano",
        f"--config={ROOT / 'configs' / 'chat_v5.py'}:nano",
    ]
    assert len(tasks_of(load("configs/sweeps/lr.py:nano"), tmp_path, [], None)) == 15


def test_a_command_runs_in_a_folder_with_packages_called_as_ours(tmp_path):
    for name in ("configs", "evals"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('another package')\n")
    command = [sys.executable, "-m", "ghost_jax.sweep", f"--config={ROOT}/configs/sweeps/lr.py:nano", "--dry_run"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=WAIT
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 15


def test_the_rates_of_the_sweep_are_scaled_as_the_recipe_is():
    for preset, scale in (("", 1), ("nano", 20)):
        rates = [setting.overrides["optim.peak_lr"] for setting in load(f"configs/sweeps/lr.py:{preset}").settings]
        assert (rates[0], rates[-1]) == pytest.approx((scale * 5e-5, scale * 1e-3))
        assert rates[0] == pytest.approx(chat_v5.get_config(preset).optim.peak_lr)


def test_the_ablation_has_the_eight_recipes_and_each_base_once(tmp_path):
    tasks = tasks_of(load("configs/sweeps/ablation.py:nano"), tmp_path, [("evals.ctibench.orders", "published")], None)
    assert len(tasks) == 8
    assert {task.base.name for task in tasks} == {"pretrain_v04-nano", "pretrain_v05-nano"}


# ---- Refused, with a paragraph ----


def ask(spec: str, *overrides: str):
    words = [f"--config.{override}" for override in overrides]
    return lambda folder: tasks_of(load(spec), folder, config_lib.overrides_in(words)[0], None)


def ask_own(settings: dict, *overrides: str, seeds=(0,)):
    """Asks for the tasks of a sweep file of one's own."""
    return lambda folder: ask(str(sweep_file(folder / "own.py", settings, seeds)), *overrides)(folder)


def ask_text(text: str):
    def make(folder):
        (folder / "own.py").write_text(text)
        return ask(str(folder / "own.py"))(folder)

    return make


def ask_own_sweep(options: str, rate: str = "0.001"):
    """Asks for the tasks of a sweep of one setting, its rate given, with these arguments of `Sweep`."""
    setting = f"[Setting('a', {NANO!r}, {{'optim.peak_lr': {rate}}})]"
    return ask_text(f"from ghost_jax.sweeps.grid import *\nget_sweep = lambda p: Sweep({setting}, {options})")


LR = "configs/sweeps/lr.py:nano"
REFUSALS = {
    "no such file": (ask("configs/sweeps/nope.py"), "There is no sweep file configs/sweeps/nope.py."),
    "no such preset": (ask("configs/sweeps/lr.py:nan"), 'Did you mean "nano"?'),
    "no such preset of sizes": (ask("configs/sweeps/size.py:huge"), "There is no preset huge."),
    "a config file": (ask("configs/chat_v5.py"), "configs/chat_v5.py is no sweep file"),
    "a faulty file": (ask_text("1 / 0"), "own.py could not be read: ZeroDivisionError"),
    "no settings": (ask_own({}), "at least one setting"),
    "a seed twice": (ask_own({"a": {}}, seeds=(1, 1)), "names a-seed1 twice"),
    "no such config": (
        ask_text("from ghost_jax.sweeps.grid import *\nget_sweep = lambda p: Sweep([Setting('a', 'configs/nope.py')])"),
        "There is no config file configs/nope.py.",
    ),
    "an unknown key": (ask(LR, "optim.peek_lr=1"), 'Did you mean "optim.peak_lr"?'),
    "an unknown key of a setting": (ask_own({"a": {"stepz": 3}}), 'Did you mean "steps"?'),
    "a value of another type": (ask(LR, "steps=many"), "--config.steps=many does not fit"),
    "no value": (ask(LR, "steps"), "--config.steps has no value"),
    "the swept key": (ask(LR, "optim.peak_lr=1e-3"), "optim.peak_lr is what the sweep varies"),
    "the seed": (ask(LR, "seed=3"), "seed is what the sweep varies"),
    "an evaluation's option": (ask(LR, "evals.ctibench.orders=odd"), "use one of cyclic, published, all"),
    "a value out of range": (ask_own({"a": {"optim.clip_norm": -1}}), "optim.clip_norm is -1.0"),
    "a seed out of range": (ask_own({"a": {}}, seeds=(2**32,)), "seed is 4294967296"),
    "a seed beyond all": (ask_own_sweep("seeds=(10**5000,)"), "it sets seed to an integer"),
    "a value beyond all": (ask_own_sweep("", "10**5000"), "it sets optim.peak_lr to an integer"),
    "no number": (ask_own_sweep("", "float('nan')"), "--config.optim.peak_lr=nan does not fit"),
    "a name that is no folder's": (ask_own({"a/b": {}}), '"a/b"'),
    "an axis that is not set": (ask_own_sweep("axis='optim.peek_lr'"), "its axis is optim.peek_lr"),
    "an unknown metric": (ask_own_sweep("metrics=('val_los',)"), "val_los; use some of val_loss, val_loss_shared"),
    "two bases of one name": (ask_own({"a": {}, "b": {"base.steps": 7}}), "all called pretrain_v05-nano"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_mistake_is_refused_before_anything_starts(tmp_path, name):
    asked, said = REFUSALS[name]
    with pytest.raises(UsageError) as refusal:
        asked(tmp_path)
    assert said in str(refusal.value)


def test_a_folder_of_another_config_is_refused(tmp_path):
    first = tmp_path / "peak_lr=0.001-seed0"
    (task,) = [task for task in ask(LR)(tmp_path) if task.workdir == first]
    run_dir.open_run(first, run_config(task.command, "--config.steps=9"))
    with pytest.raises(UserError, match=r"steps is 9 there and 40 here.*--runs"):
        ask(LR)(tmp_path)


def test_two_sweeps_do_not_share_a_folder(tmp_path):
    with locked(tmp_path), pytest.raises(UserError, match="Another sweep is at work in"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass  # it is free again


def run_config(command: list[str], *flags: str):
    """Returns the config that a train command asks for."""
    words = [word for word in command[3:] if not word.startswith("--workdir")]
    return config_lib.parse(argparse.ArgumentParser(), [*words, *flags])[0]


# ---- Pooling ----


def write_run(workdir, *, rate: float, loss: float, accuracy: float, orders: int = 4) -> None:
    """Writes the records that a table reads, as a run leaves them."""
    (workdir / "evals").mkdir(parents=True)
    figures = {"run": "chat-v5", "val_loss": 2.99, "accuracy": 0.348}
    config = {"stage": "chat", "steps": 40, "model": {}, "data": {}, "optim": {"peak_lr": rate}, "published": figures}
    (workdir / "config.json").write_text(json.dumps(config))
    lines = [{"step": 1, "loss": 9.0, "val_loss": 8.0}, {"step": 40, "loss": 3.0, "val_loss": loss}]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    score = {
        "items": {"name": "ctibench-mcq"},
        "book": "closed",
        "headline": {"accuracy": accuracy, "ci95": [accuracy - 0.02, accuracy + 0.02], "orders": ["ABCD"] * orders},
        "letter_share": {"A": 0.1, "B": 0.4, "C": 0.3, "D": 0.2},
        "baselines": {"always_A": 0.25},
        "verdict": "chance",
        "note": "",
    }
    (workdir / "evals" / "ctibench.json").write_text(json.dumps(score))


@pytest.fixture
def recorded(tmp_path):
    """A sweep of two rates with three seeds each, one of which was stopped, and of one with a single seed."""
    rates = grid(NANO, {"optim.peak_lr": (0.001, 0.01)})
    sweep = Sweep(rates, seeds=(0, 1, 2), axis="optim.peak_lr", metrics=("val_loss",), name="rates-nano")
    states = {}
    for number, run in enumerate(sweep.runs()):
        rate = run.setting.overrides["optim.peak_lr"]
        write_run(tmp_path / run.name, rate=rate, loss=3 + 0.1 * number, accuracy=0.25 + 0.01 * number)
        states[run.name] = "finished"
    states["peak_lr=0.01-seed2"] = "stopped"
    return sweep, tmp_path, states


def test_a_sweep_says_whose_prompts_were_cropped(recorded):
    *_, folder, _ = recorded
    path = folder / "peak_lr=0.001-seed1" / "evals" / "ctibench.json"
    cropped = {"prompts_cropped": 3, "n": 2, "predicted": ["ABCD", "DCBA"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | cropped))
    _, notes = sweep_table.write(*recorded)
    assert [note.partition(" prompts")[0] for note in notes if "beginning" in note] == [
        "In peak_lr=0.001-seed1, 3 of 8"
    ]


def test_the_table_pools_finished_seeds_and_says_what_is_not_pooled(recorded):
    (header, first, second), notes = sweep_table.write(*recorded)
    cells = dict(zip(header, first, strict=True))
    assert cells == {
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
        "study's val loss": "2.990",
        "study's accuracy, %": "34.8",
    }
    cells = dict(zip(header, second, strict=True))
    assert (cells["val loss"], cells["95% interval"], cells["min to max"]) == ("3.200", "—", "26.0 to 28.0")
    assert cells["runs"] == "2 finished, 1 stopped"
    assert "Fewer than 3 seeds: peak_lr=0.01." in notes[0]
    assert "Never a claim from one seed" in notes[0]
    assert "not pooled with finished ones: peak_lr=0.01-seed2" in notes[-1]


def test_a_single_seed_has_the_interval_of_its_items_and_a_single_order_is_named(tmp_path):
    sweep = Sweep([Setting("alone", NANO)], seeds=(4,), metrics=("val_loss",))
    write_run(tmp_path / "alone-seed4", rate=0.1, loss=3.0, accuracy=0.3, orders=1)
    (header, row), notes = sweep_table.write(sweep, tmp_path, {"alone-seed4": "finished"})
    cells = dict(zip(header, row, strict=True))
    assert cells["accuracy, %"] == "30.0 (one order)"
    assert (cells["95% interval"], cells["min to max"]) == ("28.0 to 32.0 (items)", "—")
    assert any("Never a claim from one seed" in note for note in notes)
    assert any("a constant letter can look like knowledge" in note for note in notes)


def test_the_picture_shows_rates_on_a_log_axis_beside_chance(recorded):
    sweep, folder, states = recorded
    above, below = sweep_table.picture(sweep, sweep_table.pooled(sweep, folder, states)).axes
    assert above.get_xscale() == "log"
    assert below.get_xlabel() == "optim.peak_lr"
    (chance,) = [line for line in above.lines if line.get_label() == "chance"]
    assert list(chance.get_ydata()) == [25, 25]
    accuracy, _ = above.get_legend_handles_labels()[0][::-1]
    assert list(accuracy.lines[0].get_xdata()) == [0.001, 0.01]
    assert list(accuracy.lines[0].get_ydata()) == pytest.approx([27, 27])


# ---- Launchers ----


def test_a_local_job_shares_the_cores_and_what_the_user_set_wins(tmp_path, monkeypatch):
    monkeypatch.delenv("NPROC", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    names = ("OMP_NUM_THREADS", "NPROC", "XLA_CLIENT_MEM_FRACTION")
    job = Local(2).start(
        [sys.executable, "-c", f"import os; print(*map(os.environ.get, {names}))"], tmp_path / "log", 2
    )
    assert job.wait(60) == 0
    cores = max(1, len(os.sched_getaffinity(0)) // 2)
    assert (tmp_path / "log").read_text().split() == ["77", str(cores), "0.450"]


def test_a_job_that_does_not_stop_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("ghost_jax.sweeps.jobs.STOP_SECONDS", 0.5)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(99)"
    job = Local(1).start([sys.executable, "-c", deaf], tmp_path / "log", 1)
    while not (tmp_path / "log").read_text():
        time.sleep(0.02)
    stop([job])
    assert job.wait(10) == -signal.SIGKILL


def test_without_submitit_slurm_is_refused_with_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install \"submitit==[\d.]+\""):
        Submitted(tmp_path)


def test_without_a_cluster_slurm_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="submitit is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"srun.* on a machine that has sbatch"):
        Submitted(tmp_path)


@pytest.mark.parametrize("code", [0, 3])
def test_a_job_of_submitit_gives_the_exit_code_of_its_process(tmp_path, monkeypatch, code):
    pytest.importorskip("submitit", reason="submitit is not installed")
    monkeypatch.chdir(ROOT)
    launcher = Submitted(tmp_path / "slurm", cluster="local")
    job = launcher.start([sys.executable, "-c", f"print('here'); exit({code})"], tmp_path / "log", 1)
    deadline = time.monotonic() + 60
    while job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert job.poll() == code
    assert (tmp_path / "log").read_text() == "here\n"


# ---- Real sweeps ----


SETTINGS = {
    "sound": {},
    "diverges": {"optim.peak_lr": 1e30, "optim.clip_norm": 1e30},
    "fails": {"mesh.data": 3},
}


@pytest.fixture(scope="module")
def swept(ghost, tmp_path_factory):
    """A sweep of three tiny runs on a base that is not trained yet, of which one is sound."""
    folder = tmp_path_factory.mktemp("sweep") / "with a space"
    file = sweep_file(folder.parent / "own.py", SETTINGS)
    command = ["ghost_jax.sweep", f"--config={file}", f"--runs={folder}", "--jobs=2", *SMALL]
    return folder, file, ghost(*command, check=False)


def test_failures_are_isolated_and_a_stop_is_a_result(swept):
    _, _, result = swept
    assert result.returncode == 1
    said = " ".join(result.stderr.split())
    assert said.startswith("error: 1 of 3 runs came to no result: fails-seed0.")
    assert "sound-seed0: finished in " in result.stdout
    assert "diverges-seed0: stopped in " in result.stdout
    assert "The loss of update" in result.stdout, "why it was stopped"
    assert "fails-seed0: failed in " in result.stdout
    assert "sweep 3/3 runs" in result.stdout


def test_runs_share_one_base(swept):
    folder = swept[0]
    trained = [name for name in SETTINGS if "is trained first" in (folder / f"{name}-seed0.log").read_text()]
    assert trained == ["sound"]
    assert len(updates_of(folder / "pretrain_v05-nano")) == BASE["steps"]


def test_the_table_holds_the_numbers_of_the_records(swept):
    folder, _, result = swept
    record = json.loads((folder / "sweep.json").read_text())
    assert record["ghost_jax"] == ghost_jax.__version__
    rows = {row["setting"]: row for row in record["settings"]}
    sound, last = rows["sound"], json.loads(updates_of(folder / "sound-seed0")[-1])
    score = score_of(folder / "sound-seed0")
    assert sound["states"] == {"finished": 1}
    assert sound["steps"]["mean"] == last["step"] == 8
    assert sound["val_loss"]["mean"] == last["val_loss"]
    assert sound["val_loss_shared"]["mean"] == last["val_loss_shared"]
    assert sound["accuracy"]["mean"] == score["headline"]["accuracy"]
    assert sound["accuracy"]["ci95"] == score["headline"]["ci95"]
    assert sound["letter_share"]["mean"] == max(score["letter_share"].values())
    assert sound["verdicts"] == {score["verdict"]: 1}
    assert rows["diverges"]["states"] == {"stopped": 1}
    assert rows["diverges"]["accuracy"] is None
    assert rows["fails"]["states"] == {"failed": 1}
    page = (folder / "sweep.md").read_text()
    for note in record["notes"]:
        assert note in page
    assert "Never a claim from one seed" in result.stdout
    assert "THIS IS NOT CTIBENCH" in page
    assert matplotlib.image.imread(folder / "sweep.png").std() > 0, "a blank picture"


def test_runs_that_ended_are_only_reported(ghost, swept):
    folder, file, _ = swept
    ended = {name: SETTINGS[name] for name in ("sound", "diverges")}
    only = sweep_file(file.with_name("only.py"), ended)
    logs = {path: path.read_text() for path in folder.glob("*.log")}
    result = ghost("ghost_jax.sweep", f"--config={only}", f"--runs={folder}", *SMALL)
    assert "2 of 2 runs had ended before" in result.stdout
    assert "-seed0: " not in result.stdout, "nothing was started"
    assert {path: path.read_text() for path in folder.glob("*.log")} == logs
    rows = {row["setting"]: row["states"] for row in json.loads((folder / "sweep.json").read_text())["settings"]}
    assert rows == {"sound": {"finished": 1}, "diverges": {"stopped": 1}}


def test_a_dry_run_prints_commands_that_can_be_typed_and_starts_nothing(ghost, tmp_path):
    folder = tmp_path / "with a space"
    file = sweep_file(tmp_path / "own.py", SETTINGS, seeds=(0, 1))
    command = ["ghost_jax.sweep", f"--config={file}", f"--runs={folder}", "--dry_run", "--config.steps=5"]
    resources, *lines = ghost(*command, "--launcher=slurm").stdout.splitlines()
    assert resources.startswith("# each a Slurm job of ")
    assert "cpus_per_task 8" in resources
    commands = [shlex.split(line) for line in lines]
    assert len(commands) == 6
    assert commands[1][1:] == [
        *("-m", "ghost_jax.train", f"--config={NANO}"),
        *("--config.optim.peak_lr=1e+30", "--config.optim.clip_norm=1e+30", "--config.seed=0", "--config.steps=5"),
        f"--workdir={folder / 'diverges-seed0'}",
    ]
    assert run_config(commands[1]).optim.peak_lr == 1e30
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_sweep_cut_short_goes_on(ghost, tmp_path, signum):
    folder = tmp_path / "runs"
    base = folder / "pretrain_v05-nano"
    file = sweep_file(tmp_path / "own.py", {"a": {}}, seeds=(0, 1))
    command = ["ghost_jax.sweep", f"--config={file}", f"--runs={folder}", "--jobs=1", *SMALL]
    ghost.stop_at(ghost.start(*command), base, 20, signum)
    if signum == signal.SIGTERM:
        with run_dir.locked(base):
            pass  # nobody is left in it
    else:  # what a killed sweep started goes on without it, and keeps the folder
        assert "runs that a killed one left behind" in ghost.refused(*command)
        subprocess.run(["flock", str(folder / ".lock"), "true"], check=True, timeout=120)
        assert (folder / "a-seed0" / "status.json").exists()
    result = ghost(*command)
    assert ("1 of 2 runs had ended before" in result.stdout) == (signum == signal.SIGKILL)
    assert ("resuming " in (folder / "a-seed0.log").read_text()) == (signum == signal.SIGTERM)
    assert "a-seed1: finished" in result.stdout


@pytest.mark.slow
def test_what_stands_on_a_base_that_failed_is_not_started(ghost, tmp_path):
    file = sweep_file(tmp_path / "own.py", {"a": {}, "b": {}})
    flags = [*SMALL, "--config.base.optim.peak_lr=1e30", "--config.base.optim.clip_norm=1e30"]
    result = ghost("ghost_jax.sweep", f"--config={file}", f"--runs={tmp_path / 'runs'}", *flags, check=False)
    assert result.returncode == 1
    assert "a-seed0: stopped in" in result.stdout
    assert "b-seed0: not started, for its base failed: see" in result.stdout
    assert not (tmp_path / "runs" / "b-seed0").exists()
