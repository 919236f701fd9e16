"""One process or many: who this one is, and how its rows become part of the global batch."""

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding


def is_main() -> bool:
    """Returns whether this process writes what is written once: logs, tables, reports."""
    return jax.process_index() == 0


def to_global(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, Any]:
    """Returns the global batch on the devices; each process passes its own rows, in process order."""
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def local_rows(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns this process's rows of a global batch that every process holds whole."""
    here, processes = jax.process_index(), jax.process_count()
    return {name: np.split(rows, processes)[here] for name, rows in batch.items()}
