"""STIX bundles, which ATT&CK and CAPEC are published as: objects and their relationships."""

import collections
import dataclasses
import datetime
from collections.abc import Iterable, Iterator
from pathlib import Path

from ghost_jax.core.errors import UserError
from ghost_jax.data.sources.vulnerability import is_retired
from ghost_jax.data.storage import files
from ghost_jax.data.storage.text_cleaning import clean

_NEVER = "0001-01-01T00:00:00Z"  # of an object that does not say when it was modified


@dataclasses.dataclass(frozen=True)
class Edge:
    """One relationship as seen from one of its ends: the object at the other end, and the description."""

    other: dict
    description: str


class Bundle:
    """The objects in force of a STIX 2.0 or 2.1 bundle and the relationships between them; dangling ones are left out.

    Of several objects with one id, the latest `modified` counts (STIX 2.1, section 3.6); of equal times the last.

    Args:
      publishers: the source names of the external references that hold an object's id.

    Attributes:
      path: the file, for messages.
      objects: id -> object in the order of the file.
    """

    def __init__(self, path: Path, publishers: tuple[str, ...]):
        self.path, self._publishers = path, publishers
        latest: dict[str, tuple[datetime.datetime, dict]] = {}
        for thing in files.without_nulls(files.read_json(path))["objects"]:
            modified = datetime.datetime.fromisoformat(thing.get("modified", _NEVER))
            if thing["id"] not in latest or modified >= latest[thing["id"]][0]:
                latest[thing["id"]] = modified, thing
        marks = ("revoked", "x_mitre_deprecated", "x_capec_status")
        live = [thing for _, thing in latest.values() if not is_retired(*map(thing.get, marks))]
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
