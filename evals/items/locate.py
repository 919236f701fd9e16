"""The items that a run is scored on: CTIBench where it is found, else the questions that its own data held out."""

import dataclasses
from pathlib import Path

from ghost_jax.core.errors import UserError
from ghost_jax.core.paths import data_folders
from ghost_jax.data.items.formats import read_items
from ghost_jax.data.items.items import Items

FILE = "ctibench/cti-mcq.tsv"
HELD_OUT = "heldout.jsonl"


class NoItems(UserError):
    """There is nothing to score a run on."""


def find_items(data_dir: Path | None, workdir: Path | None) -> tuple[Items, str]:
    """Returns the items to score and a note: CTIBench where it is found, else the run's own held-out questions.

    Raises NoItems where there is neither; without a run, where there is no CTIBench.
    """
    folders = data_folders(data_dir)
    for folder in folders:
        if (folder / FILE).is_file():
            return read_items(folder / FILE), ""
    searched = ", ".join(map(str, folders))
    path = workdir and workdir / HELD_OUT
    if not path or not path.is_file():
        own = f" nor {path}" if path else ""
        raise NoItems(
            f"There is no {FILE} in {searched}{own}. Fetch it (python -m ghost_jax.data.fetch --sources=ctibench), set "
            "GHOST_DATA to the folder that holds ctibench/, or name a file with --items."
        )
    own = dataclasses.replace(held_out_of(workdir), name="held-out questions of this project, not CTIBench")
    note = (
        f"THIS IS NOT CTIBENCH: {FILE} was not found in {searched}, so the run's own held-out questions are scored "
        f"({len(own):,} on subjects it was not tuned on)."
    )
    return own, note


def held_out_of(workdir: Path) -> Items:
    """Returns the questions that a run's own data held out. Raises UserError where there are none."""
    path = workdir / HELD_OUT
    if path.is_file() and not path.read_bytes():
        raise UserError(
            f"{HELD_OUT} is empty: the sources of the run give no multiple-choice question of the test split. Add "
            "embedded to --config.data.sources, or set GHOST_DATA to the folder that holds ctibench/ and leave "
            "online_probe.every at 0."
        )
    return read_items(path)
