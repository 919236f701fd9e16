"""MITRE CWE, the catalogue of weaknesses, streamed from the publisher's XML."""

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from ghost_jax.data.prose import BLOCK_TAGS, LINE_TAGS, first_sentence, labelled, listing, paragraphs, tidy
from ghost_jax.data.records import Fact, Record
from ghost_jax.data.sources import files
from ghost_jax.errors import UserError

LICENSE = "MITRE CWE terms of use"

_RETIRED = ("Deprecated", "Obsolete")
_SECTIONS = ("Weakness", "Category", "View", "External_Reference")


def read(path: Path) -> Iterator[Record]:
    """Yields a record for each weakness in force, with its name and its class as facts.

    The file is read twice, because a weakness names its parent by number alone and the parent may come later; no more
    than one weakness is held at a time.

    Raises:
      UserError: the file is not sound XML, declares a DTD or an entity, or holds no weakness; names the line.
    """
    names = {weakness.get("ID"): weakness.get("Name") for weakness in _weaknesses(path)}
    if not names:
        raise UserError(f"{path} holds no weakness, so it is not the CWE catalogue. Give the file cwec_v4.14.xml.")
    for weakness in _weaknesses(path):
        number, name = f"CWE-{weakness.get('ID')}", weakness.get("Name")
        url = f"https://cwe.mitre.org/data/definitions/{weakness.get('ID')}.html"
        description = first_sentence(_prose(weakness.find("{*}Description")))
        facts = (
            Fact(number, "weakness_name", name, description),
            Fact(description, "weakness_class", name, f'"{description}" describes the weakness {name} ({number}).'),
        )
        yield Record(number, "cwe", name, _text(weakness, number, names), url, LICENSE, facts)


def _weaknesses(path: Path) -> Iterator[Element]:
    """Yields each weakness in force whole, and empties it when the next one is asked for."""
    parser = ElementTree.XMLParser(forbid_dtd=True)
    for element in _elements(path, parser):
        section = _local(element)
        if section == "Weakness" and element.get("Status") not in _RETIRED:
            _check(element, path, parser.parser.CurrentLineNumber)
            yield element
        if section in _SECTIONS:
            element.clear()


def _elements(path: Path, parser: ElementTree.XMLParser) -> Iterator[Element]:
    """Yields each element of the file when its end is read; turns what the parser refuses into `UserError`s."""
    try:
        with files.open_bytes(path) as stream:
            for _, element in ElementTree.iterparse(stream, events=("end",), parser=parser):
                yield element
    except DefusedXmlException as fault:
        raise UserError(
            f"{path}, line {parser.parser.CurrentLineNumber}: the XML declares a DTD or an entity, which the CWE "
            "catalogue never does and which can exhaust memory or read other files. Do not use this file; fetch it "
            "again from https://cwe.mitre.org/data/downloads.html."
        ) from fault
    except ElementTree.ParseError as fault:
        line, column = fault.position
        raise UserError(
            f"{path}, line {line}, column {column + 1}: not well-formed XML in UTF-8 ({fault}). Fetch the file again."
        ) from fault


def _check(weakness: Element, path: Path, line: int) -> None:
    if not (
        weakness.get("ID", "").isdecimal() and weakness.get("Name") and weakness.find("{*}Description") is not None
    ):
        raise UserError(
            f"{path}, before line {line}: a weakness without a number, a name or a description. Fetch the file again."
        )


def _text(weakness: Element, number: str, names: dict[str, str]) -> str:
    return paragraphs(
        _prose(weakness.find("{*}Description")),
        _prose(weakness.find("{*}Extended_Description")),
        *map(_alternate_term, weakness.iterfind("{*}Alternate_Terms/{*}Alternate_Term")),
        _parents(weakness, number, names),
        *map(_introduction, weakness.iterfind("{*}Modes_Of_Introduction/{*}Introduction")),
        *(f"Likelihood of exploit: {likelihood}." for likelihood in _fields(weakness, "Likelihood_Of_Exploit")),
        *map(_consequence, weakness.iterfind("{*}Common_Consequences/{*}Consequence")),
        *map(_detection, weakness.iterfind("{*}Detection_Methods/{*}Detection_Method")),
        *map(_mitigation, weakness.iterfind("{*}Potential_Mitigations/{*}Mitigation")),
        *map(_observed_example, weakness.iterfind("{*}Observed_Examples/{*}Observed_Example")),
    )


def _parents(weakness: Element, number: str, names: dict[str, str]) -> str:
    # The same parent is listed once for each view that shows it.
    parents = dict.fromkeys(
        f"{names[relation.get('CWE_ID')]} (CWE-{relation.get('CWE_ID')})"
        for relation in weakness.iterfind("{*}Related_Weaknesses/{*}Related_Weakness[@Nature='ChildOf']")
        if relation.get("CWE_ID") in names
    )
    return f"{number} is a child of {listing(parents)}." if parents else ""


def _alternate_term(term: Element) -> str:
    return labelled(f"Alternate term {_field(term, 'Term')}", _field(term, "Description")) or (
        f"Alternate term {_field(term, 'Term')}."
    )


def _introduction(introduction: Element) -> str:
    phase = f"Introduced in the phase {_field(introduction, 'Phase')}"
    return labelled(phase, _field(introduction, "Note")) or f"{phase}."


def _consequence(consequence: Element) -> str:
    scopes, impacts = _fields(consequence, "Scope"), _fields(consequence, "Impact")
    impact = f"{listing(impacts)}. " if impacts else ""
    label = f"Consequence for {listing(scopes)}" if scopes else "Consequence"
    return labelled(label, impact + _field(consequence, "Note"))


def _detection(method: Element) -> str:
    effectiveness = _field(method, "Effectiveness")
    rating = f" Effectiveness: {effectiveness}." if effectiveness else ""
    return labelled(f"Detection by {_field(method, 'Method')}", _field(method, "Description") + rating)


def _mitigation(mitigation: Element) -> str:
    phases = _fields(mitigation, "Phase")
    label = f"Mitigation in {listing(phases)}" if phases else "Mitigation"
    return labelled(label, _field(mitigation, "Description"))


def _observed_example(example: Element) -> str:
    return labelled(f"Observed example {_field(example, 'Reference')}", _field(example, "Description"))


def _field(element: Element, name: str) -> str:
    return _prose(element.find(f"{{*}}{name}"))


def _fields(element: Element, name: str) -> list[str]:
    return [_prose(child) for child in element.iterfind(f"{{*}}{name}")]


def _prose(element: Element | None) -> str:
    """Returns the text of an element that may hold XHTML, its paragraphs separated by a blank line."""
    return tidy("".join(_pieces(element))) if element is not None else ""


def _pieces(element: Element) -> Iterator[str]:
    for_block = "\n\n" if _local(element) in BLOCK_TAGS else ""
    yield for_block + LINE_TAGS.get(_local(element), "")
    yield _on_one_line(element.text)
    for child in element:
        yield from _pieces(child)
        yield _on_one_line(child.tail)
    yield for_block


def _on_one_line(text: str | None) -> str:
    return (text or "").replace("\n", " ")


def _local(element: Element) -> str:
    return element.tag.rpartition("}")[2]
