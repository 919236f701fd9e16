"""What a config trains: model, optimizer, rate, mesh and step, built in one place for training and compiling."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ghost_jax.config import load as config_lib
from ghost_jax.data.prepare import Prepared
from ghost_jax.model import attention_kernels
from ghost_jax.model.config import ModelConfig
from ghost_jax.model.transformer import Transformer
from ghost_jax.parallel.mesh import make_mesh, micro_batch_rows
from ghost_jax.training import initial
from ghost_jax.training.optimizer import OPTIMIZERS, schedule
from ghost_jax.training.step import LM, TrainState, make_train_step


@dataclasses.dataclass(frozen=True)
class TrainSetup:
    """Everything of a run's updates that follows from its config, the size of its vocabulary and the devices.

    Attributes:
      config: of the run.
      mesh: the devices by axis.
      rows: sequences of a micro-batch over all devices.
      model: with its vocabulary grown, and the attention that the platform offers.
      optimizer: gradients to a direction, without the learning rate.
      rate: update, from 0, to its learning rate.
      abstract: shapes and types of the training state; nothing is computed for it.
      objective: mixing weight of each objective.
    """

    config: ConfigDict
    mesh: Mesh
    rows: int
    model: Transformer
    optimizer: optax.GradientTransformation
    rate: Callable[[int], float]
    abstract: TrainState
    objective: Mapping[str, float]

    @classmethod
    def from_config(cls, config: ConfigDict, vocab_size: int, mesh: Mesh | None = None) -> "TrainSetup":
        """Returns the setup of a config on a mesh, by default that of `mesh_of`.

        Raises UserError where the batch cannot be split over the mesh, UsageError where its attention cannot be used.
        """
        mesh = mesh_of(config) if mesh is None else mesh
        own = {"vocab_size": vocab_size, "attention": attention_of(config, mesh).name}
        model, optimizer = ModelConfig(**{**config.model, **own}), optimizer_of(config)
        return cls(
            config=config,
            mesh=mesh,
            rows=micro_batch_rows(config.batch_size, config.micro_batch_size, mesh),
            model=Transformer(model),
            optimizer=optimizer,
            rate=schedule(**schedule_of(config)),
            abstract=initial.abstract_state(model, optimizer),
            objective=dict(config.objective) if config.stage == "chat" else LM,
        )

    def make_step(self, letter_ids: np.ndarray | None) -> Callable:
        """Returns the jitted training step; see `make_train_step`."""
        return make_train_step(
            self.model,
            self.optimizer,
            self.abstract,
            self.mesh,
            self.rows,
            self.objective,
            letter_ids,
            with_norms=self.config.log.norms,
        )

    def first_state(self, base_workdir: Path, prepared: Prepared) -> TrainState:
        """Returns the state before update 1: drawn from the seed, or of a chat run the base's, its vocabulary grown.

        Raises UserError where the base was trained with another tokenizer than the data now gives.
        """
        made_of = (self.model.config, self.optimizer, self.abstract, self.mesh)
        if self.config.stage == "chat":
            return initial.from_base(self.config, *made_of, base_workdir, prepared)
        return initial.from_scratch(self.config.seed, *made_of)


def schedule_of(config: ConfigDict) -> dict:
    """Returns the arguments of `optimizer.schedule`."""
    o = config.optim
    return {
        "name": o.schedule,
        "peak_lr": o.peak_lr,
        "min_lr": o.min_lr,
        "warmup_steps": o.warmup_steps,
        "steps": config.steps,
        "decay_share": o.decay_share,
    }


def optimizer_of(config: ConfigDict) -> optax.GradientTransformation:
    """Returns the optimizer of a config: gradients to a direction, without the learning rate."""
    o = config.optim
    return OPTIMIZERS[o.name](o.b1, o.b2, o.weight_decay, o.clip_norm)


def mesh_of(config: ConfigDict) -> Mesh:
    """Returns the mesh of a config. Raises UserError where its batch cannot be split over it."""
    mesh = make_mesh(**config.mesh)
    micro_batch_rows(config.batch_size, config.micro_batch_size, mesh)
    return mesh


def attention_of(config: ConfigDict, mesh: Mesh) -> attention_kernels.Choice:
    """Returns the attention that the training step of a config uses on a mesh.

    Raises UsageError where `model.attention` names a kernel that cannot be used there.
    """
    mixed = {name for multipliers in config_lib.mixtures(config).values() for name, n in multipliers.items() if n}
    return attention_kernels.choose(
        config.model.get("attention", "auto"),
        attention_kernels.platform_of(mesh.devices.flat[0]),
        dtype=config.model.dtype,
        head_width=ModelConfig(**config.model).head_width,
        mask="branches" if mixed & set(config_lib.RANKED) else "segments" if config.data.packing else "causal",
        length=config.data.seq_len,
    )
