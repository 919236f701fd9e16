"""The source adapters on small hand-written files, on the project's own pack, and on the real files of GHOST_DATA."""

import gzip
import json
import lzma
import os
import re
import time
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from ghost_jax.data import prose
from ghost_jax.data.records import RELATIONS, Record
from ghost_jax.data.sources import SOURCES, attack, capec, cwe, embedded, files, jsonl, locate, stix
from ghost_jax.errors import UserError

COMPRESSIONS = ("", ".xz", ".gz", ".zip")


def write(path: Path, data: bytes) -> Path:
    """Writes `data` under `path`, compressed as the suffix says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(path.stem, data)
    else:
        path.write_bytes({".xz": lzma.compress, ".gz": gzip.compress}.get(path.suffix, bytes)(data))
    return path


def bundle(*objects: dict) -> bytes:
    return json.dumps({"type": "bundle", "id": "bundle--1", "objects": objects}).encode()


def thing(kind: str, number: str, name: str, **fields) -> dict:
    reference = {"source_name": "mitre-attack", "external_id": number, "url": f"https://example.org/{number}"}
    return {"type": kind, "id": f"{kind}--{number}", "name": name, "external_references": [reference], **fields}


def link(kind: str, source: dict, target: dict, description: str = "") -> dict:
    return {
        "type": "relationship",
        "id": f"relationship--{source['id']}-{target['id']}",
        "relationship_type": kind,
        "source_ref": source["id"],
        "target_ref": target["id"],
        "description": description,
    }


TACTIC = thing("x-mitre-tactic", "TA0005", "Defense Evasion") | {
    "x_mitre_shortname": "defense-evasion",
    "x_mitre_domains": ["enterprise-attack"],
}
PHASES = [{"kill_chain_name": "mitre-attack", "phase_name": "defense-evasion"}]
PARENT = thing("attack-pattern", "T1055", "Process Injection", kill_chain_phases=PHASES)
CHILD = thing(
    "attack-pattern",
    "T1055.011",
    "Extra Window Memory Injection",
    description="Adversaries may inject `code`.(Citation: MalwareTech (2013)) See [Epic](https://example.org/S0091).",
    kill_chain_phases=PHASES,
    x_mitre_platforms=["Windows"],
)
MITIGATION = thing("course-of-action", "M1040", "Behavior Prevention on Endpoint")
SOFTWARE = thing("malware", "S0091", "Epic", x_mitre_aliases=["Epic", "Tavdig"])
DATA_SOURCE = thing("x-mitre-data-source", "DS0009", "Process")
COMPONENT = {
    "type": "x-mitre-data-component",
    "id": "x-mitre-data-component--1",
    "name": "OS API Execution",
    "x_mitre_data_source_ref": DATA_SOURCE["id"],
}
ANALYTIC = {
    "type": "x-mitre-analytic",
    "id": "x-mitre-analytic--1",
    "name": "Analytic 0001",
    "description": "Detects calls of SetWindowLong.",
    "x_mitre_platforms": ["Windows"],
    "x_mitre_log_source_references": [{"x_mitre_data_component_ref": COMPONENT["id"], "name": "EDR"}],
}
STRATEGY = thing("x-mitre-detection-strategy", "DET0217", "Window Memory", x_mitre_analytic_refs=[ANALYTIC["id"]])
COMMON = (
    TACTIC,
    PARENT,
    CHILD,
    MITIGATION,
    SOFTWARE,
    COMPONENT,
    link("subtechnique-of", CHILD, PARENT),
    link("mitigates", MITIGATION, CHILD, "Some solutions block it, e.g. Defender. Others do not."),
    link("uses", SOFTWARE, CHILD, "[Epic](https://example.org/S0091) has overwritten a pointer.(Citation: ESET)"),
)

CAPEC_66 = {
    "type": "attack-pattern",
    "id": "attack-pattern--66",
    "name": "SQL Injection",
    "description": "This attack exploits SQL. It is old.",
    "external_references": [
        {"source_name": "capec", "external_id": "CAPEC-66", "url": "https://example.org/66"},
        {"source_name": "cwe", "external_id": "CWE-89"},
    ],
    "x_capec_skills_required": {"Low": "Basic SQL."},
    "x_capec_consequences": {"Access_Control": ["Gain Privileges"]},
    "x_capec_example_instances": ["<xhtml:p>Enter <script>.</xhtml:p>"],
    "x_capec_typical_severity": "High",
}

CWE_XML = """<?xml version="1.0" encoding="UTF-8"?>
<Weakness_Catalog xmlns="http://cwe.mitre.org/cwe-7" xmlns:xhtml="http://www.w3.org/1999/xhtml"><Weaknesses>
<Weakness ID="79" Name="Cross-site Scripting" Status="Stable">
  <Description>The product does not neutralize input. It should.</Description>
  <Extended_Description><xhtml:p>One.</xhtml:p><xhtml:ul><xhtml:li>Two
     lines</xhtml:li></xhtml:ul></Extended_Description>
  <Related_Weaknesses><Related_Weakness Nature="ChildOf" CWE_ID="74" View_ID="1000"/></Related_Weaknesses>
  <Common_Consequences><Consequence><Scope>Integrity</Scope><Scope>Availability</Scope><Impact>Modify Data</Impact>
    <Note>Badly.</Note></Consequence></Common_Consequences>
</Weakness>
<Weakness ID="74" Name="Injection" Status="Incomplete"><Description>It injects.</Description></Weakness>
<Weakness ID="1" Name="DEPRECATED" Status="Deprecated"><Description>Gone.</Description></Weakness>
</Weaknesses></Weakness_Catalog>"""


# --- opening files


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
    assert files.find(tmp_path, "cve.jsonl") == path
    assert files.find(tmp_path, "cti.jsonl") is None


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
    assert prose.clean(marked_up) == plain


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
    assert prose.first_sentence(text) == sentence


def test_listing():
    assert [prose.listing("A"), prose.listing("AB"), prose.listing("ABC")] == ["A", "A and B", "A, B and C"]


# --- ATT&CK


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_attack_15_reads(tmp_path, suffix):
    detects = link("detects", COMPONENT, CHILD, "Monitor API calls. Often.")
    path = write(tmp_path / f"renamed.json{suffix}", bundle(*COMMON, DATA_SOURCE, detects))
    records = {record.id: record for record in attack.read(path)}
    assert set(records) == {f"enterprise/{number}" for number in ("TA0005", "T1055", "T1055.011", "M1040", "S0091")}

    page = records["enterprise/T1055.011"]
    assert page.title == "Process Injection: Extra Window Memory Injection"
    assert (page.source, page.url, page.license) == ("attack", "https://example.org/T1055.011", attack.LICENSE)
    assert page.text.split("\n\n") == [
        "Adversaries may inject code. See Epic.",
        "T1055.011 is a sub-technique of Process Injection (T1055), of the tactic Defense Evasion.",
        "Platforms: Windows.",
        "Mitigation M1040 Behavior Prevention on Endpoint: Some solutions block it, e.g. Defender. Others do not.",
        "Detection by Process: OS API Execution: Monitor API calls. Often.",
        "Procedure of Epic (S0091): Epic has overwritten a pointer.",
    ]
    subject = "Extra Window Memory Injection (T1055.011)"
    assert [(fact.subject, fact.relation, fact.object, fact.evidence) for fact in page.facts] == [
        (subject, "tactic", "Defense Evasion", f"{subject} serves the tactic Defense Evasion."),
        (subject, "mitigation", "Behavior Prevention on Endpoint", "Some solutions block it, e.g. Defender."),
        (subject, "detection", "Process: OS API Execution", "Monitor API calls."),
    ]
    assert "Its sub-techniques are Extra Window Memory Injection (T1055.011)." in records["enterprise/T1055"].text
    assert "holds the techniques Process Injection (T1055)." in records["enterprise/TA0005"].text
    assert "Epic (S0091) is also known as Tavdig." in records["enterprise/S0091"].text


def test_attack_18_reads_strategies_and_analytics(tmp_path):
    path = write(tmp_path / "b.json", bundle(*COMMON, STRATEGY, ANALYTIC, link("detects", STRATEGY, CHILD)))
    page = next(record for record in attack.read(path) if record.id.endswith("T1055.011"))
    assert "Detection strategy DET0217 Window Memory." in page.text
    analytic = "Analytic for Windows: Detects calls of SetWindowLong. Data components: OS API Execution."
    assert analytic in page.text
    assert [fact.object for fact in page.facts if fact.relation == "detection"] == ["OS API Execution"]


@pytest.mark.parametrize("mark", [{"revoked": True}, {"x_mitre_deprecated": True}])
def test_what_is_retired_is_left_out_with_its_relationships(tmp_path, mark):
    retired = MITIGATION | mark
    path = write(tmp_path / "b.json", bundle(*(retired if item is MITIGATION else item for item in COMMON)))
    page = {record.id: record for record in attack.read(path)}
    assert "enterprise/M1040" not in page
    assert "Behavior Prevention" not in page["enterprise/T1055.011"].text


def test_a_dangling_relationship_is_skipped_and_counted(tmp_path, caplog):
    caplog.set_level("DEBUG")
    absent = thing("malware", "S9999", "Absent")
    path = write(tmp_path / "b.json", bundle(*COMMON, link("uses", absent, CHILD, "Absent used it.")))
    assert not any("Absent" in record.text for record in attack.read(path))
    assert stix.load(path).dangling == 1
    assert "b.json: 1 relationships" in caplog.text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[]", r"b\.json is not a STIX bundle: its top level is a list"),
        (b'{"type": "report"}', r"b\.json is not a STIX bundle"),
        (b'{"type": "bundle", "objects": {}}', r'b\.json .*without a list of "objects"'),
        (b'{"type": "bundle", "objects": [7]}', r"b\.json, objects\[0\] is a int"),
        (b'{"type": "bundle", "objects": [{"type": "tool"}]}', r'b\.json, objects\[0\] has no "id"'),
        (b'{"type": "bundle", "objects": [{"type": [], "id": "x"}]}', r'objects\[0\]: "type" has not the form'),
        (bundle(TACTIC, {"type": "tool", "id": "tool--1"}), r'objects\[1\] has no "name"'),
        (bundle(TACTIC, {**CHILD, "x_mitre_platforms": "Windows"}), r'objects\[1\]: "x_mitre_platforms" has not'),
        (bundle(TACTIC, {**CHILD, "external_references": []}), r"b\.json: .*T1055\.011 has no external reference"),
        (bundle(CHILD), r"b\.json .*without a tactic"),
        (b'{"type": "bundle",\n "objects": [}', r"b\.json, line 2, column 14: not valid JSON"),
        (b'{"type": "bundle",\n "id": "\xff"}', r"b\.json, line 2, byte 9: not valid UTF-8"),
        (b"[" * 200_000, r"b\.json, from line 1: JSON beyond what can be read"),
        (b"", r"b\.json, line 1, column 1: not valid JSON"),
    ],
)
def test_a_faulty_bundle_names_the_file_and_the_place(tmp_path, data, message):
    with pytest.raises(UserError, match=message):
        list(attack.read(write(tmp_path / "b.json", data)))


# --- CAPEC


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_capec_reads(tmp_path, suffix):
    mitigation = {"type": "course-of-action", "id": "course-of-action--1", "name": "coa-66-0", "description": "Bind."}
    gone = CAPEC_66 | {"id": "attack-pattern--0", "x_capec_status": "Deprecated"}
    data = bundle(CAPEC_66, mitigation, gone, link("mitigates", mitigation, CAPEC_66))
    (record,) = capec.read(write(tmp_path / f"capec.json{suffix}", data))
    assert (record.id, record.source, record.title, record.url) == (
        "CAPEC-66",
        "capec",
        "SQL Injection",
        "https://example.org/66",
    )
    assert record.text.split("\n\n") == [
        "This attack exploits SQL. It is old.",
        "Typical severity: High.",
        "Skill required (Low): Basic SQL.",
        "Consequence for Access Control: Gain Privileges.",
        "Example: Enter <script>.",
        "Mitigation: Bind.",
        "Related weaknesses: CWE-89.",
    ]
    assert [(fact.subject, fact.relation, fact.object) for fact in record.facts] == [
        ("CAPEC-66", "attack_pattern_name", "SQL Injection"),
        ("SQL Injection (CAPEC-66)", "related_weakness", "CWE-89"),
    ]
    assert record.facts[0].evidence == "This attack exploits SQL."


# --- CWE


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_cwe_reads(tmp_path, suffix):
    record, parent = cwe.read(write(tmp_path / f"cwe.xml{suffix}", CWE_XML.encode()))
    assert (record.id, record.title, parent.id) == ("CWE-79", "Cross-site Scripting", "CWE-74")
    assert record.url == "https://cwe.mitre.org/data/definitions/79.html"
    assert record.text.split("\n\n") == [
        "The product does not neutralize input. It should.",
        "One.",
        "- Two lines",
        "CWE-79 is a child of Injection (CWE-74).",
        "Consequence for Integrity and Availability: Modify Data. Badly.",
    ]
    name, weakness_class = record.facts
    sentence = "The product does not neutralize input."
    assert (name.subject, name.object, name.evidence) == ("CWE-79", "Cross-site Scripting", sentence)
    assert (weakness_class.subject, weakness_class.object) == (sentence, "Cross-site Scripting")


BOMB = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
EXTERNAL = '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize("declaration", [BOMB, EXTERNAL, "<!DOCTYPE a>", '<!DOCTYPE a SYSTEM "http://example.org/a">'])
def test_a_dtd_or_an_entity_is_refused(tmp_path, declaration):
    head, body = CWE_XML.split("\n", 1)
    path = write(tmp_path / "cwe.xml", f"{head}\n{declaration}\n{body}".replace("It injects", "&a;").encode())
    with pytest.raises(UserError, match=r"cwe\.xml, line 2: the XML declares a DTD or an entity"):
        list(cwe.read(path))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (CWE_XML.encode()[:-30], r"cwe\.xml, line 13, column \d+: not well-formed XML"),
        (CWE_XML.replace("Badly", "\xff").encode("latin-1"), r"cwe\.xml, line 9, column \d+: not well-formed XML"),
        (CWE_XML.replace('ID="74" Name', 'ID="many" Name').encode(), r"cwe\.xml, before line \d+: a weakness without"),
        (b"<html/>", r"cwe\.xml holds no weakness"),
        (b"", r"cwe\.xml, line 1"),
    ],
)
def test_a_faulty_catalogue_names_the_file_and_the_line(tmp_path, data, message):
    with pytest.raises(UserError, match=message):
        list(cwe.read(write(tmp_path / "cwe.xml", data)))


# --- JSON lines


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_jsonl_reads(tmp_path, suffix):
    plain = {"id": "a", "source": "s", "text": "Text é."}
    flaw = plain | {"id": "b", "title": "CVE-2024-1", "url": "u", "license": "l"}
    flaw["text"] = "CVE-2024-1\nProduct: A. B. Weakness: CWE-416: Use After Free.\nIt frees. Twice.\nEs gibt frei."
    lines = "\n".join(json.dumps(document, ensure_ascii=False) for document in (plain, flaw))
    first, second = jsonl.read(write(tmp_path / f"c.jsonl{suffix}", f"{lines}\n\n".encode()))
    assert first == Record(id="a", source="s", title="", text="Text é.", url="", license="")
    (fact,) = second.facts
    assert (fact.subject, fact.relation, fact.object) == ("It frees. Twice.", "weakness_class", "Use After Free")
    assert fact.evidence == "CVE-2024-1 is classified as CWE-416 Use After Free."


@pytest.mark.parametrize(
    "weakness", ["CWE-416.", "CWE-416 .", "Use After Free.", "CWE-121: Overflow; CWE-400: Consumption."]
)
def test_an_unnamed_or_ambiguous_weakness_is_no_fact(tmp_path, weakness):
    document = {"id": "a", "source": "s", "text": f"CVE\nProduct: A. Weakness: {weakness}\nIt fails."}
    (record,) = jsonl.read(write(tmp_path / "c.jsonl", json.dumps(document).encode()))
    assert record.facts == ()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": "a" 7}', "line 3, column 12: not valid JSON"),
        (b'{"id": "\xc3"}', "line 3, byte 9: not valid UTF-8"),
        (b"[1]", "line 3: a list instead of an object"),
        (b'{"id": "a", "source": "s"}', 'line 3: "text" is missing or empty'),
        (b'{"id": 7, "source": "s", "text": "t"}', 'line 3: "id" must be a string'),
        (b'{"id": "a", "source": "s", "text": "t", "url": null}', 'line 3: "url" must be a string'),
        (b'{"id": "a", "source": "s", "text": "\\ud800"}', "line 3: .*half of a surrogate pair"),
        (b'{"id": ' + b"9" * 5000 + b"}", "from line 3: JSON beyond what can be read"),
        (b'"' + b"x" * jsonl.MAX_LINE, "line 3: longer than 32 MiB"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "line",
)
def test_a_faulty_line_is_named(tmp_path, line, message):
    good = b'{"id": "a", "source": "s", "text": "t"}\n'
    path = write(tmp_path / "c.jsonl", good * 2 + line + b"\n" + good)
    with pytest.raises(UserError, match=rf"c\.jsonl, {message}"):
        list(jsonl.read(path))


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


def test_the_pack_is_whole():
    records = list(embedded.read())
    kinds = Counter(record.id.split("/")[0] for record in records)
    assert kinds["cwe"] >= 100
    assert set(kinds) == {"attack", "capec", "cwe", "ports", "acronyms", "explanations"}
    assert len({record.id for record in records}) == len(records)
    assert all(record.source == "embedded" and record.text and record.title for record in records)
    check_facts(records)
    assert {fact.relation for record in records for fact in record.facts} == RELATIONS.keys() - {
        "mitigation",
        "detection",
    }


def test_the_pack_talks():
    pairs = embedded.small_talk()
    assert len(pairs) >= 120
    assert all(user.strip() and assistant.strip() for user, assistant in pairs)
    assert len(set(embedded.anchors())) == len(embedded.anchors()) == 29


# --- the real files


def check_facts(records):
    for record in records:
        for fact in record.facts:
            assert fact.relation in RELATIONS
            assert all(part.strip() for part in (fact.subject, fact.object, fact.evidence)), (record.id, fact)


@pytest.fixture(scope="module")
def data_folder():
    if not os.environ.get("GHOST_DATA"):
        pytest.skip("GHOST_DATA is not set: the real files are not there to be read")
    return Path(os.environ["GHOST_DATA"])


@pytest.fixture(scope="module")
def real(data_folder):
    """Records by source, read in the time that the tests of the counts allow."""
    names = ("attack", "capec", "cwe", "attack18")
    paths = {name: locate(name, [data_folder]) for name in names}
    absent = [name for name in names if len(paths[name]) < len(SOURCES[name].stems)]
    if absent:
        pytest.skip(f"GHOST_DATA has not all files of {', '.join(absent)}")
    records, seconds = {}, {}
    for name in names:
        start = time.process_time()
        records[name] = [record for path in paths[name] for record in SOURCES[name].read(path)]
        seconds[name] = time.process_time() - start
    assert seconds["attack"] + seconds["capec"] + seconds["cwe"] < 15, seconds
    return records


def live_objects(path: Path, kind: str) -> list[dict]:
    """Counts independently of the adapter, from the JSON alone."""
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as stream:
        objects = json.load(stream)["objects"]
    return [
        item
        for item in objects
        if item["type"] == kind
        and not any(item.get(mark) for mark in ("revoked", "x_mitre_deprecated"))
        and item.get("x_capec_status") != "Deprecated"
    ]


def test_real_attack_has_every_active_technique(real, data_folder):
    for name in ("attack", "attack18"):
        for path in locate(name, [data_folder]):
            domain = path.name.split("-")[0]
            expected = {
                f"{domain}/{entry['external_id']}"
                for technique in live_objects(path, "attack-pattern")
                for entry in technique["external_references"]
                if entry["source_name"] == "mitre-attack"
            }
            numbers = {record.id for record in real[name] if re.match(rf"{domain}/T\d", record.id)}
            assert numbers == expected


def test_real_attack_enterprise_15_has_the_published_counts(real):
    kinds = Counter(re.match(r"enterprise/([A-Z]+)", record.id)[1] for record in real["attack"] if "enter" in record.id)
    assert kinds == {"T": 637, "S": 677, "G": 148, "M": 43, "C": 28, "TA": 14}


def test_real_capec_and_cwe_have_what_is_in_force(real, data_folder):
    (capec_path,) = locate("capec", [data_folder])
    assert len(real["capec"]) == len(live_objects(capec_path, "attack-pattern"))
    assert len(real["cwe"]) == 938  # 963 weaknesses of CWE 4.14, 25 of them deprecated


@pytest.mark.parametrize("name", ["attack", "attack18", "capec", "cwe"])
def test_real_records_are_clean_and_whole(real, name):
    records = real[name]
    assert len({record.id for record in records}) == len(records)
    for record in records:
        assert all((record.text, record.title, record.url.startswith("https://"))), record.id
        assert not re.search(r"\(Citation:|</?xhtml:|</?code>|\]\(https?:|`|\n\n\n", record.text), record.id
    check_facts(records)


def test_real_attack_states_tactics_mitigations_and_detections(real):
    for name in ("attack", "attack18"):
        relations = Counter(fact.relation for record in real[name] for fact in record.facts)
        assert min(relations[relation] for relation in ("tactic", "mitigation", "detection")) > 800


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("cti", 51_198), ("cve", 166_966)])
def test_real_corpora_read_to_the_end(data_folder, name, count):
    paths = locate(name, [data_folder])
    if not paths:
        pytest.skip(f"GHOST_DATA has no {name}.jsonl")
    assert sum(1 for _ in jsonl.read(paths[0])) == count
