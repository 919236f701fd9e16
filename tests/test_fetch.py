"""What is fetched is whole and proven or absent, whatever the server, the network or a kill does to it."""

import contextlib
import fnmatch
import functools
import gzip
import hashlib
import http.server
import re
import signal
import socket
import subprocess
import threading
import time
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.items.formats import CTIBENCH_MCQ_SHA256
from ghost_jax.data import fetch, sources
from ghost_jax.data.downloads import download
from ghost_jax.data.downloads.download import Unavailable
from ghost_jax.data.downloads.published import PUBLISHED, UNPUBLISHED, Feed, File, GitBlob, Sha256
from ghost_jax.data.storage.files import open_bytes
from tests.conftest import WAIT, paragraph_of

FILES = [file for row in PUBLISHED.values() for file in row.files]
FEEDS = PUBLISHED["nvd"].files
CONTENT = bytes(range(256)) * 4096  # 1 MiB
PATH = "/thing.json"
START = 5  # seconds in which a process starts on a busy machine
CONNECTED = {"GHOST_OFFLINE": "0", "NO_PROXY": "*"}  # the environment of a command that may open connections


class Publisher:
    """A web server on this machine whose manners a test can change while it runs.

    Attributes:
      files: path -> what is served.
      ranges: whether parts are sent when they are asked for.
      etag: sent with every file where it is not empty.
      cut: so many bytes are sent before the connection is closed, in the first `cuts` answers.
      pause: seconds of silence after each 64 KiB.
      asked: (method, path, headers) of every request.
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.ranges, self.etag = True, '"1"'
        self.cut, self.cuts, self.pause = 0, 0, 0.0
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        publisher = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_HEAD(self) -> None:
                publisher.answer(self)

            def do_GET(self) -> None:
                publisher.answer(self)

            def log_message(self, *_) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        self.asked.append((request.command, request.path, dict(request.headers)))
        content = self.files.get(request.path)
        if content is None:
            request.send_error(404)
            return
        start, status = 0, 200
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if wanted and self.ranges and request.headers.get("If-Range", self.etag) == self.etag:
            start, status = int(wanted[1]), 206
        if start and start >= len(content):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(content)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(status)
        request.send_header("Content-Length", str(len(content) - start))
        if status == 206:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.etag:
            request.send_header("ETag", self.etag)
        request.end_headers()
        if request.command == "GET":
            with contextlib.suppress(ConnectionError):
                self._send(request, content[start:])

    def _send(self, request: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
        if self.cuts:
            self.cuts -= 1
            content, request.close_connection = content[: self.cut], True
        for start in range(0, len(content), 1 << 16):
            request.wfile.write(content[start : start + (1 << 16)])
            time.sleep(self.pause)

    def gets(self, path: str = PATH) -> list[dict[str, str]]:
        """Returns the headers of each download of a path."""
        return [headers for method, asked, headers in self.asked if method == "GET" and asked == path]


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    publisher = Publisher()
    thread = threading.Thread(target=publisher.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield publisher
    publisher.server.shutdown()
    publisher.server.server_close()
    thread.join()


@pytest.fixture
def small_feeds(publisher) -> dict[str, bytes]:
    """NVD's feeds as the publisher serves them, of a few bytes each, by their place below the data folder."""
    served = {}
    for file in FEEDS:
        content = f'{{"vulnerabilities": [], "of": "{file.path}"}}'.encode()
        served |= serve_feed(publisher, file, content)
    return served


def serve_feed(publisher: Publisher, file: File, content: bytes) -> dict[str, bytes]:
    packed = gzip.compress(content, mtime=0, compresslevel=0)
    note = f"lastModifiedDate:2026-11-22T03:00:00-05:00\r\nsize:{len(content)}\r\nzipSize:1\r\ngzSize:1\r\n"
    note += f"sha256:{hashlib.sha256(content).hexdigest().upper()}\r\n"
    publisher.files |= {urlsplit(file.url).path: packed, urlsplit(file.proof.url).path: note.encode()}
    return {file.path: packed, file.proof.path: note.encode()}


def command(names: str, folder: Path, mirror: str | None = None) -> list[str]:
    return [
        "ghost_jax.data.fetch",
        f"--sources={names}",
        f"--data_dir={folder}",
        *([f"--mirror={mirror}"] if mirror else []),
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def sha256(content: bytes) -> Sha256:
    return Sha256(hashlib.sha256(content).hexdigest(), len(content))


def download_thing(publisher: Publisher, place: Path, content: bytes = CONTENT) -> list[str]:
    """Downloads `PATH` to a place; returns what was said meanwhile."""
    said: list[str] = []
    with download.session() as session:
        session.trust_env = False
        download.download(session, publisher.url + PATH, place, sha256(content), said.append)
    return said


# The table


def test_every_published_place_is_one_that_a_source_looks_for():
    from evals.items.locate import FILE

    for name, row in PUBLISHED.items():
        for file in row.files:
            if name == "ctibench":
                assert file.path == FILE
            else:
                stem = download.stem(Path(file.path).name)
                assert any(fnmatch.fnmatchcase(stem, pattern) for pattern in sources.SOURCES[name].stems), file.path
                assert Path(file.path).parent.as_posix() == "raw"


def test_every_stem_of_a_published_source_has_its_file():
    for name in PUBLISHED.keys() & sources.SOURCES.keys():
        stems = [download.stem(Path(file.path).name) for file in PUBLISHED[name].files]
        for pattern in sources.SOURCES[name].stems:
            assert fnmatch.filter(stems, pattern), f"{name}: nobody publishes {pattern}"


def test_every_source_is_published_or_says_why_not():
    assert set(sources.SOURCES) | {"ctibench"} == PUBLISHED.keys() | UNPUBLISHED.keys()
    assert not PUBLISHED.keys() & UNPUBLISHED.keys()


def test_what_is_pinned_is_well_formed():
    assert len({file.path for file in FILES}) == len({file.url for file in FILES}) == len(FILES)
    assert len({urlsplit(file.url).path for file in FILES}) == len(FILES), "a mirror keeps the paths alone"
    for file in FILES:
        assert file.url.startswith("https://")
        if isinstance(file.proof, Feed):
            assert file.proof.url.startswith("https://")
            continue
        length = {Sha256: 64, GitBlob: 40}[type(file.proof)]
        assert re.fullmatch(rf"[0-9a-f]{{{length}}}", file.proof.digest)
        if urlsplit(file.url).netloc in ("raw.githubusercontent.com", "gitlab.com"):
            assert re.search(r"/[0-9a-f]{40}/", file.url), f"{file.url} is pinned to no commit"


def test_ctibench_is_the_one_that_the_evaluator_knows():
    assert PUBLISHED["ctibench"].files[0].proof.digest == CTIBENCH_MCQ_SHA256


# Proofs


@settings(max_examples=25)
@given(st.binary(max_size=2000))
def test_a_proof_is_of_the_content_however_it_is_packed(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("packed")
    (folder / "a.json").write_bytes(content)
    (folder / "a.json.gz").write_bytes(gzip.compress(content))
    with zipfile.ZipFile(folder / "a.json.zip", "w") as archive:
        archive.writestr("a.json", content)
    for path in folder.iterdir():
        assert download.measure(path, path.name, sha256(content)) == sha256(content)
        assert download.is_whole(folder / "a.json", sha256(content))


def test_a_blob_has_the_id_that_git_gives_it(tmp_path):
    (tmp_path / "a.json").write_bytes(CONTENT)
    git = subprocess.run(["git", "hash-object", tmp_path / "a.json"], capture_output=True, text=True, check=True)
    blob = GitBlob(git.stdout.strip())
    assert download.measure(tmp_path / "a.json", "a.json", blob) == blob


NO_NOTES = [b"", b"sha256:00", b"size:1\nsha256", b"size:one\nsha256:00", b"\xff", b"<html>"]


@pytest.mark.parametrize("note", [*NO_NOTES, b"size:-1\nsha256:00", b"size:1" + b"0" * 30 + b"\nsha256:00"])
def test_a_note_that_proves_nothing_is_refused(note):
    with pytest.raises(ValueError):
        fetch.read_note(note)


# One file, from servers of all manners


def test_a_file_arrives_whole(publisher, tmp_path):
    publisher.files[PATH] = CONTENT
    download_thing(publisher, tmp_path / "raw" / "thing.json")
    assert contents(tmp_path) == {"raw/thing.json": CONTENT}
    assert publisher.gets()[0]["Accept-Encoding"] == "identity"


def test_a_proven_file_is_not_fetched_again(publisher, tmp_path):
    (tmp_path / "thing.json.gz").write_bytes(gzip.compress(CONTENT))
    download_thing(publisher, tmp_path / "thing.json")
    assert not publisher.asked
    assert list(contents(tmp_path)) == ["thing.json.gz"]


@pytest.mark.parametrize("etag", ['"1"', 'W/"1"', ""])
def test_a_cut_connection_is_taken_up_where_it_broke(publisher, tmp_path, etag):
    publisher.files[PATH], publisher.etag = CONTENT, etag
    publisher.cut, publisher.cuts = 300_000, 2
    download_thing(publisher, tmp_path / "thing.json")
    assert contents(tmp_path) == {"thing.json": CONTENT}
    assert [headers.get("Range") for headers in publisher.gets()] == [None, "bytes=300000-", "bytes=600000-"]
    # A weak tag does not promise the same bytes.
    assert publisher.gets()[1].get("If-Range") == (etag if etag == '"1"' else None)


def test_a_server_that_sends_no_parts_is_asked_for_the_whole(publisher, tmp_path):
    publisher.files[PATH], publisher.ranges = CONTENT, False
    publisher.cut, publisher.cuts = 300_000, 1
    download_thing(publisher, tmp_path / "thing.json")
    assert contents(tmp_path) == {"thing.json": CONTENT}


def test_a_file_that_changed_since_is_begun_anew(publisher, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    publisher.files[PATH] = bytes(len(CONTENT))
    publisher.cut, publisher.cuts = 300_000, 1
    with pytest.raises(Unavailable, match="breaks off the connection"):
        download_thing(publisher, tmp_path / "thing.json")
    publisher.files[PATH], publisher.etag = CONTENT, '"2"'
    download_thing(publisher, tmp_path / "thing.json")
    assert contents(tmp_path) == {"thing.json": CONTENT}


def test_a_connection_that_always_breaks_is_given_up_and_what_came_is_kept(publisher, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 3)
    publisher.files[PATH] = CONTENT
    publisher.cut, publisher.cuts = 100_000, download.ATTEMPTS
    with pytest.raises(Unavailable, match="what came is kept"):
        download_thing(publisher, tmp_path / "thing.json")
    assert len(publisher.gets()) == download.ATTEMPTS
    kept = 100_000 * download.ATTEMPTS
    assert contents(tmp_path) == {"thing.json.partial": CONTENT[:kept], "thing.json.partial.etag": b'"1"'}
    download_thing(publisher, tmp_path / "thing.json")
    assert publisher.gets()[-1]["Range"] == f"bytes={kept}-"
    assert contents(tmp_path) == {"thing.json": CONTENT}


def test_a_partial_file_that_is_already_whole_is_proven_and_renamed(publisher, tmp_path):
    publisher.files[PATH] = CONTENT
    (tmp_path / "thing.json.partial").write_bytes(CONTENT)
    download_thing(publisher, tmp_path / "thing.json")
    assert contents(tmp_path) == {"thing.json": CONTENT}


def test_a_partial_file_that_is_too_long_is_begun_anew(publisher, tmp_path):
    publisher.files[PATH] = CONTENT
    (tmp_path / "thing.json.partial").write_bytes(CONTENT + b"more")
    download_thing(publisher, tmp_path / "thing.json")
    assert contents(tmp_path) == {"thing.json": CONTENT}


@pytest.mark.parametrize("wrong", [CONTENT[:-1], CONTENT + b"more", b""])
def test_a_wrong_content_is_deleted_and_both_hashes_are_said(publisher, tmp_path, wrong):
    publisher.files[PATH] = wrong
    with pytest.raises(Unavailable) as refused:
        download_thing(publisher, tmp_path / "thing.json")
    assert str(sha256(CONTENT)) in str(refused.value)
    assert str(sha256(wrong)) in str(refused.value)
    assert not contents(tmp_path)


def test_a_wrong_content_does_not_replace_what_was_there(publisher, tmp_path):
    (tmp_path / "thing.json").write_bytes(b"a user's own")
    publisher.files[PATH] = b"wrong"
    with pytest.raises(Unavailable):
        download_thing(publisher, tmp_path / "thing.json")
    assert contents(tmp_path) == {"thing.json": b"a user's own"}


def test_an_archive_that_cannot_be_unpacked_is_deleted(publisher, tmp_path):
    publisher.files[PATH] = b"no archive"
    with pytest.raises(Unavailable, match=sha256(CONTENT).digest):
        download_thing(publisher, tmp_path / "thing.json.gz")
    assert not contents(tmp_path)


def test_an_absent_file_is_named_with_the_status(publisher, tmp_path):
    with pytest.raises(Unavailable, match=rf"{re.escape(publisher.url + PATH)} answers 404"):
        download_thing(publisher, tmp_path / "thing.json")
    assert not contents(tmp_path)


def test_a_server_that_falls_silent_is_given_up(publisher, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    publisher.files[PATH], publisher.pause = CONTENT, 1.0
    with pytest.raises(Unavailable, match="does not answer"):
        download_thing(publisher, tmp_path / "thing.json")


# Servers without end


@contextlib.contextmanager
def endless(head: bytes, content: bytes = b"x" * (1 << 16)) -> Iterator[tuple[str, list[int]]]:
    """A server that answers with a head and then sends for ever; gives its address and the bytes that it got rid of."""
    sent = [0]

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 " + head + b"\r\n\r\n")
            while True:
                connection.sendall(content)
                sent[0] += len(content)

    def serve() -> None:
        with contextlib.suppress(OSError):  # closed, at the end
            while True:
                threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", sent


BUFFERED = 16 << 20  # bytes that the system takes from a server before anyone reads them
SIZED = b"200 OK\r\nContent-Length: 1000000000000"


@pytest.mark.parametrize("head", [b"200 OK", SIZED])
@pytest.mark.parametrize("name", ["thing.json", "thing.json.gz"])
def test_a_server_that_sends_without_end_is_given_up_and_fills_no_disk(tmp_path, head, name):
    with endless(head) as (url, sent), download.session() as session:
        session.trust_env = False
        with pytest.raises(Unavailable, match=f"sends more than it should.*{sha256(CONTENT).digest}"):
            download.download(session, url + PATH, tmp_path / name, sha256(CONTENT), print)
        assert sent[0] < download.with_spare(len(CONTENT)) + BUFFERED
    assert not contents(tmp_path)


def test_a_file_that_was_begun_counts_towards_its_size(tmp_path):
    (tmp_path / "thing.json.partial").write_bytes(CONTENT)
    head = b"206 Partial Content\r\nContent-Range: bytes %d-9999999999/10000000000" % len(CONTENT)
    with endless(head) as (url, sent), download.session() as session:
        session.trust_env = False
        with pytest.raises(Unavailable, match="sends more than it should"):
            download.download(session, url + PATH, tmp_path / "thing.json", sha256(CONTENT), print)
        assert sent[0] < download.SPARE + BUFFERED
    assert not contents(tmp_path)


def test_what_unpacks_to_more_than_it_should_is_not_unpacked_to_its_end(publisher, tmp_path, monkeypatch):
    publisher.files[PATH] = gzip.compress(bytes(64 << 20))  # 64 KiB
    unpacked, opened = [], download.files.open_bytes

    @contextlib.contextmanager
    def counted(path: Path) -> Iterator[types.SimpleNamespace]:
        def read(size: int) -> bytes:
            unpacked.append(size)
            return stream.read(size)

        with opened(path) as stream:
            yield types.SimpleNamespace(read=read)

    monkeypatch.setattr(download.files, "open_bytes", counted)
    with pytest.raises(Unavailable, match="unpacks to more than it should"):
        download_thing(publisher, tmp_path / "thing.json.gz")
    assert len(CONTENT) < sum(unpacked) < download.with_spare(len(CONTENT)) + (1 << 17)
    assert not contents(tmp_path)


def test_a_note_without_end_is_given_up(tmp_path, monkeypatch):
    monkeypatch.delenv("GHOST_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    with endless(b"200 OK") as (url, sent):
        reasons = fetch.bring(["nvd"], tmp_path, print, mirror=url)
        assert sent[0] < BUFFERED
    assert "is over 65,536 bytes, which is no note" in reasons["nvd"]
    assert not contents(tmp_path)


@pytest.mark.parametrize(
    ("head", "said"),
    [(b"302 Found\r\nLocation: /again", "TooManyRedirects"), (b"503 Busy", "answers 503 Busy")],
)
def test_what_comes_with_a_redirect_or_a_busy_answer_is_not_read(tmp_path, monkeypatch, head, said):
    monkeypatch.setattr(download, "BUSY_SECONDS", (0.0,))
    with endless(head) as (url, sent), download.session() as session:
        session.trust_env = False
        with pytest.raises(Unavailable, match=said):
            download.download(session, url + PATH, tmp_path / "thing.json", sha256(CONTENT), print)
        assert sent[0] < BUFFERED * 6
    assert not contents(tmp_path)


def test_a_redirect_is_followed_and_what_may_be_secret_in_it_is_not_said(publisher, tmp_path):
    publisher.files["/there"] = CONTENT
    with download.session() as session:
        session.trust_env = False
        for place, fate in (("there?token=canary", "is brought"), ("nowhere?token=canary", "answers 404")):
            secret = publisher.url.replace("//", "//me:canary@") + f"/{place}"
            with endless(b"302 Found\r\nLocation: " + secret.encode()) as (url, _):
                if fate == "is brought":
                    publisher.files["/there?token=canary"] = CONTENT
                    download.download(session, url + PATH, tmp_path / "thing.json", sha256(CONTENT), print)
                else:
                    with pytest.raises(Unavailable, match=fate) as refused:
                        download.download(session, url + PATH, tmp_path / "other.json", sha256(CONTENT), print)
                    assert f"{publisher.url}/nowhere answers 404" in str(refused.value)
                    assert "canary" not in str(refused.value)
    assert contents(tmp_path) == {"thing.json": CONTENT}


@pytest.mark.parametrize("target", ["http://[", "//", "file:///etc/passwd", "http://a..b/", ""])
def test_a_redirect_to_nowhere_is_told_like_any_failure(tmp_path, target):
    with endless(b"302 Found\r\nLocation: " + target.encode()) as (url, _), download.session() as session:
        session.trust_env = False
        with pytest.raises(Unavailable):
            download.download(session, url + PATH, tmp_path / "thing.json", sha256(CONTENT), print)
    assert not contents(tmp_path)


# The command


def test_the_command_fetches_from_a_mirror_and_only_once(ghost, publisher, small_feeds, tmp_path):
    words = command("nvd", tmp_path / "data", publisher.url)
    told = ghost(*words, env=CONNECTED).stdout
    assert contents(tmp_path / "data") == small_feeds
    assert "nvd: whole and proven" in told
    assert re.search(r"fetching nvdcve-2\.0-2002\.json\.gz \d+/\d+ bytes .*ETA", told)
    publisher.asked.clear()
    assert "nvd: whole and proven" in ghost(*words, env={"GHOST_OFFLINE": "1"}).stdout
    assert not publisher.asked


def test_a_killed_command_goes_on_where_it_was(ghost, publisher, small_feeds, tmp_path):
    first = FEEDS[0]
    big = serve_feed(publisher, first, CONTENT * 4)
    publisher.pause = 0.1
    words = command("nvd", tmp_path, publisher.url)
    process = ghost.start(*words, env=CONNECTED)
    partial = tmp_path / f"{first.path}.partial"
    deadline = time.monotonic() + WAIT
    while not (partial.exists() and partial.stat().st_size > 200_000) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert ghost.finish(process, check=False).returncode == -signal.SIGKILL
    kept = partial.stat().st_size
    assert 200_000 < kept < len(big[first.path])
    assert not (tmp_path / first.path).exists()
    publisher.pause = 0
    ghost(*words, env=CONNECTED)
    assert contents(tmp_path) == small_feeds | big
    assert publisher.gets(urlsplit(first.url).path)[-1]["Range"] == f"bytes={kept}-"


def test_commands_that_want_the_same_files_at_once_fetch_each_once(ghost, publisher, small_feeds, tmp_path):
    big = serve_feed(publisher, FEEDS[0], CONTENT * 4)
    publisher.pause = 0.02  # long enough for all of them to meet
    processes = [ghost.start(*command("nvd", tmp_path, publisher.url), env=CONNECTED) for _ in range(3)]
    told = [ghost.finish(process).stdout for process in processes]
    assert any("another process fetches nvdcve-2.0-2002.json.gz" in text for text in told)
    assert contents(tmp_path) == small_feeds | big
    for file in FEEDS:
        assert len(publisher.gets(urlsplit(file.url).path)) == 1


def test_a_damaged_file_is_fetched_anew_and_others_are_left(ghost, publisher, small_feeds, tmp_path):
    words = command("nvd", tmp_path, publisher.url)
    ghost(*words, env=CONNECTED)
    (tmp_path / FEEDS[3].path).write_bytes(b"damaged")
    publisher.asked.clear()
    told = ghost(*words, env=CONNECTED).stdout
    assert f"{tmp_path / FEEDS[3].path} is not what its publisher has" in told
    assert contents(tmp_path) == small_feeds
    fetched = {path for method, path, _ in publisher.asked if method == "GET"}
    assert fetched == {urlsplit(FEEDS[3].url).path, urlsplit(FEEDS[3].proof.url).path}


def test_a_wrong_hash_fails_the_command_and_the_other_sources_are_fetched(ghost, publisher, small_feeds, tmp_path):
    capec = PUBLISHED["capec"].files[0]
    publisher.files[urlsplit(capec.url).path] = b'{"type": "bundle"}'
    result = ghost(*command("capec,nvd", tmp_path, publisher.url), env=CONNECTED, check=False)
    message = paragraph_of(result, 1)
    assert str(capec.proof) in message
    assert len(re.findall(r"git blob [0-9a-f]{40}", message)) == 2
    assert contents(tmp_path) == small_feeds
    assert f"{capec.url} as {tmp_path / capec.path}" in result.stdout
    assert FEEDS[0].url not in result.stdout


@contextlib.contextmanager
def silent_host() -> Iterator[str]:
    """A host that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("mirror", "env", "reason"),
    [
        (None, {"GHOST_OFFLINE": "1"}, "GHOST_OFFLINE=1 forbids connections"),
        ("http://nowhere.invalid", CONNECTED, "nowhere.invalid cannot be found|no answer within"),
        (closed_port, CONNECTED, "refuses the connection"),
    ],
)
def test_offline_the_command_says_what_to_put_where(ghost, tmp_path, mirror, env, reason):
    address = mirror() if callable(mirror) else mirror
    words = command("attack,cwe,nvd", tmp_path, address)
    started = time.monotonic()
    result = ghost(*words, env=env, check=False)
    assert time.monotonic() - started < 5 + START
    assert re.search(reason, paragraph_of(result, 1))
    for file in (*PUBLISHED["attack"].files, *PUBLISHED["cwe"].files, *FEEDS):
        assert f"{file.url} as {tmp_path / file.path}" in result.stdout
        if isinstance(file.proof, Feed):
            assert f"{file.proof.url} as {tmp_path / file.proof.path}" in result.stdout
    assert not contents(tmp_path)


def test_a_silent_network_is_noticed_within_five_seconds(tmp_path, monkeypatch):
    monkeypatch.delenv("GHOST_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    with silent_host() as mirror:
        started = time.monotonic()
        reasons = fetch.bring(["attack", "capec", "nvd"], tmp_path, print, mirror=mirror)
        assert time.monotonic() - started < 5
    assert reasons.keys() == {"attack", "capec", "nvd"}
    assert not contents(tmp_path)


def test_bring_skips_at_once_where_connections_are_forbidden(tmp_path, monkeypatch):
    monkeypatch.setenv("GHOST_OFFLINE", "1")
    started = time.process_time()
    reasons = fetch.bring(["attack", "cti", "nvd", "a newcomer's"], tmp_path, print)
    assert time.process_time() - started < 0.05
    assert reasons["attack"] == reasons["nvd"] == "GHOST_OFFLINE=1 forbids connections"
    assert reasons["cti"] == UNPUBLISHED["cti"]
    assert reasons["a newcomer's"] == "no publisher is named"


def test_nothing_missing_needs_no_connection(tmp_path, monkeypatch):
    monkeypatch.setenv("GHOST_OFFLINE", "1")
    assert fetch.bring([], tmp_path, print) == {}


def test_mistakes_on_the_command_line_are_told_in_a_paragraph(ghost, tmp_path):
    def refused(names: str, mirror: str | None = None) -> str:
        return ghost.refused(*command(names, tmp_path, mirror), code=2)

    told = ghost.together(
        {
            "near": functools.partial(refused, "attack,capek"),
            "many": functools.partial(refused, "cti"),
            "mirror": functools.partial(refused, "attack", "ftp://somewhere"),
            "password": functools.partial(refused, "attack", "http://me:canary@somewhere"),
            "query": functools.partial(refused, "attack", "ftp://somewhere?token=canary"),
            "bracket": functools.partial(refused, "attack", "http://["),
        }
    )
    assert 'Did you mean "capec"?' in told["near"]
    assert "no single publisher" in told["many"]
    assert "http://" in told["mirror"]
    assert "is no web address" in told["bracket"]
    for secret in ("password", "query"):
        assert "--mirror holds a user name, password or query" in told[secret]
        assert "canary" not in told[secret]


# Real files


def test_the_pins_of_real_files_hold(ghost, publisher, ghost_data, tmp_path):
    (ctibench,), (cwe,) = PUBLISHED["ctibench"].files, PUBLISHED["cwe"].files
    publisher.files[urlsplit(ctibench.url).path] = (ghost_data / ctibench.path).read_bytes()
    xml = sources.locate("cwe", [ghost_data])
    if not xml:
        pytest.skip("GHOST_DATA has no CWE")
    with zipfile.ZipFile(tmp_path / "cwe.zip", "w") as archive, open_bytes(xml[0]) as stream:
        archive.writestr("cwec_v4.14.xml", stream.read())
    publisher.files[urlsplit(cwe.url).path] = (tmp_path / "cwe.zip").read_bytes()
    ghost(*command("ctibench,cwe", tmp_path / "data", publisher.url), env=CONNECTED)
    assert contents(tmp_path / "data").keys() == {ctibench.path, cwe.path}
