"""Where a user's own files are, and the fields of their rows. Every error names the file and the place."""

import functools
import os
import re
import sys
from pathlib import Path

from ghost_jax.core.addresses import is_offline
from ghost_jax.core.atomic_io import locked, new_folder
from ghost_jax.core.errors import UserError
from ghost_jax.core.paths import cache_dir

DATASETS = "datasets==5.2.0"  # the version that is tested
HUB = "hf:"  # begins the entry of a dataset that the library `datasets` loads


def located(entry: str) -> Path:
    """Returns the file or folder of an entry: a path, or `hf:NAME[:SPLIT]` for a dataset of Hugging Face's library.

    NAME is a repository, OWNER/NAME, or a folder on disk in its form; the split is "train" unless named. Its rows
    become a Parquet file in the cache. Raises UserError where it cannot be loaded.
    """
    if not entry.startswith(HUB):
        return Path(os.path.expanduser(entry))  # of an unknown user, the path as it is
    if is_offline():
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    try:
        import datasets
    except ImportError as fault:
        raise UserError(
            f"{entry} is read with datasets, which cannot be imported ({fault}). Install it with `{sys.executable} -m "
            f"pip install {DATASETS}`."
        ) from None
    datasets.disable_progress_bars()
    return _kept(entry, cache_dir())


@functools.cache  # loading asks the hub each time
def _kept(entry: str, cache: Path) -> Path:
    """Returns the Parquet file of an `hf:` entry in the cache. Of several processes, one writes it."""
    import datasets

    name, _, split = entry.removeprefix(HUB).partition(":")
    try:
        rows = datasets.load_dataset(name, split=split or "train")
    except Exception as fault:  # the library raises errors of many others
        said = " ".join(str(fault).split())[:300]
        raise UserError(
            f"{entry} cannot be loaded by `datasets` ({type(fault).__name__}: {said}). Name {HUB}OWNER/NAME or "
            "a folder, and a split that it has."
        ) from None
    title = Path(name).resolve().name if Path(name).exists() else name  # records name no folder of the user
    file = f"{re.sub(r'[^A-Za-z0-9]+', '_', title).strip('_')}.parquet"
    kept = cache / "data" / "hf" / rows._fingerprint / file
    with locked(cache / "locks" / f"hf-{rows._fingerprint}", entry):
        if not kept.is_file():
            with new_folder(kept.parent) as folder:
                rows.to_parquet(folder / file)
    return kept


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
