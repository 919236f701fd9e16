"""The table of published files, and the command that fetches them."""

import fnmatch
import gzip
import hashlib
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from evals.items.locate import FILE as CTIBENCH_FILE
from ghost_jax.data import fetch, sources
from ghost_jax.data.downloads import download
from ghost_jax.data.downloads.published import PUBLISHED, UNPUBLISHED, File
from ghost_jax.data.items.formats import CTIBENCH_MCQ_SHA256
from ghost_jax.data.storage import files
from tests.conftest import paragraph_of
from tests.test_download import contents
from tests.web_server import Publisher, publishing

FEEDS = PUBLISHED["nvd"].files
CONNECTED = {"GHOST_OFFLINE": "0", "NO_PROXY": "*"}  # the environment of a command that may open connections


@pytest.fixture(autouse=True)
def connected(monkeypatch):
    for name, value in CONNECTED.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with publishing() as publisher:
        yield publisher


@pytest.fixture
def small_feeds(publisher) -> dict[str, bytes]:
    """NVD's feeds as the publisher serves them, of a few bytes each, by their place below the data folder."""
    served = {}
    for file in FEEDS:
        served |= serve_feed(publisher, file, f'{{"vulnerabilities": [], "of": "{file.path}"}}'.encode())
    return served


def serve_feed(publisher: Publisher, file: File, content: bytes) -> dict[str, bytes]:
    packed = gzip.compress(content, mtime=0, compresslevel=0)
    note = f"lastModifiedDate:2026-11-22T03:00:00-05:00\r\nsize:{len(content)}\r\ngzSize:1\r\n"
    note += f"sha256:{hashlib.sha256(content).hexdigest().upper()}\r\n"
    publisher.files |= {urlsplit(file.url).path: packed, urlsplit(file.note.url).path: note.encode()}
    return {file.path: packed, file.note.path: note.encode()}


def command(names: str, folder: Path, mirror: str | None = None) -> list[str]:
    words = ["ghost_jax.data.fetch", f"--sources={names}", f"--data_dir={folder}"]
    return [*words, f"--mirror={mirror}"] if mirror else words


def test_sources_and_published_files_match():
    assert {*sources.SOURCES, "ctibench"} == PUBLISHED.keys() | UNPUBLISHED.keys()
    assert not PUBLISHED.keys() & UNPUBLISHED.keys()
    assert PUBLISHED["ctibench"].files[0].path == CTIBENCH_FILE
    assert PUBLISHED["ctibench"].files[0].digest == CTIBENCH_MCQ_SHA256
    for name in PUBLISHED.keys() & sources.SOURCES.keys():
        assert {Path(file.path).parent.as_posix() for file in PUBLISHED[name].files} == {"raw"}
        published = [files.stem(Path(file.path).name) for file in PUBLISHED[name].files]
        stems = sources.SOURCES[name].stems
        assert all(fnmatch.filter(published, stem) for stem in stems), f"{name} has a stem that is not published"
        assert all(any(fnmatch.fnmatchcase(each, stem) for stem in stems) for each in published), name


def test_the_table_is_well_formed():
    table = [file for row in PUBLISHED.values() for file in row.files]
    for part in (lambda file: file.path, lambda file: file.url, lambda file: urlsplit(file.url).path):
        assert len(set(map(part, table))) == len(table)
    for file in table:
        assert file.url.startswith("https://")
        if file in FEEDS:
            assert file.note.url.endswith(".meta")
        else:
            assert re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", file.digest)
        if urlsplit(file.url).netloc in ("raw.githubusercontent.com", "gitlab.com"):
            assert re.search(r"/[0-9a-f]{40}/", file.url), f"{file.url} is pinned to no commit"


HASH = b"\nsha256:" + b"0" * 64


@pytest.mark.parametrize(
    "note",
    [HASH, b"size:1\nsha256", b"size:one" + HASH, b"\xff", b"<html>", b"size:-1" + HASH, b"size:1" + b"0" * 30 + HASH],
)
def test_a_note_without_a_hash_and_a_possible_size_is_refused(note):
    with pytest.raises(ValueError):
        fetch.read_note(FEEDS[0], note)


def test_the_command_fetches_from_a_mirror_and_repairs(ghost, publisher, small_feeds, tmp_path):
    words = command("nvd", tmp_path, publisher.url)
    ghost.here(*words, env=CONNECTED)
    assert contents(tmp_path) == small_feeds
    publisher.asked.clear()
    ghost.here(*words, env={"GHOST_OFFLINE": "1"})
    assert not publisher.asked
    (tmp_path / FEEDS[3].path).write_bytes(b"damaged")
    assert str(tmp_path / FEEDS[3].path) in ghost.here(*words, env=CONNECTED).stdout
    assert contents(tmp_path) == small_feeds
    fetched = {path for method, path, _ in publisher.asked if method == "GET"}
    assert fetched == {urlsplit(FEEDS[3].url).path, urlsplit(FEEDS[3].note.url).path}


def test_a_wrong_hash_fails_the_command_and_the_other_sources_are_fetched(ghost, publisher, small_feeds, tmp_path):
    (capec,) = PUBLISHED["capec"].files
    publisher.files[urlsplit(capec.url).path] = b'{"type": "bundle"}'
    result = ghost.here(*command("capec,nvd", tmp_path, publisher.url), env=CONNECTED, check=False)
    message = paragraph_of(result, 1)
    assert f"expected is {capec.digest}" in message
    assert contents(tmp_path) == small_feeds
    assert f"{capec.url} as {tmp_path / capec.path}" in result.stdout
    assert FEEDS[0].url not in result.stdout


@pytest.mark.parametrize(
    ("mirror", "env", "reason"),
    [
        (None, {"GHOST_OFFLINE": "1"}, "GHOST_OFFLINE=1"),
        ("http://nowhere.invalid", CONNECTED, "nowhere.invalid: "),
        ("http://127.0.0.1:9", CONNECTED, "refused"),  # the port of a service that discards all
    ],
)
def test_offline_the_command_lists_what_to_put_where(ghost, tmp_path, mirror, env, reason):
    result = ghost.here(*command("attack,nvd", tmp_path, mirror), env=env, check=False)
    assert re.search(reason, paragraph_of(result, 1))
    for file in (*PUBLISHED["attack"].files, *FEEDS):
        assert f"{file.url} as {tmp_path / file.path}" in result.stdout
        if not file.digest:
            assert f"{file.note.url} as {tmp_path / file.note.path}" in result.stdout
    assert not contents(tmp_path)


def test_a_silent_network_is_noticed_within_five_seconds(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        started = time.monotonic()
        mirror = f"http://127.0.0.1:{server.getsockname()[1]}"
        reasons = fetch.bring(["attack", "capec", "nvd"], tmp_path, print, mirror=mirror)
        assert time.monotonic() - started < 5
    assert reasons.keys() == {"attack", "capec", "nvd"}
    assert not contents(tmp_path)


@pytest.mark.parametrize(
    ("names", "mirror", "named"),
    [
        ("attack,capek", None, '"capec"'),
        ("cti", None, UNPUBLISHED["cti"]),
        ("attack", "ftp://somewhere", "http://"),
        ("attack", "http://[", "--mirror"),
        ("attack", "http://", "--mirror"),
        ("attack", "http://me:canary@somewhere", "--mirror"),
        ("attack", "http://somewhere?token=canary", "--mirror"),
    ],
)
def test_invalid_flags_are_refused_without_showing_secrets(ghost, tmp_path, names, mirror, named):
    message = ghost.refused_here(*command(names, tmp_path, mirror), code=2)
    assert named in message
    assert "canary" not in message


def test_the_hashes_of_real_files_hold(ghost_data):
    for name in ("ctibench", "cwe"):
        for file in PUBLISHED[name].files:
            assert download.is_verified(ghost_data / file.path, file)
