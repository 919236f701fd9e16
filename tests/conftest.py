"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ghost_data() -> Path:
    """The folder of real inputs that GHOST_DATA names; tests that need it are skipped where there is none."""
    folder = os.environ.get("GHOST_DATA", "")
    for name in ("raw", "corpus", "ctibench/cti-mcq.tsv"):
        if not folder or not (Path(folder) / name).exists():
            pytest.skip(
                f"GHOST_DATA is not set or has no {name}: set it to the folder with raw/, corpus/ and ctibench/"
            )
    return Path(folder)
