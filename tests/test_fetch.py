"""The table of published files, the download of one, complete and verified or absent, and the command that fetches."""

import fnmatch
import gzip
import hashlib
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from evals.items.ctibench import FILE as CTIBENCH_FILE
from ghost_jax.data import fetch, sources
from ghost_jax.data.downloads import download
from ghost_jax.data.downloads.download import Unavailable
from ghost_jax.data.downloads.published import PUBLISHED, UNPUBLISHED, File
from ghost_jax.data.items.formats import CTIBENCH_MCQ_SHA256
from ghost_jax.data.storage import files
from tests.conftest import paragraph_of
from tests.test_sources_formats import COMPRESSIONS, write
from tests.web_server import DRIPS, PATH, Publisher, endless, publishing

FEEDS = PUBLISHED["nvd"].files
CONNECTED = {"GHOST_OFFLINE": "0", "NO_PROXY": "*"}  # the environment of a command that may open connections
CONTENT = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.01)
    for name, value in CONNECTED.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with publishing() as publisher:
        yield publisher


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_every_file_is_pinned_and_read_by_a_source():
    assert {*sources.SOURCES, "ctibench"} == PUBLISHED.keys() | UNPUBLISHED.keys()
    assert not PUBLISHED.keys() & UNPUBLISHED.keys()
    ctibench = PUBLISHED["ctibench"].files[0]
    assert (ctibench.path, ctibench.digest) == (CTIBENCH_FILE, CTIBENCH_MCQ_SHA256)
    for name in PUBLISHED.keys() & sources.SOURCES.keys():
        places = [Path(file.path) for file in PUBLISHED[name].files]
        stems = sources.SOURCES[name].stems
        assert {place.parent.as_posix() for place in places} == {"raw"}
        assert all(any(fnmatch.fnmatchcase(files.stem(place.name), stem) for stem in stems) for place in places)
        assert all(any(fnmatch.fnmatchcase(files.stem(place.name), stem) for place in places) for stem in stems)
    table = [file for row in PUBLISHED.values() for file in row.files]
    assert len({file.path for file in table}) == len({urlsplit(file.url).path for file in table}) == len(table)
    assert all(re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", file.digest) for file in table if file not in FEEDS)


SIZES = (b"", b"size:one", b"size:-1", b"size:1" + b"0" * 30)


@pytest.mark.parametrize(
    "note", [b"size:1\nsha256", b"\xff", b"<html>", *(size + b"\nsha256:" + b"0" * 64 for size in SIZES)]
)
def test_a_note_without_a_hash_and_a_possible_size_is_refused(note):
    with pytest.raises(ValueError):
        fetch.read_note(FEEDS[0], note)


def proof_of(content: bytes) -> File:
    return File("", "", hashlib.sha256(content).hexdigest(), len(content))


def downloaded(url: str, place: Path) -> dict[str, bytes]:
    with download.session() as session:
        download.download(session, url + PATH, place, proof_of(CONTENT))
    return contents(place.parent)


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_a_hash_or_a_git_id_is_of_the_uncompressed_content(tmp_path, suffix):
    write(tmp_path / f"a.json{suffix}", CONTENT)
    git = subprocess.run(["git", "hash-object", "--stdin"], input=CONTENT, capture_output=True, check=True)
    assert download.is_verified(tmp_path / "a.json", File("", "", git.stdout.decode().strip()))
    assert download.is_verified(tmp_path / "a.json", proof_of(CONTENT))
    assert not download.is_verified(tmp_path / "a.json", proof_of(CONTENT[1:]))


def test_a_file_is_downloaded_once_also_behind_a_redirect(publisher, tmp_path):
    publisher.files[PATH] = CONTENT
    with endless(f"302 Found\r\nLocation: {publisher.url}{PATH}".encode()) as (url, _):
        assert downloaded(url, tmp_path / "raw" / "thing.json") == {"thing.json": CONTENT}
    assert publisher.asked[0][2]["Accept-Encoding"] == "identity"
    write(tmp_path / "thing.json.gz", CONTENT)
    downloaded(publisher.url, tmp_path / "thing.json")
    assert len(publisher.asked) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_resumed(publisher, tmp_path, ranges):
    publisher.files[PATH], publisher.ranges = CONTENT, ranges
    publisher.cut, publisher.cuts = 300_000, 2
    assert downloaded(publisher.url, tmp_path / "thing.json") == {"thing.json": CONTENT}
    assert publisher.gets() == [None, "bytes=300000-", "bytes=600000-" if ranges else "bytes=300000-"]


@pytest.mark.parametrize("partial", [CONTENT, CONTENT + b"more", bytes(300_000)], ids=["complete", "long", "changed"])
def test_any_partial_file_ends_in_the_right_content(publisher, tmp_path, partial):
    publisher.files[PATH] = CONTENT
    (tmp_path / "thing.json.partial").write_bytes(partial)
    assert downloaded(publisher.url, tmp_path / "thing.json") == {"thing.json": CONTENT}


BOMB = gzip.compress(bytes(8 << 20))
WRONG = [("", CONTENT[:-1]), ("", CONTENT + b"more"), ("", b""), (".gz", b"no archive"), (".gz", BOMB)]


@pytest.mark.parametrize(("suffix", "wrong"), WRONG)
def test_wrong_content_is_deleted_and_the_right_hash_is_named(publisher, tmp_path, suffix, wrong):
    publisher.files[PATH] = wrong
    place = tmp_path / f"thing.json{suffix}"
    place.write_bytes(b"a user's own")
    with pytest.raises(Unavailable, match=proof_of(CONTENT).digest):
        downloaded(publisher.url, place)
    assert contents(tmp_path) == {place.name: b"a user's own"}


def test_a_slow_server_is_given_up_and_its_part_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SILENCE_SECONDS", 1.5)  # three bytes
    with endless(*DRIPS) as (url, _), pytest.raises(Unavailable, match="bytes/s"):
        downloaded(url, tmp_path / "thing.json")
    assert contents(tmp_path).keys() == {"thing.json.partial"}


BUFFERED = 16 << 20  # bytes that the system takes from a server before they are read


@pytest.mark.parametrize(
    ("head", "connections", "reason"),
    [
        (b"200 OK", 1, "What was received is deleted"),
        (b"200 OK\r\nContent-Length: 1000000000000", 1, "What was received is deleted"),
        (b"302 Found\r\nLocation: /again", 2 * 6, "TooManyRedirects"),
        (b"503 Busy", 2, "503"),
    ],
)
def test_no_body_is_read_without_end(tmp_path, monkeypatch, head, connections, reason):
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    with endless(head) as (url, sent), pytest.raises(Unavailable, match=reason):
        downloaded(url, tmp_path / "thing.json")
    assert sent[0] < download.with_spare(len(CONTENT)) + connections * BUFFERED
    assert not contents(tmp_path)


NOWHERE = "http://me:canary@{host}/nowhere?token=canary"


@pytest.mark.parametrize("target", [NOWHERE, "http://[", "//", "file:///canary", "http://a..b/canary"])
def test_a_redirect_to_an_absent_page_or_an_invalid_address_is_refused(publisher, tmp_path, target):
    target = target.format(host=urlsplit(publisher.url).netloc).encode()
    with endless(b"302 Found\r\nLocation: " + target) as (url, _), pytest.raises(Unavailable) as refused:
        downloaded(url, tmp_path / "thing.json")
    assert "canary" not in str(refused.value)
    assert not contents(tmp_path)


@pytest.fixture
def small_feeds(publisher) -> dict[str, bytes]:
    """NVD's feeds and their notes as the publisher serves them, of a few bytes each, by their place in a folder."""
    served = {}
    for file in FEEDS:
        content = f'{{"vulnerabilities": [], "of": "{file.path}"}}'.encode()
        note = f"lastModifiedDate:2026-11-22T03:00:00-05:00\r\nsize:{len(content)}\r\ngzSize:1\r\n"
        note += f"sha256:{hashlib.sha256(content).hexdigest().upper()}\r\n"
        served |= {file.path: gzip.compress(content, mtime=0), file.note.path: note.encode()}
        publisher.files |= {urlsplit(each.url).path: served[each.path] for each in (file, file.note)}
    return served


def command(names: str, folder: Path, mirror: str | None = None) -> list[str]:
    words = ["ghost_jax.data.fetch", f"--sources={names}", f"--data_dir={folder}"]
    return [*words, f"--mirror={mirror}"] if mirror else words


def fetched(publisher: Publisher) -> set[str]:
    return {path for method, path, _ in publisher.asked if method == "GET"}


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
    assert fetched(publisher) == {urlsplit(FEEDS[3].url).path, urlsplit(FEEDS[3].note.url).path}
    publisher.asked.clear()
    (tmp_path / FEEDS[3].note.path).unlink()  # a feed is verified by a new one, and not replaced
    assert "replacing" not in ghost.here(*words, env=CONNECTED).stdout
    assert contents(tmp_path) == small_feeds
    assert fetched(publisher) == {urlsplit(FEEDS[3].note.url).path}


def test_a_wrong_hash_fails_the_command_and_the_other_sources_are_fetched(ghost, publisher, small_feeds, tmp_path):
    (capec,) = PUBLISHED["capec"].files
    publisher.files[urlsplit(capec.url).path] = b'{"type": "bundle"}'
    message = ghost.refused_here(*command("capec,nvd", tmp_path, publisher.url), env=CONNECTED)
    assert f"expected is {capec.digest}" in message
    assert contents(tmp_path) == small_feeds


@pytest.mark.parametrize("other", [FEEDS[3].path.removesuffix(".gz"), Path(FEEDS[3].path).name])
def test_another_file_that_is_read_in_place_of_a_verified_one_is_named(ghost, publisher, small_feeds, tmp_path, other):
    words = command("nvd", tmp_path, publisher.url)
    ghost.here(*words, env=CONNECTED)
    (tmp_path / other).write_bytes(b'{"vulnerabilities": []}')
    assert str(tmp_path / other) in ghost.refused_here(*words, env={"GHOST_OFFLINE": "1"})


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


def test_a_silent_network_is_noticed_within_five_seconds(tmp_path):
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
        (",", None, "--sources"),
        ("attack", "ftp://somewhere", "http://"),
        ("attack", "http://[", "--mirror"),
        ("attack", "http://me:canary@somewhere", "--mirror"),
        ("attack", "http://somewhere?token=canary", "--mirror"),
    ],
)
def test_invalid_flags_are_refused_without_showing_secrets(ghost, tmp_path, names, mirror, named):
    message = ghost.refused_here(*command(names, tmp_path, mirror), code=2)
    assert named in message
    assert "canary" not in message
