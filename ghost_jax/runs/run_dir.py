"""A run directory is the record of a run: what was asked, on what it ran, what came out.

config.json        the resolved config                metrics.jsonl, tensorboard/   losses and rates
environment.json   code, packages, machine            checkpoints/                  Orbax, whole ones only
data.json          stores, mixture, notes             tokenizer.json, heldout.jsonl
git.diff           uncommitted changes, if any        evals/*.json                  scores
status.json        written last: the run is finished
stopped.json       the watch stopped it, and why
"""

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

import ghost_jax
from ghost_jax.config import load as config_lib
from ghost_jax.core import jax_setup
from ghost_jax.core.atomic_io import check_version, read_json, read_text, write_json, write_text
from ghost_jax.core.errors import UserError
from ghost_jax.data import mixture
from ghost_jax.data.prepare import Prepared, mix_of
from ghost_jax.data.storage import artifact_cache
from ghost_jax.parallel import distributed

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "ml_collections", "tokenizers")
STOPPED = "stopped.json"


def say(line: str) -> None:
    """Prints a line once, however many processes there are."""
    if distributed.is_main():
        print(line, flush=True)


def name_of(config: ConfigDict) -> str:
    """Returns the directory name of a config, `<name>-<preset>`; the preset is "full" if none was given."""
    return f"{config.name}-{config.preset.replace(',', '-') or 'full'}"


@contextlib.contextmanager
def held(folder: Path, refusal: str) -> Iterator[int]:
    """Holds a folder for this process and yields the lock's file descriptor; the system lets go if the process dies.

    Raises UserError, saying `refusal`, where another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(refusal) from None
        yield lock.fileno()


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the directory for this run: of several processes, the main one. Raises UserError where another is in it."""
    if not distributed.is_main():
        yield
        return
    refusal = f"Another process is training in {workdir}. Wait until it is done, or give this run another --workdir."
    with held(workdir, refusal):
        yield


def mark_finished(workdir: Path, steps: int) -> None:
    """Says that everything of the run is there; written last."""
    if distributed.is_main():
        write_json(workdir / "status.json", {"status": "finished", "steps": steps})


def mark_stopped(workdir: Path, update: int, reason: str) -> None:
    """Says that the watch stopped the run, and why."""
    if distributed.is_main():
        write_json(workdir / STOPPED, {"step": update, "reason": reason})


def stopped(workdir: Path) -> dict | None:
    """Returns the step at which the watch stopped the run and why, None where it did not."""
    return read_json(workdir / STOPPED) if (workdir / STOPPED).is_file() else None


def is_finished(workdir: Path) -> bool:
    """Returns whether the run there came to its end."""
    return (workdir / "status.json").is_file()


def open_run(workdir: Path, config: ConfigDict) -> None:
    """Writes the config and the environment of a new run, or checks that an old one is continued with the same config.

    Raises UserError, with both sides of each difference, where the config changed.
    """
    path = workdir / "config.json"
    if not distributed.is_main():
        return
    asked = json.loads(config_lib.to_json(config))
    if not path.is_file():
        write_json(path, asked)
        write_json(workdir / "environment.json", environment(config.spec))
        if diff := _git("diff", "HEAD"):
            write_text(workdir / "git.diff", diff)
        return
    differences = list(_differences(config_lib.completed(_config_in(workdir)), config_lib.completed(asked)))
    if differences:
        raise UserError(
            f"{workdir} holds a run of another config: {'; '.join(differences)}. Repeat the command that made it to "
            "continue it, or give this one another --workdir (its base run lies beside it)."
        )


def settle(config: ConfigDict, workdir: Path) -> None:
    """Makes `model.dtype=auto` the type that the run in `workdir` has, or of a new one the faster type here.

    A run is resumed in the type it began with, on whatever machine. Raises UserError where its config is broken.
    """
    if config.model.dtype == "auto":
        begun = (workdir / "config.json").is_file()
        config.model.dtype = _config_in(workdir)["model"]["dtype"] if begun else jax_setup.fast_dtype()


def _config_in(workdir: Path) -> dict:
    path = workdir / "config.json"
    try:
        config = json.loads(read_text(path))
    except ValueError as fault:
        raise UserError(f"{path} is broken ({fault}). Delete {workdir} and repeat the command.") from None
    check_version(config, path)
    return config


def record_data(config: ConfigDict, workdir: Path, base_workdir: Path, prepared: Prepared) -> None:
    """Writes what the run is trained on into its directory: tokenizer, sources, mixture, notes, held-out questions."""
    corpus = artifact_cache.manifest(prepared.corpus)
    mix = mix_of(config, prepared)
    rows = mixture.packing_of(mix)
    record = {
        "made_from": corpus.made_from,
        "documents": corpus.documents,
        "duplicates_dropped": corpus.duplicates_dropped,
        "licenses": corpus.licenses,
        "notes": prepared.notes,
        "corpus": prepared.corpus.name,
        "stores": {name: place.name for name, place in prepared.stores.items()},
        "trained_on": trained_on(config, base_workdir, prepared),
        "mixture": [dataclasses.asdict(share) for share in mixture.shares(mix, config.steps, rows.records_per_row)],
        "packing": dataclasses.asdict(rows),
    }
    write_json(workdir / "data.json", record)
    prepared.tokenizer.save(workdir / "tokenizer.json")
    if "mcq" in prepared.stores:
        held_out = prepared.stores["mcq"] / "items-test.jsonl"
        write_text(workdir / "heldout.jsonl", held_out.read_text(encoding="utf-8"))
    if "fact_mcq" in prepared.stores:  # both splits that no run is trained on
        splits = [prepared.stores["fact_mcq"] / f"items-{split}.jsonl" for split in ("validation", "test")]
        write_text(workdir / "facts.jsonl", "".join(split.read_text(encoding="utf-8") for split in splits))
    if "exposure" in prepared.stores:
        write_text(workdir / "exposure.jsonl", (prepared.stores["exposure"] / "exposure.jsonl").read_text("utf-8"))


def trained_on(config: ConfigDict, base_workdir: Path, prepared: Prepared) -> list[str]:
    """Returns the names of the stores whose text a run learns from, its base's included."""
    mixed = [prepared.stores[name].name for name in mix_of(config, prepared).datasets if name != "pretrain"]
    if config.stage == "pretrain":
        return [prepared.corpus.name, *mixed]  # the windows hold the documents of the corpus
    return [*read_json(base_workdir / "data.json")["trained_on"], *mixed]


def _differences(found: dict, asked: dict, prefix: str = "") -> Iterator[str]:
    for key in sorted(found.keys() | asked.keys()):
        if f"{prefix}{key}" in config_lib.FREE_KEYS:
            continue
        there, here = found.get(key), asked.get(key)
        if isinstance(there, dict) and isinstance(here, dict):
            yield from _differences(there, here, f"{prefix}{key}.")
        elif there != here:
            yield f"{prefix}{key} is {there} there and {here} here"


def environment(spec: str = "") -> dict:
    """Returns what a reader needs to repeat the run: code, packages, machine; `spec` is the config and its preset."""
    return {
        "ghost_jax": ghost_jax.__version__,
        "git_commit": _git("rev-parse", "HEAD").strip(),
        "git_dirty": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "command": _command(spec),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": machine(),
        "processes": jax.process_count(),
    }


def _command(spec: str) -> list[str]:
    """Returns the part of the command line that decides what is trained, without any folder of the user."""
    overrides, _ = config_lib.overrides_in(sys.argv[1:])
    return [f"--config={spec}", *(f"--config.{key}={text}" for key, text in overrides)] if spec else []


def machine() -> str:
    """Returns the machine in words: "2-core x86_64 CPU" or "8 x NVIDIA H200"."""
    devices = jax.devices()
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        simulated = f", {len(devices)} simulated devices" if len(devices) > 1 else ""
        return f"{os.cpu_count()}-core {platform.machine()} CPU{simulated}"
    return f"{len(devices)} x {kind}"


def _git(*arguments: str) -> str:
    """Returns what git prints about the code's own checkout, empty where there is none (an installed package)."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
