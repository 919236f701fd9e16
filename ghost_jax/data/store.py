"""Prepared data on disk: folders named by what they were made from, whole or absent.

A store is built in a folder beside its place and renamed when its manifest is written, so a folder with the final name
is always complete. The manifest holds the hash of every file, and of itself: a store that was damaged since is made
anew. Its name carries a fingerprint of its inputs and of the code that makes it, so a change of either gives another
store and an unchanged one is found again.
"""

import ast
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ghost_jax
from ghost_jax.errors import UserError
from ghost_jax.paths import cache_dir

ROOT = Path(ghost_jax.__file__).parents[1]  # holds our packages
PACKAGES = ("ghost_jax", "evals")
TOOLS = (
    "array_record",
    "bm25s",
    "defusedxml",
    "ijson",
    "numpy",
    "PyStemmer",
    "rensa",
    "tensorflow-datasets",
    "tokenizers",
)


def fingerprint(facts: Any) -> str:
    """Returns the SHA-256 of `facts` as canonical JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def code_fingerprint(*modules: str) -> str:
    """Returns the SHA-256 of the modules, of all of ours that they import, and of the data files beside those.

    An edit of a builder must not find the store from before it.
    """
    found: dict[str, Path] = {}
    left = list(modules)
    while left:
        name = left.pop()
        path = None if name in found else _file_of(name)
        if path:
            found[name] = path
            left += [name.rpartition(".")[0], *_imports_of(path)]  # importing a module runs its package too
    packages = [path.parent for path in found.values() if path.name == "__init__.py"]
    beside = [path for folder in packages for path in folder.glob("*/*") if path.suffix not in (".py", ".pyc")]
    files = {*found.values(), *(path for path in beside if path.is_file())}
    return fingerprint(sorted((path.relative_to(ROOT).as_posix(), sha256_of(path)) for path in files))


def _file_of(module: str) -> Path | None:
    """Returns the file of a module of ours, None for a name that is none. Nothing is imported to find it."""
    parts = module.split(".")
    if parts[0] not in PACKAGES:
        return None
    place = ROOT.joinpath(*parts)
    return next((path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file()), None)


def _imports_of(path: Path) -> Iterator[str]:
    """Yields the modules that a file imports, inside functions as well, and names that may be modules."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def build(kind: str, code: Sequence[str], made_from: dict, write: Callable[[Path], dict]) -> Path:
    """Returns the store of this kind and inputs, building it with `write` where it is not there yet.

    Where several processes want it, one builds and the others wait for it.

    Args:
      kind: the first part of the folder's name.
      code: names of the modules that decide the content; what they import is part of them.
      made_from: every other thing that decides the content; goes into the fingerprint and the manifest.
      write: fills an empty folder and returns what the manifest shall say of it.
    """
    identity = {"kind": kind, "code": code_fingerprint(*code), "made_from": made_from}
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
            print(f"the store {place} is damaged: it is made anew", flush=True)
            shutil.rmtree(place)
        aside = home / f"{place.name}.partial"
        shutil.rmtree(aside, ignore_errors=True)  # what a killed process left: nobody else can be writing it
        aside.mkdir()
        try:
            content = write(aside)
            manifest = {**identity, "fingerprint": fingerprint(identity), "tools": tools(), **content}
            manifest = json.loads(json.dumps(manifest | {"files": _hashes(aside)}))  # keys are text, as when it is read
            manifest["sha256"] = fingerprint(manifest)
            (aside / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
            os.rename(aside, place)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return place


@functools.cache
def tools() -> dict[str, str]:
    """Returns the versions of Python and `TOOLS`."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in TOOLS}


def find(name: str) -> Path | None:
    """Returns the whole store of this name, as a run's records give it, or None where it is not on this machine."""
    place = cache_dir() / "stores" / name
    return place if is_whole(place) else None


def is_whole(store: Path) -> bool:
    """Returns whether a store is there and every byte of it is as it was written."""
    path = store / "manifest.json"
    return path.is_file() and _proven(store, path.stat().st_mtime_ns)


@functools.cache  # a process proves a store once; one that is made anew has another time
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
