"""The named splits of CTIBench: one that may be fitted to, and the one that such a fit is scored on."""

import dataclasses
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
