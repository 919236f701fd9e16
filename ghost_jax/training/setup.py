"""The objects of a config's training: model, optimizer, rate, mesh, state and step, for the loop and for compiling."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ghost_jax.config import load as config_lib
from ghost_jax.core.errors import UserError
from ghost_jax.data import mixture
from ghost_jax.data.prepare import Prepared, mix_of
from ghost_jax.model import attention_kernels, transformer
from ghost_jax.model.config import ModelConfig
from ghost_jax.model.lora import Lora
from ghost_jax.model.transformer import Transformer
from ghost_jax.parallel.mesh import make_mesh, micro_batch_rows
from ghost_jax.parallel.sharding_rules import shardings
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.training.checkpoint import identity_of, params_of
from ghost_jax.training.loading import load_model, newest_record
from ghost_jax.training.optimizer import OPTIMIZERS, schedule
from ghost_jax.training.step import (
    LM,
    TrainState,
    abstract_params,
    abstract_state,
    from_scratch,
    make_train_step,
    new_state,
)


@dataclasses.dataclass(frozen=True)
class TrainSetup:
    """Everything of a run's updates that follows from its config, the size of its vocabulary and the devices."""

    config: ConfigDict  # of the run
    mesh: Mesh  # the devices by axis
    rows: int  # sequences of a micro-batch over all devices
    model: Transformer  # with the chat tokens in its vocabulary, and the attention of the platform
    optimizer: optax.GradientTransformation  # gradients to a direction, without the learning rate
    rate: Callable[[int], float]  # update, from 0, to its learning rate
    abstract: TrainState  # shapes and types of the training state
    objective: Mapping[str, float]  # mixing weight of each objective
    lora: Lora | None = None  # the adapters that alone are trained; None where every parameter is

    @classmethod
    def from_config(cls, config: ConfigDict, vocab_size: int, mesh: Mesh | None = None) -> "TrainSetup":
        """Returns the setup of a config on a mesh, by default that of `mesh_of`.

        Raises UserError where the batch cannot be split over the mesh, UsageError where its attention cannot be used.
        """
        mesh = mesh_of(config) if mesh is None else mesh
        own = {"vocab_size": vocab_size, "attention": attention_of(config, mesh).name}
        model, o = ModelConfig(**{**config.model, **own}), config.optim
        optimizer = OPTIMIZERS[o.name](o.b1, o.b2, o.weight_decay, o.clip_norm)
        lora = None
        if config.get("lora", {}).get("rank"):
            lora = Lora(config.lora.rank, config.lora.alpha, config.lora.targets, config.base.model.vocab_size)
        rates = (o.peak_lr, o.min_lr, o.warmup_steps)
        return cls(
            config=config,
            mesh=mesh,
            rows=micro_batch_rows(config.batch_size, config.micro_batch_size, mesh),
            model=Transformer(model),
            optimizer=optimizer,
            rate=schedule(*rates, config.steps, name=o.schedule, decay_share=o.decay_share),
            abstract=abstract_state(model, optimizer, lora),
            objective=dict(config.objective) if config.stage == "chat" else LM,
            lora=lora,
        )

    def identity(self, prepared: Prepared, base_workdir: Path) -> dict:
        """Returns what a run's checkpoints must agree with: model, vocabulary, data, and the base's parameters."""
        data = mixture.fingerprint(mix_of(self.config, prepared))
        base = params_of(newest_record(base_workdir)[1]) if self.config.stage == "chat" else ""
        return identity_of(self.model.config, prepared.tokenizer.sha256, data, base)

    def make_step(self, letter_ids: np.ndarray | None, frozen: dict | None = None) -> Callable:
        """Returns the jitted training step, see `make_train_step`; `frozen` are the base's parameters with `lora`."""
        built = (self.model, self.optimizer, self.abstract, self.mesh, self.rows)
        rest = (self.lora.merge, abstract_params(self.model.config)) if self.lora else None
        step = make_train_step(*built, self.objective, letter_ids, frozen=rest)
        return (lambda state, batch, lr: step(state, batch, lr, frozen)) if frozen else step

    def whole(self, params: dict, frozen: dict | None) -> dict:
        """Returns the parameters of the model by those of the state."""
        return self._merge(frozen, params) if self.lora else params

    @functools.cached_property
    def _merge(self) -> Callable[[dict, dict], dict]:
        return jax.jit(self.lora.merge)

    def first_state(self, base_workdir: Path, prepared: Prepared, frozen: dict | None) -> TrainState:
        """Returns the state before update 1: drawn from the seed, or the base's parameters with the chat tokens added.

        `frozen` are those parameters, where only adapters to them are trained. Raises as `base_params` does.
        """
        key = jax.random.key(self.config.seed)
        if self.config.stage != "chat":
            return from_scratch(self.config.seed, self.model.config, self.optimizer, self.abstract, self.mesh)
        if self.lora:
            params = jax.jit(self.lora.init, static_argnums=1)(frozen, self.model.config, key)
        else:
            params = self.base_params(base_workdir, prepared)
        begin = functools.partial(new_state, optimizer=self.optimizer, key=key)
        return jax.jit(begin, out_shardings=shardings(self.abstract, self.mesh), donate_argnums=0)(params)

    def base_params(self, base_workdir: Path, prepared: Prepared) -> dict:
        """Returns the base's parameters with the chat tokens added.

        Raises UserError where its last checkpoint cannot be read, and where the base was trained with another tokenizer
        than that of the data.
        """
        base, params, _ = load_model(base_workdir, self.mesh, self.config.base.steps)
        there = tokenizer_lib.load(base_workdir / "tokenizer.json").sha256
        here = prepared.base_tokenizer.sha256
        if there != here:
            raise UserError(
                f"The base {base_workdir} was trained with another tokenizer ({there[:12]}) than that of the data "
                f"({here[:12]}): its sources changed. Put both runs into a new folder with --workdir=FOLDER/NAME."
            )

        def grown(params: dict, key: jax.Array) -> dict:
            model = self.model.config
            params = transformer.stack_blocks(params) if model.scan else params
            return transformer.grow_vocabulary(params, base, model, key, self.config.init_tokens)

        in_shardings = (shardings(params, self.mesh), None)
        placed = shardings(abstract_params(self.model.config), self.mesh)
        return jax.jit(grown, in_shardings=in_shardings, out_shardings=placed)(params, jax.random.key(self.config.seed))


def mesh_of(config: ConfigDict) -> Mesh:
    """Returns the mesh of a config. Raises UserError where its batch cannot be split over it."""
    mesh = make_mesh(**config.mesh)
    micro_batch_rows(config.batch_size, config.micro_batch_size, mesh)
    return mesh


def attention_of(config: ConfigDict, mesh: Mesh) -> attention_kernels.Choice:
    """Returns the attention of a config's training step on a mesh.

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
