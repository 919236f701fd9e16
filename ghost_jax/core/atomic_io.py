"""Atomic writes of files and folders (written beside their place, then renamed), and reads of UTF-8 text and JSON."""

import codecs
import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ghost_jax.core.errors import UserError
from ghost_jax.core.object_store import is_remote


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file and the folders above it; a link stays one, and a device or pipe is written to."""
    # A store shows an object when all of it has arrived; a rename would replace the device.
    if is_remote(path) or (path.exists() and not path.is_file()):
        path.write_bytes(content)
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # processes may write the same file
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, content: object) -> None:
    """Writes a JSON file. Raises ValueError for NaN or an infinite number."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False))


def without_bom(start: bytes, name: object) -> bytes:
    """Returns a text's start without its byte order mark. Raises UserError, which calls the text `name`, for UTF-16."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{name} is encoded in UTF-16. Convert it to UTF-8.")
    return start.removeprefix(codecs.BOM_UTF8)


def read_text(path: Path) -> str:
    """Reads a UTF-8 file. Raises UserError for UTF-16, UnicodeDecodeError (a ValueError) for other bytes."""
    return without_bom(path.read_bytes(), path).decode("utf-8")


def read_json(path: Path) -> Any:
    """Reads a JSON file of a run directory. Raises UserError where it is missing or invalid."""
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as fault:
        raise UserError(f"{path} cannot be read ({fault}). Restore it, or delete the run and train it again.") from None


OF_A_CONFIG = {"stage": str, "model": dict, "data": dict, "optim": dict, "steps": int}  # what every run's config has


def read_config(path: Path) -> dict:
    """Reads the config.json of a run. Raises UserError where it is missing, invalid, of an earlier version, or not of a
    run.
    """
    found = read_json(path)
    config = found if isinstance(found, dict) else {}
    if "watch" in config:  # as `divergence` was called before version 0.5, which renamed other keys too
        raise UserError(
            f"{path} is the config of a run of an earlier version of ghost_jax: it has the key watch. Train the run "
            "again, or use the version that environment.json beside it names."
        )
    missing = [key for key, kind in OF_A_CONFIG.items() if not isinstance(config.get(key), kind)]
    if missing:
        hint = "Repeat the command that made the run."
        if "architectures" in config:  # an export, or a model of Hugging Face's hub
            hint = f"Import this model first: python -m ghost_jax.import_model --from={path.parent} --workdir=DIR."
        raise UserError(f"{path} is not the config of a run: it has no valid {', '.join(missing)}. {hint}")
    return config


PARTIAL = ".partial"  # the folder, in an empty one, of what is being written


def is_free(place: Path) -> bool:
    """Returns whether a place is absent or an empty folder; what a killed process left in it does not count."""
    return not place.exists() or (place.is_dir() and all(path.name == PARTIAL for path in place.iterdir()))


@contextlib.contextmanager
def new_folder(place: Path) -> Iterator[Path]:
    """Yields an empty folder that replaces `place` when the block ends without a fault.

    An empty folder is filled, because it may be a mount point, which cannot be renamed; a config.json comes last.
    """
    filled, old = place.exists() and is_free(place), place.with_name(f"{place.name}.replaced")
    partial = place / PARTIAL if filled else place.with_name(place.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process
    partial.mkdir(parents=True)
    try:
        yield partial
        if filled:
            for path in sorted(partial.iterdir(), key=lambda path: path.name == "config.json"):
                os.rename(path, place / path.name)
            return
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(place, old)
        os.rename(partial, place)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def locked(lock: Path, what: str = "", refusal: str = "") -> Iterator[int]:
    """Holds a lock file and yields its descriptor; the system releases it when the process dies.

    Where another process holds it, waits and says that it makes `what`, or raises UserError with the message `refusal`.
    Raises UserError on a file system without locks.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if refusal:
                raise UserError(refusal) from None
            print(f"another process makes {what}: waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as fault:
            raise UserError(
                f"{lock.parent} is on a file system without locks ({fault.strerror}). Mount it with them (Lustre: -o "
                "flock), or use another --workdir or XDG_CACHE_HOME."
            ) from None
        yield file.fileno()
