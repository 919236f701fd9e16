"""MITRE CAPEC, the catalogue of attack patterns, from the publisher's STIX bundle."""

from collections.abc import Iterator
from pathlib import Path

from ghost_jax.data.sources.stix import Bundle
from ghost_jax.data.sources.vulnerability import cwe_ids
from ghost_jax.data.storage.schema import Fact, Record
from ghost_jax.data.storage.text_cleaning import clean, first_sentence, flat, labelled, paragraphs, with_list

VERSION = 2  # raise it when the same file gives other records

LICENSE = "MITRE CAPEC terms of use"

_RELATIONS = {
    "x_capec_child_of_refs": "is a child of",
    "x_capec_parent_of_refs": "is a parent of",
    "x_capec_can_precede_refs": "can precede",
    "x_capec_can_follow_refs": "can follow",
    "x_capec_peer_of_refs": "is a peer of",
}


def read(path: Path) -> Iterator[Record]:
    """Yields a record for each attack pattern in force, with its name and its related weaknesses as facts."""
    bundle = Bundle(path, ("capec",))
    for pattern in bundle.of_type("attack-pattern"):
        number, url = bundle.reference(pattern)
        name = flat(pattern["name"])  # some end in a blank
        cwe = [entry for entry in pattern.get("external_references", []) if entry.get("source_name") == "cwe"]
        related = cwe_ids(entry.get("external_id", "") for entry in cwe)
        text = paragraphs(*_text(bundle, pattern, number, related))
        yield Record(number, "capec", name, text, url, LICENSE, tuple(_facts(pattern, number, name, related)))


def _facts(pattern: dict, number: str, name: str, related: list[str]) -> Iterator[Fact]:
    description = first_sentence(clean(pattern.get("description", "")))
    yield Fact(number, "attack_pattern_name", name, description or f"{number} is {name}.")
    for weakness in related:
        evidence = f"{name} ({number}) exploits the weakness {weakness}."
        yield Fact(f"{name} ({number})", "related_weakness", weakness, evidence)


def _text(bundle: Bundle, pattern: dict, number: str, related: list[str]) -> Iterator[str]:
    def each(label: str, key: str) -> Iterator[str]:
        return (labelled(label, clean(content)) for content in pattern.get(key, []))

    yield clean(pattern.get("description", ""))
    yield clean(pattern.get("x_capec_extended_description", ""))
    yield from each("Alternate term", "x_capec_alternate_terms")
    for key, relation in _RELATIONS.items():
        others = bundle.present(pattern.get(key, []))
        named = (f"{flat(other['name'])} ({bundle.reference(other)[0]})" for other in others)
        yield with_list(f"{number} {relation}", named)
    for label, key in (("Likelihood of attack", "likelihood_of_attack"), ("Typical severity", "typical_severity")):
        if f"x_capec_{key}" in pattern:
            yield f"{label}: {pattern[f'x_capec_{key}']}."
    yield clean(pattern.get("x_capec_execution_flow", ""))
    yield from each("Prerequisite", "x_capec_prerequisites")
    for level, skill in pattern.get("x_capec_skills_required", {}).items():
        yield labelled(f"Skill required ({level})", clean(skill))
    yield from each("Resources required", "x_capec_resources_required")
    for scope, impacts in pattern.get("x_capec_consequences", {}).items():
        yield with_list(f"Consequence for {scope.replace('_', ' ')}:", dict.fromkeys(map(clean, impacts)))
    yield from each("Example", "x_capec_example_instances")
    for edge in bundle.incoming("mitigates", pattern, "course-of-action"):
        yield labelled("Mitigation", clean(edge.other.get("description", "")))
    yield with_list("Related weaknesses:", related)
