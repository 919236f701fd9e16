"""Corpora of documents as JSON lines, one `{"id", "source", "title", "text", "url", "license"}` a line."""

import re
from collections.abc import Iterator
from pathlib import Path

from ghost_jax.data.sources.vulnerability import is_rejected
from ghost_jax.data.storage import tables
from ghost_jax.data.storage.files import refusal
from ghost_jax.data.storage.schema import Fact, Record

VERSION = 1  # raise it when the same file gives other records

_REQUIRED = ("id", "source", "text")
_OPTIONAL = ("title", "url", "license")
_WEAKNESS = re.compile(r"^(?:Product: .*?\. )?Weakness: (?P<id>CWE-\d+)(?::| -)? +(?P<name>\S.*)$", re.MULTILINE)


def read(path: Path) -> Iterator[Record]:
    """Yields a record for each line that is not blank or a rejected vulnerability; a key with null is absent.

    A vulnerability whose text holds the line "Weakness: CWE-<n> <name>." also states its class as a fact.
    """
    for place, document in tables.read(path):
        fields = {key: "" if document.get(key) is None else document[key] for key in (*_REQUIRED, *_OPTIONAL)}
        for key, value in fields.items():
            if not isinstance(value, str) or (key in _REQUIRED and not value.strip()):
                raise refusal(path, place, f'"{key}" must be a string, and {", ".join(_REQUIRED)} must not be empty')
        if not is_rejected(fields["text"]):
            yield Record(**fields, facts=tuple(_weakness_class(fields["title"] or fields["id"], fields["text"])))


def _weakness_class(title: str, text: str) -> Iterator[Fact]:
    stated = _WEAKNESS.search(text)
    if not stated:
        return
    name = stated["name"].rstrip(". ")
    # Lines after the first repeat the description in another language.
    description = text[stated.end() :].strip().partition("\n")[0].strip()
    # With several weaknesses, or a second number within the name, it is unclear which one the description is about.
    ambiguous = ";" in name or "CWE-" in name
    if name and description and not ambiguous:
        yield Fact(description, "weakness_class", name, f"{title} is classified as {stated['id']} {name}.")
