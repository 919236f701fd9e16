"""Sources: files found and opened, and read in the publishers' formats, also invalid, huge and real ones.

`samples/` has a file of each format; `samples/records.json` has the records that must be read from it. An entry that
must not be read (revoked, deprecated, rejected, older than another version of it, dangling) names its reason.
"""

import codecs
import contextlib
import dataclasses
import functools
import gzip
import io
import json
import lzma
import re
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghost_jax.chat import piped_lines
from ghost_jax.core import atomic_io
from ghost_jax.core.errors import UserError
from ghost_jax.data.sources import SOURCES, data_files
from ghost_jax.data.storage import files, tables, text_cleaning
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


@pytest.mark.parametrize("names", [None, [], ["one.json", "two.json"], ["folder/"]])
def test_a_file_is_there_and_a_zip_holds_one(tmp_path, names):
    path = tmp_path / "bundle.zip"
    if names is not None:
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, "{}")
    with pytest.raises(UserError, match=re.escape(str(path))), files.open_bytes(path):
        pass


def test_the_fix_for_a_folder_that_was_named_as_a_file_is_another_name(tmp_path):
    with (
        pytest.raises(UserError, match=f"{re.escape(str(tmp_path))} is a folder") as caught,
        files.open_bytes(tmp_path),
    ):
        pass
    assert "delete" not in str(caught.value).replace(str(tmp_path), "")


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


FOLDER = Path(__file__).with_name("samples")
FILES = {"attack": "attack.json", "capec": "capec.json", "cwe": "cwe.xml", "nvd": "nvd.json", "kev": "kev.json"}
FILES |= {"exploitdb": "exploitdb.csv", "cti": "corpus.jsonl"}
# source -> a valid file, its reader
SAMPLES = {name: (FOLDER / file, functools.partial(data_files.read, name)) for name, file in FILES.items()}
EXPECTED = json.loads((FOLDER / "records.json").read_text(encoding="utf-8"))
BOMB = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>\n'


def thing(kind: str, number: str, name: str, **fields) -> dict:
    """Returns a STIX object as ATT&CK has it."""
    reference = {"source_name": "mitre-attack", "external_id": number, "url": f"https://example.org/{number}"}
    return {"type": kind, "id": f"{kind}--{number}", "name": name, "external_references": [reference], **fields}


def link(kind: str, source: dict, target: dict, description: str = "") -> dict:
    link = {"type": "relationship", "id": f"relationship--{source['id']}-{target['id']}", "relationship_type": kind}
    return link | {"source_ref": source["id"], "target_ref": target["id"], "description": description}


def bundle(*objects: dict) -> bytes:
    return json.dumps({"type": "bundle", "id": "bundle--1", "objects": objects}).encode()


def test_every_reader_has_a_sample():
    assert {SOURCES[name].reader for name in SAMPLES} == {row.reader for row in SOURCES.values() if row.stems}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_gives_the_expected_records(name):
    path, read = SAMPLES[name]
    records = [dataclasses.asdict(record) for record in read(path)]
    assert json.loads(json.dumps(records)) == EXPECTED[name]


STIX_NAME, CWE_BODY, CVE_ID = '"name": "Process Injection"', "<Weakness_Catalog", '"id": "CVE-2000-0001"'
EXPLOIT = "9306,"
# Source, a text of the sample or None for all of it, its replacement, a pattern of the message. What is invalid JSON or
# CSV for any reader is in test_formats.py.
INVALID = [
    ("attack", None, "[]", ""),
    ("attack", STIX_NAME, '"name": null', "'name'"),
    ("attack", '"external_id": "T1055"', '"external_id": " "', "T1055 has no external reference"),
    ("attack", '"type": "x-mitre-tactic"', '"type": "x-other"', "without a tactic"),
    ("cwe", CWE_BODY, BOMB + CWE_BODY, "DTD"),
    ("cwe", "</Weaknesses>", "<", "line 43, column"),
    ("cwe", "Badly", "\udcff", "line 15, column"),
    ("cwe", 'ID="74" Name', "Name", "ID"),
    ("nvd", CVE_ID, '"id": "2000-0001"', '"id" is 2000-0001'),
    ("nvd", CVE_ID, f'{CVE_ID}, "x": {"9" * 5000}', ""),
    ("nvd", "CVSS 2 score", "\udcff", "UTF-?8"),
    ("kev", "CVE-2024-0001", "CVE-X", '"cveID" is CVE-X'),
    ("exploitdb", ",codes", "", "line 1: the column .codes"),
    ("exploitdb", EXPLOIT, '1,"' + "x,\n" * 90_000, r"line \d+: .*CSV"),
    ("exploitdb", EXPLOIT, "x,", "line 3: .*number"),
    ("cti", "Use After", "\\ud800", "line 2, .*surrogate"),
    ("cti", '"text": "Text é."', '"text": null', 'line 1: "text"'),
]


@pytest.mark.parametrize(("name", "old", "new", "message"), INVALID, ids=range(len(INVALID)))
def test_an_invalid_file_is_refused_by_its_name(tmp_path, name, old, new, message):
    sample, read = SAMPLES[name]
    text = sample.read_text(encoding="utf-8")
    assert old is None or old in text
    path = write(tmp_path / sample.name, (text.replace(old, new, 1) if old else new).encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}.*{message}"):
        list(read(path))


@pytest.mark.parametrize("suffix", COMPRESSIONS[1:])
@pytest.mark.parametrize("name", SAMPLES)
def test_a_damaged_archive_is_refused_by_its_name(tmp_path, name, suffix):
    sample, read = SAMPLES[name]
    path = write(tmp_path / f"{sample.name}{suffix}", sample.read_bytes())
    for content in (path.read_bytes()[:-20], b"<html>404</html>"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=re.escape(str(path))):
            list(read(path))


@contextlib.contextmanager
def at_most(size: int) -> Iterator[None]:
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size


def test_a_feed_is_streamed(tmp_path):
    cve = {"id": "CVE-2000-0001", "descriptions": [{"lang": "en", "value": "It fails."}], "references": "x" * 20_000}
    data = json.dumps({"vulnerabilities": [{"cve": cve}] * 500}).encode()
    path = tmp_path / "n.json.gz"
    path.write_bytes(gzip.compress(data, compresslevel=1))
    with at_most(len(data) // 5):
        for _ in data_files.read("nvd", path):
            pass


def test_a_line_of_100_mb_is_refused_and_not_held_in_memory(tmp_path):
    path = write(tmp_path / "c.jsonl", b'{"id": "a", "source": "s", "text": "t"}\n{"id": "')
    with path.open("r+b") as file:
        file.truncate(100 << 20)  # zero bytes to the end, a sparse file
    of_line = 3 * files.MAX_LINE  # its pieces, and the line that they are joined to
    with at_most(of_line), pytest.raises(UserError, match=r"c\.jsonl, line 2: .*32 MiB"):
        list(data_files.read("cti", path))


# What is read -> the suffix of its file, a valid file, its reader
TEXTS = {name: (path.suffix, path.read_bytes(), read) for name, (path, read) in SAMPLES.items()}
TEXTS["a table of tabs"] = (".tsv", b"id\tmine\nq\tB\n", tables.read)
TEXTS["a record of a run"] = (".json", b'{"a": 1}', atomic_io.read_json)
TEXTS["standard input"] = ("", b'{"prompt": "one"}\ntwo\n', lambda path: piped_lines(io.BytesIO(path.read_bytes())))


@pytest.mark.parametrize("name", TEXTS)
def test_a_mark_of_utf_8_is_skipped_and_utf_16_is_refused(tmp_path, name):
    suffix, data, read = TEXTS[name]
    path, found = tmp_path / f"marked{suffix}", []
    for mark in (b"", codecs.BOM_UTF8):
        path.write_bytes(mark + data)
        found.append(list(read(path)))
    assert found[0] == found[1] != []
    for encoding in ("utf-16-le", "utf-16-be"):
        path.write_bytes(f"\ufeff{data.decode()}".encode(encoding))
        with pytest.raises(UserError, match=r"(marked|Standard input).* UTF-16"):
            list(read(path))


# What the files state. ATT&CK 15.1 is three domains; CWE 4.14 has 963 weaknesses, 25 of them deprecated.
FACTS = {
    "attack": {"tactic": 1061, "mitigation": 1693, "detection": 2389, "group_technique": 3433, "group_software": 947}
    | {"software_technique": 10_281, "campaign_technique": 728},
    "capec": {"attack_pattern_name": 558, "related_weakness": 1211},
    "cwe": {"weakness_name": 938, "weakness_class": 938, "parent_weakness": 1148, "consequence": 1721}
    | {"weakness_mitigation": 1557},
}
MARKUP = r"\(Citation:|</?xhtml:|</?code>|\]\(https?:|`"


@functools.cache
def records_of(folder: Path, name: str) -> dict[Path, list[Record]]:
    """Returns the records of each file of a source."""
    paths = data_files.locate(name, [folder])
    if len(paths) < len(SOURCES[name].stems):
        pytest.skip(f"GHOST_DATA has not all files of {name}")
    return {path: list(data_files.read(name, path)) for path in paths}


@pytest.mark.parametrize("name", ["attack", "capec"])
def test_every_attack_pattern_in_force_is_read(ghost_data, name):
    publisher = {"attack": "mitre-attack", "capec": "capec"}[name]
    for path, records in records_of(ghost_data, name).items():
        with files.open_bytes(path) as stream:
            patterns = [item for item in json.load(stream)["objects"] if item["type"] == "attack-pattern"]
        live = [item for item in patterns if not any(map(item.get, ("revoked", "x_mitre_deprecated")))]
        live = [item for item in live if item.get("x_capec_status") not in ("Deprecated", "Obsolete")]
        references = [reference for item in live for reference in item["external_references"]]
        stated = {reference["external_id"] for reference in references if reference["source_name"] == publisher}
        numbers = [record.id.rpartition("/")[2] for record in records]
        assert {number for number in numbers if re.match(r"T\d|CAPEC", number)} == stated
        if path.name.startswith("enterprise"):
            kinds = Counter(re.match("[A-Z]+|", number)[0] for number in numbers)
            assert kinds.items() >= {"T": 637, "S": 677, "G": 148, "M": 43, "C": 28, "TA": 14}.items()  # as published


@pytest.mark.parametrize("name", FACTS)
def test_real_records_and_facts_are_unique_and_clean(ghost_data, name):
    records = [record for of_file in records_of(ghost_data, name).values() for record in of_file]
    assert len({record.id for record in records}) == len(records)
    assert Counter(fact.relation for record in records for fact in record.facts) == FACTS[name]
    for record in records:
        assert all((record.text, record.title, record.url.startswith("https://"))), record.id
        assert not re.search(rf"{MARKUP}|\n\n\n", record.text), record.id
        assert len({fact.bare() for fact in record.facts}) == len(record.facts), record.id
        for part in {part for fact in record.facts for part in (fact.subject, fact.object, fact.evidence)}:
            assert part == " ".join(part.split()), (record.id, part)
            assert not re.search(rf"{MARKUP}|\[REF-|&(lt|gt|amp);", part), (record.id, part)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("cti", 51_198), ("cve", 166_356)])
def test_real_corpora_are_read_to_the_end(ghost_data, name, count):
    paths = data_files.locate(name, [ghost_data])
    if not paths:
        pytest.skip(f"GHOST_DATA has no {name}.jsonl")
    assert sum(1 for _ in data_files.read(name, paths[0])) == count
