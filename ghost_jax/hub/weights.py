"""Tensors in safetensors files: one file, or several with an index where they would be too large."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ghost_jax.core.atomic_io import read_text, write_json
from ghost_jax.core.errors import UserError

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F32", "BF16", "F16")


def write(folder: Path, tensors: Iterable[tuple[str, np.ndarray]], dtype: np.dtype, shard_bytes: int) -> int:
    """Writes tensors as `dtype` into files of at most `shard_bytes`, or of one larger tensor; returns all their bytes.

    No more than one file's tensors are held at a time.
    """
    shards: list[list[str]] = []
    held: dict[str, np.ndarray] = {}
    size = total = 0

    def flush() -> None:
        path = folder / f"shard-{len(shards)}"
        save_file(held, path, metadata={"format": "pt"})  # which transformers asks for
        path.chmod(folder.stat().st_mode & 0o666)  # the library keeps others from reading it
        shards.append(list(held))
        held.clear()

    for name, values in tensors:
        values = np.ascontiguousarray(values, dtype)
        if held and size + values.nbytes > shard_bytes:
            flush()
            size = 0
        held[name] = values
        size, total = size + values.nbytes, total + values.nbytes
    flush()
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / FILE)
        return total
    places = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        (folder / f"shard-{number}").rename(folder / file)
        places |= dict.fromkeys(names, file)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    return total


class Weights:
    """The tensors of a folder, read one at a time.

    Attributes:
      files: the safetensors files, by name.
      unread: names that nobody has asked for yet.
    """

    def __init__(self, folder: Path):
        """Raises UserError where the folder holds no safetensors, or other tensors than its index names."""
        self._folder = folder
        indexed = self._indexed(folder / INDEX) if (folder / INDEX).is_file() else set()
        files = {file for _, file in indexed} or {FILE}
        if indexed and (folder / FILE).is_file() and FILE not in files:
            raise UserError(
                f"{folder} holds two checkpoints: {FILE}, and the files that {INDEX} names. Remove the one that is not "
                "meant."
            )
        if not indexed and not (folder / FILE).is_file():
            raise UserError(
                f"{folder} holds no weights: neither {FILE} nor {INDEX}. Only safetensors are read; a .bin file is a "
                "pickle, which can run code, and must be converted by whoever trusts it."
            )
        self.files = [folder / name for name in sorted(files)]
        if missing := [path.name for path in self.files if not path.is_file()]:
            raise UserError(f"{folder} lacks {', '.join(missing)}, which its index names. Fetch the checkpoint again.")
        opened = {path.name: self._open(path) for path in self.files}
        found = {(name, file) for file, tensors in opened.items() for name in tensors.keys()}  # noqa: SIM118 - no dict
        if indexed and (differ := sorted(indexed ^ found)):
            name, file = differ[0]
            here, there = ("lacks", "names") if (name, file) in indexed else ("holds", "does not name")
            raise UserError(
                f"{folder / file} {here} the tensor {name}, which {INDEX} {there} there: {len(differ)} tensors differ "
                "between the two. Fetch the checkpoint again."
            )
        self._files = {name: opened[file] for name, file in found}
        self.unread = set(self._files)

    @staticmethod
    def _indexed(path: Path) -> set[tuple[str, str]]:
        """Returns each tensor that an index names, with its file."""
        try:
            places = json.loads(read_text(path))["weight_map"]
            return {(name, Path(file).name) for name, file in places.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as fault:
            raise UserError(f"{path} is broken ({fault}). Fetch the checkpoint again.") from None

    @staticmethod
    def _open(path: Path) -> safe_open:
        try:
            return safe_open(path, framework="np")
        except SafetensorError as fault:
            raise UserError(f"{path} is damaged or cut short ({fault}). Fetch the checkpoint again.") from None

    def __call__(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Returns a tensor as float32.

        Raises UserError where it is absent, of another shape or dtype, or not finite.
        """
        if name not in self._files:
            raise UserError(
                f"The checkpoint in {self._folder} lacks the tensor {name}, which its config.json asks for. Fetch it "
                "again."
            )
        found = self._files[name].get_slice(name)
        if tuple(found.get_shape()) != shape or found.get_dtype() not in FLOATS:
            raise UserError(
                f"The tensor {name} in {self._folder} is {found.get_dtype()} {found.get_shape()}; its config.json asks "
                f"for {list(shape)}, in {', '.join(FLOATS[:-1])} or {FLOATS[-1]}. Fetch the unquantised checkpoint "
                "that this config.json belongs to."
            )
        self.unread.discard(name)
        values = np.asarray(self._files[name].get_tensor(name), np.float32)
        if not np.isfinite(values).all():
            raise UserError(
                f"The tensor {name} in {self._folder} holds NaN or infinite values "
                f"({np.count_nonzero(~np.isfinite(values)):,} of {values.size:,}): the checkpoint is corrupt, or its "
                "training diverged. Fetch it again, or import another one."
            )
        return values
