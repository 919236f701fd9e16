"""Paths on this machine: typed ones, the user's cache, and the folders with data."""

import functools
import hashlib
import os
from pathlib import Path

from ghost_jax.core.atomic_io import locked
from ghost_jax.core.errors import UsageError, UserError
from ghost_jax.core.object_store import is_remote, mirror, path_of


def local_path(text: str) -> Path:
    """Returns a typed path; the `type=` of every such flag. Raises UsageError for a URL or nothing."""
    if "://" in text:
        raise UsageError(f"{text} is a URL, and a local path is needed. Mount or download it, and name the local path.")
    return path_of(text)


def cache_dir() -> Path:
    """Returns the user's cache of this project: `$XDG_CACHE_HOME/ghost_jax`, by default `~/.cache/ghost_jax`."""
    return local_path(os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")) / "ghost_jax"


def data_folders(data_dir: Path | None) -> list[Path]:
    """Returns the folders with data, in order: `--data_dir`, `$GHOST_DATA`, the user's cache.

    One in an object store is copied to the cache first, once a process. Raises UserError where one of the first two was
    given and does not exist.
    """
    folders = [_local(str(folder)) for folder in (data_dir, os.environ.get("GHOST_DATA")) if folder]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(
                f"The data folder {folder} does not exist. Give --data_dir or GHOST_DATA a folder that holds raw/, "
                "corpus/ and ctibench/, or leave both unset: a preset named nano then uses the embedded pack."
            )
    return [*folders, cache_dir() / "data"]


@functools.cache
def _local(folder: str) -> Path:
    path = path_of(folder)
    if not is_remote(path):
        return path
    place = cache_dir() / "mirrors" / hashlib.sha256(folder.encode()).hexdigest()[:16]
    with locked(place.with_suffix(".lock"), f"the copy of {folder}"):  # processes of a host start together
        return mirror(path, place)
