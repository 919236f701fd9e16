"""The objects of a config's training: model, optimizer, rate, mesh, state and step, for the loop and for compiling."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ghost_jax.config import load as config_lib
from ghost_jax.core.errors import UserError
from ghost_jax.data import mixture
from ghost_jax.data.prepare import Prepared
from ghost_jax.model import attention_kernels
from ghost_jax.model.config import ModelConfig
from ghost_jax.model.lora import Lora
from ghost_jax.model.transformer import Transformer, grow_vocabulary
from ghost_jax.parallel.mesh import make_mesh, micro_batch_rows
from ghost_jax.parallel.sharding_rules import shardings
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.training import step
from ghost_jax.training.checkpoint import identity_of, params_of
from ghost_jax.training.loading import load_model, newest_record
from ghost_jax.training.optimizer import OPTIMIZERS, schedule


class TrainSetup:
    """Everything of a run's updates that follows from its config, the size of its vocabulary and the devices.

    `mesh` is by default that of `mesh_of`. Raises UserError where the batch or a parameter cannot be split over it,
    UsageError where the config's attention cannot be used on it or `lora.targets` is found in no kernel.
    """

    def __init__(self, config: ConfigDict, vocab_size: int, mesh: Mesh | None = None):
        self.config, o = config, config.optim
        self.mesh = mesh_of(config) if mesh is None else mesh
        self.rows = micro_batch_rows(config.batch_size, config.micro_batch_size, self.mesh)  # over all devices
        own = {"vocab_size": vocab_size, "attention": attention_of(config, self.mesh).name}
        self.model = Transformer(ModelConfig(**{**config.model, **own}))
        self.optimizer = OPTIMIZERS[o.name](o.b1, o.b2, o.weight_decay, o.clip_norm)
        rates = (o.peak_lr, o.min_lr, o.warmup_steps)
        self.rate = schedule(*rates, config.steps, name=o.schedule, decay_share=o.decay_share)  # of an update, from 0
        self.lora = None  # the adapters that alone are trained; None where every parameter is
        if config.get("lora", {}).get("rank"):
            self.lora = Lora(config.lora.rank, config.lora.alpha, config.lora.targets, config.base.model.vocab_size)
        self.abstract = step.abstract_state(self.model.config, self.optimizer, self.lora)
        self.shapes = step.abstract_params(self.model.config)  # of the whole model
        self._placed = shardings(self.shapes, self.mesh)
        if self.lora:
            self._merge = jax.jit(self.lora.merge, out_shardings=self._placed)
        self.objective = dict(config.objective) if config.stage == "chat" else step.LM  # weight of each objective

    def identity(self, prepared: Prepared, base_workdir: Path) -> dict:
        """Returns what a run's checkpoints must agree with: model, vocabulary, data, and the base's parameters."""
        data = mixture.fingerprint(prepared.mix)
        base = params_of(newest_record(base_workdir)[1]) if self.config.stage == "chat" else ""
        return identity_of(self.model.config, prepared.tokenizer.sha256, data, base)

    def make_step(self, letter_ids: np.ndarray | None) -> Callable:
        """Returns the jitted training step, see `make_train_step`; with `lora` its last argument is `base_params`."""
        built = (self.model, self.optimizer, self.abstract, self.mesh, self.rows)
        rest = (self.lora.merge, self.shapes) if self.lora else None
        return step.make_train_step(*built, self.objective, letter_ids, frozen=rest)

    def whole(self, params: dict, *frozen: dict) -> dict:
        """Returns the parameters of the model by those of the state, and with `lora` by `base_params`."""
        return self._merge(*frozen, params) if self.lora else params

    def first_state(self, base_workdir: Path, prepared: Prepared, *frozen: dict) -> step.TrainState:
        """Returns the state before update 1: drawn from the seed, or the base's parameters with the chat tokens added.

        With `lora` those parameters are passed, and the state holds adapters to them. Raises as `base_params` does.
        """
        key = jax.random.key(self.config.seed)
        if self.config.stage != "chat":
            return step.from_scratch(self.config.seed, self.model.config, self.optimizer, self.abstract, self.mesh)
        if self.lora:
            placed = shardings(self.abstract.params, self.mesh)  # as the state's, which takes their memory
            params = jax.jit(self.lora.init, static_argnums=1, out_shardings=placed)(*frozen, self.model.config, key)
        else:
            params = self.base_params(base_workdir, prepared)
        begin = functools.partial(step.new_state, optimizer=self.optimizer, key=key)
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
            return grow_vocabulary(params, base, self.model.config, key, self.config.init_tokens)

        in_shardings = (shardings(params, self.mesh), None)
        grow = jax.jit(grown, in_shardings=in_shardings, out_shardings=self._placed)
        return grow(params, jax.random.key(self.config.seed))


def mesh_of(config: ConfigDict) -> Mesh:
    """Returns the mesh of a config. Raises UserError where its batch cannot be split over it."""
    mesh = make_mesh(**config.mesh)
    micro_batch_rows(config.batch_size, config.micro_batch_size, mesh)
    return mesh


def attention_of(config: ConfigDict, mesh: Mesh) -> attention_kernels.Choice:
    """Returns the attention of a config's step on a mesh. Raises UsageError for a kernel that cannot be used there."""
    ranked = config_lib.mixed(config).intersection(config_lib.RANKED)
    return attention_kernels.choose(
        config.model.get("attention", "auto"),
        attention_kernels.platform_of(mesh.devices.flat[0]),
        dtype=config.model.dtype,
        head_width=ModelConfig(**config.model).head_width,
        mask="branches" if ranked else "segments" if config.data.packing else "causal",
        length=config.data.seq_len,
    )
