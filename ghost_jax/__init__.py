"""ghost_jax: pretrain, chat-tune and honestly score small domain language models in JAX."""

import importlib.util
import sys
from pathlib import Path

__version__ = "0.4.0"


def _claim_evals() -> None:
    """Makes `evals` the package beside this one: `python -m` puts the current folder first, which may hold another."""
    folder = Path(__file__).resolve().parents[1] / "evals"
    spec = importlib.util.spec_from_file_location(
        "evals", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules.setdefault("evals", importlib.util.module_from_spec(spec))


_claim_evals()
