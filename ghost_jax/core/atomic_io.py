"""Files that are whole or absent: written beside their place and renamed, so that nothing half-written looks whole.

Text is UTF-8. A byte order mark at its start is skipped here, for every format that is read.
"""

import codecs
import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ghost_jax.core.errors import UserError

# Keys of a run's config up to 0.4.0 that have other names since.
OF_EARLIER_VERSIONS = ("model.hidden", "optim.floor_lr", "data.later", "data.overlong", "look", "watch")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file and the folders it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".partial")
    aside.write_bytes(content)
    os.replace(aside, path)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, content: object) -> None:
    """Writes a JSON file. Raises ValueError for a number that JSON has not: infinite, or none at all."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False))


def without_bom(start: bytes, name: object) -> bytes:
    """Returns the start of a UTF-8 text without its byte order mark.

    Raises UserError, which calls the text `name`, for a byte order mark of UTF-16.
    """
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{name} is encoded in UTF-16. Convert it to UTF-8.")
    return start.removeprefix(codecs.BOM_UTF8)


def read_text(path: Path) -> str:
    """Reads a UTF-8 file. Raises UserError for UTF-16, UnicodeDecodeError (a ValueError) for other bytes."""
    return without_bom(path.read_bytes(), path).decode("utf-8")


def read_json(path: Path) -> Any:
    """Reads a JSON file of a run directory. Raises UserError where it is absent or broken."""
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError) as fault:
        raise UserError(f"{path} cannot be read ({fault}). The run is incomplete: repeat its train command.") from None


def read_config(path: Path) -> dict:
    """Reads the config.json of a run. Raises UserError where it is absent, broken, or of an earlier version."""
    config = read_json(path)
    check_version(config, path)
    return config


def check_version(config: object, path: Path) -> None:
    """Raises UserError where a run's config, read from `path`, has keys that only an earlier version gave."""

    def is_there(key: str) -> bool:
        group, _, name = key.rpartition(".")
        keys = config.get(group) if group else config
        return isinstance(keys, dict) and name in keys

    found = [key for key in OF_EARLIER_VERSIONS if isinstance(config, dict) and is_there(key)]
    if found:
        raise UserError(
            f"{path} is the config of a run of an earlier version: it has {', '.join(found)}, which this version of "
            "ghost_jax does not read. Train the run again, or use the version that environment.json beside it names."
        )


@contextlib.contextmanager
def new_folder(place: Path) -> Iterator[Path]:
    """Yields an empty folder beside `place`, which takes that place, and what stood there, when the block ends well."""
    aside, old = (place.with_name(place.name + suffix) for suffix in (".partial", ".replaced"))
    shutil.rmtree(aside, ignore_errors=True)  # what a killed process left
    aside.mkdir(parents=True)
    try:
        yield aside
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(place, old)
        os.rename(aside, place)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
