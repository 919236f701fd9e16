"""Orbax checkpoints of a run: complete or absent, restored into the shardings of the present mesh.

Each holds three items: `params`, `rest` (step, optimizer state, key, skipped updates) and `identity`, a record with a
checksum that names the model, tokenizer, data and base, and the dtype, shape and checksum of
each leaf. Parameters are an item of their own, so that an evaluation need not know the optimizer.

A checkpoint is corrupt only where its bytes cannot be decoded or a checksum fails. One that does not match the run is
an error that names each difference.
"""

import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh
from orbax.checkpoint._src.path import gcs_utils  # S3, which Orbax does not offer, see `_store_of`
from orbax.checkpoint._src.serialization import tensorstore_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from ghost_jax.core.errors import UserError, chain_of
from ghost_jax.core.object_store import file_system, is_remote
from ghost_jax.data.storage.artifact_cache import fingerprint
from ghost_jax.model.config import ModelConfig
from ghost_jax.model.transformer import named_leaves
from ghost_jax.parallel import distributed
from ghost_jax.parallel.sharding_rules import shardings
from ghost_jax.training.step import TrainState

# Orbax logs a failed save with its traceback, and raises it too. A user reads the error once, as a paragraph.
logging.getLogger("absl").setLevel(logging.CRITICAL)

FOLDER = "checkpoints"
CORRUPT_FOLDER = "corrupt"
REST = ("step", "opt_state", "key", "skipped")  # of a state, beside its parameters
_IN_PLACE = ocp.options.AtomicityOptions(mode=ocp.options.AtomicityMode.COMMIT_FILE)
# Orbax's and TensorStore's errors for bytes that they cannot decode. Too little memory, for example, is another one.
_UNDECODED = (ValueError, LookupError, AttributeError, AssertionError, FileNotFoundError)
T = TypeVar("T")


def _store_of(path: str) -> dict[str, Any]:
    """Returns TensorStore's spec of a path in S3 or GCS; `path` may have lost a slash, as Orbax normalises it."""
    scheme, _, rest = path.partition(":")
    bucket, _, below = rest.lstrip("/").partition("/")
    if scheme == "gs":
        # Another server than Google's, which gcsfs finds by this variable, and TensorStore by one of its own.
        if server := os.environ.get("STORAGE_EMULATOR_HOST"):
            os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", server if "://" in server else f"http://{server}")
        return {"driver": "gcs", "bucket": bucket, "path": below}
    spec = {"driver": "s3", "bucket": bucket, "path": below}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        region = os.environ.get("AWS_REGION", os.environ.get("AWS_DEFAULT_REGION", "us-east-1"))
        spec |= {"endpoint": endpoint, "aws_region": region}
    if "AWS_ACCESS_KEY_ID" in os.environ:
        spec["aws_credentials"] = {"type": "environment"}
    return spec


# Orbax 0.12.8 takes the path of every store but GCS for a local one.
tensorstore_utils._use_gcs_driver = lambda path: path.startswith(("gs:", "s3:"))
gcs_utils.get_kvstore_for_gcs = _store_of


class Corrupt(UserError):
    """A checkpoint whose bytes cannot be decoded or whose checksum fails."""


def identity_of(model: ModelConfig, tokenizer_sha256: str, data_fingerprint: str, base: str = "") -> dict:
    """Returns what a checkpoint must agree with to be resumed; `base` is the `params_of` of a chat run's base."""
    shape = model.record()
    for key in ("remat", "attention"):  # other ways to compute the same
        shape.pop(key, None)
    return {"model": shape, "tokenizer": tokenizer_sha256, "data": data_fingerprint} | ({"base": base} if base else {})


def facts_of(identity: dict) -> dict:
    """Returns an identity with the fields of its model beside the others, as messages name them."""
    return {**identity["model"], **{key: value for key, value in identity.items() if key != "model"}}


def params_of(record: dict) -> str:
    """Returns the fingerprint of the parameters that a checkpoint's record describes; "" for an empty record."""
    return fingerprint(record["params"]) if record else ""


def checksums(tree: Any) -> list[int]:
    """Returns a number for the bits of each leaf, below 2^32 and the same on every mesh.

    Any change of one element changes it. TensorStore has checksums of its indexes, and none of arrays.
    """
    return [int(number) for number in jax.device_get([_checksum(leaf) for leaf in jax.tree.leaves(tree)])]


@jax.jit  # a leaf at a time: layers and moments share their shapes, and so the compiled program
def _checksum(leaf: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}").astype(jnp.uint32)
    places = [
        jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * np.uint32(math.prod(leaf.shape[axis + 1 :]))
        for axis in range(leaf.ndim)
    ]
    # Modulo 2^32, sums are the same in any order, and an odd factor maps no difference of bits to zero.
    return jnp.sum(bits * (2 * sum(places, jnp.uint32(0)) + 1), dtype=jnp.uint32)


def _items_of(state: TrainState) -> dict[str, dict]:
    return {"params": {"params": state.params}, "rest": {key: getattr(state, key) for key in REST}}


def _kind(leaf: Any) -> list:
    return [str(leaf.dtype), list(leaf.shape)]


def _read_files(folder: Path) -> None:
    """Reads all files below a folder. Raises OSError, naming the file, for one that the system cannot read."""

    def refuse(fault: OSError) -> None:
        raise fault

    for place, _, names in epath.Path(folder).walk(on_error=refuse):
        for path in (place / name for name in names):
            try:
                with path.open("rb") as file:
                    while file.read(1 << 24):
                        pass
            except OSError as fault:
                raise OSError(fault.errno, fault.strerror, str(path)) from None  # that of a read names no file


def check_place(workdir: Path, read_only: bool = False) -> None:
    """Raises UserError for the path of a run directory in which Orbax cannot write, or read, a checkpoint."""
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file. Name a folder, or one that does not exist yet, with --workdir.")
    if is_remote(workdir):
        return
    # Orbax merges its parts by a glob of the full path. TensorStore reads a backslash as a slash, and only UTF-8.
    refused = "\\" if read_only else "\\*?["
    place = str(workdir.resolve())
    found = sorted({repr(sign) for sign in place if sign in refused or not sign.encode(errors="ignore")})
    if found:
        raise UserError(
            f"The checkpoint library cannot use the path {place}: it contains {', '.join(found)}. Rename that folder "
            "or choose another --workdir."
        )


class Checkpoints:
    """The `keep` newest checkpoints of a run directory. A context manager: leaving it waits for saves under way."""

    def __init__(self, workdir: Path, keep: int = 0, read_only: bool = False):
        check_place(workdir, read_only)
        self._workdir, self._read_only = workdir, read_only
        options = ocp.CheckpointManagerOptions(
            preservation_policy=None if read_only else preservation_policy.LatestN(keep),
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
            # A store cannot rename a folder: there a checkpoint is complete when its commit_success.txt is written.
            atomicity_options=_IN_PLACE if is_remote(workdir) else None,
        )
        self._manager = ocp.CheckpointManager((workdir / FOLDER).resolve(), options=options)
        self._reader = ocp.CompositeCheckpointHandler()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._reader.close()
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, identity: dict) -> None:
        """Starts saving in the background; the state is copied first, so it may be donated at once."""
        step = int(state.step)
        if step == self.latest:
            return
        items = {item: named_leaves(tree) for item, tree in _items_of(state).items()}
        record = {"identity": identity}
        for item, leaves in items.items():
            sums = checksums(list(leaves.values()))  # name -> [dtype, shape, checksum]
            record[item] = {name: [*_kind(leaves[name]), number] for name, number in zip(leaves, sums, strict=True)}
        saved = {item: ocp.args.StandardSave(leaves) for item, leaves in items.items()}
        if is_remote(self._workdir) and not (self._workdir / "config.json").is_file():
            raise UserError(
                f"{self._workdir} is gone, and a checkpoint alone would be no run. Restore the bucket, and repeat the "
                "command."
            )
        saved["identity"] = ocp.args.JsonSave(record | {"sha256": fingerprint(record)})
        self._manager.save(step, args=ocp.args.Composite(**saved))

    def wait(self) -> None:
        """Returns when every save is complete on disk."""
        self._manager.wait_until_finished()

    def read_back(self, state: TrainState, mesh: Mesh, identity: dict) -> TrainState:
        """Returns the state that was just saved, as its checkpoint holds it; the memory of `state` is freed before.

        Raises UserError where it cannot be read.
        """
        self.wait()
        abstract = jax.eval_shape(lambda same: same, state)
        jax.tree.map(lambda leaf: leaf.delete(), state)
        try:
            return self.restore(self.latest, abstract, mesh, identity)
        except Corrupt as fault:
            raise UserError(
                f"{fault} It was read right after it was written: a run cannot be resumed from this folder. Give it a "
                "--workdir on another disk."
            ) from None

    def newest(self, read: Callable[[int], T]) -> T | None:
        """Returns `read(step)` of the newest checkpoint that is not corrupt, None where there is no checkpoint.

        Corrupt ones are reported, and moved away after an older one was read. Raises UserError where all are corrupt:
        the reason may be another one, and a run does not restart from nothing.
        """
        corrupt = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = read(step)
            except Corrupt as fault:
                print(fault, flush=True)
                corrupt.append(step)
                continue
            if corrupt and not self._read_only:
                self._quarantine(corrupt)
            return found
        if corrupt:
            raise UserError(
                f"No checkpoint in {self._workdir} can be read, and none was moved. Restore one from a copy, or delete "
                "the folder and repeat its train command to start again."
            )
        return None

    def _quarantine(self, steps: list[int]) -> None:
        """Moves corrupt checkpoints away, so that new ones can be written in their place."""
        if distributed.is_main():
            for step in steps:
                corrupt = self._workdir / FOLDER / str(step)
                kept = self._workdir / CORRUPT_FOLDER / f"{step}-{time.time_ns()}" / str(step)
                if is_remote(corrupt):
                    file_system(corrupt).mv(str(corrupt), str(kept), recursive=True)
                else:
                    kept.parent.mkdir(parents=True)
                    corrupt.rename(kept)
        distributed.barrier(f"corrupt checkpoints of {self._workdir.name}")
        self._manager.reload()

    def restore(self, step: int, abstract: TrainState, mesh: Mesh, identity: dict) -> TrainState:
        """Returns the state of a checkpoint, sharded for `mesh`.

        Raises as `record` does, and UserError where its tree is not that of `abstract`.
        """
        record = self.record(step, identity)
        found = self._restore(step, record, _items_of(_placed(abstract, mesh)))
        return TrainState(**found["params"], **found["rest"])

    def restore_params(self, step: int, abstract: dict, mesh: Mesh) -> dict:
        """Returns the parameters alone, of these shapes and sharded for `mesh`. Raises as `restore` does."""
        targets = {"params": {"params": _placed(abstract, mesh)}}
        return self._restore(step, self.record(step), targets)["params"]["params"]

    def _restore(self, step: int, record: dict, targets: dict[str, dict]) -> dict[str, dict]:
        """Returns the tree of each item. Names, dtypes and shapes are compared before it is read, bits after."""
        wanted = {item: named_leaves(target) for item, target in targets.items()}
        for item, leaves in wanted.items():
            saved = {name: kind[:-1] for name, kind in record[item].items()}
            self._check(step, saved, {name: _kind(leaf) for name, leaf in leaves.items()}, "model or optimizer")
        found = self._read(step, **{item: ocp.args.StandardRestore(leaves) for item, leaves in wanted.items()})
        trees = {}
        for item, names in wanted.items():
            leaves = [found[item][name] for name in names]
            for name, checksum in zip(names, checksums(leaves), strict=True):
                if checksum != record[item][name][-1]:
                    raise self._corrupt(step, f"the checksum of {name} fails")
            trees[item] = jax.tree.unflatten(jax.tree.structure(targets[item]), leaves)
        return trees

    def record(self, step: int, identity: dict | None = None) -> dict:
        """Returns the record of a checkpoint: its identity, and each leaf's dtype, shape and checksum.

        Raises Corrupt where its bytes are not those that were saved, UserError where it is of another `identity`.
        """
        record = self._read(step, identity=ocp.args.JsonRestore()).identity
        if record.pop("sha256", None) != fingerprint(record):
            raise self._corrupt(step, "the checksum of its record fails, or another version of ghost_jax wrote it")
        if identity:
            self._check(step, facts_of(record["identity"]), facts_of(identity), "model, tokenizer, data or base")
        return record

    def _read(self, step: int, **items: ocp.args.CheckpointArgs) -> Any:
        """Returns items of a checkpoint. Raises Corrupt, in every process, where one cannot decode its part."""
        folder, found, corrupt = (self._workdir / FOLDER / str(step)).resolve(), None, None
        try:
            # Not by the manager, in which the other processes would wait for one that fails.
            found = self._reader.restore(epath.Path(folder), args=ocp.args.Composite(**items))
        except Exception as fault:
            _read_files(folder)
            *_, cause = chain_of(fault)
            if not isinstance(cause, _UNDECODED):
                raise cause from None
            corrupt = self._corrupt(step, str(cause).partition("\n")[0][:200] or type(cause).__name__)
        if distributed.any_process(corrupt is not None):
            raise corrupt or self._corrupt(step, "another process cannot read its part")
        return found

    def _corrupt(self, step: int, reason: str) -> Corrupt:
        return Corrupt(f"The checkpoint of step {step:,} in {self._workdir} is corrupt ({reason}).")

    def _check(self, step: int, there: dict, here: dict, of: str) -> None:
        """Raises UserError, with both values of each key that differs, where a checkpoint does not match this run."""
        pairs = {key: (there.get(key), here.get(key)) for key in {**there, **here}}
        differ = {key: [str(value)[:40] for value in pair] for key, pair in pairs.items() if pair[0] != pair[1]}
        if differ:
            listed = "; ".join(f"{key}: {saved} there, {present} here" for key, (saved, present) in differ.items())
            raise UserError(
                f"The checkpoint of step {step} in {self._workdir} is of another {of} ({listed}). Nothing was moved. "
                "Repeat the command that made it, with its code, to resume it, or give this run another --workdir."
            )


def _placed(abstract: Any, mesh: Mesh) -> Any:
    """Returns ShapeDtypeStructs with the sharding of each leaf."""
    return jax.tree.map(lambda leaf, place: leaf.update(sharding=place), abstract, shardings(abstract, mesh))
