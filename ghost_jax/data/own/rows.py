"""Rows of a user's own files: JSON lines, a JSON list, CSV and Parquet. Every error names the file and the place."""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ghost_jax.core.atomic_io import new_folder
from ghost_jax.core.errors import UserError
from ghost_jax.core.paths import cache_dir
from ghost_jax.data.storage import files

PYARROW, DATASETS = "pyarrow==26.0.1", "datasets==5.2.0"
HUB = "hf:"  # begins the entry of a dataset that the library `datasets` loads


def located(entry: str) -> Path:
    """Returns the file or folder of an entry: a path, or `hf:NAME[:SPLIT]` for a dataset of Hugging Face's library.

    NAME is a repository, OWNER/NAME, or a folder on disk, also one of `Dataset.save_to_disk`; the split is "train"
    unless named. Its rows become a Parquet file in the cache. Raises UserError where it cannot be loaded.
    """
    if not entry.startswith(HUB):
        return Path(entry).expanduser()
    name, _, split = entry.removeprefix(HUB).partition(":")
    if os.environ.get("GHOST_OFFLINE") == "1":
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    try:
        import datasets
    except ImportError as fault:
        raise _uninstalled(entry, DATASETS, fault) from None
    datasets.disable_progress_bars()
    try:
        if any((Path(name) / file).is_file() for file in ("state.json", "dataset_dict.json")):
            found = datasets.load_from_disk(name)
            if isinstance(found, dict) and (split or "train") not in found:
                raise ValueError(f"its splits are {', '.join(found)}")
            rows = found[split or "train"] if isinstance(found, dict) else found
        else:
            rows = datasets.load_dataset(name, split=split or "train")
    except Exception as fault:  # the library raises errors of many others
        said = " ".join(str(fault).split())[:300]
        raise UserError(
            f"{entry} cannot be loaded by `datasets` ({type(fault).__name__}: {said}). Name {HUB}OWNER/NAME or "
            "a folder, and a split that it has."
        ) from None
    title = Path(name).resolve().name if Path(name).exists() else name  # records name no folder of the user
    kept = (
        cache_dir() / "data" / "hf" / rows._fingerprint / f"{re.sub(r'[^A-Za-z0-9]+', '_', title).strip('_')}.parquet"
    )
    if not kept.is_file():
        with new_folder(kept.parent) as folder:
            rows.to_parquet(folder / kept.name)
    return kept


def _uninstalled(what: object, package: str, fault: ImportError) -> UserError:
    name = package.partition("=")[0]
    return UserError(
        f"{what} is read with {name}, which cannot be imported ({fault}). Install it with `{sys.executable} -m pip "
        f"install {package}`."
    )


def suffix_of(path: Path) -> str:
    """Returns the suffix in front of that of a compression: ".jsonl" of "a.jsonl.gz"."""
    return Path(files.stem(path.name)).suffix.lower()


def read(path: Path, columns: Sequence[str] = ()) -> Iterator[tuple[str, dict]]:
    """Yields the place ("line 3") and the content of each row of a file; a table of CSV must have the columns.

    Raises UserError for a row that is invalid.
    """
    suffix = suffix_of(path)
    if suffix == ".parquet":
        yield from _parquet(path)
    elif suffix == ".csv":
        yield from ((f"line {number}", row) for number, row in files.read_csv(path, columns))
    else:
        for place, row in _list(path) if suffix == ".json" else _lines(path):
            if not isinstance(row, dict):
                raise UserError(f"{path}, {place}: a {type(row).__name__} instead of an object. Write objects alone.")
            yield place, row


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in files.read_lines(path):
        if not line.isspace():
            yield f"line {number}", files.parse_json(line.rstrip(), path, number)


def _list(path: Path) -> Iterator[tuple[str, Any]]:
    found = files.read_json(path)
    if not isinstance(found, list):
        raise UserError(f"{path}: not a JSON list. Name a file with one object a line .jsonl.")
    yield from ((f"item {number}", row) for number, row in enumerate(found, start=1))


def _parquet(path: Path) -> Iterator[tuple[str, dict]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as fault:
        raise _uninstalled(path, PYARROW, fault) from None
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
