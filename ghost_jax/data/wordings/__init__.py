"""The wordings of typed facts: TOML files that map a relation to its texts."""

import tomllib
from pathlib import Path


def read(name: str) -> dict:
    """Returns the texts of `NAME.toml` by relation."""
    return tomllib.loads(Path(__file__).with_name(f"{name}.toml").read_text(encoding="utf-8"))
