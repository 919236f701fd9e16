"""Rows of different lengths in one .npz file: how prompts and conversations travel to a side without JAX."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def write(path: Path, **columns: Sequence[np.ndarray]) -> None:
    """Writes columns of N rows each; row n is as long as it likes."""
    arrays = {}
    for name, rows in columns.items():
        arrays[name] = np.concatenate(rows)
        arrays[f"{name} lengths"] = np.array([len(row) for row in rows])
    np.savez(path, **arrays)


def read(path: Path, name: str) -> list[np.ndarray]:
    """Returns the rows of a column."""
    with np.load(path, allow_pickle=False) as found:
        return np.split(found[name], np.cumsum(found[f"{name} lengths"])[:-1])


def padded(rows: Sequence[np.ndarray], *, left: bool = False) -> np.ndarray:
    """Returns rows [N, T] int64 of the longest one's length, filled up with zeros on the right, or on the left."""
    longest = max(map(len, rows))
    whole = np.zeros((len(rows), longest), np.int64)
    for to, row in zip(whole, rows, strict=True):
        to[longest - len(row) if left else 0 :][: len(row)] = row
    return whole
