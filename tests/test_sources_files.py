"""Opening and finding publishers' files: every compression, and every fault with its file and place."""

import zipfile

import pytest

from ghost_jax.core.errors import UserError
from ghost_jax.data.storage import files
from tests.test_sources import COMPRESSIONS, write


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_every_compression_opens(tmp_path, suffix):
    data = b"line\n" * 100_000
    with files.open_bytes(write(tmp_path / f"notes.txt{suffix}", data)) as stream:
        assert stream.readline() == b"line\n"
        assert stream.read() == data[5:]


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("folder", ["", "raw", "corpus"])
def test_find_looks_in_the_known_folders(tmp_path, folder, suffix):
    (tmp_path / folder).mkdir(exist_ok=True)
    path = write(tmp_path / folder / f"cve.jsonl{suffix}", b"{}")
    assert files.find(tmp_path, "cve.jsonl") == [path]
    assert files.find(tmp_path, "cti.jsonl") == []


@pytest.mark.parametrize("suffix", [".xz", ".gz", ".zip"])
def test_a_truncated_file_names_itself_and_the_byte(tmp_path, suffix):
    noise = bytes(range(256)) * 4096
    path = write(tmp_path / f"bundle.json{suffix}", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = rf"bundle\.json\{suffix}.* after byte [\d,]+ .*fetch it again"
    with pytest.raises(UserError, match=message), files.open_bytes(path) as stream:
        stream.read()


@pytest.mark.parametrize("suffix", [".xz", ".gz", ".zip"])
def test_a_file_of_another_format_names_itself(tmp_path, suffix):
    path = tmp_path / f"bundle.json{suffix}"
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(UserError, match=r"bundle\.json.* after byte 0 "), files.open_bytes(path) as stream:
        stream.read()


def test_a_missing_file_names_itself(tmp_path):
    with pytest.raises(UserError, match=r"absent\.json is not a file"):
        files.open_bytes(tmp_path / "absent.json")


@pytest.mark.parametrize("name", ["../bundle.json", "/etc/passwd", "a/../../b", "..\\bundle.json", "C:\\bundle.json"])
def test_a_climbing_zip_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "climbing.zip", "w") as archive:
        archive.writestr(name, "{}")
    with pytest.raises(UserError, match=r"climbing\.zip.*points outside the archive"):
        files.open_bytes(tmp_path / "climbing.zip")


@pytest.mark.parametrize("names", [[], ["one.json", "two.json"], ["folder/"]])
def test_a_zip_must_hold_one_file(tmp_path, names):
    with zipfile.ZipFile(tmp_path / "several.zip", "w") as archive:
        for name in names:
            archive.writestr(name, "")
    with pytest.raises(UserError, match=r"several\.zip holds [02] files and must hold exactly one"):
        files.open_bytes(tmp_path / "several.zip")


def test_a_link_in_a_zip_is_no_file(tmp_path):
    link_member = zipfile.ZipInfo("bundle.json")
    link_member.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link_member, "/etc/passwd")
    with pytest.raises(UserError, match="holds 0 files"):
        files.open_bytes(tmp_path / "link.zip")


def test_an_archive_that_bursts_is_not_held_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_WHOLE", 1 << 20)
    path = write(tmp_path / "bundle.json.xz", b" " * (files.MAX_WHOLE + 1))
    with pytest.raises(UserError, match=r"bundle\.json\.xz holds more than 1 MiB"):
        files.read_json(path)
