"""Faults caused on purpose under the real commands, on the embedded corpus at the smallest size.

A fault is survived where the command ends with one paragraph, or its repetition gives the metrics of the undisturbed
run; where no traceback is printed; where corruption is reported; and where no partly written file has a final name.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ghost_jax.core.atomic_io import read_json, write_text
from ghost_jax.core.errors import BAD_USAGE, FAILED
from ghost_jax.runs import run_record
from tests.bench.place import SAME, NotTried, Place, damage, disk, noticed
from tests.conftest import ROOT, WAIT, losses_of, paragraph_of, set_all, tiny_base, tiny_chat, updates_of
from tests.web_server import DRIPS, endless

TOGETHER_SECONDS = 60  # in which the other processes end when one is lost
ARRAYS = 1 << 14  # bytes; smaller files of a checkpoint are records and indexes, and not all of them are read


def attempt(name: str, at: Place) -> dict:
    """Tries one fault; returns whether it was survived (None: not tried), the message, and the seconds it took."""
    start = time.monotonic()
    try:
        survived, said = True, FAULTS[name](at)
    except NotTried as why:
        survived, said = None, str(why)
    except Exception as why:  # one fault must not cost the outcomes of the others
        line = traceback.extract_tb(why.__traceback__)[-1].line
        survived, said = False, f"{type(why).__name__}: {str(why)[-600:] or line}"
    said = said.replace(str(at.folder), "…").replace(str(at.finished.workdir.parent), "…")
    return {"fault": name, "survived": survived, "output": " ".join(said.split()), "seconds": time.monotonic() - start}


def killed_in_a_step(at: Place) -> str:
    at.ghost.stop_at(at.ghost.start(*at.train()), at.base, at.rng.randint(1, 6))
    return at.same_metrics()


def killed_in_a_save(at: Place) -> str:
    at.kill(at.train(), at.base, lambda: any(at.base.glob("checkpoints/*.orbax-checkpoint-tmp*")), within=0.1)
    return at.same_metrics()


def killed_in_data_preparation(at: Place) -> str:
    return at.same_metrics(killed_in_a_store(at, at.train(), "pretrain", within=0.3))


def killed_in_an_index_build(at: Place) -> str:
    return at.same_answers(killed_in_a_store(at, at.lexical(), "index", within=0.02))


def killed_in_a_store(at: Place, command: list[str], kind: str, within: float) -> dict[str, str]:
    """Kills a command while it writes a store into an empty cache; returns the environment with that cache."""
    cache = at.folder / "cache"
    env = {"XDG_CACHE_HOME": str(cache)}
    at.kill(command, cache, lambda: any(at.stores().glob(f"{kind}-*.partial/*")), within, env)
    assert not list(at.stores().glob(f"{kind}-*[0-9a-f]")), "a partly written store has a final name"
    return env


def killed_in_an_export(at: Place) -> str:
    out = at.folder / "exports" / "out"
    export = ["ghost_jax.export", f"--workdir={at.finished.workdir}", f"--out={out}"]
    at.kill(export, out.parent, lambda: any(out.parent.glob("out.partial/*")), within=0.3)
    assert not out.exists()
    at.ghost(*export)
    assert (out / "config.json").is_file()
    assert not out.with_name("out.partial").exists()
    return "repeated, the export is complete"


def killed_in_a_sweep(at: Place) -> str:
    sweep = at.folder / "own.py"
    setting = "Setting('a', 'configs/pretrain_v05.py:nano', {})"
    lines = ("from ghost_jax.sweeps.grid import Setting, Sweep", "", "", "def get_sweep(preset=''):")
    write_text(sweep, "\n".join([*lines, f"    return Sweep([{setting}], seeds=(0, 1))", ""]))
    runs = at.folder / "runs"
    words = ["ghost_jax.sweep", f"--config={sweep}", f"--runs={runs}", "--jobs=1", *at.train()[3:]]
    at.kill(words, runs, lambda: len(updates_of(runs / "a-seed0")) >= 2, within=0.1)
    subprocess.run(["flock", runs / ".lock", "true"], check=True, timeout=WAIT)  # the run that it started continues
    at.ghost(*words)
    assert losses_of(runs / "a-seed0") == losses_of(at.finished.base)
    assert run_record.is_finished(runs / "a-seed1")
    return SAME


def full_disk_under_a_run(at: Place) -> str:
    with disk(at.folder / "disk", "size=300k") as full:
        said = at.ghost.refused(*tiny_base(full / "base"))
        assert "disk is full" in said
        assert not run_record.is_finished(full / "base")
        subprocess.run(["mount", "-o", "remount,size=64m", full], check=True)
        at.ghost(*tiny_base(full / "base"))
        assert losses_of(full / "base") == losses_of(at.finished.base)
    return said


def full_disk_under_the_cache(at: Place) -> str:
    with disk(at.folder / "cache", "size=1m") as full:
        said = at.ghost.refused(*at.train(), env={"XDG_CACHE_HOME": str(full)})
        assert "disk is full" in said
        assert all((store / "manifest.json").is_file() for store in at.stores().glob("*-*"))
    return said


def full_disk_under_an_export(at: Place) -> str:
    with disk(at.folder / "disk", "size=100k") as full:
        said = at.ghost.refused("ghost_jax.export", f"--workdir={at.finished.workdir}", f"--out={full / 'out'}")
        assert not list(full.iterdir())
    return said


def a_read_only_run_directory(at: Place) -> str:
    with disk(at.folder / "disk", "ro") as closed:
        return at.ghost.refused(*tiny_base(closed / "base"))


def a_read_only_cache(at: Place) -> str:
    with disk(at.folder / "disk", "ro") as closed:
        # Matplotlib has a cache of its own there, and warns of it before anything of ours runs.
        env = {"XDG_CACHE_HOME": str(closed), "MPLCONFIGDIR": str(at.folder)}
        return at.ghost.refused(*at.train(), env=env)


def a_file_in_place_of_the_run_directory(at: Place) -> str:
    at.base.write_text("not a folder")
    return at.ghost.refused(*at.train())


def a_corrupt_checkpoint(at: Place, cut: bool) -> str:
    damage(at.unfinished() / at.rng.choice(("params", "rest")), at.rng, cut, least=ARRAYS)
    return noticed(at.same_metrics())


def a_corrupt_store(at: Place, kind: str, cut: bool) -> str:
    env, record = at.own_cache(), read_json(at.finished.base / "data.json")
    (read,) = (name for name in (record["corpus"], *record["stores"].values()) if name.startswith(f"{kind}-"))
    damage(at.stores() / read, at.rng, cut)
    return noticed(at.same_metrics(env))


def a_corrupt_index(at: Place, cut: bool) -> str:
    at.ghost(*at.lexical())
    env = at.own_cache()
    for place in at.stores().glob("index-*"):
        damage(place, at.rng, cut)
    return noticed(at.same_answers(env))


def a_corrupt_record(at: Place, name: str) -> str:
    workdir = shutil.copytree(at.finished.workdir, at.folder / "chat")
    shutil.copytree(at.finished.base, at.base)
    content = (workdir / name).read_bytes()
    (workdir / name).write_bytes(content[: len(content) // 2])
    result = at.ghost("evals.ctibench", f"--workdir={workdir}", "--orders=published", check=False)
    return paragraph_of(result, FAILED) if result.returncode else "scored: this file is not read"


def a_corrupt_compile_cache(at: Place) -> str:
    env = at.own_cache()
    compiled = sorted((at.folder / "cache" / "ghost_jax" / "xla").iterdir())
    for path in compiled:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return at.same_metrics(env)


def two_runs_in_one_directory(at: Place) -> str:
    command = [*at.train(), *set_all({"steps": 100_000})]
    first = at.ghost.start(*command)
    while not updates_of(at.base) and first.poll() is None:
        time.sleep(0.01)
    said = at.ghost.refused(*command)
    assert "Another process is training" in said
    assert first.poll() is None, "the first run ended"
    first.send_signal(signal.SIGTERM)
    at.ghost.finish(first, check=False)
    return said


def a_lost_worker(at: Place) -> str:
    together = ["launch.local", "--processes=2", "--devices=1", "--", sys.executable, "-m", *at.train()]
    launcher = at.ghost.start(*together)
    while len(updates_of(at.base)) < 3 and launcher.poll() is None:
        time.sleep(0.01)
    workers = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(workers[1]), signal.SIGKILL)
    lost = time.monotonic()
    result = at.ghost.finish(launcher, check=False)
    seconds = time.monotonic() - lost
    assert result.returncode == 128 + signal.SIGKILL
    assert "Another process of this run is gone" in " ".join(result.stderr.replace("[0]", "").split())
    assert seconds < TOGETHER_SECONDS
    at.ghost(*together)
    for here, there in zip(losses_of(at.base), losses_of(at.finished.base), strict=True):
        assert here == pytest.approx(there, rel=1e-4, abs=1e-4)
    return f"the other ended after {seconds:.0f} s with a paragraph; repeated, metrics agree to 1e-4"


def a_download_that_drips(at: Place) -> str:
    online = {"GHOST_OFFLINE": "0", "NO_PROXY": "*"}
    with endless(*DRIPS) as (url, _):
        fetch = ["ghost_jax.data.fetch", "--sources=capec", f"--data_dir={at.folder}", f"--mirror={url}"]
        said = at.ghost.refused(*fetch, env=online)
    assert not list(at.folder.rglob("*.json"))
    return said


def another_data_folder_for_a_finished_run(at: Place) -> str:
    before = losses_of(at.finished.workdir)
    said = at.ghost.refused(*tiny_chat(at.finished.workdir, f"--data_dir={at.folder / 'nowhere'}"))
    assert losses_of(at.finished.workdir) == before
    return said


def a_url_as_the_run_directory(at: Place) -> str:
    before = sorted(ROOT.iterdir())
    said = at.ghost.refused(*tiny_base("ftp://host/run"), code=BAD_USAGE)
    assert sorted(ROOT.iterdir()) == before
    return said


def a_run_directory_that_the_checkpoint_library_cannot_use(at: Place) -> str:
    said = at.ghost.refused(*tiny_base(at.folder / "run[1]"))
    assert not list(at.folder.glob("run*"))
    return said


def a_full_size_run_without_its_sources(at: Place) -> str:
    command = ["ghost_jax.train", "--config=configs/pretrain_v05.py", f"--workdir={at.folder / 'run'}"]
    said = at.ghost.refused(*command, env={"XDG_CACHE_HOME": str(at.folder / "cache")})
    assert "enterprise-attack-15.1.json" in said
    assert not list(at.folder.rglob("checkpoints"))
    return said


def a_dataset_of_the_mixture_without_a_record(at: Place) -> str:
    said = at.ghost.refused(*tiny_chat(at.folder / "chat", "--config.data.qa_sources=cwe"))
    assert "qa" in said
    assert not list(at.folder.rglob("checkpoints"))
    return said


def an_import_with_nan_weights(at: Place) -> str:
    exported = at.folder / "exported"
    at.ghost("ghost_jax.export", f"--workdir={at.finished.workdir}", f"--out={exported}")
    (weights,) = exported.glob("*.safetensors")
    tensors = load_file(weights)
    tensors["model.norm.weight"][0] = np.nan
    save_file(tensors, weights)
    said = at.ghost.refused("ghost_jax.import_model", f"--from={exported}", f"--workdir={at.folder / 'imported'}")
    assert "model.norm.weight" in said
    assert not (at.folder / "imported").exists()
    return said


FAULTS: dict[str, Callable[[Place], str]] = {
    "a read-only run directory": a_read_only_run_directory,
    "a file in place of the run directory": a_file_in_place_of_the_run_directory,
    "a finished run repeated with a wrong --data_dir": another_data_folder_for_a_finished_run,
    "a URL as the run directory": a_url_as_the_run_directory,
    "a run directory that the checkpoint library cannot use": a_run_directory_that_the_checkpoint_library_cannot_use,
    "a full-size run without its sources": a_full_size_run_without_its_sources,
    "a flipped bit in the newest checkpoint": partial(a_corrupt_checkpoint, cut=False),
    "a flipped bit in the training data": partial(a_corrupt_store, kind="pretrain", cut=False),
    "kill -9 in a step": killed_in_a_step,
    "kill -9 in a save": killed_in_a_save,
    "kill -9 in data preparation": killed_in_data_preparation,
    "kill -9 in an index build": killed_in_an_index_build,
    "kill -9 in an export": killed_in_an_export,
    "kill -9 in a sweep": killed_in_a_sweep,
    "a full disk under a run": full_disk_under_a_run,
    "a full disk under the cache": full_disk_under_the_cache,
    "a full disk under an export": full_disk_under_an_export,
    "a read-only cache": a_read_only_cache,
    "the newest checkpoint cut short": partial(a_corrupt_checkpoint, cut=True),
    "the training data cut short": partial(a_corrupt_store, kind="pretrain", cut=True),
    "a flipped bit in the corpus": partial(a_corrupt_store, kind="corpus", cut=False),
    "a flipped bit in the index": partial(a_corrupt_index, cut=False),
    "the index cut short": partial(a_corrupt_index, cut=True),
    "config.json of a run cut short": partial(a_corrupt_record, name="config.json"),
    "tokenizer.json of a run cut short": partial(a_corrupt_record, name="tokenizer.json"),
    "data.json of a run cut short": partial(a_corrupt_record, name="data.json"),
    "heldout.jsonl of a run cut short": partial(a_corrupt_record, name="heldout.jsonl"),
    "the cache of compiled programs cut short": a_corrupt_compile_cache,
    "two runs in one directory": two_runs_in_one_directory,
    "one of two processes lost": a_lost_worker,
    "a download that drips": a_download_that_drips,
    "a dataset of the mixture without a record": a_dataset_of_the_mixture_without_a_record,
    "an import with NaN weights": an_import_with_nan_weights,
}
