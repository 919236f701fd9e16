"""What is particular to CTIBench MCQ: its named splits, and the questions whose gold answer is in doubt."""

import dataclasses
import functools
import json
from importlib import resources
from random import Random

import numpy as np

from ghost_jax.core.errors import UsageError, UserError
from ghost_jax.data.items.formats import CTIBENCH_MCQ_SHA256
from ghost_jax.data.items.items import Items

DEVELOPMENT = 500  # questions
SPLITS = ("all", "dev", "test")  # every question, those 500, the 2,000 others


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
