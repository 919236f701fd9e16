"""The readers of sources on small files in the publishers' formats, on invalid ones, and on ones that fill the memory.

`samples/` has a file of each format; `samples/records.json` has the records that must be read from it. An entry that
must not be read (revoked, deprecated, rejected, older than another version of it, dangling) names its reason.
"""

import dataclasses
import gzip
import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from ghost_jax.core.errors import UserError
from ghost_jax.data.sources import attack, capec, cwe, exploitdb, jsonl, kev, nvd
from ghost_jax.data.storage import files
from tests.test_sources import check_facts, write

FOLDER = Path(__file__).with_name("samples")
SAMPLES = {  # format -> (a valid file, its reader)
    "attack": (FOLDER / "attack.json", attack.read),
    "capec": (FOLDER / "capec.json", capec.read),
    "cwe": (FOLDER / "cwe.xml", cwe.read),
    "nvd": (FOLDER / "nvd.json", nvd.read),
    "kev": (FOLDER / "kev.json", kev.read),
    "exploitdb": (FOLDER / "exploitdb.csv", exploitdb.read),
    "jsonl": (FOLDER / "corpus.jsonl", jsonl.read),
}
EXPECTED = json.loads((FOLDER / "records.json").read_text(encoding="utf-8"))
BOMB = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>\n'


def thing(kind: str, number: str, name: str, **fields) -> dict:
    """Returns a STIX object as ATT&CK has it."""
    reference = {"source_name": "mitre-attack", "external_id": number, "url": f"https://example.org/{number}"}
    return {"type": kind, "id": f"{kind}--{number}", "name": name, "external_references": [reference], **fields}


def link(kind: str, source: dict, target: dict, description: str = "") -> dict:
    """Returns a STIX relationship."""
    link = {"type": "relationship", "id": f"relationship--{source['id']}-{target['id']}", "relationship_type": kind}
    return link | {"source_ref": source["id"], "target_ref": target["id"], "description": description}


def bundle(*objects: dict) -> bytes:
    """Returns a STIX bundle as a file."""
    return json.dumps({"type": "bundle", "id": "bundle--1", "objects": objects}).encode()


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_gives_the_expected_records(name):
    path, read = SAMPLES[name]
    records = list(read(path))
    check_facts(records)
    assert json.loads(json.dumps([dataclasses.asdict(record) for record in records])) == EXPECTED[name]


STIX_NAME, CWE_BODY, CVE_ID = '"name": "Process Injection"', "<Weakness_Catalog", '"id": "CVE-2000-0001"'
PRODUCT, EXPLOIT = '"product": "Craft CMS"', "9306,"
INVALID = [  # format, a text of the sample or None for all of it, its replacement, a pattern of the message
    ("attack", None, "[]", "not a STIX bundle"),
    ("attack", None, '{"type": "bundle", "objects": [7]}', r"objects\[0\] is a int"),
    ("attack", None, '{"type": "bundle", "objects": [{"type": "tool"}]}', r'objects\[0\] has no "id"'),
    ("attack", STIX_NAME, '"name": " "', r'objects\[1\] has no "name"'),
    ("attack", STIX_NAME, f'{STIX_NAME}, "modified": "yesterday"', r'objects\[1\]: "modified"'),
    ("attack", STIX_NAME, f'{STIX_NAME}, "x_mitre_platforms": "Linux"', r'objects\[1\]: "x_mitre_platforms"'),
    ("attack", '"external_id": "T1055"', '"external_id": " "', "T1055 has no external reference"),
    ("attack", '"type": "x-mitre-tactic"', '"type": "x-other"', "without a tactic"),
    ("attack", '"type": "bundle",', '"type": "bundle"', "line 3, .*JSON"),
    ("attack", "bundle--1", "\udcff", "line 3: .*UTF-8"),
    ("attack", None, "[" * 200_000, "line 1, .*JSON"),
    ("cwe", CWE_BODY, BOMB + CWE_BODY, "line 2: .*DTD or an entity"),
    ("cwe", CWE_BODY, f'<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]>\n{CWE_BODY}', "DTD or an entity"),
    ("cwe", "</Weaknesses>", "<", "line 43, column"),
    ("cwe", "Badly", "\udcff", "line 15, column"),
    ("cwe", 'ID="74" Name', 'ID="many" Name', r"line \d+: .*number"),
    ("cwe", 'Name="Injection"', 'Name=" "', r"line \d+: .*name"),
    ("cwe", None, "<html/>", "no weakness"),
    ("nvd", CVE_ID, '"id": "2000-0001"', r'vulnerabilities\[1\]: "id"'),
    ("nvd", CVE_ID, f'{CVE_ID}, "weaknesses": {{}}', r'vulnerabilities\[1\]: "weaknesses"'),
    ("nvd", CVE_ID, f'{CVE_ID}, "x": {"9" * 5000}', r"vulnerabilities\[0\]: .*JSON"),
    ("nvd", "CVSS 2 score", "\udcff", "UTF-8"),
    ("nvd", '"version": "2.0",\n "vulnerabilities"', '"vulnerabilities": [null], "x"', r"\[0\] is a NoneType"),
    ("nvd", '"cve": {\n    "id": "CVE-2000-0002"', '"x": {"id": "CVE-2000-0002"', r'vulnerabilities\[2\] has no "cve"'),
    ("nvd", '"vulnerabilities": [', '"CVE_Items": [', 'no "vulnerabilities"'),
    ("kev", None, "[]", 'no list of "vulnerabilities"'),
    ("kev", PRODUCT, '"product": null', r'vulnerabilities\[1\] has no "product"'),
    ("kev", '"cwes": null', '"cwes": "CWE-77"', r'vulnerabilities\[1\]: "cwes"'),
    ("kev", "CVE-2024-0001", "CVE-X", r'vulnerabilities\[1\]: "cveID"'),
    ("exploitdb", ",codes", "", "line 1: the column codes"),
    ("exploitdb", EXPLOIT, f"1,a.txt,Bug\n{EXPLOIT}", "line 3: 3 fields under 10 columns"),
    ("exploitdb", EXPLOIT, f'1,"a"b\n{EXPLOIT}', "line 3: .*CSV"),
    ("exploitdb", EXPLOIT, '1,"' + "x,\n" * 90_000, r"line \d+: .*CSV"),
    ("exploitdb", EXPLOIT, "\udcff,", "line 3: .*UTF-8"),
    ("exploitdb", EXPLOIT, "x,", "line 4: .*number"),
    ("jsonl", '"id": "b",', '"id": "b" 7,', "line 2, .*JSON"),
    ("jsonl", "Use After", "\udcff", "line 2: .*UTF-8"),
    ("jsonl", "Use After", "\\ud800", "line 2, .*surrogate"),
    ("jsonl", '"id": "b"', '"id": ' + "9" * 5000, "line 2, .*JSON"),
    ("jsonl", '"text": "Text é."', '"text": null', 'line 1: "text"'),
    ("jsonl", None, "[1]", "line 1: a list"),
]


@pytest.mark.parametrize(("name", "old", "new", "message"), INVALID, ids=range(len(INVALID)))
def test_an_invalid_file_is_refused_with_its_place(tmp_path, name, old, new, message):
    sample, read = SAMPLES[name]
    text = sample.read_text(encoding="utf-8")
    assert old is None or old in text
    path = write(tmp_path / sample.name, (text.replace(old, new, 1) if old else new).encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}.*{message}"):
        list(read(path))


def test_a_truncated_archive_is_refused(tmp_path):
    for sample, read in SAMPLES.values():
        path = write(tmp_path / f"{sample.name}.gz", sample.read_bytes())
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(UserError, match=re.escape(str(path))):
            list(read(path))


def peak_of(path: Path, read: Callable) -> int:
    """Returns the most bytes that reading a file held."""
    tracemalloc.start()
    try:
        for _ in read(path):
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_feed_is_streamed(tmp_path):
    cve = {"id": "CVE-2000-0001", "descriptions": [{"lang": "en", "value": "It fails."}], "references": "x" * 20_000}
    data = json.dumps({"vulnerabilities": [{"cve": cve}] * 500}).encode()
    path = tmp_path / "n.json.gz"
    path.write_bytes(gzip.compress(data, compresslevel=1))
    assert peak_of(path, nvd.read) < len(data) / 5


def test_a_line_of_100_mb_is_refused_and_not_held_in_memory(tmp_path):
    path = write(tmp_path / "c.jsonl", b'{"id": "a", "source": "s", "text": "t"}\n{"id": "')
    with path.open("r+b") as file:
        file.truncate(100 << 20)  # zero bytes to the end, a sparse file

    def refused(path: Path) -> list:
        with pytest.raises(UserError, match=r"c\.jsonl, line 2: .*32 MiB"):
            list(jsonl.read(path))
        return []

    assert peak_of(path, refused) < 3 * files.MAX_LINE  # the line's pieces, and the line that they are joined to


def test_markup_may_nest_deeper_than_python_recurses(tmp_path):
    nested = f"{'<xhtml:b>' * 10_000}Deep{'</xhtml:b>' * 10_000} down."
    sample = (FOLDER / "cwe.xml").read_text(encoding="utf-8")
    path = write(tmp_path / "cwe.xml", sample.replace("It injects.", nested).encode())
    assert [record.text for record in cwe.read(path)][1].startswith("Deep down.\n\n")
