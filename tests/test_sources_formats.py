"""The readers of sources on small files in the publishers' formats, on invalid ones, and on ones that fill the memory.

`samples/` has a file of each format; `samples/records.json` has the records that must be read from it. An entry that
must not be read (revoked, deprecated, rejected, older than another version of it, dangling) names its reason.
"""

import contextlib
import dataclasses
import functools
import gzip
import json
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghost_jax.core.errors import UserError
from ghost_jax.data.sources import data_files
from ghost_jax.data.storage import files
from tests.test_sources import check_facts, write

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
    """Returns a STIX relationship."""
    link = {"type": "relationship", "id": f"relationship--{source['id']}-{target['id']}", "relationship_type": kind}
    return link | {"source_ref": source["id"], "target_ref": target["id"], "description": description}


def bundle(*objects: dict) -> bytes:
    return json.dumps({"type": "bundle", "id": "bundle--1", "objects": objects}).encode()


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_gives_the_expected_records(name):
    path, read = SAMPLES[name]
    records = list(read(path))
    check_facts(records)
    assert json.loads(json.dumps([dataclasses.asdict(record) for record in records])) == EXPECTED[name]


STIX_NAME, CWE_BODY, CVE_ID = '"name": "Process Injection"', "<Weakness_Catalog", '"id": "CVE-2000-0001"'
PRODUCT, EXPLOIT = '"product": "Craft CMS"', "9306,"
# Source, a text of the sample or None for all of it, its replacement, a pattern of the message. The forms of JSON lines
# and CSV that are invalid for any reader are in test_formats.py.
INVALID = [
    ("attack", None, "[]", ""),
    ("attack", STIX_NAME, '"name": null', "'name'"),
    ("attack", STIX_NAME, f'{STIX_NAME}, "modified": "yesterday"', "yesterday"),
    ("attack", '"external_id": "T1055"', '"external_id": " "', "T1055 has no external reference"),
    ("attack", '"type": "x-mitre-tactic"', '"type": "x-other"', "without a tactic"),
    ("attack", '"type": "bundle",', '"type": "bundle"', "line 3, .*JSON"),
    ("attack", "bundle--1", "\udcff", "line 3: .*UTF-8"),
    ("cwe", CWE_BODY, BOMB + CWE_BODY, "DTD"),
    ("cwe", CWE_BODY, f'<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]>\n{CWE_BODY}', "DTD"),
    ("cwe", "</Weaknesses>", "<", "line 43, column"),
    ("cwe", "Badly", "\udcff", "line 15, column"),
    ("cwe", 'ID="74" Name', "Name", "ID"),
    ("nvd", CVE_ID, '"id": "2000-0001"', '"id" is 2000-0001'),
    ("nvd", CVE_ID, f'{CVE_ID}, "x": {"9" * 5000}', ""),
    ("nvd", "CVSS 2 score", "\udcff", "UTF-?8"),
    ("nvd", '"cve": {\n    "id": "CVE-2000-0002"', '"x": {"id": "CVE-2000-0002"', "'cve'"),
    ("kev", PRODUCT, '"product": null', "'product'"),
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


@pytest.mark.parametrize("name", SAMPLES)
def test_a_truncated_archive_is_refused(tmp_path, name):
    sample, read = SAMPLES[name]
    path = tmp_path / f"{sample.name}.gz"
    path.write_bytes(gzip.compress(sample.read_bytes())[:-20])
    with pytest.raises(UserError, match=re.escape(str(path))):
        list(read(path))


@contextlib.contextmanager
def at_most(size: int) -> Iterator[None]:
    """Fails where the block holds more bytes at a time."""
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
