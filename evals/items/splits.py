"""The named parts of CTIBench: the one that something may be fitted to, and the one that it is then scored on."""

import dataclasses
from random import Random

import numpy as np

from evals.items.formats import CTIBENCH_MCQ_SHA256
from evals.items.items import Items
from ghost_jax.core.errors import UsageError, UserError

DEVELOPMENT = 500  # questions of CTIBench that choices may be made on
SPLITS = ("all", "dev", "test")  # every question, those 500, the 2,000 others


def development_split(items: Items) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of CTIBench's development [500] and test questions [2000], a fixed draw.

    Raises:
      UserError: the items are another benchmark, for which no split is named.
    """
    if items.sha256 != CTIBENCH_MCQ_SHA256:
        raise UserError(
            f"{items.name} has no named development split: only CTIBench MCQ, as published, has one. Score it with "
            f"nothing fitted, or with the weights of generated questions."
        )
    rows = list(range(len(items)))
    Random(0).shuffle(rows)
    return np.array(rows[:DEVELOPMENT]), np.array(rows[DEVELOPMENT:])


def part_of(items: Items, split: str) -> Items:
    """Returns the items of a split. Raises UsageError for a name not in SPLITS, UserError where no split is named."""
    if split not in SPLITS:
        raise UsageError(f'The split "{split}" is none; use one of {", ".join(SPLITS)}.')
    if split == "all":
        return items
    rows = development_split(items)[split == "test"]
    kept = tuple(items.items[row] for row in rows)
    return dataclasses.replace(items, name=f"{items.name}, {split} split", items=kept)
