"""Orbax checkpoints of a run: only ever whole, restored into the shardings of the mesh at hand.

Each holds four items: `params`, `rest` (step, optimizer state, key, skipped updates), `identity`, which says of which
model, tokenizer and data it is, and `checksums`, by which a bit that flipped on the disk is noticed. Parameters stand
apart so that the evaluator need not know the optimizer.
"""

import dataclasses
import logging
import math
import operator
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint.checkpoint_managers import preservation_policy

from ghost_jax.errors import UserError
from ghost_jax.model import transformer
from ghost_jax.model.sizes import ModelConfig
from ghost_jax.parallel.rules import shardings
from ghost_jax.step import TrainState, state_shardings

# Orbax reports each save, and what it then raises too, with its traceback. A user reads the error once, as a paragraph.
logging.getLogger("absl").setLevel(logging.CRITICAL)

FOLDER = "checkpoints"
REST = ("step", "opt_state", "key", "skipped")  # of a state, beside its parameters
# What reading raises and is no damage. A flipped bit may raise anything, down to an AssertionError within Orbax.
_NO_DAMAGE = (UserError, PermissionError, MemoryError, jax.errors.JaxRuntimeError)
T = TypeVar("T")


def identity_of(model: ModelConfig, tokenizer_sha256: str, data_fingerprint: str) -> dict:
    """Returns what a checkpoint must agree with to be continued."""
    shape = model.record()
    del shape["remat"]  # computing the same in another way
    return {"model": shape, "tokenizer": tokenizer_sha256, "data": data_fingerprint}


def checksums(tree: Any) -> list[int]:
    """Returns a number for the bits of each leaf, below 2^32 and the same on every mesh.

    Any change of one element changes it. TensorStore has checksums of its own for its indexes, and none for arrays.
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


class Checkpoints:
    """The checkpoints of one run directory. Use as a context manager: leaving it waits for saves under way."""

    def __init__(self, workdir: Path, keep: int, keep_best: str = "", read_only: bool = False):
        """Keeps the `keep` newest, and the one whose metric `keep_best` ("val_loss") is the lowest."""
        self._workdir, self._read_only = workdir, read_only
        policies = [preservation_policy.LatestN(keep)]
        if keep_best:
            lowest = preservation_policy.BestN(
                get_metric_fn=operator.itemgetter(keep_best), reverse=True, n=1, keep_checkpoints_without_metrics=False
            )
            policies.append(lowest)
        self._manager = ocp.CheckpointManager(
            (workdir / FOLDER).resolve(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=None if read_only else preservation_policy.AnyPreservationPolicy(policies),
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
            ),
        )
        self._keep_best = keep_best

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The newest whole checkpoint's step, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, identity: dict, losses: Mapping[str, float]) -> None:
        """Starts saving in the background; the state is copied first, so it may be donated at once.

        `losses` are the validation losses at this step, empty where none were taken.
        """
        rest = {key: getattr(state, key) for key in REST}
        step = int(state.step)
        if step == self.latest:
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                rest=ocp.args.StandardSave(rest),
                identity=ocp.args.JsonSave(identity),
                checksums=ocp.args.JsonSave({"params": checksums(state.params), "rest": checksums(rest)}),
            ),
            metrics={self._keep_best: losses[self._keep_best]} if self._keep_best in losses else None,
        )

    def wait(self) -> None:
        """Returns when every save is on disk and whole."""
        self._manager.wait_until_finished()

    def identity(self, step: int) -> dict:
        """Returns the identity stored with a checkpoint."""
        return self._manager.restore(step, args=ocp.args.Composite(identity=ocp.args.JsonRestore())).identity

    def newest(self, read: Callable[[int], T]) -> T | None:
        """Returns `read(step)` of the newest checkpoint that can be read, None where there is none at all.

        A damaged one is named, set aside and the one before it read. Raises UserError where all are damaged, rather
        than begin from nothing as if there had been no run.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                return read(step)
            except _NO_DAMAGE:
                raise
            except Exception as fault:
                reason = str(fault).splitlines()[0][:200] if str(fault) else type(fault).__name__
                print(f"the checkpoint of step {step:,} in {self._workdir} is damaged ({reason})", flush=True)
                if not self._read_only:
                    self._set_aside(step)
        if steps:
            raise UserError(
                f"No checkpoint in {self._workdir} can be read. Delete the folder and repeat its train command to "
                "begin anew."
            )
        return None

    def _set_aside(self, step: int) -> None:
        """Moves a damaged checkpoint out of the way of the one that will be written in its place."""
        shelf = self._workdir / "damaged"
        shelf.mkdir(exist_ok=True)
        shutil.move(self._workdir / FOLDER / str(step), tempfile.mkdtemp(prefix=f"{step}-", dir=shelf))
        self._manager.reload()

    def restore(self, step: int, abstract: TrainState, mesh: Mesh, identity: dict) -> TrainState:
        """Returns the state of a checkpoint, sharded for `mesh`. Raises UserError where it is of another run."""
        self._check(step, identity)
        target = with_shardings(abstract, state_shardings(abstract, mesh))
        rest = {key: getattr(target, key) for key in REST}
        found = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(target.params), rest=ocp.args.StandardRestore(rest)
            ),
        )
        self._prove(step, params=found.params, rest=found.rest)
        return TrainState(params=found.params, **found.rest)

    def restore_params(self, step: int, model: ModelConfig, mesh: Mesh) -> dict:
        """Returns the parameters alone, sharded for `mesh`."""
        abstract = jax.eval_shape(lambda key: transformer.init(model, key), jax.random.key(0))
        target = with_shardings(abstract, shardings(abstract, mesh))
        args = ocp.args.Composite(params=ocp.args.StandardRestore(target))
        params = self._manager.restore(step, args=args).params
        self._prove(step, params=params)
        return params

    def _prove(self, step: int, **trees: Any) -> None:
        """Raises ValueError where a tree is not the one that was saved."""
        if not (self._workdir / FOLDER / str(step) / "checksums").is_dir():
            return  # it was written before there were any
        args = ocp.args.Composite(checksums=ocp.args.JsonRestore())
        saved = self._manager.restore(step, args=args).checksums
        for name, tree in trees.items():
            if checksums(tree) != saved[name]:
                raise ValueError(f"{name} are not what was saved")

    def _check(self, step: int, wanted: dict) -> None:
        found = self.identity(step)
        for key, value in wanted.items():
            if found[key] != value:
                differences = (
                    ", ".join(
                        f"{k}: {found[key].get(k)} there, {value[k]} here"
                        for k in value
                        if found[key].get(k) != value[k]
                    )
                    if isinstance(value, dict)
                    else f"{found[key][:12]} there, {value[:12]} here"
                )
                raise UserError(
                    f"The checkpoint of step {step} in {self._workdir} is of another {key} ({differences}). Repeat the "
                    "command that made it to continue it, or give this run another --workdir."
                )


def with_shardings(abstract: Any, tree_of_shardings: Any) -> Any:
    """Returns ShapeDtypeStructs that say where each leaf shall lie."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        tree_of_shardings,
    )


def _apart(model: ModelConfig, params: dict, mesh: Mesh) -> tuple[ModelConfig, dict]:
    if not model.scan:
        return model, params
    placed = shardings(jax.eval_shape(transformer.unstack_blocks, params), mesh)
    return dataclasses.replace(model, scan=False), jax.jit(transformer.unstack_blocks, out_shardings=placed)(params)


def load_model(workdir: Path, mesh: Mesh) -> tuple[ModelConfig, dict, int]:
    """Returns `(model config, parameters, step)` of a run's newest checkpoint, its blocks apart, which reads faster.

    Raises UserError where the directory holds no whole checkpoint.
    """
    if not (workdir / FOLDER).is_dir():
        raise UserError(
            f"{workdir} holds no run. Train one first, for example: python -m ghost_jax.train "
            "--config=configs/chat_v5.py:nano."
        )
    with Checkpoints(workdir, keep=0, read_only=True) as checkpoints:

        def read(step: int) -> tuple[ModelConfig, dict, int]:
            model = ModelConfig(**checkpoints.identity(step)["model"])
            return *_apart(model, checkpoints.restore_params(step, model, mesh), mesh), step

        found = checkpoints.newest(read)
        if found is None:
            raise UserError(f"{workdir} has no whole checkpoint yet. Repeat its train command: it goes on from there.")
        return found
