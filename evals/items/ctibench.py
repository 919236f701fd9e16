"""The items that a run is scored on: CTIBench MCQ, its splits and doubtful gold answers; else held-out questions."""

import dataclasses
import functools
import json
from importlib import resources
from pathlib import Path
from random import Random

import numpy as np

from ghost_jax.core.errors import UsageError, UserError
from ghost_jax.core.paths import data_folders
from ghost_jax.data.items.formats import CTIBENCH_MCQ_SHA256, read_items
from ghost_jax.data.items.items import Items

FILE = "ctibench/cti-mcq.tsv"
HELD_OUT = "heldout.jsonl"
DEVELOPMENT = 500  # questions
SPLITS = ("all", "dev", "test")  # every question, those 500, the 2,000 others


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


def development_split(items: Items) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of CTIBench's development [500] and test questions [2000], a fixed draw.

    Raises UserError for another benchmark.
    """
    if items.sha256 != CTIBENCH_MCQ_SHA256:
        raise UserError(f"{items.name} has no development split: only CTIBench MCQ, as published, has one. Score all.")
    rows = list(range(len(items)))
    Random(0).shuffle(rows)
    return np.array(rows[:DEVELOPMENT]), np.array(rows[DEVELOPMENT:])


def part_of(items: Items, split: str) -> Items:
    """Returns the items of a split of `SPLITS`. Raises UserError where the benchmark has no such split."""
    if split not in SPLITS:
        raise UsageError(f'There is no split "{split}"; use one of {", ".join(SPLITS)}.')
    if split == "all":
        return items
    rows = development_split(items)[split == "test"]
    kept = tuple(items.items[row] for row in rows)
    return dataclasses.replace(items, name=f"{items.name}, {split} split", items=kept)


# ---- Gold answers in doubt, from an audit of all 2,500: docs/gold_audit.md ----


@functools.cache
def flags() -> dict[str, dict]:
    """Returns the flags by the id of the item, "line 3": kind, right (letters) and reason."""
    text = resources.files(__package__).joinpath("gold_flags.jsonl").read_text(encoding="utf-8")
    return {flag["id"]: flag for flag in map(json.loads, text.splitlines())}


def doubtful(items: Items) -> set[str]:
    """Returns the ids of the items whose gold answer is in doubt; none of another benchmark than CTIBench MCQ."""
    return {item.id for item in items} & flags().keys() if items.sha256 == CTIBENCH_MCQ_SHA256 else set()
