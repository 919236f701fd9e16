"""A downloaded file is complete and verified or absent, whatever the server or the network does."""

import gzip
import hashlib
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from ghost_jax.data.downloads import download
from ghost_jax.data.downloads.download import Unavailable
from ghost_jax.data.downloads.published import File
from tests.bench.place import dripping_server
from tests.test_sources import COMPRESSIONS, write
from tests.web_server import PATH, endless

CONTENT = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.01)
    monkeypatch.setenv("NO_PROXY", "*")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def proof_of(content: bytes) -> File:
    return File("", "", hashlib.sha256(content).hexdigest(), len(content))


def download_thing(url: str, place: Path) -> None:
    with download.session() as session:
        download.download(session, url + PATH, place, proof_of(CONTENT))


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_a_hash_or_a_git_id_is_of_the_uncompressed_content(tmp_path, suffix):
    write(tmp_path / f"a.json{suffix}", CONTENT)
    git = subprocess.run(["git", "hash-object", "--stdin"], input=CONTENT, capture_output=True, check=True)
    assert download.is_verified(tmp_path / "a.json", File("", "", git.stdout.decode().strip()))
    assert download.is_verified(tmp_path / "a.json", proof_of(CONTENT))
    assert not download.is_verified(tmp_path / "a.json", proof_of(CONTENT[1:]))


def test_a_file_is_downloaded_once(publisher, tmp_path):
    publisher.files[PATH] = CONTENT
    download_thing(publisher.url, tmp_path / "raw" / "thing.json")
    assert contents(tmp_path) == {"raw/thing.json": CONTENT}
    assert publisher.asked[0][2]["Accept-Encoding"] == "identity"
    publisher.asked.clear()
    write(tmp_path / "thing.json.gz", CONTENT)
    download_thing(publisher.url, tmp_path / "thing.json")
    assert not publisher.asked


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_resumed(publisher, tmp_path, ranges):
    publisher.files[PATH], publisher.ranges = CONTENT, ranges
    publisher.cut, publisher.cuts = 300_000, 2
    download_thing(publisher.url, tmp_path / "thing.json")
    assert contents(tmp_path) == {"thing.json": CONTENT}
    assert publisher.gets() == [None, "bytes=300000-", "bytes=600000-" if ranges else "bytes=300000-"]


@pytest.mark.parametrize("partial", [CONTENT, CONTENT + b"more", bytes(300_000)], ids=["complete", "long", "changed"])
def test_any_partial_file_ends_in_the_right_content(publisher, tmp_path, partial):
    publisher.files[PATH] = CONTENT
    (tmp_path / "thing.json.partial").write_bytes(partial)
    download_thing(publisher.url, tmp_path / "thing.json")
    assert contents(tmp_path) == {"thing.json": CONTENT}


BOMB = gzip.compress(bytes(8 << 20))


@pytest.mark.parametrize(
    ("suffix", "wrong"), [("", CONTENT[:-1]), ("", CONTENT + b"more"), ("", b""), (".gz", BOMB), (".gz", b"x")]
)
def test_wrong_content_is_deleted_and_the_right_hash_is_named(publisher, tmp_path, suffix, wrong):
    publisher.files[PATH] = wrong
    place = tmp_path / f"thing.json{suffix}"
    place.write_bytes(b"a user's own")
    with pytest.raises(Unavailable, match=proof_of(CONTENT).digest):
        download_thing(publisher.url, place)
    assert contents(tmp_path) == {place.name: b"a user's own"}


def test_a_slow_server_is_given_up_and_its_part_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SILENCE_SECONDS", 1.5)  # three bytes
    with dripping_server() as url, pytest.raises(Unavailable, match="bytes/s"):
        download_thing(url, tmp_path / "thing.json")
    assert contents(tmp_path).keys() == {"thing.json.partial"}


BUFFERED = 16 << 20  # bytes that the system takes from a server before they are read


@pytest.mark.parametrize("name", ["thing.json", "thing.json.gz"])
@pytest.mark.parametrize("head", [b"200 OK", b"200 OK\r\nContent-Length: 1000000000000"])
def test_an_endless_file_is_refused_and_deleted(tmp_path, head, name):
    with endless(head) as (url, sent), pytest.raises(Unavailable, match="What was received is deleted"):
        download_thing(url, tmp_path / name)
    assert sent[0] < download.with_spare(len(CONTENT)) + BUFFERED
    assert not contents(tmp_path)


@pytest.mark.parametrize("head", [b"302 Found\r\nLocation: /again", b"503 Busy"])
def test_the_body_of_a_redirect_or_an_error_is_not_read(tmp_path, monkeypatch, head):
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    with endless(head) as (url, sent), pytest.raises(Unavailable, match=r"TooManyRedirects|503"):
        download_thing(url, tmp_path / "thing.json")
    assert sent[0] < 12 * BUFFERED
    assert not contents(tmp_path)


def test_a_redirect_is_followed(publisher, tmp_path):
    publisher.files[PATH] = CONTENT
    with endless(f"302 Found\r\nLocation: {publisher.url}{PATH}".encode()) as (url, _):
        download_thing(url, tmp_path / "thing.json")
    assert contents(tmp_path) == {"thing.json": CONTENT}


NOWHERE = "http://me:canary@{host}/nowhere?token=canary"


@pytest.mark.parametrize("target", [NOWHERE, "http://[", "//", "file:///canary", "http://a..b/canary", ""])
def test_a_redirect_to_an_absent_page_or_an_invalid_address_is_refused(publisher, tmp_path, target):
    target = target.format(host=urlsplit(publisher.url).netloc).encode()
    with endless(b"302 Found\r\nLocation: " + target) as (url, _), pytest.raises(Unavailable) as refused:
        download_thing(url, tmp_path / "thing.json")
    assert "canary" not in str(refused.value)
    assert not contents(tmp_path)
