"""The table of sources, the project's own pack, markup turned into prose, and what a damaged input leaves behind."""

import dataclasses
import gzip
import lzma
import re
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from ghost_jax.core.errors import UserError
from ghost_jax.core.paths import cache_dir
from ghost_jax.data.sources import SOURCES, embedded, locate
from ghost_jax.data.storage import artifact_cache, text_cleaning
from ghost_jax.data.storage.schema import RELATIONS, Fact, Record

COMPRESSIONS = ("", ".xz", ".gz", ".zip")


def write(path: Path, data: bytes) -> Path:
    """Writes `data` under `path`, compressed as the suffix says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(path.stem, data)
    else:
        path.write_bytes({".xz": lzma.compress, ".gz": gzip.compress}.get(path.suffix, bytes)(data))
    return path


def check_facts(records):
    for record in records:
        for fact in record.facts:
            assert fact.relation in RELATIONS
            assert all(part.strip() for part in (fact.subject, fact.object, fact.evidence)), (record.id, fact)


@pytest.mark.parametrize("part", ["subject", "object", "evidence"])
@pytest.mark.parametrize("blank", ["", " \n"])
def test_no_record_carries_a_fact_with_a_blank_part(part, blank):
    fact = Fact("Phishing", "tactic", "Initial Access", "Phishing serves the tactic Initial Access.")
    facts = (dataclasses.replace(fact, **{part: blank}), fact)
    assert Record("a", "s", "Phishing", "Text.", "", "", facts).facts == (fact,)


# --- what a damaged input leaves behind


@pytest.mark.parametrize(
    ("source", "name", "data"),
    [
        ("attack", "enterprise-attack-15.1.json.xz", lzma.compress(b'{"type": "bundle"' + bytes(1000))[:-40]),
        ("capec", "stix-capec-3.9.json", b'{"type": "bundle", "objects": [{"type": "\xff"}]}'),
        ("cwe", "cwec_v4.14.xml", b'<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><a>&b;</a>'),
        ("cwe", "cwec_v4.14.xml", b'<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]><a>&a;</a>'),
        ("cti", "cti.jsonl", b'{"id": "a", "source": "s", "text": "t"}\n{"id": "b", "source": "s"}\n'),
        ("cti", "cti.jsonl", b'{"id": "a", "source": "s", "text": "t"}\n"' + b"x" * (33 << 20)),
        ("nvd", "nvdcve-2.0-2002.json", b'{"vulnerabilities": [{"cve": {"id": "CVE-1999-0001", "descriptions": []}},'),
        ("kev", "known_exploited_vulnerabilities.json", b'{"vulnerabilities": [{}]}'),
        ("exploitdb", "files_exploits.csv", b"id,file,description\n1,a.txt,Bug\n"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_input_leaves_no_store(tmp_path, monkeypatch, source, name, data):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / name).write_bytes(data)
    (path,) = locate(source, [tmp_path])

    def write_documents(folder: Path) -> dict:
        with (folder / "documents.jsonl").open("w") as file:
            file.writelines(f"{record.id}\n" for record in SOURCES[source].read(path))
        return {}

    with pytest.raises(UserError, match=re.escape(str(path))):
        artifact_cache.build("part", (SOURCES[source].reader,), {"file": name}, write_documents)
    assert not [left for left in cache_dir().rglob("*") if left.is_file() and left.stat().st_size]


# --- prose


@pytest.mark.parametrize(
    ("marked_up", "plain"),
    [
        ("Seen.(Citation: A) Then (Citation: B (2013))(Citation: C) more.", "Seen. Then more."),
        ("[Net](https://attack.mitre.org/software/S0039) and [a](/x_(y)) [b]", "Net and a [b]"),
        ("run <code>net use</code> or `net1`,<br>then ```stop```", "run net use or net1,\nthen stop"),
        ("type <username> &lt;PID&gt; <script>", "type <username> <PID> <script>"),
        ("one  two \n\n \n three\u00a0four", "one two\n\nthree four"),
        ("### Windows\nMonitor", "Windows\nMonitor"),
        ("\n  <xhtml:p>One\n  line.</xhtml:p>\n  <xhtml:p>Two.</xhtml:p>\n", "One line.\n\nTwo."),
        ("<ol><li> <p>First</p></li><li>Second</li></ol>", "- First\n\n- Second"),
        ("A library [REF-57], as [REF-58] says. [REF-1]", "A library, as [REF-58] says."),
    ],
)
def test_clean(marked_up, plain):
    assert text_cleaning.clean(marked_up) == plain


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("One thing. Another.", "One thing."),
        ("Tools, e.g. Net, of the U.S. Army. More.", "Tools, e.g. Net, of the U.S. Army."),
        ('He said "stop." Then 4.5 more.', 'He said "stop."'),
        ("no end\n\nNext. Last.", "no end"),
        ("", ""),
    ],
)
def test_first_sentence(text, sentence):
    assert text_cleaning.first_sentence(text) == sentence


def test_listing():
    assert [text_cleaning.listing("A"), text_cleaning.listing("AB"), text_cleaning.listing("ABC")] == [
        "A",
        "A and B",
        "A, B and C",
    ]


# --- the table and the pack


def test_locate_takes_all_files_from_the_first_folder_that_has_the_source(tmp_path):
    empty, first, second = folders = [tmp_path / name for name in ("empty", "first", "second")]
    for folder in folders:
        (folder / "raw").mkdir(parents=True)
    enterprise = write(first / "raw" / "enterprise-attack-15.1.json.xz", b"{}")
    mobile = write(first / "mobile-attack-15.1.json", b"{}")
    write(second / "ics-attack-15.1.json", b"{}")
    assert locate("attack", folders) == [enterprise, mobile]
    assert locate("attack", [empty]) == locate("embedded", folders) == []


def test_a_living_feed_is_located_in_all_its_pieces(tmp_path):
    first, second = folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        (folder / "raw").mkdir(parents=True)
    newer = write(first / "raw" / "nvdcve-2.0-2003.json.gz", b"{}")
    older = write(first / "nvdcve-2.0-2002.json", b"{}")
    write(first / "raw" / "nvdcve-2.0-2002.json.xz", b"{}")  # the same piece again
    write(first / "raw" / "nvdcve-2.0-2003.meta", b"")
    write(second / "nvdcve-2.0-2001.json", b"{}")
    assert locate("nvd", folders) == [older, newer]
    assert [path.name for path in locate("nvd", [second])] == ["nvdcve-2.0-2001.json"]


def test_the_pack_is_whole():
    records = list(embedded.read())
    kinds = Counter(record.id.split("/")[0] for record in records)
    assert kinds["cwe"] >= 100
    assert set(kinds) == {"attack", "capec", "cwe", "ports", "acronyms", "explanations"}
    assert len({record.id for record in records}) == len(records)
    assert all(record.source == "embedded" and record.text and record.title for record in records)
    check_facts(records)
    assert {fact.relation for record in records for fact in record.facts} == {
        "tactic",
        "attack_pattern_name",
        "related_weakness",
        "weakness_name",
        "weakness_class",
        "port_service",
        "expansion",
    }


def test_the_pack_talks():
    pairs = embedded.small_talk()
    assert len(pairs) >= 120
    assert all(user.strip() and assistant.strip() for user, assistant in pairs)
    assert len(set(embedded.anchors())) == len(embedded.anchors()) == 29
