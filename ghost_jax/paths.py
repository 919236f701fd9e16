"""Where things lie on this machine: the user's cache, and the folders in which data is looked for."""

import os
from pathlib import Path

from ghost_jax.errors import UserError


def cache_dir() -> Path:
    """Returns the user's cache of this project: `$XDG_CACHE_HOME/ghost_jax`, by default `~/.cache/ghost_jax`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ghost_jax"


def data_folders(data_dir: str | None) -> list[Path]:
    """Returns where data is looked for, in order: `--data_dir`, `$GHOST_DATA`, the user's cache.

    Raises UserError where one of the first two was given and does not exist.
    """
    folders = [Path(folder) for folder in (data_dir, os.environ.get("GHOST_DATA")) if folder]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(
                f"The data folder {folder} does not exist. Give --data_dir or GHOST_DATA a folder that holds raw/, "
                "corpus/ and ctibench/, or leave both unset to use the embedded pack."
            )
    return [*folders, cache_dir() / "data"]
