"""`python -m ghost_jax.train`: from nothing, again, interrupted, on other devices, and with wrong input."""

import json
import shutil
import signal
import sys
import time
from pathlib import Path

import jax
import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from ghost_jax import train as train_command
from ghost_jax.config import load as config_lib
from ghost_jax.parallel import distributed
from ghost_jax.parallel.mesh import make_mesh
from ghost_jax.runs import plan, run_dir
from ghost_jax.training.checkpoint import Checkpoints
from ghost_jax.training.loading import load_model
from tests.conftest import losses_of, paragraph_of, score_of, set_all, tiny_base, tiny_chat, updates_of
from tests.models import slow

DEVICES = jax.device_count()  # the 8 of conftest.py, counted before a command in this process has its environment


def test_a_run_from_nothing_trains_its_base_first_and_ends_with_a_verdict_and_a_report(tiny_run):
    lines = tiny_run.stdout.splitlines()
    assert str(tiny_run.base) in lines[0]
    words = [line.partition(" ")[0] for line in lines]
    first_update = words.index("training")
    assert "Mixture" in words[:first_update]
    assert "Mixture" in words[first_update:], "the chat run has a table of its own"
    assert "verdict:" in words
    notes = [line for line in lines if line.startswith("NOTE: ")]
    assert len(notes) == 2
    assert all("attack, capec, cwe" in note for note in notes), "the sources that are missing"
    report = tiny_run.workdir / "report" / "index.html"
    assert lines[-1].endswith(str(report))
    pictures = list(report.parent.glob("*.png"))
    assert report.read_text().count("data:image/png") == len(pictures) == 6
    assert all(matplotlib.image.imread(picture).std() > 0 for picture in pictures), "a blank picture"


@pytest.mark.parametrize(
    ("stage", "validation"), [("base", {"val_loss"}), ("workdir", {"val_loss", "val_loss_shared"})]
)
def test_a_run_directory_records_config_data_and_every_update(tiny_run, stage, validation):
    workdir = getattr(tiny_run, stage)
    environment, data = (json.loads((workdir / f"{name}.json").read_text()) for name in ("environment", "data"))
    assert {"git_commit", "packages", "machine", "python"} <= environment.keys()
    assert data["licenses"]
    assert all(line["records"] > 0 for line in data["mixture"])
    assert list((workdir / "tensorboard").glob("events.out.tfevents.*"))
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["6", "8"]  # `keep` is 2
    lines = [json.loads(line) for line in updates_of(workdir)]
    assert [line["step"] for line in lines] == list(range(1, 9))
    for line in lines:
        assert all(np.isfinite(value) for value in line.values())
        assert min(line["lr"], line["tokens_per_s"]) > 0
        assert (validation <= line.keys()) == (line["step"] in (4, 8))
    assert lines[0]["loss"] == pytest.approx(np.log(1024), abs=0.5)  # as good as chance before the first update
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_repeating_a_finished_run_needs_no_base_trains_nothing_and_reports_the_score_again(ghost, tiny_run, tmp_path):
    workdir = shutil.copytree(tiny_run.workdir, tmp_path / "chat")
    before = {path: path.stat().st_mtime_ns for path in (workdir / "checkpoints").rglob("*")}
    note, *score, report = ghost.here(*tiny_chat(workdir)).stdout.splitlines()
    assert str(workdir) in note
    assert "verdict: " in "\n".join(score)
    assert not [line for line in score if line.startswith("training ") or line not in tiny_run.stdout.splitlines()]
    assert str(workdir / "report") in report
    assert {path: path.stat().st_mtime_ns for path in (workdir / "checkpoints").rglob("*")} == before
    assert list(tmp_path.iterdir()) == [workdir]


def test_a_plan_trains_nothing(ghost, tmp_path):
    least = {"optim.schedule": "constant", "optim.min_lr": 1.25e-7}  # which a constant rate does not reach
    result = ghost.here(*tiny_chat(tmp_path / "runs" / "chat", "--plan", *set_all(least)))
    assert all(part in result.stdout for part in (f"data={DEVICES}", "Mixture", "8 updates"))
    assert "1.25e-07" not in result.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("preset", ["", "nano"])
def test_a_long_run_names_a_smaller_preset_where_there_is_one(monkeypatch, capsys, preset):
    config = config_lib.load(f"configs/chat_v5.py:{preset}")
    monkeypatch.setattr(plan, "estimated_seconds", lambda _: 1e6)
    plan.announce(config, Path("run"), config, Console())
    assert (":nano" in capsys.readouterr().out) == (preset != "nano")


CUTS = [("chat", 1, signal.SIGKILL), ("chat", 6, signal.SIGKILL), ("base", 4, signal.SIGINT)]


@pytest.mark.parametrize("cut", [("chat", 5, signal.SIGTERM), *map(slow, CUTS)], ids=str)
def test_an_interrupted_run_is_resumed_bit_for_bit(ghost, tiny_run, tmp_path, cut):
    stage, updates, signum = cut
    workdir = tiny_run.beside_base(tmp_path) if stage == "chat" else tmp_path / "base"
    command = (tiny_chat if stage == "chat" else tiny_base)(workdir)
    ghost.stop_at(ghost.start(*command), workdir, updates, signum)
    ghost(*command)
    assert losses_of(workdir) == losses_of(getattr(tiny_run, "workdir" if stage == "chat" else "base"))
    if stage == "chat":
        assert score_of(workdir)["predicted"] == score_of(tiny_run.workdir)["predicted"]
    assert not list(workdir.rglob("*.partial*"))


def test_two_processes_do_not_share_a_run_directory(ghost, tmp_path):
    with run_dir.locked(tmp_path):
        assert str(tmp_path) in ghost.refused_here(*tiny_base(tmp_path))


def test_a_run_that_diverges_stops_with_a_finite_checkpoint(ghost, tmp_path):
    values = {"optim.peak_lr": 1e30, "optim.clip_norm": 1e30, "save_every": 1}
    result = ghost.here(*tiny_base(tmp_path, *set_all(values)), check=False)
    assert "update 2" in paragraph_of(result, 3)
    assert not (tmp_path / "status.json").exists()
    _, params, step = load_model(tmp_path, make_mesh())
    assert step == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_a_rising_validation_loss_stops_the_run_for_good_where_the_config_asks(ghost, tmp_path):
    steps = 40  # enough that three losses in a row rise, whatever the order of the data
    values = {"steps": steps, "optim.peak_lr": 3.0, "optim.min_lr": 3.0, "eval_every": 1, "divergence.stop": True}
    command = tiny_base(tmp_path, *set_all(values | {"data.validation_records": 100_000}))
    paragraph = paragraph_of(ghost.here(*command, check=False), 3)
    stopped = json.loads((tmp_path / "stopped.json").read_text())
    assert stopped["step"] < steps
    assert stopped["reason"] in paragraph
    assert not (tmp_path / "status.json").exists()
    again = ghost.here(*command, check=False)
    assert paragraph_of(again, 3) == paragraph
    assert "training " not in again.stdout


def test_objectives_probe_trace_and_schedule_are_logged(ghost, tiny_run, tmp_path, monkeypatch):
    read_back, back = [], Checkpoints.read_back
    monkeypatch.setattr(Checkpoints, "read_back", lambda *given: read_back.append(given) or back(*given))
    values = {
        "objective.letter": 0.5,
        "objective.ranking": 0.5,
        "data.mixture.rank": 3,
        "data.seq_len": 128,
        "data.truncation": "drop",  # a question is ranked only where all its options are in the row
        "loss_norm": "record_mean",
        "init_tokens": "random",
        "optim.schedule": "wsd",
        "log.trace_at": 3,
        "online_probe.every": 3,
        "online_probe.questions": 10,
    }
    workdir = tiny_run.beside_base(tmp_path)
    ghost.here(*tiny_chat(workdir, *set_all(values)))
    assert len(read_back) == 1, "the first save of a run"
    lines = {line["step"]: line for line in losses_of(workdir)}
    for line in lines.values():
        parts = (line["loss_lm"], line["loss_letter"], line["loss_ranking"])
        assert line["loss"] == pytest.approx(parts[0] + 0.5 * parts[1] + 0.5 * parts[2], rel=1e-4)
        assert min(*parts[:2], line["grad_norm"]) > 0 == line["skipped"]
    assert sum(line["loss_ranking"] > 0 for line in lines.values()) > 4
    assert [lines[step]["lr"] for step in range(2, 7)] == pytest.approx([1e-3] * 5), "wsd stays at the peak"
    assert list((workdir / "trace").rglob("*.pb"))
    assert [step for step, line in lines.items() if "held_out_accuracy" in line] == [3, 6]


def test_a_stop_during_the_last_save_ends_the_run_before_it_is_scored(ghost, tiny_run, tmp_path, monkeypatch):
    workdir, compared, save = tmp_path / "base", [], Checkpoints.save
    shutil.copytree(tiny_run.base, workdir)
    (workdir / "status.json").unlink()
    shutil.rmtree(workdir / "checkpoints" / "8")

    def asked(*arguments):
        save(*arguments)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(distributed, "check_same", compared.extend)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", asked)
        assert "Stopped on request" in ghost.refused_here(*tiny_base(workdir))
    assert (workdir / "checkpoints" / "8").is_dir()
    assert not (workdir / "status.json").exists()
    assert {"config", "data", "tokenizer", "dtype"} <= set(compared)


def test_a_lost_process_ends_the_others_wherever_a_stage_waits(tmp_path, monkeypatch):
    def lost(*_):
        raise ValueError("Gloo AllGather failed: Connection closed by peer")

    config = config_lib.load("configs/pretrain_v05.py:nano")
    monkeypatch.setattr(train_command, "prepare", lost)
    monkeypatch.setattr(distributed, "_end", lambda: sys.exit("ended"))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(SystemExit, match="ended"):
        train_command.run_stage(train_command.Stage(config, tmp_path, tmp_path), None, [], [], Console())


@pytest.mark.slow
def test_a_bfloat16_run_is_resumed_bit_for_bit_in_its_type(ghost, tiny_run, tmp_path):
    """Also by a command that leaves the type to the machine."""
    full, resumed = tmp_path / "full", tmp_path / "resumed"
    ghost.here(*tiny_base(full, "--config.model.dtype=bfloat16"))
    losses, exact = ([line["loss"] for line in losses_of(run)] for run in (full, tiny_run.base))
    assert losses == pytest.approx(exact, abs=0.05)
    assert losses != exact
    shutil.copytree(full, resumed)
    (resumed / "status.json").unlink()
    shutil.rmtree(resumed / "checkpoints" / "8")
    assert "after update 6" in ghost.here(*tiny_base(resumed, "--config.model.dtype=auto")).stdout
    assert losses_of(resumed) == losses_of(full)


@pytest.mark.slow
def test_two_processes_on_a_mesh_stop_together_probe_and_score_as_one_device_does(ghost, tiny_run, tmp_path):
    flags = set_all({"online_probe.every": 2, "online_probe.questions": 6})
    other = set_all({"mesh.fsdp": 2, "mesh.tensor": 2, "model.scan": True, "model.remat": True})
    one, two = (tiny_run.beside_base(tmp_path / name) for name in ("one", "two"))
    ghost(*tiny_chat(one, *flags))
    together = ["launch.local", "--processes=2", "--devices=4", "--", sys.executable, "-m"]
    together += tiny_chat(two, *flags, *other)
    process = ghost.start(*together)
    while len(updates_of(two)) < 4 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    result = ghost.finish(process, check=False)
    assert 4 <= len(updates_of(two)) < 8, result.stdout + result.stderr
    ghost(*together)
    for here, there in zip(losses_of(two), losses_of(one), strict=True):
        assert here == pytest.approx(there, rel=1e-4, abs=1e-4)
    assert score_of(one)["predicted"] == score_of(two)["predicted"]
    assert score_of(one)["cloze"]["pmi"]["accuracy"] == pytest.approx(score_of(two)["cloze"]["pmi"]["accuracy"])


REFUSALS = {  # flags, exit code, and what the paragraph names
    "a mesh of other devices": ("--config.mesh.data=3", 1, ["data=3", f"{DEVICES} device(s)"]),
    "a batch that does not divide": ("--config.batch_size=48 --config.micro_batch_size=4", 1, ["48", "1, 2, 3, 6"]),
    "a mesh wider than the heads": ("--config.mesh.data=1 --config.mesh.tensor=8", 1, ["mesh.tensor"]),
    "adapters of no kernel": ("--config.lora.rank=2 --config.lora.targets=q_proj", 2, ["lora.targets", "qkv"]),
    "another config": ("--workdir={run} --config.steps=9", 1, ["steps is 8 there and 9 here"]),
    "no data folder": ("--data_dir=/nowhere/at/all", 1, ["/nowhere/at/all"]),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_wrong_input_is_refused_before_anything_is_prepared(ghost, tiny_run, tmp_path, name):
    flags, code, parts = REFUSALS[name]
    stores = sorted((ghost.cache / "ghost_jax" / "stores").iterdir())
    flags = flags.format(run=tiny_run.workdir).split()
    paragraph = ghost.refused_here(*tiny_chat(tmp_path / "chat", *flags), code=code)
    assert all(part in paragraph for part in parts), paragraph
    assert not list(tmp_path.rglob("metrics.jsonl"))
    assert sorted((ghost.cache / "ghost_jax" / "stores").iterdir()) == stores


OTHER_BASES = {  # what became of a base after a chat run, or before it: the part that is gone, flags, and what is named
    "of other parameters": ("checkpoints/8", "", "another base"),
    "corrupt, of a new run": ("checkpoints/8/params", "", "step 8"),
    "gone, and another config": (".", "--config.steps=9", "steps is 8 there and 9 here"),
}


@pytest.mark.parametrize("name", OTHER_BASES)
def test_a_chat_run_is_refused_before_anything_is_trained_where_its_base_is(ghost, tiny_run, tmp_path, name):
    gone, flags, part = OTHER_BASES[name]
    workdir = tiny_run.beside_base(tmp_path)
    if "new" not in name:
        shutil.copytree(tiny_run.workdir, workdir, ignore=shutil.ignore_patterns("metrics.jsonl"))
    shutil.rmtree(tmp_path / tiny_run.base.name / gone)
    assert part in ghost.refused_here(*tiny_chat(workdir, *flags.split()))
    assert not (workdir / "metrics.jsonl").exists()
    assert (tmp_path / tiny_run.base.name).exists() == (gone != ".")


def test_an_unfinished_run_whose_data_changed_keeps_its_records(ghost, tiny_run, tmp_path, monkeypatch):
    workdir = shutil.copytree(tiny_run.base, tmp_path / "base", ignore=shutil.ignore_patterns("status.json"))
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*.json*")}
    monkeypatch.setattr("ghost_jax.data.mixture.VERSION", -1)  # another order of the rows
    assert "data: " in ghost.refused_here(*tiny_base(workdir))
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*.json*")} == before


def test_a_finished_run_is_shown_beside_a_base_without_checkpoints(ghost, tiny_run, tmp_path, monkeypatch):
    workdir = shutil.copytree(tiny_run.workdir, tmp_path / "chat")
    shutil.copytree(tiny_run.base, tmp_path / tiny_run.base.name, ignore=shutil.ignore_patterns("[0-9]*"))
    calls = []
    monkeypatch.setattr("ghost_jax.report.write", lambda *_: calls.append("written"))
    monkeypatch.setattr(distributed, "barrier", calls.append)
    assert "verdict: " in ghost.here(*tiny_chat(workdir)).stdout
    # Processes begin and end together, however long one of them copies or writes.
    assert calls == ["the data folder", "written", "the report"]
