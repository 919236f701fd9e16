"""What ATT&CK and CAPEC share: the STIX bundle and its relationships."""

import collections
import dataclasses
import datetime
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ghost_jax.core.errors import UserError
from ghost_jax.data.sources import forms
from ghost_jax.data.storage import files
from ghost_jax.data.storage.text_cleaning import clean

VERSION = 1  # raise it when the same bundle gives other objects or links

# Every field that an adapter reads.
_FORM = {
    "type": str,
    "id": str,
    "modified": str,
    "revoked": bool,
    "name": str,
    "description": str,
    "aliases": [str],
    "external_references": [{"source_name": str, "external_id": str, "url": str}],
    "first_seen": str,
    "kill_chain_phases": [{"phase_name": str}],
    "last_seen": str,
    "relationship_type": str,
    "source_ref": str,
    "target_ref": str,
    "x_capec_alternate_terms": [str],
    "x_capec_child_of_refs": [str],
    "x_capec_consequences": {forms.ANY_KEY: [str]},
    "x_capec_example_instances": [str],
    "x_capec_execution_flow": str,
    "x_capec_extended_description": str,
    "x_capec_likelihood_of_attack": str,
    "x_capec_prerequisites": [str],
    "x_capec_resources_required": [str],
    "x_capec_skills_required": {forms.ANY_KEY: str},
    "x_capec_status": str,
    "x_capec_typical_severity": str,
    "x_mitre_aliases": [str],
    "x_mitre_analytic_refs": [str],
    "x_mitre_data_source_ref": str,
    "x_mitre_defense_bypassed": [str],
    "x_mitre_deprecated": bool,
    "x_mitre_detection": str,
    "x_mitre_domains": [str],
    "x_mitre_impact_type": [str],
    "x_mitre_log_source_references": [{"x_mitre_data_component_ref": str}],
    "x_mitre_permissions_required": [str],
    "x_mitre_platforms": [str],
    "x_mitre_shortname": str,
    "x_mitre_system_requirements": [str],
}
_REQUIRED = {
    "relationship": ("relationship_type", "source_ref", "target_ref"),
    "x-mitre-tactic": ("name", "x_mitre_shortname", "x_mitre_domains"),
} | dict.fromkeys(
    (
        "attack-pattern",
        "campaign",
        "course-of-action",
        "intrusion-set",
        "malware",
        "tool",
        "x-mitre-asset",
        "x-mitre-data-component",
        "x-mitre-data-source",
        "x-mitre-detection-strategy",
    ),
    ("name",),
)


@dataclasses.dataclass(frozen=True)
class Edge:
    """One relationship as seen from one of its ends: the object at the other end, and what is said of the two."""

    other: dict
    description: str


class Bundle:
    """The live objects of a STIX bundle and the relationships between them.

    Args:
      path: the file, for messages.
      live: the objects and relationships in force, each in its latest version.

    Attributes:
      path: the file, for messages.
      objects: id -> object in the order of the file, without relationships and without what is revoked or deprecated.
      dangling: how many relationships were left out because one of their ends is not among `objects`.
    """

    def __init__(self, path: Path, live: Sequence[dict]):
        self.path = path
        self.objects = {thing["id"]: thing for thing in live if thing["type"] != "relationship"}
        self.dangling = 0
        self._incoming, self._outgoing = collections.defaultdict(list), collections.defaultdict(list)
        for thing in live:
            if thing["type"] == "relationship":
                self._link(thing)
        logging.debug("%s: %d relationships lead to no live object and are skipped", path, self.dangling)

    def _link(self, relationship: dict) -> None:
        source, target = (self.objects.get(relationship[end]) for end in ("source_ref", "target_ref"))
        if source is None or target is None:
            self.dangling += 1
            return
        kind, description = relationship["relationship_type"], clean(relationship.get("description", ""))
        self._incoming[kind, target["id"]].append(Edge(source, description))
        self._outgoing[kind, source["id"]].append(Edge(target, description))

    def of_type(self, kind: str) -> Iterator[dict]:
        """Yields the objects of one STIX type in the order of the file."""
        return (thing for thing in self.objects.values() if thing["type"] == kind)

    def incoming(self, kind: str, target: dict, *types: str) -> list[Edge]:
        """Returns the relationships of one kind that end at `target`, from objects of the given types or of any."""
        return _of_types(self._incoming.get((kind, target["id"]), []), types)

    def outgoing(self, kind: str, source: dict, *types: str) -> list[Edge]:
        """Returns the relationships of one kind that start at `source`, to objects of the given types or of any."""
        return _of_types(self._outgoing.get((kind, source["id"]), []), types)

    def present(self, references: Iterable[str]) -> list[dict]:
        """Returns the live objects that `references` name, leaving out the dangling ones."""
        return [self.objects[reference] for reference in references if reference in self.objects]


def _of_types(edges: list[Edge], types: tuple[str, ...]) -> list[Edge]:
    return [edge for edge in edges if not types or edge.other["type"] in types]


def load(path: Path) -> Bundle:
    """Reads a STIX 2.0 or 2.1 bundle.

    Of several objects with one id, the latest `modified` counts, be it revoked (STIX 2.1, section 3.6); of equal times
    the last in the file.

    Raises:
      UserError: the file cannot be read, is not JSON, or has not the form of a bundle; names the place.
    """
    bundle = files.read_json(path)
    if not isinstance(bundle, dict) or bundle.get("type") != "bundle":
        found = "an object of another type" if isinstance(bundle, dict) else f"a {type(bundle).__name__}"
        raise UserError(
            f'{path} is not a STIX bundle: its top level is {found} instead of an object with "type": "bundle". Fetch '
            "the file again from its publisher."
        )
    if not isinstance(bundle.get("objects"), list):
        raise UserError(f'{path} is a STIX bundle without a list of "objects". Fetch it again from its publisher.')
    latest: dict[str, tuple[datetime.datetime, str, dict]] = {}
    for position, entry in enumerate(bundle["objects"]):
        where = f"{path}, objects[{position}]"
        thing = forms.read(entry, _FORM, where)
        forms.require(thing, ("type", "id"), where)
        modified = forms.timestamp(thing, "modified", where)
        if thing["id"] not in latest or modified >= latest[thing["id"]][0]:
            latest[thing["id"]] = modified, where, thing
    live = []
    for _, where, thing in latest.values():
        if not forms.is_retired(thing.get("revoked"), thing.get("x_mitre_deprecated"), thing.get("x_capec_status")):
            forms.require(thing, _REQUIRED.get(thing["type"], ()), where)
            live.append(thing)
    return Bundle(path, live)


def reference(thing: dict, source_names: tuple[str, ...], path: Path) -> tuple[str, str]:
    """Returns the id and the address that an object has at its publisher, such as ("T1055", "https://…").

    Raises:
      UserError: no external reference of the given source names holds an id.
    """
    for entry in thing.get("external_references", []):
        if entry.get("source_name") in source_names and entry.get("external_id", "").strip():
            return entry["external_id"], entry.get("url", "")
    raise UserError(
        f"{path}: the object {thing['id']} has no external reference of {' or '.join(source_names)} with an id. Mend "
        "the object or fetch the file again."
    )
