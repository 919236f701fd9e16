"""The model of a run: its newest checkpoint, and where that holds adapters alone, the base they are added to."""

import dataclasses
import os
from pathlib import Path

import jax
from jax.sharding import Mesh

from ghost_jax.core.atomic_io import read_json, write_json
from ghost_jax.core.errors import UserError
from ghost_jax.core.object_store import is_remote, path_of
from ghost_jax.data.storage.artifact_cache import fingerprint
from ghost_jax.model import transformer
from ghost_jax.model.config import ModelConfig
from ghost_jax.model.lora import Lora, Trained
from ghost_jax.parallel import distributed
from ghost_jax.parallel.sharding_rules import shardings
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.text.tokenizer import Tokenizer
from ghost_jax.training.checkpoint import FOLDER, Checkpoints
from ghost_jax.training.step import abstract_params

ADAPTED = "lora.json"


def write_adapted(workdir: Path, lora: Lora, base: Path) -> None:
    """Records in a run directory that its checkpoints hold adapters to a base, and what that base's parameters are.

    Every process calls it, since they read a checkpoint together; the main one writes.
    """
    with Checkpoints(base, keep=0, read_only=True) as checkpoints:
        params = fingerprint(checkpoints.record(checkpoints.latest)["params"])
    base = base.resolve()
    where = str(base) if is_remote(base) or is_remote(workdir) else os.path.relpath(base, workdir.resolve())
    if distributed.is_main():
        write_json(workdir / ADAPTED, dataclasses.asdict(lora) | {"base": where, "params": params})


def read_adapted(workdir: Path) -> tuple[Lora, Path] | None:
    """Returns the adapters of a run's checkpoints and the run directory of their base; None for a whole model.

    Raises UserError where the base is gone or has other parameters.
    """
    if not (workdir / ADAPTED).is_file():
        return None
    record = read_json(workdir / ADAPTED)
    where, params = record.pop("base"), record.pop("params")
    base = path_of(where) if "://" in where else workdir / where
    if (base / FOLDER).is_dir():
        with Checkpoints(base, keep=0, read_only=True) as checkpoints:
            if fingerprint(checkpoints.record(checkpoints.latest)["params"]) == params:
                return Lora(**record), base
    raise UserError(
        f"{workdir} holds adapters alone, and their base {base} is gone or has other parameters. Put the base back, or "
        "train the run again."
    )


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A base and the adapters to it; `params` are the base's parameters, with the trained rows of the new tokens."""

    lora: Lora
    params: dict
    trained: Trained

    def merged(self) -> dict:
        """Returns the parameters with the adapters added."""
        return jax.jit(self.lora.merge)(self.params, self.trained)


def restore_adapted(
    workdir: Path, checkpoints: Checkpoints, step: int, model: ModelConfig, mesh: Mesh
) -> Adapted | None:
    """Returns what a run's checkpoint adapts; None for a whole model. Raises as `read_adapted` does."""
    found = read_adapted(workdir)
    if found is None:
        return None
    lora, base_workdir = found
    base, params, _ = load_model(base_workdir, mesh)
    abstract = abstract_params(model)
    shapes = jax.eval_shape(lambda params: lora.init(params, model, jax.random.key(0)), abstract)
    trained = checkpoints.restore_params(step, shapes, mesh)
    rows = {name: own for name, own in trained.items() if "rows" in own}

    def grown(params: dict, rows: dict) -> dict:
        params = transformer.stack_blocks(params) if model.scan else params
        return lora.merge(transformer.grow_vocabulary(params, base, model, jax.random.key(0)), rows)

    params = jax.jit(grown, out_shardings=shardings(abstract, mesh))(params, rows)
    return Adapted(lora, params, {name: own for name, own in trained.items() if name not in rows})


def load_model(workdir: Path, mesh: Mesh) -> tuple[ModelConfig, dict, int]:
    """Returns `(model config, parameters, step)` of a run's newest checkpoint, its blocks unstacked: scoring is faster.

    Raises UserError where the directory holds no complete checkpoint.
    """
    model, params, step = _newest(workdir, mesh)
    if isinstance(params, Adapted):
        params = params.merged()
    return dataclasses.replace(model, scan=False), _unstacked(params, mesh) if model.scan else params, step


def load_chat_model(workdir: Path, mesh: Mesh) -> tuple[ModelConfig, dict, int, Tokenizer]:
    """Returns what `load_model` does, and the vocabulary. Raises UserError for a base, which has no chat format."""
    found = load_model(workdir, mesh)
    tokenizer = tokenizer_lib.load(workdir / "tokenizer.json")
    if not tokenizer.template:
        raise UserError(
            f"{workdir} is a base model without a chat format. Name a chat run, or train one: python -m "
            "ghost_jax.train --config=configs/chat_v5.py:nano."
        )
    return *found, tokenizer


def load_adapted(workdir: Path, mesh: Mesh) -> tuple[ModelConfig, Adapted, int]:
    """Returns `(model config, base and adapters, step)` of a run's newest checkpoint; the base's blocks are unstacked.

    Raises UserError where the run has no adapters, or no complete checkpoint.
    """
    model, adapted, step = _newest(workdir, mesh)
    if not isinstance(adapted, Adapted):
        raise UserError(f"{workdir} has no adapters: every parameter was trained. Export it without --format=peft.")
    if model.scan:
        adapted = dataclasses.replace(adapted, params=_unstacked(adapted.params, mesh))
    return dataclasses.replace(model, scan=False), adapted, step


def _unstacked(params: dict, mesh: Mesh) -> dict:
    placed = shardings(jax.eval_shape(transformer.unstack_blocks, params), mesh)
    return jax.jit(transformer.unstack_blocks, out_shardings=placed)(params)


def _newest(workdir: Path, mesh: Mesh) -> tuple[ModelConfig, dict | Adapted, int]:
    if not (workdir / FOLDER).is_dir():
        raise UserError(
            f"{workdir} holds no run. Train one first, for example: python -m ghost_jax.train "
            "--config=configs/chat_v5.py:nano."
        )
    with Checkpoints(workdir, keep=0, read_only=True) as checkpoints:

        def read(step: int) -> tuple[ModelConfig, dict | Adapted, int]:
            try:
                model = ModelConfig(**checkpoints.record(step)["identity"]["model"])
            except TypeError:
                raise UserError(
                    f"The checkpoint of step {step} in {workdir} is of another version of ghost_jax, whose model has "
                    "other fields. Train the run again, or use the version that its environment.json names."
                ) from None
            adapted = restore_adapted(workdir, checkpoints, step, model, mesh)
            return model, adapted or checkpoints.restore_params(step, abstract_params(model), mesh), step

        found = checkpoints.newest(read)
        if found is None:
            raise UserError(f"{workdir} has no complete checkpoint yet. Repeat its train command to resume it.")
        return found
