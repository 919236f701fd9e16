"""Paths of object stores, `gs://BUCKET/…` and `s3://BUCKET/…`, and replacements for what a store lacks, such as locks.

The packages gcsfs and s3fs (requirements-stores.txt) read and write the objects; each write is atomic.
"""

import contextlib
import importlib.util
import io
import json
import os
import posixpath
import re
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

import fsspec
from etils import epath

from ghost_jax.core.addresses import avoid_proxies, forbids
from ghost_jax.core.errors import FAILED, UsageError, UserError, say_error

PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
# The environment variables that lead a store's client to a server of one's own; the first that is set counts.
SERVERS = {"gs": ("STORAGE_EMULATOR_HOST",), "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")}
LEASE_SECONDS = 30.0  # without a renewal, after which the holder of a lock counts as lost
RENEWAL_SECONDS = 5.0

os.environ.setdefault("EPATH_USE_TF", "false")  # etils would prefer TensorFlow's file system where it is installed
for _scheme in ("gs", "gcs", "s3"):  # else a listing is remembered, and objects of other processes are not seen
    fsspec.config.conf.setdefault(_scheme, {}).setdefault("use_listings_cache", False)


class StorePath(epath.gpath.PosixGPath):
    """A path in an object store, with the methods of `pathlib.Path` that run directories need.

    A store has no folders: `mkdir` does nothing, and `is_dir` returns whether any object is below the path. Objects are
    read and written whole, which takes one request each; gcsfs's files block one another in several threads.
    """

    def open(self, mode: str = "r", *, encoding: str | None = None) -> IO:
        if "r" not in mode:
            return super().open(mode, encoding=encoding)
        stream = io.BytesIO(file_system(self).cat_file(str(self)))
        return stream if "b" in mode else io.TextIOWrapper(stream, encoding or "utf-8")

    def write_bytes(self, data: bytes) -> None:
        file_system(self).pipe_file(str(self), data)

    @property
    def parent(self) -> "StorePath":
        """The path above; of a bucket, as of a root, itself."""
        above = super().parent
        return self if str(above).endswith("://") else above

    def resolve(self, strict: bool = False) -> "StorePath":
        """Returns the path without `..`."""
        scheme, _, rest = str(self).partition("://")
        return type(self)(f"{scheme}://{posixpath.normpath(rest)}")

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing; s3fs would create a bucket that is missing."""


def is_remote(path: Path) -> bool:
    """Returns whether a path is in an object store."""
    return isinstance(path, epath.Path)


def path_of(text: str) -> Path:
    """Returns a typed path, local or in an object store; the `type=` of flags that may name either.

    Raises UsageError for nothing, which would be the working directory, a URL of another kind, or one without a bucket
    or with a sign of glob patterns, which would name other runs too; UserError where the package that reads the store
    is not installed or GHOST_OFFLINE=1 forbids the connection.
    """
    if not text:
        raise UsageError("The path of a flag is empty. Name one; a shell variable in it may not be set.")
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(os.path.expanduser(text))  # which shells leave as it is behind --flag=
    if scheme not in PACKAGES or not re.fullmatch(r"[^/*?[@]+(/[^*?[]*)?", rest):
        raise UsageError(
            f"{text} is neither a local path nor gs://BUCKET/… or s3://BUCKET/… without *, ? and [. Name one of these."
        )
    if forbids(next(filter(None, map(os.environ.get, SERVERS[scheme])), "")):
        raise UserError(
            f"{text} is in an object store, and GHOST_OFFLINE=1 forbids the connection. Unset it, or name a local path."
        )
    avoid_proxies()
    if importlib.util.find_spec(PACKAGES[scheme]) is None:
        raise UserError(
            f"{text} is in an object store, and the package {PACKAGES[scheme]} is not installed. Install it with "
            "`python -m pip install -r requirements-stores.txt`."
        )
    return StorePath(text)


def file_system(path: Path) -> fsspec.AbstractFileSystem:
    """Returns the file system of a path in a store."""
    return fsspec.filesystem(str(path).partition("://")[0])


def upload(folder: Path, target: Path) -> None:
    """Copies the files below a local folder into a store."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            (target / path.relative_to(folder).as_posix()).write_bytes(path.read_bytes())


@contextlib.contextmanager
def local_folder(folder: Path) -> Iterator[Path]:
    """Yields a local folder for a library that writes only to such: `folder`, or one that is uploaded at the end."""
    if not is_remote(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)
        upload(Path(scratch), folder)


def mirror(source: Path, target: Path) -> Path:
    """Copies what is new or changed below a path of a store to the local folder `target`, which it returns.

    Raises UserError where nothing is there, or where the name of an object leads out of `target`.
    """
    fs, known = file_system(source), target / ".mirrored.json"
    root = str(source).partition("://")[2].rstrip("/") + "/"
    objects = fs.find(str(source), detail=True)  # or `source` itself, where it is an object
    found = {path.removeprefix(root): info for path, info in objects.items() if info["size"] and path.startswith(root)}
    if not found:
        raise UserError(f"There is no object below {source}. Upload the data there, or name another --data_dir.")
    before = json.loads(known.read_text(encoding="utf-8")) if known.is_file() else {}
    versions = {name: str(info.get("etag") or info["ETag"]) for name, info in found.items()}
    if outside := [name for name in versions if PurePosixPath(name).is_absolute() or ".." in name.split("/")]:
        raise UserError(
            f"The object {root}{outside[0]} cannot be copied: its name leads out of the folder {target}. Rename it, or "
            "name another --data_dir."
        )
    changed = [name for name in versions if versions[name] != before.get(name) or not (target / name).is_file()]
    if changed:
        size = sum(found[name]["size"] for name in changed)
        print(f"[data] copying {len(changed)} files, {size / 1e6:,.1f} MB, of {source} to {target}", flush=True)
    for name in before.keys() - versions:
        (target / name).unlink(missing_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        partial = Path(scratch, "partial")
        for name in changed:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(root + name, str(partial))
            partial.replace(target / name)
        partial.write_text(json.dumps(versions), encoding="utf-8")
        partial.replace(known)
    return target


@contextlib.contextmanager
def leased(folder: Path, machine: str, refusal: str) -> Iterator[None]:
    """Locks a folder of a store until the block ends.

    The lock is an object with a number, made by a conditional create and renewed by its holder. The next number may
    be made where the newest was released or was not renewed for LEASE_SECONDS by this machine's clock. A holder that
    finds a newer one ends its process at once, because the other one writes now.

    Args:
      machine: of this process. The caller ensures that no other process of it has the lock, so its lock is a dead one.

    Raises UserError with the message `refusal` where another process holds the lock.
    """
    lock = _Lock(folder / "lock", machine)
    lock.acquire(refusal)
    ended = threading.Event()
    renewal = threading.Thread(target=lock.renew_until, args=(ended,), daemon=True)
    renewal.start()
    try:
        yield
    finally:
        ended.set()
        renewal.join()
        lock.release()


class _Lock:
    """One process's part in the lock of a folder: `folder/000001.json` and so on, of which the newest counts."""

    def __init__(self, folder: Path, machine: str):
        self._folder, self._number, self._renewals = folder, 0, 0
        self._owner = {"owner": f"{socket.gethostname()} {uuid.uuid4().hex}", "machine": machine}

    def acquire(self, refusal: str) -> None:
        while True:
            newest = self._newest()
            try:
                if newest:
                    self._wait_for(newest, refusal)
            except FileNotFoundError:  # a newer one took its place
                continue
            self._number = newest + 1
            with contextlib.suppress(FileExistsError):  # another process was faster
                file_system(self._folder).pipe_file(str(self._path()), self._content(), mode="create")
                if self._newest() == self._number:
                    break
                # Others locked and released the folder since it was listed. They may have removed this lock as well.
                self._path().unlink(missing_ok=True)
        for path in self._folder.glob("*.json"):  # the newest is kept for ever, so that numbers only grow
            if int(path.stem) < self._number:
                path.unlink(missing_ok=True)

    def renew_until(self, ended: threading.Event) -> None:
        while not ended.wait(RENEWAL_SECONDS):
            with contextlib.suppress(Exception):  # of each package its own: the next renewal may succeed
                if self._newest() > self._number:
                    say_error(
                        f"This process did not renew its lock on {self._folder.parent} for {LEASE_SECONDS:.0f} s, and "
                        "another one has it now. This one ends and writes nothing more."
                    )
                    os._exit(FAILED)
                self._renewals += 1
                self._path().write_bytes(self._content())

    def release(self) -> None:
        with contextlib.suppress(Exception):  # it expires by itself
            self._path().write_bytes(self._content(released=True))

    def _wait_for(self, number: int, refusal: str) -> None:
        """Returns when the lock `number` is free. Raises UserError where its holder renews it."""
        held = self._read(number)
        if held["machine"] == self._owner["machine"] or held["released"]:
            return
        print(f"waiting {LEASE_SECONDS:.0f} s for the lock of {held['owner']} on {self._folder.parent}", flush=True)
        end = time.monotonic() + LEASE_SECONDS
        while time.monotonic() < end:
            time.sleep(1.0)
            content = self._read(number)
            if content["released"]:
                return
            if content != held:
                raise UserError(refusal)

    def _newest(self) -> int:
        return max((int(path.stem) for path in self._folder.glob("*.json")), default=0)

    def _path(self, number: int | None = None) -> Path:
        return self._folder / f"{number or self._number:06}.json"

    def _read(self, number: int) -> dict[str, Any]:
        return json.loads(self._path(number).read_bytes())

    def _content(self, released: bool = False) -> bytes:
        return json.dumps(self._owner | {"renewals": self._renewals, "released": released}).encode()
