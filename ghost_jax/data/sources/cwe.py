"""MITRE CWE, the catalogue of weaknesses, streamed from the publisher's XML."""

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from ghost_jax.core.errors import UserError
from ghost_jax.data.sources import forms
from ghost_jax.data.storage import files
from ghost_jax.data.storage.schema import Fact, Record
from ghost_jax.data.storage.text_cleaning import (
    BLOCK_TAGS,
    LINE_TAGS,
    first_sentence,
    flat,
    labelled,
    listing,
    paragraphs,
    tidy,
)

VERSION = 1  # raise it when the same file gives other records

LICENSE = "MITRE CWE terms of use"

_SECTIONS = ("Weakness", "Category", "View", "External_Reference")
_UNTOLD = ("Other", "Varies by Context")  # what stands in a field that has to be filled in and says nothing
_LONGEST_MEASURE = 200  # characters; what is longer is an explanation rather than a measure


def read(path: Path) -> Iterator[Record]:
    """Yields a record for each weakness in force.

    Its facts are of the relations "weakness_name", "weakness_class", "parent_weakness", "consequence" and
    "weakness_mitigation".

    The file is read twice, because a weakness names its parent by number alone and the parent may come later; no more
    than one weakness is held at a time.

    Raises:
      UserError: the file is not sound XML, declares a DTD or an entity, or holds no weakness; names the line.
    """
    names = {weakness.get("ID"): flat(weakness.get("Name")) for weakness in _weaknesses(path)}  # some end in a blank
    if not names:
        raise UserError(f"{path} holds no weakness, so it is not the CWE catalogue. Give the file cwec_v4.14.xml.")
    for weakness in _weaknesses(path):
        number, name = f"CWE-{weakness.get('ID')}", names[weakness.get("ID")]
        url = f"https://cwe.mitre.org/data/definitions/{weakness.get('ID')}.html"
        facts = tuple(_facts(weakness, number, name, names))
        yield Record(number, "cwe", name, _text(weakness, number, names), url, LICENSE, facts)


def _weaknesses(path: Path) -> Iterator[Element]:
    """Yields each weakness in force whole, and empties it when the next one is asked for."""
    parser = ElementTree.XMLParser(forbid_dtd=True)
    for element in _elements(path, parser):
        section = _local(element)
        if section == "Weakness" and not forms.is_retired(element.get("Status")):
            _check(element, path, parser.parser.CurrentLineNumber)
            yield element
        if section in _SECTIONS:
            element.clear()


def _elements(path: Path, parser: ElementTree.XMLParser) -> Iterator[Element]:
    """Yields each element of the file when its end is read; turns what the parser refuses into `UserError`s."""
    try:
        with files.open_text(path) as stream:
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
        weakness.get("ID", "").isdecimal()
        and flat(weakness.get("Name", ""))
        and weakness.find("{*}Description") is not None
    ):
        raise UserError(
            f"{path}, before line {line}: a weakness without a number, a name or a description. Fetch the file again."
        )


def _text(weakness: Element, number: str, names: dict[str, str]) -> str:
    parents = _parents(weakness, names)
    return paragraphs(
        _prose(weakness.find("{*}Description")),
        _prose(weakness.find("{*}Extended_Description")),
        *map(_alternate_term, weakness.iterfind("{*}Alternate_Terms/{*}Alternate_Term")),
        f"{number} is a child of {listing(parents)}." if parents else "",
        *map(_introduction, weakness.iterfind("{*}Modes_Of_Introduction/{*}Introduction")),
        *(f"Likelihood of exploit: {likelihood}." for likelihood in _fields(weakness, "Likelihood_Of_Exploit")),
        *map(_consequence, weakness.iterfind("{*}Common_Consequences/{*}Consequence")),
        *map(_detection, weakness.iterfind("{*}Detection_Methods/{*}Detection_Method")),
        *map(_mitigation, weakness.iterfind("{*}Potential_Mitigations/{*}Mitigation")),
        *map(_observed_example, weakness.iterfind("{*}Observed_Examples/{*}Observed_Example")),
    )


def _facts(weakness: Element, number: str, name: str, names: dict[str, str]) -> Iterator[Fact]:
    subject = f"{name} ({number})"
    description = first_sentence(_prose(weakness.find("{*}Description")))
    yield Fact(number, "weakness_name", name, description or f"{number} is {name}.")
    yield Fact(description, "weakness_class", name, f'"{description}" describes the weakness {subject}.')
    for parent in _parents(weakness, names):
        yield Fact(subject, "parent_weakness", parent, f"{subject} is a child of {parent}.")
    for impact, scopes in _impacts(weakness).items():
        where = f" on {listing(scopes)}" if scopes else ""
        yield Fact(subject, "consequence", impact, f"A technical impact of {subject}{where} is {impact}.")
    for measure, phases in _measures(weakness).items():
        when = f" in {listing(phases)}" if phases else ""
        yield Fact(subject, "weakness_mitigation", measure, f"{subject} is mitigated{when}: {measure}")


def _parents(weakness: Element, names: dict[str, str]) -> list[str]:
    # The same parent is listed once for each view that shows it.
    relations = weakness.iterfind("{*}Related_Weaknesses/{*}Related_Weakness[@Nature='ChildOf']")
    numbers = dict.fromkeys(relation.get("CWE_ID") for relation in relations)
    return [f"{names[number]} (CWE-{number})" for number in numbers if number in names]


def _impacts(weakness: Element) -> dict[str, dict[str, None]]:
    """Returns the technical impacts, and of each its scopes, in their order."""
    impacts: dict[str, dict[str, None]] = {}
    for consequence in weakness.iterfind("{*}Common_Consequences/{*}Consequence"):
        for impact in _told(consequence, "Impact"):
            impacts.setdefault(impact, {}).update(_told(consequence, "Scope"))
    return impacts


def _told(element: Element, name: str) -> dict[str, None]:
    return dict.fromkeys(field for field in _fields(element, name) if field not in _UNTOLD)


def _measures(weakness: Element) -> dict[str, dict[str, None]]:
    """Returns the first sentence of each mitigation that names a measure, and of each its phases, in their order."""
    measures: dict[str, dict[str, None]] = {}
    for mitigation in weakness.iterfind("{*}Potential_Mitigations/{*}Mitigation"):
        sentence = first_sentence(_field(mitigation, "Description"))
        if _is_measure(sentence):
            measures.setdefault(sentence, {}).update(_told(mitigation, "Phase"))
    return measures


def _is_measure(sentence: str) -> bool:
    # The beginning of a list names no measure by itself, nor does a comment, or a sentence that leans on a reference.
    leans = sentence.startswith(("- ", "This ", "These ")) or sentence.endswith(":") or "[REF-" in sentence
    return not leans and 0 < len(sentence) <= _LONGEST_MEASURE


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
    return [text for child in element.iterfind(f"{{*}}{name}") if (text := _prose(child))]


def _prose(element: Element | None) -> str:
    """Returns the text of an element that may hold XHTML, its paragraphs separated by a blank line."""
    return tidy("".join(_pieces(element))) if element is not None else ""


def _pieces(element: Element) -> Iterator[str]:
    # A stack instead of recursion, because nothing in a file bounds how deep its markup nests.
    pending: list[Element | str] = [element]
    while pending:
        piece = pending.pop()
        if isinstance(piece, str):
            yield piece
            continue
        for_block = "\n\n" if _local(piece) in BLOCK_TAGS else ""
        yield for_block + LINE_TAGS.get(_local(piece), "") + _on_one_line(piece.text)
        pending.append(for_block)
        for child in reversed(piece):
            pending += (_on_one_line(child.tail), child)


def _on_one_line(text: str | None) -> str:
    return (text or "").replace("\n", " ")


def _local(element: Element) -> str:
    return element.tag.rpartition("}")[2]
