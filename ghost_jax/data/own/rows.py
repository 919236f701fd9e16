"""Rows of a user's own files: JSON lines, CSV and Parquet. Every error names the file and the place."""

import sys
from collections.abc import Iterator
from pathlib import Path

from ghost_jax.core.errors import UserError
from ghost_jax.data.storage import files

PYARROW = "pyarrow==26.0.1"


def suffix_of(path: Path) -> str:
    """Returns the suffix in front of that of a compression: ".jsonl" of "a.jsonl.gz"."""
    return Path(files.stem(path.name)).suffix.lower()


def read(path: Path) -> Iterator[tuple[str, dict]]:
    """Yields the place ("line 3") and the content of each row of a file. Raises UserError for one that is invalid."""
    if suffix_of(path) == ".parquet":
        yield from _parquet(path)
    elif suffix_of(path) == ".csv":
        yield from ((f"line {number}", row) for number, row in files.read_csv(path, ("text",)))
    else:
        for number, line in files.read_lines(path):
            if not line.isspace():
                row = files.parse_json(line.rstrip(), path, number)
                if not isinstance(row, dict):
                    kind = type(row).__name__
                    raise UserError(f"{path}, line {number}: a {kind} instead of an object. Write one object a line.")
                yield f"line {number}", row


def _parquet(path: Path) -> Iterator[tuple[str, dict]]:
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
            raise UserError(f"{path}: not valid Parquet after row {number} ({str(fault)[:200]}).") from None


def id_of(row: dict, where: str, otherwise: str, seen: dict[str, str]) -> str:
    """Returns a row's id, `otherwise` where it has none. Raises UserError where `seen`, id -> place, has it already."""
    key = str(row["id"]) if type(row.get("id")) is int else string(row, "id", where) or otherwise
    if seen.setdefault(key, where) != where:
        raise UserError(f'{where}: "id" is {key}, as in {seen[key]}. Make each id of a file unique.')
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
