"""The state before the first update: drawn from a seed, or a base run's parameters with room for the chat tokens."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ghost_jax.core.errors import UserError
from ghost_jax.data.prepare import Prepared
from ghost_jax.model import transformer
from ghost_jax.model.config import ModelConfig
from ghost_jax.parallel.sharding_rules import shardings
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.training.checkpoint import load_model
from ghost_jax.training.step import TrainState, new_state, state_shardings


def abstract_state(model: ModelConfig, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the shapes of a state, without computing anything."""
    return jax.eval_shape(_drawn(model, optimizer), jax.random.key(0))


def from_scratch(
    seed: int, model: ModelConfig, optimizer: optax.GradientTransformation, abstract: TrainState, mesh: Mesh
) -> TrainState:
    """Returns a freshly initialised state, made where it will lie."""
    make = jax.jit(_drawn(model, optimizer), out_shardings=state_shardings(abstract, mesh))
    return make(jax.random.key(seed))


@functools.cache  # one function, so that JAX traces it once for the shapes and for the numbers
def _drawn(model: ModelConfig, optimizer: optax.GradientTransformation) -> Callable[[jax.Array], TrainState]:
    return lambda key: new_state(transformer.init(model, key), optimizer, key)


def from_base(
    config: ConfigDict,
    model: ModelConfig,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    mesh: Mesh,
    base_workdir: Path,
    prepared: Prepared,
) -> TrainState:
    """Returns the state whose parameters are the base run's, its embedding grown by the chat tokens.

    Raises UserError where the base was trained with another tokenizer than the data now gives.
    """
    base, params, _ = load_model(base_workdir, mesh)
    there = tokenizer_lib.load(base_workdir / "tokenizer.json").sha256
    here = prepared.base_tokenizer.sha256
    if there != here:
        raise UserError(
            f"The base {base_workdir} was trained with another tokenizer ({there[:12]}) than the data now gives "
            f"({here[:12]}): its sources changed. Put both runs into a new folder with --workdir=FOLDER/NAME."
        )

    def begin(params: dict, key: jax.Array) -> TrainState:
        params = transformer.stack_blocks(params) if model.scan else params
        return new_state(transformer.grow_vocabulary(params, base, model, key, config.init_tokens), optimizer, key)

    make = jax.jit(
        begin,
        in_shardings=(shardings(params, mesh), None),
        out_shardings=state_shardings(abstract, mesh),
    )
    return make(params, jax.random.key(config.seed))
