"""STIX bundles, which ATT&CK and CAPEC are published as: objects and their relationships."""

import collections
import dataclasses
import datetime
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ghost_jax.core.errors import UserError
from ghost_jax.data.sources import forms
from ghost_jax.data.storage import files
from ghost_jax.data.storage.text_cleaning import clean

VERSION = 1  # raise it when the same bundle gives other objects or links

# Every field that an adapter reads
_TEXTS = (
    "type id modified name description first_seen last_seen relationship_type source_ref target_ref "
    "x_capec_execution_flow x_capec_extended_description x_capec_likelihood_of_attack x_capec_status "
    "x_capec_typical_severity x_mitre_data_source_ref x_mitre_detection x_mitre_shortname"
)
_LISTS = (
    "aliases x_capec_alternate_terms x_capec_can_follow_refs x_capec_can_precede_refs x_capec_child_of_refs "
    "x_capec_example_instances x_capec_parent_of_refs x_capec_peer_of_refs x_capec_prerequisites "
    "x_capec_resources_required x_mitre_aliases x_mitre_analytic_refs x_mitre_collection_layers "
    "x_mitre_defense_bypassed x_mitre_domains x_mitre_impact_type x_mitre_permissions_required x_mitre_platforms "
    "x_mitre_system_requirements"
)
_FORM = {
    **dict.fromkeys(_TEXTS.split(), str),
    **{key: [str] for key in _LISTS.split()},
    "revoked": bool,
    "x_mitre_deprecated": bool,
    "external_references": [{"source_name": str, "external_id": str, "url": str}],
    "kill_chain_phases": [{"phase_name": str}],
    "x_capec_consequences": {forms.ANY_KEY: [str]},
    "x_capec_skills_required": {forms.ANY_KEY: str},
    "x_mitre_log_source_references": [{"x_mitre_data_component_ref": str}],
}
_NAMED = (
    "attack-pattern campaign course-of-action intrusion-set malware tool x-mitre-asset x-mitre-data-component "
    "x-mitre-data-source x-mitre-detection-strategy"
)
_REQUIRED = {
    **dict.fromkeys(_NAMED.split(), ("name",)),
    "relationship": ("relationship_type", "source_ref", "target_ref"),
    "x-mitre-tactic": ("name", "x_mitre_shortname", "x_mitre_domains"),
}


@dataclasses.dataclass(frozen=True)
class Edge:
    """One relationship as seen from one of its ends: the object at the other end, and the description."""

    other: dict
    description: str


class Bundle:
    """The objects in force of a STIX bundle and the relationships between them; dangling ones are left out.

    Attributes:
      path: the file, for messages.
      objects: id -> object in the order of the file.
    """

    def __init__(self, path: Path, publishers: tuple[str, ...], live: Sequence[dict]):
        self.path, self._publishers = path, publishers
        self.objects = {thing["id"]: thing for thing in live if thing["type"] != "relationship"}
        self._incoming, self._outgoing = collections.defaultdict(list), collections.defaultdict(list)
        for link in live:
            if link["type"] == "relationship" and {link["source_ref"], link["target_ref"]} <= self.objects.keys():
                kind, description = link["relationship_type"], clean(link.get("description", ""))
                source, target = self.objects[link["source_ref"]], self.objects[link["target_ref"]]
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
        """Returns the objects in force that `references` name."""
        return [self.objects[reference] for reference in references if reference in self.objects]

    def reference(self, thing: dict) -> tuple[str, str]:
        """Returns the id and the address that an object has at its publisher, such as ("T1055", "https://…").

        Raises UserError where it has no id there.
        """
        for entry in thing.get("external_references", []):
            if entry.get("source_name") in self._publishers and entry.get("external_id", "").strip():
                return entry["external_id"], entry.get("url", "")
        raise UserError(
            f"{self.path}: the object {thing['id']} has no external reference of {' or '.join(self._publishers)} with "
            "an id. Fetch the file again."
        )


def _of_types(edges: list[Edge], types: tuple[str, ...]) -> list[Edge]:
    return [edge for edge in edges if not types or edge.other["type"] in types]


def load(path: Path, publishers: tuple[str, ...]) -> Bundle:
    """Reads a STIX 2.0 or 2.1 bundle, without what is revoked or deprecated.

    Of several objects with one id, the latest `modified` counts (STIX 2.1, section 3.6); of equal times the last.

    Args:
      publishers: the source names of the external references that hold an object's id.

    Raises:
      UserError: the file cannot be read, is not JSON, or has not the form of a bundle; names the place.
    """
    bundle = files.read_json(path)
    if not isinstance(bundle, dict) or bundle.get("type") != "bundle" or not isinstance(bundle.get("objects"), list):
        raise UserError(
            f'{path} is not a STIX bundle, an object with "type": "bundle" and a list of "objects". Fetch the file '
            "again from its publisher."
        )
    latest: dict[str, tuple[datetime.datetime, str, dict]] = {}
    for where, thing in forms.entries(bundle["objects"], _FORM, f"{path}, objects", ("type", "id")):
        modified = forms.timestamp(thing, "modified", where)
        if thing["id"] not in latest or modified >= latest[thing["id"]][0]:
            latest[thing["id"]] = modified, where, thing
    live = []
    for _, where, thing in latest.values():
        if not forms.is_retired(thing.get("revoked"), thing.get("x_mitre_deprecated"), thing.get("x_capec_status")):
            forms.require(thing, _REQUIRED.get(thing["type"], ()), where)
            live.append(thing)
    return Bundle(path, publishers, live)
