"""The project's own pack: small, Apache-2.0, part of the package, so that everything runs offline."""

import importlib.resources
import json
import re
from collections.abc import Iterator

from ghost_jax.data.storage.artifact_cache import fingerprint, sha256_of
from ghost_jax.data.storage.schema import Fact, Record
from ghost_jax.data.storage.text_cleaning import first_sentence, listing, with_list

VERSION = 1  # raise it when the same pack gives other records, pairs or anchors

LICENSE = "Apache-2.0"

_PACK = importlib.resources.files(__package__).joinpath("pack")


def read() -> Iterator[Record]:
    """Yields the records of the pack: techniques, attack patterns, weaknesses, ports, acronyms and explanations.

    They state facts of the relations "tactic", "attack_pattern_name", "related_weakness", "weakness_name",
    "weakness_class", "port_service" and "expansion".
    """
    for build in (_techniques, _attack_patterns, _weaknesses, _ports, _acronyms, _explanations):
        yield from build()


def sha256() -> str:
    """Returns the SHA-256 of the pack: of its files' names and contents."""
    return fingerprint({file.name: sha256_of(file) for file in _PACK.iterdir()})


def small_talk() -> list[tuple[str, str]]:
    """Returns pairs of a user's message and Ghost's answer."""
    return list(_rows("small_talk.tsv"))


def anchors() -> list[str]:
    """Returns the anchor words, greetings and the like, that become one token each."""
    return _lines("anchors.txt")


def _techniques() -> Iterator[Record]:
    for number, name, tactics, explanation in _rows("attack.tsv"):
        subject = f"{name.rpartition(': ')[2]} ({number})"  # without the parent's name, as in the ATT&CK adapter
        names = tactics.split("; ")
        facts = [Fact(subject, "tactic", tactic, f"{subject} serves the tactic {tactic}.") for tactic in names]
        statement = f"{subject} is a technique of the {'tactics' if len(names) > 1 else 'tactic'} {listing(names)}."
        yield _record(f"attack/{number}", name, explanation, statement, *facts)


def _attack_patterns() -> Iterator[Record]:
    for number, name, weaknesses, explanation in _rows("capec.tsv"):
        subject = f"{name} ({number})"
        numbers = weaknesses.split("; ") if weaknesses else []
        statement = f"{number} is the attack pattern {name}."
        facts = [Fact(number, "attack_pattern_name", name, statement)]
        for weakness in numbers:
            facts.append(Fact(subject, "related_weakness", weakness, f"{subject} exploits the weakness {weakness}."))
        exploited = with_list(" It exploits", numbers)
        yield _record(f"capec/{number}", name, explanation, statement + exploited, *facts)


def _weaknesses() -> Iterator[Record]:
    for number, name, short_name, explanation in _rows("cwe.tsv"):
        description = first_sentence(explanation)
        statement = f"{number} is the weakness {name}, in short: {short_name}."
        facts = (
            Fact(number, "weakness_name", name, statement),
            Fact(description, "weakness_class", name, f'"{description}" describes the weakness {name} ({number}).'),
        )
        yield _record(f"cwe/{number}", name, explanation, statement, *facts)


def _ports() -> Iterator[Record]:
    for port, protocols, service, explanation in _rows("ports.tsv"):
        transports = protocols.upper().split("/")
        subjects = [f"{transport} port {port}" for transport in transports]
        facts = [Fact(subject, "port_service", service, f"{subject} belongs to {service}.") for subject in subjects]
        title, name = f"{listing(transports)} port {port}", f"ports/{port}-{'-'.join(transports)}"
        yield _record(name, title, explanation, f"{title} belongs to {service}.", *facts)


def _acronyms() -> Iterator[Record]:
    for acronym, expansion, explanation in _rows("acronyms.tsv"):
        statement = f"{acronym} stands for {expansion}."
        fact = Fact(acronym, "expansion", expansion, statement)
        yield _record(f"acronyms/{acronym}", acronym, explanation, statement, fact)


def _explanations() -> Iterator[Record]:
    for line in _lines("explanations.jsonl"):
        document = json.loads(line)
        slug = re.sub(r"[^a-z0-9]+", "-", document["title"].lower()).strip("-")
        yield _record(f"explanations/{slug}", document["title"], document["text"])


def _record(number: str, title: str, explanation: str, statement: str = "", *facts: Fact) -> Record:
    text = f"{statement}\n\n{explanation}".strip()
    return Record(number, "embedded", title, text, url="", license=LICENSE, facts=facts)


def _rows(name: str) -> Iterator[tuple[str, ...]]:
    return (tuple(line.split("\t")) for line in _lines(name)[1:])  # below the header


def _lines(name: str) -> list[str]:
    text = _PACK.joinpath(name).read_text(encoding="utf-8")
    return [line for line in text.split("\n") if line.strip()]
