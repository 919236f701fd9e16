"""Downloads one published file: resumes a partial one, verifies its content, and renames it into place."""

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import requests
import urllib3

import ghost_jax
from ghost_jax.core.atomic_io import locked, write_bytes
from ghost_jax.core.console import Progress
from ghost_jax.core.errors import UserError, chain_of
from ghost_jax.core.paths import cache_dir
from ghost_jax.data.downloads.published import File
from ghost_jax.data.storage import files

CONNECT_SECONDS = 4.0
SILENCE_SECONDS = 30.0  # a server that sends nothing for so long is given up
SLOWEST = 1_000  # bytes/s; a server that sends less for SILENCE_SECONDS is given up: it would take days
ATTEMPTS = 5
PAUSE_SECONDS = 0.5  # before the second attempt; twice as long before the third, and so on
BUSY = (429, 500, 502, 503, 504)  # statuses that may change soon
SPARE = 1 << 16  # bytes: this and a 64th more than expected are accepted, since packing adds to what cannot shrink
_CHUNK = 1 << 16


class Unavailable(Exception):
    """A file cannot be downloaded now. The message is the reason in a few words."""


def session() -> requests.Session:
    """Returns an HTTP session that receives files byte for byte and does not read the body of a redirect."""
    made = requests.Session()
    made.max_redirects = 5
    made.hooks["response"].append(_close_redirect)
    # `identity`, because a position in the file is none in a stream that the server compresses.
    made.headers.update({"User-Agent": f"ghost_jax/{ghost_jax.__version__}", "Accept-Encoding": "identity"})
    return made


def _close_redirect(response: requests.Response, **_) -> None:
    # The library reads the body, however long, before it follows a redirect.
    if response.is_redirect:
        response.close()


def reason_of(fault: BaseException) -> str:
    """Returns the root cause of a failed connection: the system's message, or the exception's name.

    Other exceptions' messages may hold an address with a password.
    """
    *_, cause = chain_of(fault)
    return getattr(cause, "strerror", None) or type(cause).__name__


def host_of(url: str) -> str:
    """Returns the host and port of an address, without a user name and password."""
    return urlsplit(url).netloc.rpartition("@")[2]


def shown(url: str) -> str:
    """Returns an address for messages: user name, password and query of a redirect may be secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{host_of(url)}{parts.path}"


def with_spare(size: int) -> int:
    """Returns how many bytes are received, and unpacked, where `size` are expected."""
    return size + size // 64 + SPARE


def digest_of(path: Path, file: File, suffix: str) -> str:
    """Returns the digest of a file's uncompressed content, of the kind that `file` holds; `suffix` is its compression.

    It is "damaged data" where the file cannot be unpacked, or unpacks to more than the size of `file` allows.
    """
    try:
        if len(file.digest) == 64:
            digest = hashlib.sha256()
        else:  # Git hashes the size before the content.
            digest = hashlib.sha1(b"blob %d\0" % sum(map(len, _content(path, file, suffix))))
        for chunk in _content(path, file, suffix):
            digest.update(chunk)
        return digest.hexdigest()
    except UserError:
        return "damaged data"


def _content(path: Path, file: File, suffix: str) -> Iterator[bytes]:
    left = with_spare(file.size)
    with files.open_bytes(path, suffix) as stream:
        while chunk := stream.read(_CHUNK):
            left -= len(chunk)
            if left < 0:
                raise UserError(f"{path} unpacks to more than {file.size:,} bytes.")
            yield chunk


def is_verified(place: Path, file: File) -> bool:
    """Returns whether a place holds the content, plain or in any compression; CTIBench is read plain alone."""
    suffixes = ("",) if place.parent.name == "ctibench" else files.SUFFIXES
    paths = (place.with_name(files.stem(place.name) + suffix) for suffix in suffixes)
    return any(path.is_file() and digest_of(path, file, path.suffix) == file.digest for path in paths)


def download(http: requests.Session, url: str, place: Path, file: File, note: tuple[Path, bytes] | None = None) -> None:
    """Downloads the file at `url` to `place`, from where `<place>.partial` ends, unless a verified one is there.

    Of several processes with the same place, one downloads and the others wait.

    Args:
      note: the place and the content of a second file, which is written when the first one is verified.

    Raises:
      Unavailable: as `transfer`, with the partial file kept; or the content is another, and it is deleted.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(place.name + ".partial")
    lock = cache_dir() / "locks" / hashlib.sha256(str(place.resolve()).encode()).hexdigest()
    with locked(lock, place.name):
        is_new = not is_verified(place, file)
        if is_new:
            resumed = partial.exists()
            found = _received(http, url, partial, place, file)
            if found != file.digest and resumed:  # the file may have changed since its first part was received
                found = _received(http, url, partial, place, file)
            if found != file.digest:
                raise Unavailable(f"{shown(url)} sends {found}; expected is {file.digest}. The download is deleted")
        if note:
            write_bytes(*note)
        if is_new:
            os.replace(partial, place)


def _received(http: requests.Session, url: str, partial: Path, place: Path, file: File) -> str:
    """Downloads what a partial file lacks, and returns its digest; a file with a wrong one is deleted."""
    with partial.open("ab") as stream:
        try:
            transfer(http, url, stream, with_spare(file.size), f"fetching {place.name}")
        except BaseException:
            if not stream.seek(0, os.SEEK_END):
                partial.unlink()
            raise
    found = digest_of(partial, file, place.suffix)
    if found != file.digest:
        partial.unlink()
    return found


def transfer(http: requests.Session, url: str, stream: BinaryIO, limit: int, label: str = "") -> None:
    """Appends to `stream` what it lacks of the file at `url`, in up to `ATTEMPTS` connections.

    Args:
      limit: the most bytes that the file may have.
      label: names the transfer for the progress bar, which is shown where it is given.

    Raises:
      Unavailable: the server cannot be reached, refuses, breaks off too often, is too slow, or sends more than `limit`
        bytes. What was received is in `stream`, except in the last case.
    """
    for attempt in range(ATTEMPTS):
        time.sleep(attempt * PAUSE_SECONDS)
        try:
            reason = _append(http, url, stream, limit, label)
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as fault:
            reason = f"{host_of(url)}: {reason_of(fault)}"  # ValueError: a redirect to an invalid address
        if not reason:
            return
    raise Unavailable(f"{reason} ({ATTEMPTS} attempts; what was received is kept)")


def _append(http: requests.Session, url: str, stream: BinaryIO, limit: int, label: str) -> str:
    """Appends the rest of a file in one request. Returns why another request is needed, "" where none is."""
    position = stream.seek(0, os.SEEK_END)
    headers = {"Range": f"bytes={position}-"} if position else {}
    with http.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, SILENCE_SECONDS)) as response:
        status, part = response.status_code, response.headers.get("Content-Range", "")
        answer = f"{shown(response.url)} answers {status} {response.reason}"
        if status in BUSY:
            return answer
        if status == 416 and part == f"bytes */{position}":
            return ""  # complete: an earlier process ended before it could verify the file
        if status == 206 and part.startswith(f"bytes {position}-"):
            _copy(response, stream, position, limit, label)
            return ""
        if status not in (200, 206, 416):
            raise Unavailable(answer)
        stream.seek(0)
        stream.truncate()
        if status != 200:
            return f"{answer} to the request for the rest of the file"
        _copy(response, stream, 0, limit, label)
        return ""


def _copy(response: requests.Response, stream: BinaryIO, position: int, limit: int, label: str) -> None:
    """Writes what a server sends behind the first `position` bytes of a file."""
    left = response.raw.length_remaining  # None where the server does not tell
    total = position + (left or 0)
    with Progress(label, total, unit="bytes", done=position, shown=bool(label and left)) as progress:
        since, received = time.monotonic(), 0
        # Raw, because requests unpacks a .gz file where the server calls that an encoding; read1, because a read of
        # a full chunk from a slow server would restart its time-out with each byte.
        while chunk := response.raw.read1(_CHUNK, decode_content=False):
            position += len(chunk)
            if position > limit:
                stream.seek(0)
                stream.truncate()
                raise Unavailable(
                    f"{shown(response.url)} sends more than {limit:,} bytes. What was received is deleted"
                )
            stream.write(chunk)
            progress.advance(len(chunk))
            received += len(chunk)
            seconds = time.monotonic() - since
            if seconds > SILENCE_SECONDS:
                if received < SLOWEST * seconds:
                    speed = received / seconds
                    raise Unavailable(f"{host_of(response.url)} sends {speed:,.0f} bytes/s. What was received is kept")
                since, received = time.monotonic(), 0
