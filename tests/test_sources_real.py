"""The readers of sources on the real files of GHOST_DATA."""

import functools
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from ghost_jax.data.sources import SOURCES
from ghost_jax.data.sources.data_files import locate, read
from ghost_jax.data.storage.files import open_bytes
from ghost_jax.data.storage.schema import Record
from tests.test_sources import check_facts

# What the files state. ATT&CK 15.1 is three domains.
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
    "capec": {"attack_pattern_name": 558, "related_weakness": 1211},
    # CWE 4.14 has 963 weaknesses, 25 of them deprecated.
    "cwe": {
        "weakness_name": 938,
        "weakness_class": 938,
        "parent_weakness": 1148,
        "consequence": 1721,
        "weakness_mitigation": 1557,
    },
}
MARKUP = r"\(Citation:|</?xhtml:|</?code>|\]\(https?:|`"


@functools.cache
def records_of(folder: Path, name: str) -> list[Record]:
    paths = locate(name, [folder])
    if len(paths) < len(SOURCES[name].stems):
        pytest.skip(f"GHOST_DATA has not all files of {name}")
    return [record for path in paths for record in read(name, path)]


def ids_in_force(path: Path, publisher: str) -> set[str]:
    """Returns the ids of the attack patterns in force of a STIX bundle, read without the reader under test."""
    with open_bytes(path) as stream:
        objects = json.load(stream)["objects"]
    return {
        reference["external_id"]
        for item in objects
        if item["type"] == "attack-pattern"
        and not any(item.get(mark) for mark in ("revoked", "x_mitre_deprecated"))
        and item.get("x_capec_status") not in ("Deprecated", "Obsolete")
        for reference in item["external_references"]
        if reference["source_name"] == publisher
    }


@pytest.mark.parametrize("name", ["attack", "capec"])
def test_every_attack_pattern_in_force_is_read(ghost_data, name):
    records = records_of(ghost_data, name)
    for path in locate(name, [ghost_data]):
        prefix, publisher = ("", "capec") if name == "capec" else (f"{path.name.split('-')[0]}/", "mitre-attack")
        read = {r.id.removeprefix(prefix) for r in records if re.match(rf"{prefix}(T\d|CAPEC)", r.id)}
        assert read == ids_in_force(path, publisher)
    if name == "attack":
        kinds = Counter(re.match(r"enterprise/([A-Z]+)|", record.id)[1] for record in records)
        assert kinds.items() >= {"T": 637, "S": 677, "G": 148, "M": 43, "C": 28, "TA": 14}.items()  # as published


@pytest.mark.parametrize("name", FACTS)
def test_real_records_and_facts_are_unique_and_clean(ghost_data, name):
    records = records_of(ghost_data, name)
    assert len({record.id for record in records}) == len(records)
    check_facts(records)
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
    paths = locate(name, [ghost_data])
    if not paths:
        pytest.skip(f"GHOST_DATA has no {name}.jsonl")
    assert sum(1 for _ in read(name, paths[0])) == count
