"""One published file to its place: resumed where it broke off, proven, and renamed only when it is whole."""

import contextlib
import errno
import fcntl
import hashlib
import os
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

import ghost_jax
from ghost_jax.data.published import GitBlob, Sha256
from ghost_jax.data.sources import files
from ghost_jax.errors import UserError
from ghost_jax.progress import Progress

CONNECT_SECONDS = 4.0
SILENCE_SECONDS = 30.0  # a server that sends nothing for so long is given up
SLOWEST = 1_000  # bytes/s; a server that sends less for SILENCE_SECONDS drips, and would for days
ATTEMPTS = 5  # how often one download is taken up again after its connection broke
_CHUNK = 1 << 16
_WORDS = (
    (socket.gaierror, "cannot be found: its name is unknown here"),
    (ssl.SSLError, "shows a certificate that is not trusted"),
    (ConnectionRefusedError, "refuses the connection"),
)
_NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN)
_TIMEOUTS = (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)


class Unavailable(Exception):
    """A file cannot be had now. The message says why in a few words."""


def session() -> requests.Session:
    """Returns an HTTP session that tries again, a few times and soon, where a server cannot be reached or is busy."""
    retry = urllib3.Retry(
        connect=2,
        read=0,
        status=3,
        other=0,
        backoff_factor=0.5,
        status_forcelist=(429, 500, 502, 503, 504),
        respect_retry_after_header=False,  # a server may ask for hours
        raise_on_status=False,
    )
    made = requests.Session()
    made.max_redirects = 5
    made.mount("http://", HTTPAdapter(max_retries=retry))
    made.mount("https://", HTTPAdapter(max_retries=retry))
    # Without `identity`, a server may compress on the way, and a position in the file would be none in what it sends.
    made.headers.update({"User-Agent": f"ghost_jax/{ghost_jax.__version__}", "Accept-Encoding": "identity"})
    return made


def in_few_words(fault: BaseException) -> str:
    """Returns why a connection failed, for a sentence that names the host before it."""
    causes = [fault]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    # The most telling first: the libraries call most of them a time-out as well.
    for kind, words in _WORDS:
        if any(isinstance(cause, kind) for cause in causes):
            return words
    if any(isinstance(cause, OSError) and cause.errno in _NO_ROUTE for cause in causes):
        return "cannot be reached: no route"
    if any(isinstance(cause, _TIMEOUTS) for cause in causes):
        return "does not answer"
    return f"breaks off the connection ({type(fault).__name__})"


def get(http: requests.Session, url: str, **options) -> requests.Response:
    """Returns the answer of a server, whatever its status. Raises Unavailable where there is none."""
    try:
        return http.get(url, timeout=(CONNECT_SECONDS, SILENCE_SECONDS), **options)
    except requests.RequestException as fault:
        raise Unavailable(f"{urlsplit(url).netloc} {in_few_words(fault)}") from fault


def refuse(response: requests.Response) -> Unavailable:
    """Returns the exception for a status that is none of success."""
    return Unavailable(f"{response.url} answers {response.status_code} {response.reason}")


def measure(path: Path, name: str, kind: type[Sha256] | type[GitBlob]) -> Sha256 | GitBlob:
    """Returns the proof of the content of `path`, which is packed as the suffix of `name` says.

    Raises UserError where it cannot be unpacked.
    """
    # Git hashes the size before the content.
    header = b"blob %d\0" % sum(map(len, _content(path, name))) if kind is GitBlob else b""
    digest = hashlib.new("sha1" if kind is GitBlob else "sha256", header)
    size = 0
    for chunk in _content(path, name):
        digest.update(chunk)
        size += len(chunk)
    return GitBlob(digest.hexdigest()) if kind is GitBlob else Sha256(digest.hexdigest(), size)


def _content(path: Path, name: str) -> Iterator[bytes]:
    # The opener goes by the suffix, and a partial download has lost its own: it is opened through a link of that name.
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / name
        link.symlink_to(path.resolve())
        with files.open_bytes(link) as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk


def stem(name: str) -> str:
    """Returns the name of a file without the suffix of its compression."""
    return next((name.removesuffix(suffix) for suffix in files.SUFFIXES if suffix and name.endswith(suffix)), name)


def is_whole(place: Path, proof: Sha256 | GitBlob) -> bool:
    """Says whether the proven content lies at a place, plain or in any compression."""
    for suffix in files.SUFFIXES:
        path = place.with_name(stem(place.name) + suffix)
        # A damaged archive is not whole, whatever the fault.
        with contextlib.suppress(UserError):
            if path.is_file() and measure(path, path.name, type(proof)) == proof:
                return True
    return False


def download(
    http: requests.Session,
    url: str,
    place: Path,
    proof: Sha256 | GitBlob,
    say: Callable[[str], None],
    before_rename: Callable[[], None] = lambda: None,
) -> None:
    """Brings the file at `url` to `place`, going on from `<place>.partial` where an earlier try left one.

    Of several processes with the same place one downloads; the others wait for it and find the file.

    Args:
      before_rename: is called once the file is proven, while no other process works on the same place.

    Raises:
      Unavailable: the server cannot be reached, refuses, or breaks off too often (the partial file is kept); or what
        it sends is not what `proof` says (the partial file is deleted).
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    partial, etag = place.with_name(place.name + ".partial"), place.with_name(place.name + ".partial.etag")
    with _alone(partial, say) as stream:
        if is_whole(place, proof):
            partial.unlink()
            etag.unlink(missing_ok=True)
            return
        try:
            _transfer(http, url, stream, etag, place.name)
        except BaseException:
            if not stream.seek(0, os.SEEK_END):
                partial.unlink()
                etag.unlink(missing_ok=True)
            raise
        etag.unlink(missing_ok=True)
        stream.flush()
        try:
            sent = measure(partial, place.name, type(proof))
        except UserError as fault:
            partial.unlink()
            raise Unavailable(f"{url} sends what cannot be unpacked; expected is {proof}") from fault
        if sent != proof:
            partial.unlink()
            raise Unavailable(f"{url} sends {sent}; expected is {proof}. What was sent is deleted")
        before_rename()
        os.replace(partial, place)


@contextlib.contextmanager
def _alone(partial: Path, say: Callable[[str], None]) -> Iterator[BinaryIO]:
    """Opens a partial file for appending, locked against other processes; the system frees it if this one dies."""
    while True:
        with partial.open("ab") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"another process fetches {partial.stem}: waiting for it")
                fcntl.flock(stream, fcntl.LOCK_EX)
            # While this one waited, the file may have been renamed to its place or deleted.
            if _is_at(partial, stream):
                yield stream
                return


def _is_at(path: Path, stream: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


def _transfer(http: requests.Session, url: str, stream: BinaryIO, etag: Path, name: str) -> None:
    """Appends to the partial file what it lacks; takes a connection that breaks up again, a bounded number of times."""
    for attempt in range(ATTEMPTS):
        time.sleep(attempt / 2)
        try:
            if _go_on(http, url, stream, etag, name):
                return
            reason = "does not send the part that is asked for"
        except (requests.RequestException, urllib3.exceptions.HTTPError) as fault:
            reason = in_few_words(fault)
    raise Unavailable(f"{urlsplit(url).netloc} {reason}, {ATTEMPTS} times; what came is kept for the next try")


def _go_on(http: requests.Session, url: str, stream: BinaryIO, etag: Path, name: str) -> bool:
    """Appends the rest of a file in one request. Returns False where the partial file had to be emptied instead."""
    position = stream.seek(0, os.SEEK_END)
    headers = {}
    if position:
        headers["Range"] = f"bytes={position}-"
        if etag.exists():
            headers["If-Range"] = etag.read_text()
    with get(http, url, headers=headers, stream=True) as response:
        part = response.headers.get("Content-Range", "")
        if response.status_code == 416 and part == f"bytes */{position}":
            return True  # it was ended just before it could be proven and renamed
        if response.status_code == 416 or (response.status_code == 206 and not part.startswith(f"bytes {position}-")):
            stream.truncate(0)
            return False
        if response.status_code == 200:  # the whole, because it was asked for, has changed, or is never sent in parts
            stream.truncate(0)
            position = 0
            _keep(etag, response.headers.get("ETag", ""))
        elif response.status_code != 206:
            raise refuse(response)
        left = response.raw.length_remaining  # None where the server does not say
        total = position + (left or 0)
        with Progress(f"fetching {name}", total, unit="bytes", done=position, shown=bool(left)) as progress:
            since, came = time.monotonic(), 0
            # Raw, because a file that is itself a .gz would be unpacked where the server calls that an encoding; and
            # as it comes, because each byte of a chunk that drips begins the wait for the next one anew.
            while chunk := response.raw.read1(_CHUNK, decode_content=False):
                stream.write(chunk)
                progress.advance(len(chunk))
                came += len(chunk)
                if (passed := time.monotonic() - since) > SILENCE_SECONDS:
                    if came < SLOWEST * passed:
                        host, speed = urlsplit(url).netloc, came / passed
                        raise Unavailable(f"{host} sends {speed:,.0f} bytes/s; what came is kept for the next try")
                    since, came = time.monotonic(), 0
    return True


def _keep(etag: Path, value: str) -> None:
    # A weak one does not promise the same bytes and may not be sent back with a range.
    if value.startswith('"'):
        etag.write_text(value)
    else:
        etag.unlink(missing_ok=True)
