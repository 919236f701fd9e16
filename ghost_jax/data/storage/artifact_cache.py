"""Prepared data on disk: folders named by a fingerprint of what they were made from.

A store is built beside its place and renamed when its manifest is written, so a folder with the final name is
complete. The manifest holds the hash of every file and of itself: a store that was damaged since is rebuilt.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ghost_jax.core.atomic_io import locked, new_folder
from ghost_jax.core.errors import UserError
from ghost_jax.core.paths import cache_dir
from ghost_jax.data.storage import schema

MANIFEST = "manifest.json"
# The packages whose output stores hold: another version of any of them gives other stores.
TOOLS = ("array_record", "bm25s", "PyStemmer", "rensa", "tensorflow-datasets", "tokenizers")


def fingerprint(facts: Any) -> str:
    """Returns the SHA-256 of `facts` as canonical JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclasses.dataclass(frozen=True, slots=True)
class SplitCounts:
    """The size of one split of a dataset."""

    records: int  # rows; `ranked` of them are ranked questions
    ranked: int
    tokens: int  # tokens of all rows; the loss is over `supervised` of them
    supervised: int
    letters: dict[str, int]  # gold letter -> rows
    lengths: dict[int, int]  # tokens of a row -> rows
    sha256: str  # hash of the rows' content


class Manifest(BaseModel, extra="allow", frozen=True):
    """The record of a store, kept in its `manifest.json`; what else the builder reports is in `model_extra`."""

    # kind, versions, tools, made_from: the identity of the store, as `identity_of` returns it
    kind: str = ""
    versions: dict[str, int] = {}
    tools: dict[str, str] = {}
    made_from: dict = {}
    fingerprint: str = ""  # the hash of that identity; the store's name has its first 16 digits
    files: dict[str, str] = {}  # path in the store -> SHA-256
    sha256: str | None = None  # the hash of the other fields
    documents: dict[str, int] | None = None  # source -> documents of a part or corpus
    licenses: dict[str, str] | None = None  # source -> licence
    duplicates_dropped: dict[str, dict[str, int]] | None = None  # source -> reason -> documents
    datasets: dict[str, dict[str, SplitCounts]] | None = None  # dataset -> split -> counts

    def digest(self) -> str:
        """Returns the hash that `sha256` must be."""
        return fingerprint(self.model_dump(mode="json", exclude_none=True, exclude={"sha256"}))

    def write(self, store: Path) -> None:
        """Writes `manifest.json`, without the fields that are None."""
        text = json.dumps(self.model_dump(mode="json", exclude_none=True), indent=1, sort_keys=True)
        (store / MANIFEST).write_text(text, encoding="utf-8")


def manifest(store: Path) -> Manifest:
    """Reads a store's manifest. Raises UserError where it is absent or damaged."""
    try:
        return Manifest.model_validate_json((store / MANIFEST).read_bytes())
    except (OSError, ValueError) as fault:
        raise UserError(
            f"{store} is not a complete store ({fault}). Delete the folder and repeat the command."
        ) from None


def counts_of(store: Path, dataset: str) -> dict[str, SplitCounts]:
    """Returns the counts of each split of a dataset in its store."""
    return manifest(store).datasets[dataset]


def identity_of(kind: str, versions: dict[str, int], made_from: dict) -> dict:
    """Returns what decides the content of a store, as its manifest holds it; see `build`."""
    return {
        "kind": kind,
        "versions": {"shared": schema.VERSION, **versions},
        "tools": {tool: importlib.metadata.version(tool) for tool in TOOLS},
        "made_from": made_from,
    }


def build(kind: str, versions: dict[str, int], made_from: dict, write: Callable[[Path], dict]) -> Path:
    """Returns the store of this kind and inputs, built with `write` where it is missing or damaged.

    Of several processes that need it, one builds and the others wait.

    Args:
      kind: the first part of the folder's name.
      versions: name -> `VERSION` of each reader or builder that decides the content, beside `schema.VERSION`.
      made_from: every other input of the content, as JSON. Another store is in it by its name.
      write: fills an empty folder and returns the manifest's other fields.
    """
    identity = identity_of(kind, versions, made_from)
    place = cache_dir() / "stores" / f"{kind}-{fingerprint(identity)[:16]}"
    if find(place.name):
        return place
    with locked(place.parent / ".locks" / place.name, place.name):
        if find(place.name):
            return place
        if place.exists():
            print(f"the store {place} is corrupt: rebuilding it", flush=True)
        with new_folder(place) as partial:
            content = write(partial)
            unsigned = Manifest(**identity, **content, fingerprint=fingerprint(identity), files=_hashes(partial))
            unsigned.model_copy(update={"sha256": unsigned.digest()}).write(partial)
    return place


def find(name: str) -> Path | None:
    """Returns the store of this name, or None where it is not here or a byte is not as it was written."""
    place = cache_dir() / "stores" / name
    path = place / MANIFEST
    return place if path.is_file() and _verified(place, path.stat().st_mtime_ns) else None


@functools.cache  # a process verifies a store once; a rebuilt store has another time
def _verified(store: Path, written: int) -> bool:
    try:
        found = manifest(store)
        return found.sha256 == found.digest() and found.files == _hashes(store)
    except (UserError, OSError):
        return False


def _hashes(folder: Path) -> dict[str, str]:
    """Returns path -> SHA-256 of every file of a store but its manifest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}
