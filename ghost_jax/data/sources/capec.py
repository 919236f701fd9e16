"""MITRE CAPEC, the catalogue of attack patterns, from the publisher's STIX bundle."""

from collections.abc import Iterator
from pathlib import Path

from ghost_jax.data.sources import stix
from ghost_jax.data.sources.stix import Bundle
from ghost_jax.data.sources.vulnerability import weaknesses
from ghost_jax.data.storage.schema import Fact, Record
from ghost_jax.data.storage.text_cleaning import clean, first_sentence, flat, labelled, listing, paragraphs

VERSION = 1  # raise it when the same file gives other records

LICENSE = "MITRE CAPEC terms of use"


def read(path: Path) -> Iterator[Record]:
    """Yields a record for each attack pattern in force, with its name and its related weaknesses as facts.

    Raises:
      UserError: the file is not a sound STIX bundle.
    """
    bundle = stix.load(path)
    for pattern in bundle.of_type("attack-pattern"):
        number, url = _reference(bundle, pattern)
        text = _text(bundle, pattern)
        yield Record(number, "capec", _name(pattern), text, url, LICENSE, tuple(_facts(number, pattern)))


def _name(pattern: dict) -> str:
    return flat(pattern["name"])  # some end in a blank


def _reference(bundle: Bundle, pattern: dict) -> tuple[str, str]:
    return stix.reference(pattern, ("capec",), bundle.path)


def _weaknesses(pattern: dict) -> list[str]:
    entries = [entry for entry in pattern.get("external_references", []) if entry.get("source_name") == "cwe"]
    return weaknesses(entry.get("external_id", "") for entry in entries)


def _facts(number: str, pattern: dict) -> Iterator[Fact]:
    name = _name(pattern)
    description = first_sentence(clean(pattern.get("description", "")))
    yield Fact(number, "attack_pattern_name", name, description or f"{number} is {name}.")
    for weakness in _weaknesses(pattern):
        evidence = f"{name} ({number}) exploits the weakness {weakness}."
        yield Fact(f"{name} ({number})", "related_weakness", weakness, evidence)


def _text(bundle: Bundle, pattern: dict) -> str:
    number, _ = _reference(bundle, pattern)
    parents = [
        f"{_name(parent)} ({_reference(bundle, parent)[0]})"
        for parent in bundle.present(pattern.get("x_capec_child_of_refs", []))
    ]
    related = _weaknesses(pattern)
    return paragraphs(
        clean(pattern.get("description", "")),
        clean(pattern.get("x_capec_extended_description", "")),
        *_each("Alternate term", pattern.get("x_capec_alternate_terms", [])),
        f"{number} is a child of {listing(parents)}." if parents else "",
        f"Likelihood of attack: {pattern['x_capec_likelihood_of_attack']}."
        if "x_capec_likelihood_of_attack" in pattern
        else "",
        f"Typical severity: {pattern['x_capec_typical_severity']}." if "x_capec_typical_severity" in pattern else "",
        clean(pattern.get("x_capec_execution_flow", "")),
        *_each("Prerequisite", pattern.get("x_capec_prerequisites", [])),
        *(
            labelled(f"Skill required ({level})", clean(skill))
            for level, skill in pattern.get("x_capec_skills_required", {}).items()
        ),
        *_each("Resources required", pattern.get("x_capec_resources_required", [])),
        *(
            f"Consequence for {scope.replace('_', ' ')}: {listing(dict.fromkeys(map(clean, impacts)))}."
            for scope, impacts in pattern.get("x_capec_consequences", {}).items()
            if impacts
        ),
        *_each("Example", pattern.get("x_capec_example_instances", [])),
        *_each(
            "Mitigation",
            [edge.other.get("description", "") for edge in bundle.incoming("mitigates", pattern, "course-of-action")],
        ),
        f"Related weaknesses: {listing(related)}." if related else "",
    )


def _each(label: str, contents: list[str]) -> list[str]:
    return [labelled(label, clean(content)) for content in contents]
