"""A run directory: lock it, open a new run or check a resumed one, and write what it records.

docs/reliability.md lists its files; `ghost_jax.runs.run_record` reads and writes the JSON ones.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

import ghost_jax
from ghost_jax.config import load as config_lib
from ghost_jax.core import atomic_io, jax_setup
from ghost_jax.core.atomic_io import read_config, read_json, write_json, write_text
from ghost_jax.core.console import escape_controls
from ghost_jax.core.errors import UserError
from ghost_jax.core.object_store import is_remote, leased
from ghost_jax.core.paths import cache_dir
from ghost_jax.data import mixture
from ghost_jax.data.prepare import Prepared
from ghost_jax.data.storage import artifact_cache
from ghost_jax.parallel import distributed
from ghost_jax.runs import run_record

NFS_SECONDS = 90.0  # for which its clients may remember that a file was absent
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "ml_collections", "tokenizers")


def say(line: str) -> None:
    """Prints a line in the main process only."""
    if distributed.is_main():
        print(escape_controls(line), flush=True)


def name_of(config: ConfigDict) -> str:
    """Returns the directory name of a config, `<name>-<preset>`; the preset is "full" if none was given."""
    return f"{config.name}-{config.preset.replace(',', '-') or 'full'}"


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Locks a run directory in the main process. Raises UserError where another process trains in it."""
    if not distributed.is_main():
        yield
        return
    refusal = f"Another process is training in {workdir}. Wait until it is done, or give this run another --workdir."
    if not is_remote(workdir):
        with atomic_io.locked(workdir / ".lock", refusal=refusal):
            yield
        return
    # The local lock keeps other processes of this machine away: its lock in the store, if any, is of a dead process.
    own = cache_dir() / "locks" / hashlib.sha256(str(workdir).encode()).hexdigest()[:16] / ".lock"
    with atomic_io.locked(own, refusal=refusal) as lock:
        boot, of_lock = Path("/proc/sys/kernel/random/boot_id"), os.fstat(lock)
        start = boot.read_text(encoding="ascii").strip() if boot.is_file() else uuid.uuid4().hex
        with leased(workdir, f"{start} {of_lock.st_dev} {of_lock.st_ino}", refusal):
            yield


def check_shared(workdir: Path) -> None:
    """Raises UserError, in every process, where one sees a started run in `workdir` and another does not."""
    config = workdir / run_record.CONFIG
    if not distributed.any_process(config.is_file()):
        return
    end = time.monotonic() + NFS_SECONDS
    while not config.is_file() and time.monotonic() < end:
        time.sleep(1.0)
    if distributed.any_process(not config.is_file()):
        raise UserError(
            f"{workdir} is not one folder for all processes of this run: some do not see the {config.name} there. Name "
            "a --workdir in an object store, or on a disk that every machine mounts at that path."
        )


def open_run(workdir: Path, config: ConfigDict, words: Sequence[str] = ()) -> None:
    """Writes the environment and the config of a new run, or checks that a run is resumed with the same config.

    `words` are those of the command line. Raises UserError, with both values of each difference, where the config
    changed.
    """
    if not distributed.is_main():
        return
    if (workdir / run_record.CONFIG).is_file():
        check_same(workdir, config)
        return
    vocabulary = config.get("base", {}).get("vocabulary", "")  # of --base; its path is not published, its name is
    run_record.write(workdir, environment(config.spec, words, Path(vocabulary).parent.name))
    if diff := _git("diff", "HEAD"):
        write_text(workdir / "git.diff", diff)
    write_json(workdir / run_record.CONFIG, json.loads(config_lib.to_json(config)))  # last: the run is opened


def record_resumed(workdir: Path, update: int) -> None:
    """Adds this process's environment, from an update on, to a run's, where it is not the one of the start before."""
    has_record = (workdir / run_record.ENVIRONMENT).is_file()
    known = run_record.read_environment(workdir) if has_record else run_record.Environment()
    before = (known.resumed or [dataclasses.asdict(known)])[-1]
    here = {key: value for key, value in dataclasses.asdict(environment()).items() if key not in ("command", "resumed")}
    if any(before.get(key) != value for key, value in here.items()):
        resumed = [*(known.resumed or []), {"update": update, **here}]
        run_record.write(workdir, dataclasses.replace(known, resumed=resumed))


def check_same(workdir: Path, config: ConfigDict) -> None:
    """Raises UserError, with both values of each difference, where `workdir` holds a run of another config."""
    if not (workdir / run_record.CONFIG).is_file():
        return
    found, asked = read_config(workdir / run_record.CONFIG), json.loads(config_lib.to_json(config))
    differences = list(_differences(found, asked))
    if "base" in found and "base" in asked:
        differences += _differences(found["base"], asked["base"], "base.")
    if differences:
        raise UserError(
            f"{workdir} holds a run of another config: {'; '.join(differences)}. Repeat the command that made it to "
            "resume it, or put this one into another folder with --workdir=FOLDER/NAME (its base is written beside it)."
        )


def settle(config: ConfigDict, workdir: Path) -> None:
    """Replaces `model.dtype=auto` by the type of the run in `workdir`, or in a new run by the faster type here.

    A run is resumed in the type it began with, on any machine. Raises UserError where its config.json is broken.
    """
    if config.model.dtype == "auto":
        known = workdir / run_record.CONFIG
        config.model.dtype = read_config(known)["model"]["dtype"] if known.is_file() else jax_setup.fast_dtype()


def evals_of(workdir: Path, config: ConfigDict) -> list[str]:
    """Returns the evaluations of a config that scored a finished run; says where it asks for others, or otherwise."""
    asked = json.loads(config_lib.to_json(config))["evals"]
    scored = read_json(workdir / run_record.STATUS).get("evals", asked)
    if differences := list(_differences(scored, asked, "evals.")):
        say(
            f"NOTE: {workdir} was finished with other evaluations, which are shown: {'; '.join(differences)}. To score "
            f"it otherwise: python -m evals.ctibench --workdir={workdir}"
        )
    return [name for name in asked if name in scored]


def _differences(found: dict, asked: dict, prefix: str = "") -> Iterator[str]:
    for key in sorted(found.keys() | asked.keys()):
        name, there, here = f"{prefix}{key}", found.get(key), asked.get(key)
        if config_lib.FREE_KEYS & {name, name.removeprefix("base.")}:
            continue
        if prefix.endswith(config_lib.MIXTURE) and not there and not here:  # of code without this dataset
            continue
        if isinstance(there, dict) and isinstance(here, dict):
            yield from _differences(there, here, f"{name}.")
        elif there != here:
            yield f"{name} is {there} there and {here} here"


def record_data(config: ConfigDict, workdir: Path, base_workdir: Path, prepared: Prepared) -> None:
    """Writes what the run is trained on into its directory: data.json, the tokenizer, the held-out questions."""
    corpus = artifact_cache.manifest(prepared.corpus)
    mix = prepared.mix
    # The windows of a base hold the documents of the corpus.
    before = [prepared.corpus.name] if config.stage == "pretrain" else run_record.read_data(base_workdir).trained_on
    data = run_record.DataRecord(
        made_from=corpus.made_from,
        documents=corpus.documents,
        duplicates_dropped=corpus.duplicates_dropped,
        licenses=corpus.licenses,
        notes=prepared.notes,
        corpus=prepared.corpus.name,
        stores={name: place.name for name, place in mix.stores.items()},
        trained_on=[*before, *(mix.stores[name].name for name in mix.datasets if name != "pretrain")],
        mixture=mixture.shares(mix, config.steps),
        packing=mixture.packing_of(mix),
    )
    run_record.write(workdir, data)
    prepared.tokenizer.save(workdir / "tokenizer.json")
    # No run is trained on the validation and test facts.
    questions = {
        "heldout.jsonl": ("mcq", ("items-test.jsonl",)),
        "facts.jsonl": ("fact_mcq", ("items-validation.jsonl", "items-test.jsonl")),
        "exposure.jsonl": ("exposure", ("exposure.jsonl",)),
    } | {f"questions-{name}.jsonl": (name, ("items-test.jsonl",)) for name in config.data.get("questions", {})}
    for file, (dataset, parts) in questions.items():
        if dataset in mix.stores:
            texts = [(mix.stores[dataset] / part).read_text(encoding="utf-8") for part in parts]
            write_text(workdir / file, "".join(texts))


def environment(spec: str = "", words: Sequence[str] = (), base: str = "") -> run_record.Environment:
    """Returns the code, packages and machine of this process; `spec` is the config and its preset.

    Of `words` the record keeps those that decide what is trained; they name a user's own files as typed. `base` is the
    name of the base that --base named.
    """
    overrides, _ = config_lib.overrides_in(words)
    given = [f"--config={spec}", *([f"--base={base}"] if base else [])]
    return run_record.Environment(
        ghost_jax=ghost_jax.__version__,
        git_commit=_git("rev-parse", "HEAD").strip(),
        git_dirty=bool(_git("status", "--porcelain")),
        python=platform.python_version(),
        command=[*given, *(f"--config.{key}={text}" for key, text in overrides)] if spec else [],
        packages={name: importlib.metadata.version(name) for name in PACKAGES},
        machine=machine(),
        processes=jax.process_count(),
    )


def machine() -> str:
    """Returns the machine in words: "2-core x86_64 CPU" or "8 x NVIDIA H200"."""
    devices = jax.devices()
    if devices[0].platform == "cpu":
        simulated = f", {len(devices)} simulated devices" if len(devices) > 1 else ""
        return f"{os.cpu_count()}-core {platform.machine()} CPU{simulated}"
    return f"{len(devices)} x {devices[0].device_kind}"


def _git(*arguments: str) -> str:
    """Returns git's output on the code's own checkout; empty where there is none (an installed package)."""
    here, found = Path(__file__), ""
    try:
        # The repository around an installed package is the user's project, which does not track this file.
        for words in (("ls-files", "--error-unmatch", here.name), arguments):
            command = ["git", "-C", str(here.parent), *words]
            found = subprocess.run(command, capture_output=True, timeout=20, check=True).stdout.decode(errors="replace")
    except (OSError, subprocess.SubprocessError):
        return ""
    return found
