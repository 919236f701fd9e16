"""`python -m ghost_jax.train`, run as users do: from nothing, again, killed, stopped, and asked for the absurd."""

import functools
import json
import lzma
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import jax
import matplotlib.image
import numpy as np
import pytest

from ghost_jax.parallel.mesh import make_mesh
from ghost_jax.text import tokenizer
from ghost_jax.training.checkpoint import load_model
from tests.conftest import losses_of, paragraph_of, score_of, set_all, tiny_base, tiny_chat, updates_of


def stores_of(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("ghost_jax/stores/*-*"))


# ---- From nothing to a report, and again ----


def test_a_run_from_nothing_says_what_it_does_and_trains_its_base_first(tiny_run):
    base, chat, *lines = tiny_run.stdout.splitlines()
    assert base.startswith(f"The base {tiny_run.base} is not trained yet, so it is trained first: pretrain_v05 (nano, ")
    assert chat.startswith("chat_v5 (nano, ")
    for line in (base, chat):
        assert " updates of 8 x 96 tokens, about " in line
        assert " s on this machine (" in line
        assert "CPU" in line
    notes = [line for line in lines if line.startswith("NOTE: ")]
    assert len(notes) == 2  # each stage says it
    assert all("No files of attack, capec, cwe" in note and "the embedded pack stands in" in note for note in notes)
    tables = [number for number, line in enumerate(lines) if line.startswith("Mixture")]
    trainings = [number for number, line in enumerate(lines) if line.startswith("training ")]
    assert len(tables) == 2
    assert tables[0] < trainings[0] < tables[1] < trainings[-1], "a mixture table comes before its first update"
    for part in ("x5", "x2", "x8", "A/B/C/D", "epochs"):
        assert part in "\n".join(lines[tables[1] :])
    assert any(line.startswith("THIS IS NOT CTIBENCH") for line in lines)
    assert any(line.startswith("verdict: ") for line in lines)
    assert lines[-1] == f"report: {tiny_run.workdir / 'report' / 'index.html'}"


def test_a_run_directory_is_the_record(tiny_run):
    for workdir in (tiny_run.base, tiny_run.workdir):
        config, environment, data, status = (
            json.loads((workdir / f"{name}.json").read_text()) for name in ("config", "environment", "data", "status")
        )
        assert (config["steps"], config["model"]["width"]) == (8, 32)
        assert {"git_commit", "packages", "machine", "python"} <= environment.keys()
        assert "the embedded pack stands in" in data["notes"][0]
        assert data["licenses"]
        assert all(line["records"] > 0 for line in data["mixture"])
        assert status == {"status": "finished", "steps": 8}
        assert list((workdir / "tensorboard").glob("events.out.tfevents.*"))
        assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["6", "8"]  # `keep` is 2
        tokenizer.load(workdir / "tokenizer.json")
    assert score_of(tiny_run.workdir)["n"] == len((tiny_run.workdir / "heldout.jsonl").read_text().splitlines())


@pytest.mark.parametrize(
    ("stage", "validation"), [("base", {"val_loss"}), ("workdir", {"val_loss", "val_loss_shared"})]
)
def test_metrics_hold_every_update(tiny_run, stage, validation):
    lines = [json.loads(line) for line in updates_of(getattr(tiny_run, stage))]
    assert [line["step"] for line in lines] == list(range(1, 9))
    for line in lines:
        assert {"step", "loss", "lr", "tokens_per_s"} <= line.keys()
        assert all(np.isfinite(value) for value in line.values())
        assert line["lr"] > 0
        assert line["tokens_per_s"] > 0
        assert (validation <= line.keys()) == (line["step"] in (4, 8))
    assert lines[0]["loss"] == pytest.approx(np.log(1024), abs=0.5)  # as good as blind before the first update
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_the_report_of_a_run_holds_its_pictures(tiny_run):
    report = tiny_run.workdir / "report"
    assert (report / "index.html").read_text().count("data:image/png;base64,") == len(list(report.glob("*.png"))) == 6
    for picture in report.glob("*.png"):
        assert matplotlib.image.imread(picture).std() > 0, "a blank picture"


def test_repeating_a_finished_run_trains_nothing_and_tells_the_score_again(ghost, tiny_run):
    times = {path: path.stat().st_mtime_ns for path in (tiny_run.workdir / "checkpoints").rglob("*")}
    before = (tiny_run.workdir / "metrics.jsonl").read_bytes(), score_of(tiny_run.workdir)
    started = time.monotonic()
    result = ghost(*tiny_chat(tiny_run.workdir))
    assert time.monotonic() - started < 30
    score = tiny_run.stdout[tiny_run.stdout.index("held-out questions of this project") :]
    assert result.stdout == score, "the score and the report, and nothing else"
    assert ((tiny_run.workdir / "metrics.jsonl").read_bytes(), score_of(tiny_run.workdir)) == before
    assert {path: path.stat().st_mtime_ns for path in (tiny_run.workdir / "checkpoints").rglob("*")} == times


def test_a_plan_trains_nothing(ghost, tmp_path):
    result = ghost(*tiny_chat(tmp_path / "runs" / "chat", "--plan"))
    for part in ("parameters", "mesh data=1", "Mixture", "8 updates", "adamw", "about ", "NOTE: "):
        assert part in result.stdout
    assert not (tmp_path / "runs").exists()


# ---- Cut short ----


def assert_same_run(workdir: Path, expected: Path) -> None:
    """Losses, validation losses and gradient norms of every update, to the last bit."""
    assert losses_of(workdir) == losses_of(expected)


def assert_same_result(workdir: Path, tiny_run) -> None:
    assert_same_run(workdir.parent / tiny_run.base.name, tiny_run.base)
    assert_same_run(workdir, tiny_run.workdir)
    assert score_of(workdir)["predicted"] == score_of(tiny_run.workdir)["predicted"]
    assert score_of(workdir)["headline"] == score_of(tiny_run.workdir)["headline"]
    assert not list(workdir.rglob("*.partial*"))


def cut(ghost, tiny_run, folder: Path, stage: str, updates: int, signum: int) -> Path:
    """Stops the chat run, or its base before it, after so many updates; repeats the command; returns the workdir."""
    workdir = tiny_run.beside_base(folder) if stage == "chat" else folder / "chat"
    cut_in = workdir if stage == "chat" else folder / tiny_run.base.name
    ghost.stop_at(ghost.start(*tiny_chat(workdir)), cut_in, updates, signum)
    assert workdir.exists() == (stage == "chat")
    ghost(*tiny_chat(workdir))
    return workdir


CUTS = [("chat", 4, signal.SIGKILL), ("base", 3, signal.SIGKILL), ("chat", 5, signal.SIGTERM)]
MORE_CUTS = [(stage, updates, signal.SIGKILL) for stage in ("chat", "base") for updates in (1, 2, 6, 7)]


@pytest.fixture(scope="module")
def cut_runs(ghost, tiny_run, tmp_path_factory):
    """The run directories of CUTS, cut short and gone on with."""
    tasks = {each: functools.partial(cut, ghost, tiny_run, tmp_path_factory.mktemp("cut"), *each) for each in CUTS}
    return ghost.together(tasks)


@pytest.mark.parametrize("each", CUTS, ids=str)
def test_a_run_cut_short_goes_on_bit_for_bit(cut_runs, tiny_run, each):
    assert_same_result(cut_runs[each], tiny_run)


def test_in_bfloat16_a_run_is_resumed_bit_for_bit_and_in_that_type(ghost, tmp_path):
    """Also by a command that leaves the type to the machine, whatever that would choose for a new run."""
    uncut, resumed = tmp_path / "uncut", tmp_path / "resumed"
    ghost(*tiny_base(uncut, "--config.model.dtype=bfloat16"))
    shutil.copytree(uncut, resumed)
    (resumed / "status.json").unlink()
    shutil.rmtree(resumed / "checkpoints" / "8")
    result = ghost(*tiny_base(resumed, "--config.model.dtype=auto"))
    assert "after update 6" in result.stdout
    assert_same_run(resumed, uncut)


@pytest.mark.slow
@pytest.mark.parametrize("each", [*MORE_CUTS, ("base", 4, signal.SIGINT)], ids=str)
def test_a_run_cut_short_anywhere_goes_on_bit_for_bit(ghost, tiny_run, tmp_path, each):
    assert_same_result(cut(ghost, tiny_run, tmp_path, *each), tiny_run)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_again_and_again_at_any_moment_comes_to_the_same_end(ghost, tiny_run, tmp_path, seed):
    workdir, moments = tmp_path / "chat", random.Random(seed)
    for _ in range(4):  # in the imports, in Orbax, in validation, in the score: wherever it hits
        process = ghost.start(*tiny_chat(workdir))
        time.sleep(moments.uniform(4, 12))
        process.kill()
        ghost.finish(process, check=False)
    ghost(*tiny_chat(workdir))
    assert_same_result(workdir, tiny_run)


def test_two_processes_do_not_share_a_run_directory(ghost, tmp_path):
    command = tiny_base(tmp_path / "base", "--config.steps=100000")
    first = ghost.start(*command)
    while not (tmp_path / "base" / "config.json").exists() and first.poll() is None:
        time.sleep(0.05)
    assert f"Another process is training in {tmp_path / 'base'}." in ghost.refused(*command)
    assert first.poll() is None, "the first one is not disturbed"
    first.send_signal(signal.SIGINT)  # the same as Ctrl-C
    assert ghost.finish(first, check=False).stderr.startswith("error: Stopped on request.")


# ---- Other machines, other numbers ----


VARIANTS = {  # flags, environment, exit code
    "eight devices": (
        {"mesh.fsdp": 2, "mesh.tensor": 2},
        {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        0,
    ),
    "bfloat16": ({"model.dtype": "bfloat16"}, {}, 0),
    "scanned": ({"model.scan": True, "model.remat": True}, {}, 0),
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
            "log.norms": True,
            "log.trace_at": 3,
            "online_probe.every": 3,
            "online_probe.questions": 10,
        },
        {},
        0,
    ),
    "watched": (
        {
            "steps": 40,  # enough of them that three losses in a row rise, whatever the order of the data
            "optim.peak_lr": 3.0,
            "optim.min_lr": 3.0,
            "eval_every": 1,
            "divergence.stop": True,
            "data.validation_records": 100_000,
        },
        {},
        3,
    ),
    "diverges": ({"optim.peak_lr": 1e30, "optim.clip_norm": 1e30, "save_every": 1}, {}, 3),
}


@pytest.fixture(scope="module")
def variants(ghost, tiny_run, tmp_path_factory):
    """The tiny chat run in other ways, each beside its own copy of the base: `name -> (what it said, workdir)`."""

    def run(values: dict, env: dict, code: int):
        workdir = tiny_run.beside_base(tmp_path_factory.mktemp("variant"))
        result = ghost(*tiny_chat(workdir, *set_all(values)), env=env, check=False)
        assert result.returncode == code, result.stdout + result.stderr
        return result, workdir

    return ghost.together({name: functools.partial(run, *variant) for name, variant in VARIANTS.items()})


def test_eight_devices_learn_what_one_learns(variants, tiny_run):
    result, workdir = variants["eight devices"]
    assert "mesh data=2, fsdp=2, tensor=2" in result.stdout
    assert "8 simulated devices" in json.loads((workdir / "environment.json").read_text())["machine"]
    for here, there in zip(losses_of(workdir), losses_of(tiny_run.workdir), strict=True):
        assert here == pytest.approx(there, rel=1e-4, abs=1e-4)


def test_bfloat16_trains(variants, tiny_run):
    result, workdir = variants["bfloat16"]
    assert "; bfloat16" in result.stdout
    losses, exact = ([line["loss"] for line in losses_of(run)] for run in (workdir, tiny_run.workdir))
    assert losses == pytest.approx(exact, abs=0.05)  # finite, too: NaN is near nothing
    assert losses != exact


def test_a_run_that_diverges_stops_with_a_sound_checkpoint(variants):
    result, workdir = variants["diverges"]
    said = paragraph_of(result, 3)
    assert "The loss of update 2 is nan" in said or "The loss of update 2 is inf" in said
    assert not (workdir / "status.json").exists()
    assert len(losses_of(workdir)) == 1
    _, params, step = load_model(workdir, make_mesh())
    assert step == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_a_scanned_and_rematerialised_model_learns_what_the_plain_base_goes_on_to(variants, tiny_run):
    _, workdir = variants["scanned"]
    for here, there in zip(losses_of(workdir), losses_of(tiny_run.workdir), strict=True):
        assert here == pytest.approx(there, rel=1e-4, abs=1e-4)


def test_other_objectives_norms_and_a_trace_are_logged(variants, tiny_run):
    _, workdir = variants["objectives"]
    for line in losses_of(workdir):
        parts = (line["loss_lm"], line["loss_letter"], line["loss_ranking"])
        assert line["loss"] == pytest.approx(parts[0] + 0.5 * parts[1] + 0.5 * parts[2], rel=1e-4)
        assert min(parts[:2]) > 0
        assert line["grad_norm/block_0"] > 0
        assert line["skipped"] == 0
    assert sum(line["loss_ranking"] > 0 for line in losses_of(workdir)) > 4
    rates = [line["lr"] for line in losses_of(workdir)]
    assert rates[1:6] == pytest.approx([1e-3] * 5), "warm, then stable until the last fifth"
    assert rates[-1] == pytest.approx(1e-5)
    assert list((workdir / "trace").rglob("*.pb"))


def test_letters_on_held_out_questions_are_looked_at_while_it_trains(variants):
    _, workdir = variants["objectives"]
    probes = {line["step"]: line for line in losses_of(workdir) if "held_out_accuracy" in line}
    assert list(probes) == [3, 6]
    assert all(
        0 <= line["held_out_accuracy"] <= 1 and 0.25 <= line["held_out_top_letter"] <= 1 for line in probes.values()
    )
    assert "val_loss" not in probes[3], "a probe is no evaluation, nor does the watch take it for one"


def test_the_best_checkpoint_is_kept_beside_the_newest(variants):
    _, workdir = variants["objectives"]
    losses = {line["step"]: line["val_loss"] for line in losses_of(workdir) if "val_loss" in line}
    kept = {int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()}
    assert {6, 8, min(losses, key=losses.get)} == kept | {6, 8}


def test_a_loss_that_rises_and_rises_stops_the_run_where_the_config_asks(ghost, variants, tiny_run):
    result, workdir = variants["watched"]
    assert "The validation loss" in paragraph_of(result, 3)
    stopped = json.loads((workdir / "stopped.json").read_text())
    assert stopped["step"] < VARIANTS["watched"][0]["steps"]
    assert "The validation loss" in stopped["reason"]
    assert not (workdir / "status.json").exists()
    values = VARIANTS["watched"][0]
    again = ghost(*tiny_chat(workdir, *set_all(values)), check=False)
    assert paragraph_of(again, 3) == paragraph_of(result, 3)
    assert "training " not in again.stdout, "what was stopped is told again, and not trained again"


# ---- Several processes ----


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_base_first_and_one_goes_on_where_two_stopped(ghost, tiny_run, tmp_path):
    workdir = tmp_path / "chat"
    together = ["launch.local", "--processes=2", "--devices=4", "--", sys.executable, "-m"]
    process = ghost.start(*together, *tiny_chat(workdir))
    while len(updates_of(workdir)) < 4 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said = ghost.finish(process, check=False)
    assert "Stopped on request" in said.stderr + said.stdout
    assert 4 <= len(updates_of(workdir)) < 8, said.stdout + said.stderr
    ghost(*tiny_chat(workdir))
    for here, there in zip(losses_of(workdir), losses_of(tiny_run.workdir), strict=True):
        assert here == pytest.approx(there, rel=1e-4, abs=1e-4)


@pytest.mark.slow
def test_two_processes_probe_and_score_as_one_does(ghost, tiny_run, tmp_path):
    flags = set_all({"steps": 3, "online_probe.every": 2, "online_probe.questions": 6})
    together = ["launch.local", "--processes=2", "--devices=4", "--", sys.executable, "-m"]
    runs = {}
    for name, command in (("one", []), ("two", together)):
        runs[name] = tiny_run.beside_base(tmp_path / name)
        ghost(*command, *tiny_chat(runs[name], *flags))
    one, two = (score_of(workdir) for workdir in runs.values())
    assert one["predicted"] == two["predicted"]
    assert one["cloze"]["pmi"]["accuracy"] == pytest.approx(two["cloze"]["pmi"]["accuracy"])
    probes = [
        [line["held_out_accuracy"] for line in losses_of(run) if "held_out_accuracy" in line] for run in runs.values()
    ]
    assert probes[0] == probes[1]
    assert len(probes[0]) == 1


# ---- Refused, with a paragraph ----


def one_setting(flag: str):
    """Returns a maker of the tiny run's command with one more flag."""
    return lambda tmp_path, tiny_run: (tiny_chat(tmp_path / "runs" / "chat", flag), {})


def config_only(spec: str):
    return lambda tmp_path, tiny_run: (["ghost_jax.train", f"--config={spec}"], {})


def another_config(tmp_path, tiny_run):
    return tiny_chat(tiny_run.workdir, "--config.steps=9", "--config.optim.peak_lr=0.5"), {}


def another_tokenizer(tmp_path, tiny_run):
    workdir = tmp_path / "runs" / "chat"
    ignored = shutil.ignore_patterns("metrics.jsonl")
    base = shutil.copytree(tiny_run.base, workdir.parent / tiny_run.base.name, ignore=ignored)
    tokenizer.train(["another text altogether " * 50], 300).save(base / "tokenizer.json")
    return tiny_chat(workdir), {}


def no_ghost_data(tmp_path, tiny_run):
    return tiny_chat(tmp_path / "runs" / "chat"), {"GHOST_DATA": str(tmp_path / "nowhere")}


def raw_file(name: str, content: bytes):
    """Returns a maker of the tiny run's command with one file of a publisher in its data folder."""

    def make(tmp_path, tiny_run):
        (tmp_path / "raw").mkdir()
        (tmp_path / "raw" / name).write_bytes(content)
        return tiny_chat(tmp_path / "runs" / "chat", f"--data_dir={tmp_path}"), {}

    return make


XZ = lzma.compress(b'{"type": "bundle", "objects": []}' * 1000)
STIX = b'{"type": "bundle", "objects": [{"type": "attack-pattern", "name": 7}]}'
REFUSALS = {  # command, exit code, parts of the paragraph
    "an unknown flag": (one_setting("--nope=1"), 2, ["unrecognized arguments: --nope=1"]),
    "an unknown key": (one_setting("--config.optim.peek_lr=1"), 2, ['Did you mean "optim.peak_lr"?']),
    "a value of another type": (one_setting("--config.steps=many"), 2, ["--config.steps=many", "int"]),
    "an unknown preset": (config_only("configs/chat_v5.py:nan"), 2, ['Did you mean "nano"?']),
    "a value out of range": (one_setting("--config.optim.clip_norm=-1"), 2, ["optim.clip_norm is -1.0"]),
    "a mesh of other devices": (one_setting("--config.mesh.data=3"), 1, ["mesh of data=3", "1 device(s)"]),
    "no config file": (config_only("configs/nope.py"), 2, ["configs/nope.py"]),
    "a batch that does not divide": (
        one_setting("--config.micro_batch_size=3"),
        1,
        ["batch_size 8", "micro_batch_size=2 or 4"],
    ),
    "an unknown order": (one_setting("--config.evals.ctibench.orders=odd"), 2, ["odd", "cyclic, published, all"]),
    "another config": (another_config, 1, ["steps is 8 there and 9 here", "optim.peak_lr is 0.001 there and 0.5 here"]),
    "another tokenizer": (another_tokenizer, 1, ["was trained with another tokenizer", "pretrain_v05-nano"]),
    "no data folder": (
        one_setting("--data_dir=/nowhere/at/all"),
        1,
        ["/nowhere/at/all does not exist"],
    ),
    "GHOST_DATA nowhere": (no_ghost_data, 1, ["nowhere does not exist"]),
    "a truncated file": (raw_file("enterprise-attack-15.1.json.xz", XZ[:-20]), 1, ["enterprise-attack-15.1.json.xz"]),
    "a faulty STIX file": (raw_file("stix-capec-3.9.json", STIX), 1, ["stix-capec-3.9.json"]),
}


@pytest.fixture(scope="module")
def refusals(ghost, tiny_run, tmp_path_factory):
    """What each of REFUSALS said: `name -> (exit code, output, folder)`."""

    def refuse(make):
        folder = tmp_path_factory.mktemp("refused")
        command, env = make(folder, tiny_run)
        return ghost(*command, env=env, check=False), folder

    stores = stores_of(ghost.cache)
    said = ghost.together({name: functools.partial(refuse, make) for name, (make, _, _) in REFUSALS.items()})
    assert stores_of(ghost.cache) == stores, "a refused command leaves no store behind"
    return said


@pytest.mark.parametrize("name", REFUSALS)
def test_a_mistake_is_answered_with_a_paragraph(refusals, name):
    _, code, parts = REFUSALS[name]
    result, folder = refusals[name]
    said = paragraph_of(result, code)
    assert all(part in said for part in parts), said
    assert not list(folder.rglob("metrics.jsonl")), "nothing was trained"


# ---- A full disk ----


def test_a_full_disk_under_the_run_is_named_and_with_room_it_goes_on(ghost, tiny_run, small_disk):
    workdir = small_disk(1) / "base"
    assert ghost.refused(*tiny_base(workdir)).startswith("The disk is full.")
    assert not (workdir / "status.json").exists(), "it does not count as finished"
    small_disk(64)
    ghost(*tiny_base(workdir))
    assert_same_run(workdir, tiny_run.base)


def test_a_full_disk_under_the_cache_leaves_no_half_store(ghost, small_disk):
    cache = small_disk(1)
    prepare = ["ghost_jax.data.prepare", *tiny_chat(Path("unused"))[1:2]]
    assert ghost.refused(*prepare, env={"XDG_CACHE_HOME": str(cache)}).startswith("The disk is full.")
    assert all((store / "manifest.json").is_file() for store in cache.glob("ghost_jax/stores/*-*"))
    small_disk(64)
    ghost(*prepare, env={"XDG_CACHE_HOME": str(cache)})
