"""Files that are whole or absent: written beside their place and renamed, so that nothing half-written looks whole."""

import json
import os
from pathlib import Path
from typing import Any

from ghost_jax.errors import UserError


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file and the folders it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".partial")
    aside.write_bytes(content)
    os.replace(aside, path)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, content: object) -> None:
    """Writes a JSON file."""
    write_text(path, json.dumps(content, indent=1))


def read_json(path: Path) -> Any:
    """Reads a JSON file of a run directory. Raises UserError where it is absent or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise UserError(f"{path} cannot be read ({fault}). The run is incomplete: repeat its train command.") from None
