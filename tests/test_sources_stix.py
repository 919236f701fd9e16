"""ATT&CK and CAPEC from small bundles written by hand."""

import json

import pytest

from ghost_jax.core.errors import UserError
from ghost_jax.data.sources import attack, capec, stix
from ghost_jax.data.storage.schema import Fact
from tests.test_sources import COMPRESSIONS, check_facts, write


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
    software = records["enterprise/S0091"]
    assert "Epic (S0091) is also known as Tavdig." in software.text
    assert software.facts == (Fact("Epic (S0091)", "software_technique", subject, "Epic has overwritten a pointer."),)


def test_attack_states_what_groups_and_campaigns_use(tmp_path):
    group, campaign = thing("intrusion-set", "G0010", "Turla"), thing("campaign", "C0001", "Frankenstein")
    links = (
        link("uses", group, CHILD, "[Turla](https://example.org/G0010) injects code.(Citation: A) It does so often."),
        link("uses", group, CHILD, "Said again."),
        link("uses", group, SOFTWARE),
        link("uses", campaign, PARENT, "In it, code was injected."),
        link("uses", campaign, SOFTWARE, "There is no relation for this."),
        link("attributed-to", campaign, group),
    )
    links = tuple(each | {"id": f"relationship--{i}"} for i, each in enumerate(links))
    pages = {r.id: r for r in attack.read(write(tmp_path / "b.json", bundle(*COMMON, group, campaign, *links)))}
    child = "Extra Window Memory Injection (T1055.011)"
    assert pages["enterprise/G0010"].facts == (
        Fact("Turla (G0010)", "group_technique", child, "Turla injects code."),
        Fact("Turla (G0010)", "group_software", "Epic (S0091)", "Turla (G0010) uses Epic (S0091)."),
    )
    assert pages["enterprise/C0001"].facts == (
        Fact("Frankenstein (C0001)", "campaign_technique", "Process Injection (T1055)", "In it, code was injected."),
    )


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


WHOLE, OLD, NEW, NEWER = (f"2024-01-01T00:00:00{fraction}Z" for fraction in ("", ".000", ".5", ".51"))


@pytest.mark.parametrize("turn", [1, -1], ids=["newest last", "newest first"])
@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("2019-05-01T00:00:00Z", "2024-01-01T00:00:00Z"),
        (OLD, NEW),
        (NEW, NEWER),
        ("2024-01-01T00:00:00Z", NEW),
        ("", NEW),
    ],
)
def test_of_objects_with_one_id_the_latest_modified_counts(tmp_path, older, newer, turn):
    def version(of: dict, modified: str, **fields) -> dict:
        return of | fields | ({"modified": modified} if modified else {})

    used = link("uses", SOFTWARE, PARENT, "It injects.")
    versions = [
        (version(CHILD, older, name="Old"), version(CHILD, newer, name="New")),
        (version(MITIGATION, older), version(MITIGATION, newer, revoked=True)),
        (version(PARENT, older, revoked=True), version(PARENT, newer)),
        (version(used, older), version(used, newer, revoked=True)),
    ]
    rest = [item for item in COMMON if item not in (CHILD, MITIGATION, PARENT)]
    path = write(tmp_path / "b.json", bundle(*rest, *(one for pair in versions for one in pair[::turn])))
    pages = {record.id: record for record in attack.read(path)}
    assert pages["enterprise/T1055.011"].title == "Process Injection: New"
    assert "enterprise/T1055" in pages
    assert "enterprise/M1040" not in pages
    assert [fact.object for fact in pages["enterprise/S0091"].facts] == ["New (T1055.011)"]
    assert not any(fact.relation == "mitigation" for page in pages.values() for fact in page.facts)


@pytest.mark.parametrize("status", ["Deprecated", "Obsolete"])
def test_a_retired_attack_pattern_is_left_out_and_not_named_as_a_parent(tmp_path, status):
    gone = CAPEC_66 | {"id": "attack-pattern--0", "name": "Gone", "x_capec_status": status}
    child = CAPEC_66 | {"x_capec_child_of_refs": [gone["id"]]}
    (record,) = capec.read(write(tmp_path / "capec.json", bundle(gone, child)))
    assert record.title == "SQL Injection"
    assert "Gone" not in record.text


@pytest.mark.parametrize(
    "key", ["description", "x_mitre_platforms", "kill_chain_phases", "x_mitre_detection", "revoked"]
)
def test_null_in_an_optional_field_is_absence(tmp_path, key):
    def page(child: dict):
        objects = (child if item is CHILD else item for item in COMMON)
        return list(attack.read(write(tmp_path / "b.json", bundle(*objects))))

    assert page(CHILD | {key: None}) == page({name: value for name, value in CHILD.items() if name != key})


@pytest.mark.parametrize("description", ["", " ", None, "<p></p>"])
def test_an_entry_without_a_description_states_no_blank_fact(tmp_path, description):
    objects = (item | {"description": description} for item in COMMON)
    records = list(attack.read(write(tmp_path / "b.json", bundle(*objects))))
    records += capec.read(write(tmp_path / "c.json", bundle(CAPEC_66 | {"description": description})))
    check_facts(records)
    assert {fact.relation for record in records for fact in record.facts} >= {"mitigation", "attack_pattern_name"}


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
        (bundle(TACTIC, {**CHILD, "name": " "}), r'objects\[1\] has no "name"'),
        (bundle(TACTIC, {**CHILD, "name": None}), r'objects\[1\] has no "name"'),
        (bundle(TACTIC, {**CHILD, "modified": "yesterday"}), r'objects\[1\]: "modified" is not'),
        (bundle(TACTIC, {**CHILD, "revoked": "false"}), r'objects\[1\]: "revoked" has not the form'),
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


@pytest.mark.parametrize("code", ["", " ", None, "CWE-"])
def test_an_empty_cwe_id_is_no_related_weakness(tmp_path, code):
    empty = {"source_name": "cwe", "external_id": code}
    pattern = CAPEC_66 | {"external_references": [empty, *CAPEC_66["external_references"]]}
    (record,) = capec.read(write(tmp_path / "capec.json", bundle(pattern)))
    assert [fact.object for fact in record.facts] == ["SQL Injection", "CWE-89"]
    assert record.text.endswith("Related weaknesses: CWE-89.")
