"""The adapters on the real files of GHOST_DATA."""

import json
import lzma
import re
from collections import Counter
from pathlib import Path

import pytest

from ghost_jax.data.sources import SOURCES, jsonl, locate
from tests.test_sources import check_facts


@pytest.fixture(scope="module")
def real(ghost_data):
    """Source -> its records."""
    paths = {name: locate(name, [ghost_data]) for name in ("attack", "capec", "cwe", "attack18")}
    if missing := [name for name in paths if len(paths[name]) < len(SOURCES[name].stems)]:
        pytest.skip(f"GHOST_DATA has not all files of {', '.join(missing)}")
    return {name: [record for path in paths[name] for record in SOURCES[name].read(path)] for name in paths}


def live_objects(path: Path, kind: str) -> list[dict]:
    """Returns the objects in force, read without the adapter."""
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as stream:
        objects = json.load(stream)["objects"]
    return [
        item
        for item in objects
        if item["type"] == kind
        and not any(item.get(mark) for mark in ("revoked", "x_mitre_deprecated"))
        and item.get("x_capec_status") not in ("Deprecated", "Obsolete")
    ]


def test_real_attack_has_every_active_technique(real, ghost_data):
    for name in ("attack", "attack18"):
        for path in locate(name, [ghost_data]):
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


def test_real_capec_and_cwe_have_what_is_in_force(real, ghost_data):
    (capec_path,) = locate("capec", [ghost_data])
    assert len(real["capec"]) == len(live_objects(capec_path, "attack-pattern"))
    assert len(real["cwe"]) == 938  # 963 weaknesses of CWE 4.14, 25 of them deprecated


@pytest.mark.parametrize("name", ["attack", "attack18", "capec", "cwe"])
def test_real_records_are_unique_and_clean(real, name):
    records = real[name]
    assert len({record.id for record in records}) == len(records)
    for record in records:
        assert all((record.text, record.title, record.url.startswith("https://"))), record.id
        assert not re.search(r"\(Citation:|</?xhtml:|</?code>|\]\(https?:|`|\n\n\n", record.text), record.id
    check_facts(records)


# What the files hold, so that a fact that is no longer found is noticed. ATT&CK 15.1 is three domains, 18.1 is one.
FACTS = {
    "attack": {
        "tactic": 1061,
        "mitigation": 1786,
        "detection": 2389,
        "group_technique": 3433,
        "group_software": 947,
        "software_technique": 10_281,
        "campaign_technique": 728,
    },
    "attack18": {
        "tactic": 887,
        "mitigation": 1445,
        "detection": 2615,
        "group_technique": 4362,
        "group_software": 1104,
        "software_technique": 10_636,
        "campaign_technique": 1019,
    },
    "capec": {"attack_pattern_name": 558, "related_weakness": 1211},
    "cwe": {
        "weakness_name": 938,
        "weakness_class": 938,
        "parent_weakness": 1148,
        "consequence": 1721,
        "weakness_mitigation": 1557,
    },
}


@pytest.mark.parametrize("name", FACTS)
def test_real_files_state_these_facts_each_once_and_clean(real, name):
    assert Counter(fact.relation for record in real[name] for fact in record.facts) == FACTS[name]
    for record in real[name]:
        stated = [(fact.subject, fact.relation, fact.object) for fact in record.facts]
        assert len(set(stated)) == len(stated), record.id
        for part in {part for fact in record.facts for part in (fact.subject, fact.object, fact.evidence)}:
            assert part == " ".join(part.split()), (record.id, part)
            assert not re.search(r"\(Citation:|</?xhtml:|</?code>|\]\(https?:|`|\[REF-|&(lt|gt|amp);", part), record.id


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("cti", 51_198), ("cve", 166_356)])
def test_real_corpora_read_to_the_end(ghost_data, name, count):
    paths = locate(name, [ghost_data])
    if not paths:
        pytest.skip(f"GHOST_DATA has no {name}.jsonl")
    assert sum(1 for _ in jsonl.read(paths[0])) == count
