"""`python -m ghost_jax.train`: from nothing, again, interrupted, on other devices, and with wrong input."""

import functools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
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
from ghost_jax.runs import run_dir
from ghost_jax.text import tokenizer
from ghost_jax.training.checkpoint import Checkpoints
from ghost_jax.training.loading import load_model
from tests.bench.place import NotTried, disk
from tests.conftest import losses_of, paragraph_of, score_of, set_all, tiny_base, tiny_chat, updates_of

DEVICES = jax.device_count()  # the 8 of conftest.py, counted before a command in this process has its environment


def test_a_run_from_nothing_trains_its_base_first_and_reports_data_mixture_and_score(tiny_run):
    lines = tiny_run.stdout.splitlines()
    assert str(tiny_run.base) in lines[0]
    assert all("8 x 96 tokens" in line and "CPU" in line for line in lines[:2])
    notes = [line for line in lines if line.startswith("NOTE: ")]
    assert len(notes) == 2
    assert all("attack, capec, cwe" in note and "embedded pack" in note for note in notes)
    tables = [number for number, line in enumerate(lines) if line.startswith("Mixture")]
    trainings = [number for number, line in enumerate(lines) if line.startswith("training ")]
    assert tables[0] < trainings[0] < tables[1] < trainings[-1], "a mixture table precedes the first update"
    assert any(line.startswith("verdict: ") for line in lines)
    assert lines[-1].endswith(str(tiny_run.workdir / "report" / "index.html"))
    pictures = list((tiny_run.workdir / "report").glob("*.png"))
    assert (tiny_run.workdir / "report" / "index.html").read_text().count("data:image/png") == len(pictures) == 6
    assert all(matplotlib.image.imread(picture).std() > 0 for picture in pictures), "a blank picture"


@pytest.mark.parametrize(
    ("stage", "validation"), [("base", {"val_loss"}), ("workdir", {"val_loss", "val_loss_shared"})]
)
def test_a_run_directory_records_config_data_and_every_update(tiny_run, stage, validation):
    workdir = getattr(tiny_run, stage)
    config, environment, data, status = (
        json.loads((workdir / f"{name}.json").read_text()) for name in ("config", "environment", "data", "status")
    )
    assert (config["steps"], config["model"]["width"]) == (8, 32)
    assert {"git_commit", "packages", "machine", "python"} <= environment.keys()
    assert data["licenses"]
    assert all(line["records"] > 0 for line in data["mixture"])
    assert status == {"status": "finished", "steps": 8}
    assert list((workdir / "tensorboard").glob("events.out.tfevents.*"))
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["6", "8"]  # `keep` is 2
    tokenizer.load(workdir / "tokenizer.json")
    lines = [json.loads(line) for line in updates_of(workdir)]
    assert [line["step"] for line in lines] == list(range(1, 9))
    for line in lines:
        assert all(np.isfinite(value) for value in line.values())
        assert min(line["lr"], line["tokens_per_s"]) > 0
        assert (validation <= line.keys()) == (line["step"] in (4, 8))
    assert lines[0]["loss"] == pytest.approx(np.log(1024), abs=0.5)  # as good as chance before the first update
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_repeating_a_finished_run_trains_nothing_and_reports_the_score_again(ghost, tiny_run):
    before = {path: path.stat().st_mtime_ns for path in (tiny_run.workdir / "checkpoints").rglob("*")}
    result = ghost.here(*tiny_chat(tiny_run.workdir))
    assert tiny_run.stdout.endswith(result.stdout)
    assert "training " not in result.stdout
    assert len(losses_of(tiny_run.workdir)) == 8
    assert {path: path.stat().st_mtime_ns for path in (tiny_run.workdir / "checkpoints").rglob("*")} == before


def test_a_plan_trains_nothing(ghost, tmp_path):
    result = ghost.here(*tiny_chat(tmp_path / "runs" / "chat", "--plan"))
    assert all(part in result.stdout for part in ("parameters", f"data={DEVICES}", "Mixture", "8 updates", "adamw"))
    assert not (tmp_path / "runs").exists()


def assert_same_result(workdir: Path, tiny_run) -> None:
    """Losses, validation losses and gradient norms of every update, to the last bit, and the answers."""
    assert losses_of(workdir.parent / tiny_run.base.name) == losses_of(tiny_run.base)
    assert losses_of(workdir) == losses_of(tiny_run.workdir)
    assert score_of(workdir)["predicted"] == score_of(tiny_run.workdir)["predicted"]
    assert score_of(workdir)["headline"] == score_of(tiny_run.workdir)["headline"]
    assert not list(workdir.rglob("*.partial*"))


CUTS = [("chat", 5, signal.SIGTERM), ("base", 3, signal.SIGKILL)]
MORE_CUTS = [("chat", 1, signal.SIGKILL), ("chat", 6, signal.SIGKILL), ("base", 4, signal.SIGINT)]


@pytest.mark.parametrize("cut", [*CUTS, *(pytest.param(cut, marks=pytest.mark.slow) for cut in MORE_CUTS)], ids=str)
def test_an_interrupted_run_is_resumed_bit_for_bit(ghost, tiny_run, tmp_path, cut):
    stage, updates, signum = cut
    workdir = tiny_run.beside_base(tmp_path) if stage == "chat" else tmp_path / "base"
    command = (tiny_chat if stage == "chat" else tiny_base)(workdir)
    ghost.stop_at(ghost.start(*command), workdir, updates, signum)
    ghost(*command)
    if stage == "chat":
        assert_same_result(workdir, tiny_run)
    else:
        assert losses_of(workdir) == losses_of(tiny_run.base)


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


def test_two_processes_do_not_share_a_run_directory(ghost, tmp_path):
    with run_dir.locked(tmp_path):
        assert str(tmp_path) in ghost.refused_here(*tiny_base(tmp_path))


VARIANTS = {  # flags, exit code; those that stop are of the base
    "eight devices": ({"mesh.fsdp": 2, "mesh.tensor": 2, "model.scan": True, "model.remat": True}, 0),
    "objectives": (
        {
            "objective.letter": 0.5,
            "objective.ranking": 0.5,
            "data.mixture.rank": 3,
            "data.seq_len": 128,
            "data.truncation": "drop",  # a question is ranked only where all its options are in the row
            "loss_norm": "record_mean",
            "init_tokens": "random",
            "optim.schedule": "wsd",
            "keep_best": "val_loss",
            "log.trace_at": 3,
            "online_probe.every": 3,
            "online_probe.questions": 10,
        },
        0,
    ),
    "watched": (
        {
            "steps": 40,  # enough that three losses in a row rise, whatever the order of the data
            "optim.peak_lr": 3.0,
            "optim.min_lr": 3.0,
            "eval_every": 1,
            "divergence.stop": True,
            "data.validation_records": 100_000,
        },
        3,
    ),
    "diverges": ({"optim.peak_lr": 1e30, "optim.clip_norm": 1e30, "save_every": 1}, 3),
}


@pytest.fixture(scope="module")
def variant(ghost, tiny_run, tmp_path_factory):
    """`name -> (result, workdir)` of the tiny run in another way."""

    @functools.cache
    def run(name: str):
        values, code = VARIANTS[name]
        folder = tmp_path_factory.mktemp("variant")
        workdir, command = (folder / "base", tiny_base) if code else (tiny_run.beside_base(folder), tiny_chat)
        result = ghost.here(*command(workdir, *set_all(values)), check=False)
        assert result.returncode == code, result.stdout + result.stderr
        return result, workdir

    return run


@pytest.mark.slow
def test_eight_devices_and_a_scanned_model_learn_what_one_device_learns(variant, tiny_run):
    result, workdir = variant("eight devices")
    assert "data=2, fsdp=2, tensor=2" in result.stdout
    assert "8 simulated devices" in json.loads((workdir / "environment.json").read_text())["machine"]
    for here, there in zip(losses_of(workdir), losses_of(tiny_run.workdir), strict=True):
        assert here == pytest.approx(there, rel=1e-4, abs=1e-4)


def test_a_run_that_diverges_stops_with_a_finite_checkpoint(variant):
    result, workdir = variant("diverges")
    assert "update 2" in paragraph_of(result, 3)
    assert not (workdir / "status.json").exists()
    assert len(losses_of(workdir)) == 1
    _, params, step = load_model(workdir, make_mesh())
    assert step == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_objectives_probe_trace_and_schedule_are_logged_and_the_best_checkpoint_is_kept(variant):
    _, workdir = variant("objectives")
    lines = {line["step"]: line for line in losses_of(workdir)}
    for line in lines.values():
        parts = (line["loss_lm"], line["loss_letter"], line["loss_ranking"])
        assert line["loss"] == pytest.approx(parts[0] + 0.5 * parts[1] + 0.5 * parts[2], rel=1e-4)
        assert min(*parts[:2], line["grad_norm"]) > 0 == line["skipped"]
    assert sum(line["loss_ranking"] > 0 for line in lines.values()) > 4
    rates = [line["lr"] for line in lines.values()]
    assert rates[1:6] == pytest.approx([1e-3] * 5)
    assert rates[-1] == pytest.approx(1e-5)
    assert list((workdir / "trace").rglob("*.pb"))
    probes = {step: line for step, line in lines.items() if "held_out_accuracy" in line}
    assert list(probes) == [3, 6]
    assert all(0 <= line["held_out_accuracy"] <= 1 and line["held_out_top_letter"] >= 0.25 for line in probes.values())
    assert "val_loss" not in probes[3]
    losses = {step: line["val_loss"] for step, line in lines.items() if "val_loss" in line}
    kept = {int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()}
    assert kept | {6, 8} == {6, 8, min(losses, key=losses.get)}


def test_a_rising_validation_loss_stops_the_run_for_good_where_the_config_asks(ghost, variant):
    result, workdir = variant("watched")
    stopped = json.loads((workdir / "stopped.json").read_text())
    assert stopped["step"] < VARIANTS["watched"][0]["steps"]
    assert stopped["reason"] in paragraph_of(result, 3)
    assert not (workdir / "status.json").exists()
    again = ghost.here(*tiny_base(workdir, *set_all(VARIANTS["watched"][0])), check=False)
    assert paragraph_of(again, 3) == paragraph_of(result, 3)
    assert "training " not in again.stdout


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
    assert {"data", "tokenizer", "dtype"} <= set(compared)


def test_a_lost_process_ends_the_others_wherever_a_stage_waits(tmp_path, monkeypatch):
    def lost(*_):
        raise ValueError("Gloo AllGather failed: Connection closed by peer")

    config = config_lib.load("configs/pretrain_v05.py:nano")
    monkeypatch.setattr(train_command, "prepare", lost)
    monkeypatch.setattr(distributed, "_end", lambda: sys.exit("ended"))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(SystemExit, match="ended"):
        train_command.run_stage(train_command.Stage(config, tmp_path, tmp_path), None, [], Console())


@pytest.mark.slow
def test_two_processes_stop_together_probe_and_score_as_one_does(ghost, tiny_run, tmp_path):
    flags = set_all({"online_probe.every": 2, "online_probe.questions": 6})
    one, two = (tiny_run.beside_base(tmp_path / name) for name in ("one", "two"))
    ghost(*tiny_chat(one, *flags))
    together = ["launch.local", "--processes=2", "--devices=4", "--", sys.executable, "-m", *tiny_chat(two, *flags)]
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


def another_tokenizer(folder: Path, tiny_run) -> list[str]:
    ignored = shutil.ignore_patterns("metrics.jsonl")
    base = shutil.copytree(tiny_run.base, folder / tiny_run.base.name, ignore=ignored)
    tokenizer.train(["another text altogether " * 50], 300).save(base / "tokenizer.json")
    return tiny_chat(folder / "chat")


REFUSALS = {  # words behind the command's, or a maker of the command; exit code; parts of the paragraph
    "an unknown key": ("--config.optim.peek_lr=1", 2, ["optim.peak_lr"]),
    "a mesh of other devices": ("--config.mesh.data=3", 1, ["data=3", f"{DEVICES} device(s)"]),
    "a batch that does not divide": (
        lambda folder, tiny_run: tiny_chat(folder / "chat", "--config.batch_size=48", "--config.micro_batch_size=4"),
        1,
        ["48", "1, 2, 3, 6"],
    ),
    "another config": (
        lambda folder, tiny_run: tiny_chat(tiny_run.workdir, "--config.steps=9", "--config.optim.peak_lr=0.5"),
        1,
        ["steps is 8 there and 9 here", "optim.peak_lr is 0.001 there and 0.5 here"],
    ),
    "another tokenizer": (another_tokenizer, 1, ["another tokenizer", "pretrain_v05-nano"]),
    "no data folder": ("--data_dir=/nowhere/at/all", 1, ["/nowhere/at/all"]),
    "a URL as the run directory": (lambda *_: tiny_chat("ftp://host/run"), 2, ["ftp://host/run"]),
    "a file as the run directory": (lambda folder, _: tiny_base(shutil.copy(__file__, folder)), 1, ["test_train.py"]),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_wrong_input_is_refused_before_anything_is_trained(ghost, tiny_run, tmp_path, name):
    given, code, parts = REFUSALS[name]
    command = tiny_chat(tmp_path / "chat", given) if isinstance(given, str) else given(tmp_path, tiny_run)
    stores = sorted((ghost.cache / "ghost_jax" / "stores").iterdir())
    paragraph = ghost.refused_here(*command, code=code)
    assert all(part in paragraph for part in parts), paragraph
    assert not list(tmp_path.rglob("metrics.jsonl"))
    assert sorted((ghost.cache / "ghost_jax" / "stores").iterdir()) == stores, "a refused command leaves no store"


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    try:
        with disk(tmp_path / "disk", "size=1m") as folder:
            yield folder
    except NotTried as why:
        pytest.skip(str(why))


def enlarge(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)


def test_a_full_disk_under_the_run_is_reported_and_the_run_resumes_with_more_space(ghost, tiny_run, small_disk):
    workdir = small_disk / "base"
    assert "disk is full" in ghost.refused(*tiny_base(workdir))
    assert not (workdir / "status.json").exists()
    enlarge(small_disk)
    ghost.here(*tiny_base(workdir))
    for here, there in zip(losses_of(workdir), losses_of(tiny_run.base), strict=True):
        assert here == pytest.approx(there, rel=1e-4, abs=1e-4)


def test_a_full_disk_under_the_cache_leaves_no_incomplete_store(ghost, small_disk):
    prepare, env = ["ghost_jax.data.prepare", tiny_chat(Path("unused"))[1]], {"XDG_CACHE_HOME": str(small_disk)}
    assert "disk is full" in ghost.refused_here(*prepare, env=env)
    assert all((store / "manifest.json").is_file() for store in small_disk.glob("ghost_jax/stores/*-*"))
    enlarge(small_disk)
    ghost.here(*prepare, env=env)
