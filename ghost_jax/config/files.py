"""Finds and runs config and sweep files: `configs/chat_v5.py:nano` is a file and its preset."""

import contextlib
import itertools
import runpy
import sys
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ghost_jax.core.errors import UsageError, UserError, did_you_mean

# A checkout, or the folder that ghost_jax is installed in; configs/ is in it, beside this package.
ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"config": "configs", "sweep": "configs/sweeps"}
EXAMPLES = {"config": "configs/chat_v5.py:nano", "sweep": "configs/sweeps/lr.py:nano"}


def find(kind: str, spec: str, *folders: Path) -> tuple[Path, str]:
    """Returns the file and the preset of `path[:preset,…]`. Raises UsageError where there is no such file.

    A relative path is looked up in the current folder, in `folders`, and in `ROOT`, and so is the name of a recipe:
    "chat_v5" is configs/chat_v5.py. A path may hold colons: the longest part of the spec that is a file is the path.

    Args:
      kind: "config" or "sweep"; such a file defines `get_<kind>(preset)`.
    """
    searched = (Path(), *folders, ROOT)
    parts = spec.split(":")
    for count in range(len(parts), 0, -1):
        named = ":".join(parts[:count])
        for folder, name in itertools.product(searched, (named, f"{FOLDERS[kind]}/{named}.py")):
            if (path := folder / name).is_file():
                return path, ":".join(parts[count:])
    known = [path.stem for path in sorted((ROOT / FOLDERS[kind]).glob("*.py")) if path.stem != "common"]
    places = ", ".join(dict.fromkeys(str(folder.resolve()) for folder in searched))
    raise UsageError(
        f"There is no {kind} file {spec} in {places}.{did_you_mean(Path(parts[0]).stem, known)} Name a recipe or a "
        f"file, and its preset, such as --config={EXAMPLES[kind]}."
    )


def recorded(path: Path, preset: str) -> str:
    """Returns the name of a config file and its preset in records: "configs/chat_v5.py:nano".

    Records are published, so it begins at the nearest folder named configs and shows no folder of the user.
    """
    parts = path.resolve().parts
    first = max((i for i, part in enumerate(parts) if part == "configs"), default=len(parts) - 1)
    return "/".join(parts[first:]) + (f":{preset}" if preset else "")


def read(kind: str, path: Path, preset: str) -> Any:
    """Returns what `get_<kind>(preset)` of a file returns. Raises UsageError where it is missing or fails."""
    try:
        with _configs_package(path):
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
def _configs_package(path: Path) -> Iterator[None]:
    """Makes `configs.NAME` the files beside a file and ours, whatever other package has the name `configs`."""
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
