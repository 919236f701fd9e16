"""Corpora of documents as JSON lines, one `{"id", "source", "title", "text", "url", "license"}` a line."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ghost_jax.core.errors import UserError
from ghost_jax.data.sources.vulnerability import is_rejected
from ghost_jax.data.storage import files
from ghost_jax.data.storage.schema import Fact, Record

VERSION = 1  # raise it when the same file gives other records

_REQUIRED = ("id", "source", "text")
_OPTIONAL = ("title", "url", "license")
_WEAKNESS = re.compile(r"^(?:Product: .*?\. )?Weakness: (?P<id>CWE-\d+)(?::| -)? +(?P<name>\S.*)$", re.MULTILINE)


def read(path: Path) -> Iterator[Record]:
    """Yields a record for each line that is not blank and is no rejected vulnerability; null is an absent key.

    A vulnerability whose text holds the line "Weakness: CWE-<n> <name>." also states its class as a fact.

    Raises:
      UserError: the file cannot be read, or a line is not UTF-8, not JSON, not of the form above or over
        `files.MAX_LINE` bytes; names the line.
    """
    for number, line in files.read_lines(path):
        if not line.isspace():
            record = _record(files.parse_json(line.rstrip(), path, number), f"{path}, line {number}")
            if not is_rejected(record.text):
                yield record


def _record(document: Any, where: str) -> Record:
    if not isinstance(document, dict):
        raise UserError(f"{where}: a {type(document).__name__} instead of an object. Write one object a line.")
    document = {key: value for key, value in document.items() if value is not None}
    for key in (*_REQUIRED, *_OPTIONAL):
        if not isinstance(document.get(key, ""), str):
            raise UserError(f'{where}: "{key}" must be a string. Mend the line.')
    for key in _REQUIRED:
        if not document.get(key, "").strip():
            raise UserError(f'{where}: "{key}" is missing or empty. Every line needs {", ".join(_REQUIRED)}.')
    fields = {key: document.get(key, "") for key in (*_REQUIRED, *_OPTIONAL)}
    return Record(**fields, facts=tuple(_weakness_class(fields["title"] or fields["id"], fields["text"])))


def _weakness_class(title: str, text: str) -> Iterator[Fact]:
    stated = _WEAKNESS.search(text)
    if not stated:
        return
    name = stated["name"].rstrip(". ")
    # Lines after the first repeat the description in another language.
    description = text[stated.end() :].strip().partition("\n")[0].strip()
    # Several weaknesses, or a second number within the name, leave open which of them the description is about.
    ambiguous = ";" in name or "CWE-" in name
    if name and description and not ambiguous:
        yield Fact(description, "weakness_class", name, f"{title} is classified as {stated['id']} {name}.")
