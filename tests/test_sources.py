"""The table of sources, the project's own pack, markup turned into prose, and opening and finding files."""

import gzip
import lzma
import re
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from ghost_jax.core.errors import UserError
from ghost_jax.data.sources import embedded
from ghost_jax.data.storage import files, text_cleaning
from ghost_jax.data.storage.schema import Fact, Record

COMPRESSIONS = ("", ".xz", ".gz", ".zip")


def write(path: Path, data: bytes) -> Path:
    """Writes `data` under `path`, compressed as the suffix says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(path.stem, data)
    else:
        path.write_bytes({".xz": lzma.compress, ".gz": gzip.compress}.get(path.suffix, bytes)(data))
    return path


def test_a_record_drops_facts_with_a_blank_part():
    fact = Fact("Phishing", "tactic", "Initial Access", "Phishing serves the tactic Initial Access.")
    blank = [Fact(" \n", "tactic", "b", "c"), Fact("a", "tactic", "", "c"), Fact("a", "tactic", "b", "")]
    assert Record("a", "s", "Phishing", "Text.", "", "", (*blank, fact)).facts == (fact,)


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("folder", files.FOLDERS)
def test_files_of_every_compression_are_found_and_opened(tmp_path, folder, suffix):
    (tmp_path / folder).mkdir(exist_ok=True)
    data = b"line\n" * 100_000
    path = write(tmp_path / folder / f"cve.jsonl{suffix}", data)
    assert files.find(tmp_path, "cve.jsonl") == [path]
    assert files.find(tmp_path, "cti.jsonl") == []
    with files.open_bytes(path) as stream:
        assert stream.readline() == b"line\n"
        assert stream.read() == data[5:]


@pytest.mark.parametrize("suffix", [".xz", ".gz", ".zip"])
def test_a_damaged_archive_names_itself(tmp_path, suffix):
    path = write(tmp_path / f"bundle.json{suffix}", bytes(range(256)) * 4096)
    for content in (path.read_bytes()[: path.stat().st_size // 2], b"<html>404</html>"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=re.escape(str(path))), files.open_bytes(path) as stream:
            stream.read()


@pytest.mark.parametrize("names", [None, [], ["one.json", "two.json"], ["folder/"]])
def test_a_file_is_there_and_a_zip_holds_one(tmp_path, names):
    path = tmp_path / "bundle.zip"
    if names is not None:
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, "{}")
    with pytest.raises(UserError, match=re.escape(str(path))), files.open_bytes(path):
        pass


def test_a_decompression_bomb_is_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_TEXT", 1 << 20)
    path = write(tmp_path / "bundle.json.xz", b" " * (files.MAX_TEXT + 1))
    with pytest.raises(UserError, match=r"bundle\.json\.xz .* 1 MiB"):
        files.read_json(path)


@pytest.mark.parametrize(
    ("marked_up", "plain"),
    [
        ("Seen.(Citation: A) Then (Citation: B (2013))(Citation: C) more.", "Seen. Then more."),
        ("[Net](https://attack.mitre.org/software/S0039) and [a](/x_(y)) [b]", "Net and a [b]"),
        ("run <code>net use</code> or `net1`,<br>then ```stop```", "run net use or net1,\nthen stop"),
        ("type <username> &lt;PID&gt; <script>", "type <username> <PID> <script>"),
        ("\n  <xhtml:p>One\n  line.</xhtml:p>\n  <xhtml:p>Two.</xhtml:p>\n", "One line.\n\nTwo."),
        ("A library [REF-57], as [REF-58] says. [REF-1]", "A library, as [REF-58] says."),
    ],
)
def test_clean(marked_up, plain):
    assert text_cleaning.clean(marked_up) == plain


def test_the_pack_has_records_and_facts_of_every_kind():
    records = list(embedded.read())
    kinds = Counter(record.id.split("/")[0] for record in records)
    assert kinds.keys() == {"attack", "capec", "cwe", "ports", "acronyms", "explanations"}
    assert kinds["cwe"] >= 100
    assert len({record.id for record in records}) == len(records)
    assert all(record.source == "embedded" and record.text and record.title for record in records)
    relations = "tactic attack_pattern_name related_weakness weakness_name weakness_class port_service expansion"
    assert {fact.relation for record in records for fact in record.facts} == set(relations.split())
