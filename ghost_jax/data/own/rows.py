"""Rows of a user's own files: JSON lines, CSV and Parquet. Every error names the file and the place."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ghost_jax.core.errors import UserError
from ghost_jax.data.storage import files

PYARROW = "pyarrow==26.0.1"
Places = Iterator[tuple[str, dict]]  # "line 3" and the row


def suffix_of(path: Path) -> str:
    """Returns the suffix in front of that of a compression: ".jsonl" of "a.jsonl.gz"."""
    return Path(files.stem(path.name)).suffix.lower()


def read(path: Path) -> Places:
    """Yields the rows of a file with their places. Raises UserError for a file or row that is invalid."""
    reader = {".csv": _csv, ".parquet": _parquet}.get(suffix_of(path), _lines)
    for place, row in reader(path):
        if not isinstance(row, dict):
            raise UserError(f"{path}, {place}: a {type(row).__name__} instead of an object. Write one object a row.")
        yield place, row


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in files.read_lines(path):
        if not line.isspace():
            yield f"line {number}", files.parse_json(line.rstrip(), path, number)


def _csv(path: Path) -> Places:
    return ((f"line {number}", row) for number, row in files.read_csv(path, ("text",)))


def _parquet(path: Path) -> Places:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as fault:
        raise UserError(
            f"{path} is read with pyarrow, which cannot be imported ({fault}). Install it with `{sys.executable} -m "
            f"pip install {PYARROW}`."
        ) from None
    number = 0
    with files.open_bytes(path) as stream:
        try:
            for batch in parquet.ParquetFile(stream).iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
        except (ArrowException, OSError) as fault:
            reason = str(fault).partition("\n")[0]
            raise UserError(f"{path} is not valid Parquet behind row {number} ({reason}). Write it again.") from None


class Ids:
    """The ids of one file's rows, each once."""

    def __init__(self, path: Path):
        self._path, self._places = path, {}

    def of(self, row: dict, place: str, otherwise: str) -> str:
        """Returns a row's id, `otherwise` where it has none. Raises UserError where a row before it has the id."""
        found = row.get("id")
        key = str(found) if type(found) is int else string(row, "id", f"{self._path}, {place}") or otherwise
        if key in self._places:
            raise UserError(f'{self._path}, {place}: "id" is {key}, as in {self._places[key]}. Make each id unique.')
        self._places[key] = place
        return key


def string(row: dict, key: str, where: str, *, needed: bool = False) -> str:
    """Returns the text under a key, with `\\n` at line ends; "" where it is absent or null, unless it is needed."""
    found = row.get(key)
    if found is None and needed:
        raise UserError(f'{where}: there is no "{key}". The row has {", ".join(map(str, row)) or "no key"}.')
    if not isinstance(found, str | None):
        raise UserError(f'{where}: "{key}" is a {type(found).__name__}. Write a string.')
    text = (found or "").replace("\r\n", "\n").replace("\r", "\n")
    if needed and not text.strip():
        raise UserError(f'{where}: "{key}" is empty. Give it a text, or remove the row.')
    return text
