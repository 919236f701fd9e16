"""MITRE CWE, the catalogue of weaknesses, streamed from the publisher's XML."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

from defusedxml import ElementTree

from ghost_jax.data.sources.vulnerability import is_retired
from ghost_jax.data.storage import files
from ghost_jax.data.storage.schema import Fact, Record
from ghost_jax.data.storage.text_cleaning import first_sentence, headed, labelled, listing, paragraphs, prose, with_list

VERSION = 2  # raise it when the same file gives other records

LICENSE = "MITRE CWE terms of use"

_SECTIONS = ("Weakness", "Category", "View", "External_Reference")
_CONSEQUENCES = "Common_Consequences/{*}Consequence"
_MITIGATIONS = "Potential_Mitigations/{*}Mitigation"
_EMPTY = ("Other", "Varies by Context")  # values of a mandatory field that state nothing
_RELATIONS = {
    "ChildOf": "is a child of",
    "ParentOf": "is a parent of",  # the catalogue states it at the child alone
    "PeerOf": "is a peer of",
    "CanPrecede": "can precede",
    "CanAlsoBe": "can also be",
    "Requires": "requires",
    "StartsWith": "starts with",
}
_PLATFORMS = {
    "Language": "Languages",
    "Operating_System": "Operating systems",
    "Architecture": "Architectures",
    "Technology": "Technologies",
}
_LONGEST_MEASURE = 200  # characters; what is longer is an explanation and not a measure


def read(path: Path) -> Iterator[Record]:
    """Yields a record for each weakness in force.

    Its facts are of the relations "weakness_name", "weakness_class", "parent_weakness", "consequence" and
    "weakness_mitigation". The file is read twice, because a weakness names its parent by number and the parent may come
    later; one weakness is held at a time.
    """
    names: dict[str, str] = {}
    children: dict[str, list[str]] = defaultdict(list)  # number -> those of its children
    for weakness in _weaknesses(path):
        names[weakness.attrib["ID"]] = weakness.attrib["Name"].strip()  # some end in a blank
        for parent in _related(weakness)["ChildOf"]:
            children[parent].append(weakness.attrib["ID"])
    for weakness in _weaknesses(path):
        number, name = f"CWE-{weakness.get('ID')}", names[weakness.get("ID")]
        related = {
            nature: [f"{names[other]} (CWE-{other})" for other in others if other in names]
            for nature, others in (_related(weakness) | {"ParentOf": children[weakness.get("ID")]}).items()
        }
        url = f"https://cwe.mitre.org/data/definitions/{weakness.get('ID')}.html"
        text = paragraphs(*_text(weakness, number, related))
        yield Record(number, "cwe", name, text, url, LICENSE, tuple(_facts(weakness, number, name, related["ChildOf"])))


def _related(weakness: Element) -> dict[str, list[str]]:
    """Returns nature of a relation -> the numbers of other weaknesses, each once, whatever views show it."""
    found: dict[str, dict[str, None]] = {nature: {} for nature in _RELATIONS}
    for relation in _each(weakness, "Related_Weaknesses/{*}Related_Weakness"):
        found.setdefault(relation.get("Nature", ""), {})[relation.get("CWE_ID", "")] = None
    return {nature: list(others) for nature, others in found.items()}


def _weaknesses(path: Path) -> Iterator[Element]:
    """Yields each weakness in force, and empties it when the next one is asked for; refuses a DTD and entities."""
    with files.open_text(path) as stream:
        parser = ElementTree.XMLParser(forbid_dtd=True)
        for _, element in ElementTree.iterparse(stream, events=("end",), parser=parser):
            section = element.tag.rpartition("}")[2]
            if section == "Weakness" and not is_retired(element.get("Status")):
                yield element
            if section in _SECTIONS:
                element.clear()


def _text(weakness: Element, number: str, related: dict[str, list[str]]) -> Iterator[str]:
    yield _field(weakness, "Description")
    yield _field(weakness, "Extended_Description")
    for term in _each(weakness, "Alternate_Terms/{*}Alternate_Term"):
        yield headed(f"Alternate term {_field(term, 'Term')}", _field(term, "Description"))
    for nature, relation in _RELATIONS.items():
        yield with_list(f"{number} {relation}", related[nature])
    for kind, label in _PLATFORMS.items():
        platforms = _each(weakness, f"Applicable_Platforms/{{*}}{kind}")
        yield with_list(f"{label}:", (each.get("Name") or each.get("Class", "") for each in platforms))
    for introduction in _each(weakness, "Modes_Of_Introduction/{*}Introduction"):
        yield headed(f"Introduced in the phase {_field(introduction, 'Phase')}", _field(introduction, "Note"))
    for likelihood in _fields(weakness, "Likelihood_Of_Exploit"):
        yield f"Likelihood of exploit: {likelihood}."
    for consequence in _each(weakness, _CONSEQUENCES):
        label = "Consequence" + listing(_fields(consequence, "Scope"), " for ")
        impact = listing(_fields(consequence, "Impact"), after=". ")
        yield labelled(label, impact + _field(consequence, "Note"))
    for method in _each(weakness, "Detection_Methods/{*}Detection_Method"):
        rating = with_list(" Effectiveness:", _fields(method, "Effectiveness"))
        yield labelled(f"Detection by {_field(method, 'Method')}", _field(method, "Description") + rating)
    for mitigation in _each(weakness, _MITIGATIONS):
        label = "Mitigation" + listing(_fields(mitigation, "Phase"), " in ")
        yield labelled(label, _field(mitigation, "Description"))
    for example in _each(weakness, "Observed_Examples/{*}Observed_Example"):
        yield labelled(f"Observed example {_field(example, 'Reference')}", _field(example, "Description"))
    patterns = _each(weakness, "Related_Attack_Patterns/{*}Related_Attack_Pattern")
    yield with_list("Related attack patterns:", (f"CAPEC-{each.get('CAPEC_ID')}" for each in patterns))


def _facts(weakness: Element, number: str, name: str, parents: list[str]) -> Iterator[Fact]:
    subject = f"{name} ({number})"
    description = first_sentence(_field(weakness, "Description"))
    yield Fact(number, "weakness_name", name, description or f"{number} is {name}.")
    yield Fact(description, "weakness_class", name, f'"{description}" describes the weakness {subject}.')
    for parent in parents:
        yield Fact(subject, "parent_weakness", parent, f"{subject} is a child of {parent}.")
    impacts: dict[str, dict[str, None]] = {}  # impact -> its scopes, both in their order
    for consequence in _each(weakness, _CONSEQUENCES):
        for impact in _stated(consequence, "Impact"):
            impacts.setdefault(impact, {}).update(_stated(consequence, "Scope"))
    for impact, scopes in impacts.items():
        evidence = f"A technical impact of {subject}{listing(scopes, ' on ')} is {impact}."
        yield Fact(subject, "consequence", impact, evidence)
    measures: dict[str, dict[str, None]] = {}  # measure -> its phases
    for mitigation in _each(weakness, _MITIGATIONS):
        sentence = first_sentence(_field(mitigation, "Description"))
        if _is_measure(sentence):
            measures.setdefault(sentence, {}).update(_stated(mitigation, "Phase"))
    for measure, phases in measures.items():
        evidence = f"{subject} is mitigated{listing(phases, ' in ')}: {measure}"
        yield Fact(subject, "weakness_mitigation", measure, evidence)


def _is_measure(sentence: str) -> bool:
    # The start of a list, a comment, and a sentence that depends on a reference name no measure.
    dependent = sentence.startswith(("- ", "This ", "These ")) or sentence.endswith(":") or "[REF-" in sentence
    return not dependent and 0 < len(sentence) <= _LONGEST_MEASURE


def _each(element: Element, path: str) -> Iterator[Element]:
    return element.iterfind(f"{{*}}{path}")


def _field(element: Element, name: str) -> str:
    return prose(element.find(f"{{*}}{name}"))


def _fields(element: Element, name: str) -> list[str]:
    return [text for child in _each(element, name) if (text := prose(child))]


def _stated(element: Element, name: str) -> dict[str, None]:
    return dict.fromkeys(field for field in _fields(element, name) if field not in _EMPTY)
