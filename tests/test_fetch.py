"""The table of published files, and the command that fetches them."""

import fnmatch
import gzip
import hashlib
import re
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from evals.items.locate import FILE as CTIBENCH_FILE
from ghost_jax.data import fetch, sources
from ghost_jax.data.downloads import download
from ghost_jax.data.downloads.published import PUBLISHED, UNPUBLISHED
from ghost_jax.data.items.formats import CTIBENCH_MCQ_SHA256
from ghost_jax.data.storage import files
from tests.conftest import paragraph_of
from tests.test_download import contents

FEEDS = PUBLISHED["nvd"].files
CONNECTED = {"GHOST_OFFLINE": "0", "NO_PROXY": "*"}  # the environment of a command that may open connections


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
    for file in table:
        assert file in FEEDS or re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", file.digest)
        if urlsplit(file.url).netloc in ("raw.githubusercontent.com", "gitlab.com"):
            assert re.search(r"/[0-9a-f]{40}/", file.url), f"{file.url} is pinned to no commit"


SIZES = (b"", b"size:one", b"size:-1", b"size:1" + b"0" * 30)


@pytest.mark.parametrize(
    "note", [b"size:1\nsha256", b"\xff", b"<html>", *(size + b"\nsha256:" + b"0" * 64 for size in SIZES)]
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
    for name, value in CONNECTED.items():
        monkeypatch.setenv(name, value)
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
