"""Where config and sweep files are, and what they return: `configs/chat_v5.py:nano` is a file and its preset."""

import contextlib
import runpy
import sys
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ghost_jax.core.errors import UsageError, UserError

# A checkout, or the folder that ghost_jax is installed in: configs/ lies in it, beside this package.
ROOT = Path(__file__).resolve().parents[2]

EXAMPLES = {"config": "configs/chat_v5.py:nano", "sweep": "configs/sweeps/lr.py:nano"}


def find(kind: str, spec: str, *folders: Path) -> tuple[Path, str]:
    """Returns the file and the preset of `path[:preset,…]`. Raises UsageError where there is no such file.

    A relative path is looked for in the current folder, in `folders`, and in `ROOT`. A path may hold colons: the
    longest part of the spec that is a file is the path.

    Args:
      kind: "config" or "sweep"; such a file defines `get_<kind>(preset)`.
    """
    ends = [len(spec), *(place for place in reversed(range(len(spec))) if spec[place] == ":")]
    for end in ends:
        for folder in (Path(), *folders, ROOT):
            if (path := folder / spec[:end]).is_file():
                return path, spec[end + 1 :]
    places = ", ".join(dict.fromkeys(str(folder.resolve()) for folder in (Path(), *folders, ROOT)))
    raise UsageError(
        f"There is no {kind} file {spec}. It was looked for in {places}. Name a file and its preset, such as "
        f"--config={EXAMPLES[kind]}."
    )


def recorded(path: Path, preset: str) -> str:
    """Returns what records call a config file and its preset: "configs/chat_v5.py:nano".

    Records are published, so it has no folder of the user: nothing above the nearest folder named configs, or only the
    name of a file that lies in none.
    """
    parts = path.resolve().parts
    first = max((i for i, part in enumerate(parts) if part == "configs"), default=len(parts) - 1)
    return "/".join(parts[first:]) + (f":{preset}" if preset else "")


def read(kind: str, path: Path, preset: str) -> Any:
    """Returns what `get_<kind>(preset)` of a file returns. Raises UsageError where there is none, or where it fails."""
    try:
        with _neighbours(path):
            found = runpy.run_path(str(path)).get(f"get_{kind}")
            if found is not None:
                return found(preset)
    except UserError:
        raise
    except Exception as fault:
        lines = [frame.lineno for frame in traceback.extract_tb(fault.__traceback__) if frame.filename == str(path)]
        where = f" (line {lines[-1]})" if lines else ""
        raise UsageError(f"{path} could not be read: {type(fault).__name__}: {fault}{where}.") from None
    raise UsageError(f"{path} is no {kind} file: it must define get_{kind}(preset).")


@contextlib.contextmanager
def _neighbours(path: Path) -> Iterator[None]:
    """Lets a file import the files beside it, and ours, as `configs.NAME`, whatever other package has that name."""
    beside = next((folder for folder in path.resolve().parents if folder.name == "configs"), path.resolve().parent)
    others = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "configs"}
    package = types.ModuleType("configs")
    package.__path__ = [str(beside), str(ROOT / "configs")]
    sys.modules["configs"] = package
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
            del sys.modules[name]
        sys.modules.update(others)
