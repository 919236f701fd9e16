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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

import ghost_jax
from ghost_jax.core.console import Progress
from ghost_jax.core.errors import UserError
from ghost_jax.data.downloads.published import GitBlob, Sha256
from ghost_jax.data.storage import files
from ghost_jax.data.storage.files import stem

CONNECT_SECONDS = 4.0
SILENCE_SECONDS = 30.0  # a server that sends nothing for so long is given up
SLOWEST = 1_000  # bytes/s; a server that sends less for SILENCE_SECONDS drips, and would for days
ATTEMPTS = 5  # how often one download is taken up again after its connection broke
BUSY = (429, 500, 502, 503, 504)  # statuses that may be another one soon
BUSY_SECONDS = (0.0, 1.0, 2.0)  # waited before a busy server is asked again; it may itself ask for hours
SPARE = 1 << 16  # bytes: this and a 64th more than expected may come; packing adds to what it cannot shrink
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
    """Returns an HTTP session that tries again, a few times and soon, where a server cannot be reached."""
    retry = urllib3.Retry(connect=2, read=0, status=0, other=0, backoff_factor=0.5)
    made = requests.Session()
    made.max_redirects = 5
    made.hooks["response"].append(_close_redirect)
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


def host_of(url: str) -> str:
    """Returns the host of an address and its port, if it names one, without a user's name and password."""
    return urlsplit(url).netloc.rpartition("@")[2]


def shown(url: str) -> str:
    """Returns an address as it may be shown: where a redirect leads, user, password and query may be secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{host_of(url)}{parts.path}"


def get(http: requests.Session, url: str, headers: Mapping[str, str] | None = None) -> requests.Response:
    """Returns the answer of a server, whatever its status, its content not yet read: close it.

    Raises Unavailable where there is none. A busy server is asked again here, because the library would first read to
    its end what comes with such an answer, and it need not have one.
    """
    options = {"headers": headers, "stream": True, "timeout": (CONNECT_SECONDS, SILENCE_SECONDS)}
    try:
        for pause in BUSY_SECONDS:
            response = http.get(url, **options)
            if response.status_code not in BUSY:
                return response
            response.close()
            time.sleep(pause)
        return http.get(url, **options)
    except (requests.RequestException, ValueError) as fault:  # ValueError: a redirect to what is no address
        raise Unavailable(f"{host_of(url)} {in_few_words(fault)}") from fault


def _close_redirect(response: requests.Response, **_) -> None:
    # Before it follows one, the library reads to its end what comes with it.
    if response.is_redirect:
        response.close()


def refuse(response: requests.Response) -> Unavailable:
    """Returns the exception for a status that is none of success."""
    return Unavailable(f"{shown(response.url)} answers {response.status_code} {response.reason}")


def read(http: requests.Session, url: str, most: int) -> bytes:
    """Returns what is at `url`, a few bytes that come at once.

    Raises Unavailable where it cannot be had, is more than `most` bytes, or takes longer than SILENCE_SECONDS.
    """
    content, deadline = b"", time.monotonic() + SILENCE_SECONDS
    with get(http, url) as response:
        if response.status_code != 200:
            raise refuse(response)
        try:
            while chunk := response.raw.read1(_CHUNK, decode_content=False):
                content += chunk
                if len(content) > most:
                    raise Unavailable(f"{shown(url)} is over {most:,} bytes, which is no note of a few lines")
                if time.monotonic() > deadline:
                    raise Unavailable(f"{host_of(url)} sends a few lines for {SILENCE_SECONDS:.0f} s and does not end")
        except urllib3.exceptions.HTTPError as fault:
            raise Unavailable(f"{host_of(url)} {in_few_words(fault)}") from fault
    return content


def with_spare(most: int) -> int:
    """Returns how many bytes may come, and how many they may unpack to, where `most` are expected.

    A little more is read to its end, so that what is said of it can name its hash; without end nothing is.
    """
    return most + most // 64 + SPARE


def measure(path: Path, name: str, like: Sha256 | GitBlob) -> Sha256 | GitBlob:
    """Returns the proof, of the kind of `like`, of the content of `path`, packed as the suffix of `name` says.

    Raises UserError where it cannot be unpacked, or unpacks to more than `like` allows.
    """
    git, size = isinstance(like, GitBlob), 0
    # Git hashes the size before the content.
    header = b"blob %d\0" % sum(map(len, _content(path, name, like.most))) if git else b""
    digest = hashlib.new("sha1" if git else "sha256", header)
    for chunk in _content(path, name, like.most):
        digest.update(chunk)
        size += len(chunk)
    return GitBlob(digest.hexdigest()) if git else Sha256(digest.hexdigest(), size)


def _content(path: Path, name: str, most: int) -> Iterator[bytes]:
    # The opener goes by the suffix, and a partial download has lost its own: it is opened through a link of that name.
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / name
        link.symlink_to(path.resolve())
        with files.open_bytes(link) as stream:
            left = with_spare(most)
            while chunk := stream.read(_CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise UserError(f"{path} holds more than the {most:,} bytes that its publisher's file has at most.")
                yield chunk


def is_whole(place: Path, proof: Sha256 | GitBlob) -> bool:
    """Says whether the proven content lies at a place, plain or in any compression."""
    for suffix in files.SUFFIXES:
        path = place.with_name(stem(place.name) + suffix)
        # A damaged archive is not whole, whatever the fault.
        with contextlib.suppress(UserError):
            if path.is_file() and measure(path, path.name, proof) == proof:
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
        it sends is not what `proof` says, or more (the partial file is deleted).
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    partial, etag = place.with_name(place.name + ".partial"), place.with_name(place.name + ".partial.etag")
    with _alone(partial, say) as stream:
        if is_whole(place, proof):
            partial.unlink()
            etag.unlink(missing_ok=True)
            return
        try:
            _transfer(http, url, stream, etag, place.name, proof)
        except BaseException:
            if not stream.seek(0, os.SEEK_END):
                partial.unlink()
                etag.unlink(missing_ok=True)
            raise
        etag.unlink(missing_ok=True)
        stream.flush()
        try:
            sent = measure(partial, place.name, proof)
        except UserError as fault:
            partial.unlink()
            raise Unavailable(
                f"{shown(url)} sends what cannot be unpacked, or unpacks to more than it should; expected is {proof}. "
                "What was sent is deleted"
            ) from fault
        if sent != proof:
            partial.unlink()
            raise Unavailable(f"{shown(url)} sends {sent}; expected is {proof}. What was sent is deleted")
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


def _transfer(
    http: requests.Session, url: str, stream: BinaryIO, etag: Path, name: str, proof: Sha256 | GitBlob
) -> None:
    """Appends to the partial file what it lacks; takes a connection that breaks up again, a bounded number of times."""
    for attempt in range(ATTEMPTS):
        time.sleep(attempt / 2)
        try:
            if _go_on(http, url, stream, etag, name, proof):
                return
            reason = "does not send the part that is asked for"
        except (requests.RequestException, urllib3.exceptions.HTTPError) as fault:
            reason = in_few_words(fault)
    raise Unavailable(f"{host_of(url)} {reason}, {ATTEMPTS} times; what came is kept for the next try")


def _go_on(http: requests.Session, url: str, stream: BinaryIO, etag: Path, name: str, proof: Sha256 | GitBlob) -> bool:
    """Appends the rest of a file in one request. Returns False where the partial file had to be emptied instead."""
    position = stream.seek(0, os.SEEK_END)
    headers = {}
    if position:
        headers["Range"] = f"bytes={position}-"
        if etag.exists():
            headers["If-Range"] = etag.read_text()
    with get(http, url, headers) as response:
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
                position += len(chunk)
                if position > with_spare(proof.most):
                    stream.truncate(0)
                    raise Unavailable(f"{shown(url)} sends more than it should; expected is {proof}. It is deleted")
                stream.write(chunk)
                progress.advance(len(chunk))
                came += len(chunk)
                if (passed := time.monotonic() - since) > SILENCE_SECONDS:
                    if came < SLOWEST * passed:
                        host, speed = host_of(url), came / passed
                        raise Unavailable(f"{host} sends {speed:,.0f} bytes/s; what came is kept for the next try")
                    since, came = time.monotonic(), 0
    return True


def _keep(etag: Path, value: str) -> None:
    # A weak one does not promise the same bytes and may not be sent back with a range.
    if value.startswith('"'):
        etag.write_text(value)
    else:
        etag.unlink(missing_ok=True)
