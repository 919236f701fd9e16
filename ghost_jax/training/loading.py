"""The model of a run: its newest checkpoint, and where that holds adapters alone, the base they are added to."""

import dataclasses
import os
from pathlib import Path

import jax
from jax.sharding import Mesh

from ghost_jax.core.atomic_io import read_json, write_json
from ghost_jax.core.errors import UserError
from ghost_jax.core.object_store import is_remote, path_of
from ghost_jax.model import transformer
from ghost_jax.model.config import ModelConfig
from ghost_jax.model.lora import Lora, Trained
from ghost_jax.parallel.sharding_rules import shardings
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.text.tokenizer import Tokenizer
from ghost_jax.training.checkpoint import FOLDER, Checkpoints, params_of
from ghost_jax.training.step import abstract_params

ADAPTED = "lora.json"
Adapters = tuple[Lora, Trained]


def newest_record(workdir: Path, identity: dict | None = None) -> tuple[int, dict]:
    """Returns the step and the record of a run's newest checkpoint; 0 and an empty one where there is none.

    Every process calls it: they read a checkpoint together. Raises UserError where it is of another `identity`: another
    model, tokenizer or base, or other data.
    """
    if not (workdir / FOLDER).is_dir():
        return 0, {}
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.newest(lambda step: (step, checkpoints.record(step, identity))) or (0, {})


def check_base(workdir: Path, base: Path) -> None:
    """Raises UserError where the checkpoints of a chat run began with other parameters than those of its base now."""
    known = newest_record(workdir)[1].get("identity", {}).get("base")  # runs of older versions do not have it
    if known and known != params_of(newest_record(base)[1]):
        raise UserError(
            f"{workdir} was trained from another base than the one in {base}, whose parameters differ or are gone. Put "
            "the first base back, or name it with --base, or give this run another --workdir."
        )


def write_adapted(workdir: Path, lora: Lora, base: Path, params: str) -> None:
    """Records in a run directory that its checkpoints hold adapters to a base, and the `params_of` that base."""
    base = base.resolve()
    where = str(base) if is_remote(base) or is_remote(workdir) else os.path.relpath(base, workdir.resolve())
    write_json(workdir / ADAPTED, dataclasses.asdict(lora) | {"base": where, "params": params})


def _restore_adapted(
    workdir: Path, checkpoints: Checkpoints, step: int, model: ModelConfig, mesh: Mesh
) -> tuple[dict, Adapters]:
    """Returns the base's parameters, with the trained rows of the new tokens, and the adapters to them.

    Raises UserError where the base is gone or has other parameters.
    """
    record = read_json(workdir / ADAPTED)
    where, wanted = record.pop("base"), record.pop("params")
    base_workdir = path_of(where) if "://" in where or Path(where).is_absolute() else workdir / where
    base_step, newest = newest_record(base_workdir)
    if params_of(newest) != wanted:
        raise UserError(
            f"{workdir} holds adapters alone, and their base {base_workdir} is gone or has other parameters. Put the "
            "base back, or train the run again."
        )
    lora = Lora(**record)
    base, params, _ = load_model(base_workdir, mesh, base_step)
    abstract = abstract_params(model)
    shapes = jax.eval_shape(lambda params: lora.init(params, model, jax.random.key(0)), abstract)
    trained = checkpoints.restore_params(step, shapes, mesh)
    rows = {name: own for name, own in trained.items() if "rows" in own}

    def grown(params: dict, rows: dict) -> dict:
        return lora.merge(transformer.grow_vocabulary(params, base, model, jax.random.key(0)), rows)

    params = jax.jit(grown, out_shardings=shardings(abstract, mesh))(params, rows)
    return params, (lora, {name: own for name, own in trained.items() if name not in rows})


def load_model(workdir: Path, mesh: Mesh, at: int | None = None) -> tuple[ModelConfig, dict, int]:
    """Returns `(model config, parameters, step)` of a run's newest checkpoint, its blocks unstacked: scoring is faster.

    Raises UserError where the directory holds no complete checkpoint, or its newest intact one is not of the step `at`.
    """
    model, params, adapters, step = _newest(workdir, mesh)
    if at is not None and step != at:
        raise UserError(
            f"The checkpoint of step {at:,} in {workdir} is corrupt or gone, and the newest intact one is of {step:,}. "
            "Restore it from a copy, or delete status.json there, if there is one, and repeat the command of that run: "
            "it repeats the last updates."
        )
    if adapters:
        lora, trained = adapters
        params = jax.jit(lora.merge, out_shardings=shardings(params, mesh))(params, trained)
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


def load_adapted(workdir: Path, mesh: Mesh) -> tuple[ModelConfig, dict, Adapters, int]:
    """Returns what `load_model` does without the adapters added, and the adapters before the step.

    Raises UserError where the run has no adapters, or no complete checkpoint.
    """
    model, params, adapters, step = _newest(workdir, mesh)
    if adapters is None:
        raise UserError(f"{workdir} has no adapters: every parameter was trained. Export it without --format=peft.")
    params = _unstacked(params, mesh) if model.scan else params
    return dataclasses.replace(model, scan=False), params, adapters, step


def _unstacked(params: dict, mesh: Mesh) -> dict:
    placed = shardings(jax.eval_shape(transformer.unstack_blocks, params), mesh)
    return jax.jit(transformer.unstack_blocks, out_shardings=placed)(params)


def _newest(workdir: Path, mesh: Mesh) -> tuple[ModelConfig, dict, Adapters | None, int]:
    if not (workdir / FOLDER).is_dir():
        raise UserError(
            f"{workdir} holds no run. Train one first, for example: python -m ghost_jax.train "
            "--config=configs/chat_v5.py:nano."
        )
    with Checkpoints(workdir, read_only=True) as checkpoints:

        def read(step: int) -> tuple[ModelConfig, dict, Adapters | None, int]:
            identity = checkpoints.record(step)["identity"]
            try:
                model = ModelConfig(**identity["model"])
            except TypeError:
                raise UserError(
                    f"The checkpoint of step {step} in {workdir} is of another version of ghost_jax, whose model has "
                    "other fields. Train the run again, or use the version that its environment.json names."
                ) from None
            vocabulary = workdir / "tokenizer.json"
            if vocabulary.is_file() and tokenizer_lib.load(vocabulary).sha256 != identity["tokenizer"]:
                raise UserError(
                    f"{vocabulary} is another tokenizer than that of the checkpoint of step {step:,} beside it. "
                    "Restore that one, or train the run again."
                )
            if (workdir / ADAPTED).is_file():
                return model, *_restore_adapted(workdir, checkpoints, step, model, mesh), step
            return model, checkpoints.restore_params(step, abstract_params(model), mesh), None, step

        found = checkpoints.newest(read)
        if found is None:
            raise UserError(f"{workdir} has no complete checkpoint yet. Repeat its train command to resume it.")
        return found
