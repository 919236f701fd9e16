"""Tensors in safetensors files: written as one file, read from one or from several with an index."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ghost_jax.core.atomic_io import read_text
from ghost_jax.core.errors import UserError

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F32", "BF16", "F16")


def write(folder: Path, tensors: Iterable[tuple[str, np.ndarray]], dtype: np.dtype, file: str = FILE) -> int:
    """Writes tensors as `dtype` into a file; returns their bytes."""
    converted = {name: np.ascontiguousarray(values, dtype) for name, values in tensors}
    save_file(converted, folder / file, metadata={"format": "pt"})  # transformers requires the format
    (folder / file).chmod(folder.stat().st_mode & 0o666)  # the library makes it readable by its owner alone
    return sum(values.nbytes for values in converted.values())


class Weights:
    """The tensors of a folder, read one at a time.

    Attributes:
      files: paths of the safetensors files.
      unread: names of tensors that were not read yet.
    """

    def __init__(self, folder: Path):
        """Raises UserError where the folder holds no safetensors, or other tensors than its index names."""
        self._folder = folder
        indexed = _read_index(folder / INDEX) if (folder / INDEX).is_file() else None
        names = {FILE} if indexed is None else {file for _, file in indexed}
        if (folder / FILE).is_file() and FILE not in names:
            raise UserError(f"{folder} holds two checkpoints: {FILE}, and the files that {INDEX} names. Remove one.")
        self.files = [folder / name for name in sorted(names)]
        if missing := [path.name for path in self.files if not path.is_file()]:
            raise UserError(
                f"{folder} lacks the weights {', '.join(missing)}. Fetch the checkpoint again. Only safetensors are "
                "read: a .bin file is a pickle, which can run code, and must be converted by someone who trusts it."
            )
        opened = {path.name: _open(path) for path in self.files}
        found = {(name, file) for file, tensors in opened.items() for name in tensors.keys()}  # noqa: SIM118 - no dict
        if indexed is not None and (differences := sorted(found ^ indexed)):
            name, file = differences[0]
            raise UserError(
                f"{folder / INDEX} does not match the files: {len(differences)} tensors differ, {name} in {file} among "
                "them. Fetch the checkpoint again."
            )
        self._files = {name: opened[file] for name, file in found}
        self.unread = set(self._files)

    def __call__(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Returns a tensor as float32. Raises UserError where it is absent, not finite or of another shape or type."""
        if name not in self._files:
            raise UserError(f"{self._folder} lacks the tensor {name} of its config.json. Fetch the checkpoint again.")
        found = self._files[name].get_slice(name)
        if tuple(found.get_shape()) != shape or found.get_dtype() not in FLOATS:
            raise UserError(
                f"The tensor {name} in {self._folder} is {found.get_dtype()} {found.get_shape()}; its config.json "
                f"needs {list(shape)} in one of {', '.join(FLOATS)}. Fetch the unquantised checkpoint."
            )
        self.unread.discard(name)
        values = np.asarray(self._files[name].get_tensor(name), np.float32)
        if not np.isfinite(values).all():
            count = np.count_nonzero(~np.isfinite(values))
            raise UserError(
                f"The tensor {name} in {self._folder} has {count:,} NaN or infinite values of {values.size:,}: the "
                "checkpoint is corrupt, or its training diverged. Fetch it again, or import another one."
            )
        return values


def _read_index(path: Path) -> set[tuple[str, str]]:
    """Returns each tensor that an index names, with the name of its file."""
    try:
        return {(name, Path(file).name) for name, file in json.loads(read_text(path))["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as fault:
        raise UserError(f"{path} is corrupt ({fault}). Fetch the checkpoint again.") from None


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="np")
    except SafetensorError as fault:
        raise UserError(f"{path} is corrupt ({fault}). Fetch the checkpoint again.") from None
