"""Prepared data on disk: folders named by what they were made from, whole or absent.

A store is built in a folder beside its place and renamed when its manifest is written, so a folder with the final name
is always complete. The manifest holds the hash of every file, and of itself: a store that was damaged since is made
anew. Its name is a fingerprint of its inputs, its options, the `VERSION` of each module that decides its content, and
the versions of the tools whose output it holds. A change of any of these gives another store, and nothing else does.
"""

import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ghost_jax.core.errors import UserError
from ghost_jax.core.paths import cache_dir


def fingerprint(facts: Any) -> str:
    """Returns the SHA-256 of `facts` as canonical JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity_of(kind: str, made_by: Sequence[ModuleType], made_from: dict) -> dict:
    """Returns all that decides the content of a store, as its manifest says it; see `build`."""
    tools = {tool for module in made_by for tool in getattr(module, "TOOLS", ())}
    return {
        "kind": kind,
        "versions": {module.__name__.rpartition(".")[2]: module.VERSION for module in made_by},
        "tools": {tool: importlib.metadata.version(tool) for tool in tools},
        "made_from": made_from,
    }


def build(kind: str, made_by: Sequence[ModuleType], made_from: dict, write: Callable[[Path], dict]) -> Path:
    """Returns the store of this kind and inputs, building it with `write` where it is not there yet.

    Where several processes want it, one builds and the others wait for it.

    Args:
      kind: the first part of the folder's name.
      made_by: the modules whose code decides the content. Each has a `VERSION`, which is raised when the same inputs
        give another content, and may have `TOOLS`, the distributions whose output the content holds.
      made_from: every other thing that decides the content; goes into the fingerprint and the manifest.
      write: fills an empty folder and returns what the manifest shall say of it.
    """
    identity = identity_of(kind, made_by, made_from)
    home = cache_dir() / "stores"
    place = home / f"{kind}-{fingerprint(identity)[:16]}"
    if is_whole(place):
        return place
    locks = home / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / place.name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go by the system if this process dies
        if is_whole(place):
            return place
        if place.exists():
            print(f"the store {place} is corrupt: rebuilding it", flush=True)
            shutil.rmtree(place)
        aside = home / f"{place.name}.partial"
        shutil.rmtree(aside, ignore_errors=True)  # what a killed process left: nobody else can be writing it
        aside.mkdir()
        try:
            content = write(aside)
            manifest = {**identity, "fingerprint": fingerprint(identity), **content}
            manifest = json.loads(json.dumps(manifest | {"files": _hashes(aside)}))  # keys are text, as when it is read
            manifest["sha256"] = fingerprint(manifest)
            (aside / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
            os.rename(aside, place)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return place


def find(name: str) -> Path | None:
    """Returns the whole store of this name, as a run's records give it, or None where it is not on this machine."""
    place = cache_dir() / "stores" / name
    return place if is_whole(place) else None


def is_whole(store: Path) -> bool:
    """Returns whether a store is there and every byte of it is as it was written."""
    path = store / "manifest.json"
    return path.is_file() and _proven(store, path.stat().st_mtime_ns)


@functools.cache  # a process checks a store once; one that is rebuilt has another time
def _proven(store: Path, written: int) -> bool:
    try:
        said = json.loads((store / "manifest.json").read_text(encoding="utf-8"))
        return said.pop("sha256") == fingerprint(said) and said["files"] == _hashes(store)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _hashes(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file of a store but its manifest, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / "manifest.json")
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}


def manifest(store: Path) -> dict:
    """Reads a store's manifest. Raises UserError where the store is absent or damaged."""
    try:
        return json.loads((store / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise UserError(f"{store} is no whole store ({fault}). Delete the folder and repeat the command.") from None
