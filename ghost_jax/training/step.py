"""The training state, and the compiled functions: training step, evaluation step, and prediction of answers."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from ghost_jax.model import transformer
from ghost_jax.model.config import ModelConfig
from ghost_jax.model.lora import Lora
from ghost_jax.model.transformer import Transformer, tables_of
from ghost_jax.parallel.distributed import place
from ghost_jax.parallel.mesh import BATCH, batch_sharding, batch_shards, replicated
from ghost_jax.parallel.sharding_rules import shardings
from ghost_jax.training.cross_entropy import log_probabilities
from ghost_jax.training.loss import denominators, loss, loss_sum

LM = MappingProxyType({"lm": 1.0})


@flax.struct.dataclass
class TrainState:
    """The pytree that an update reads and returns, and a checkpoint holds."""

    step: jax.Array  # number of updates done, int32 []
    params: dict  # float32 tree of the model
    opt_state: Any  # the optimizer's tree, sharded like the parameters
    key: jax.Array  # raw PRNG key [2] uint32; the randomness of update t is `fold_in(key, t)`
    skipped: jax.Array  # number of updates, int32 [], that changed nothing because their gradient was not finite


def new_state(params: dict, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """Returns the state before the first update."""
    step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)  # two arrays: both are donated
    return TrainState(step, params, optimizer.init(params), jax.random.key_data(key), skipped)


@functools.cache  # one function, so that JAX traces it once for the shapes and for the numbers
def _initial(
    model: ModelConfig, optimizer: optax.GradientTransformation, lora: Lora | None = None
) -> Callable[[jax.Array], TrainState]:
    def initial(key: jax.Array) -> TrainState:
        params = transformer.init(model, key)
        return new_state(lora.init(params, model, key) if lora else params, optimizer, key)

    return initial


def abstract_state(model: ModelConfig, optimizer: optax.GradientTransformation, lora: Lora | None = None) -> TrainState:
    """Returns the shapes and types of a state; with `lora` its parameters are those of the adapters alone."""
    return jax.eval_shape(_initial(model, optimizer, lora), jax.random.key(0))


def abstract_params(model: ModelConfig) -> dict:
    """Returns the shapes and types of a model's parameters."""
    return jax.eval_shape(lambda key: transformer.init(model, key), jax.random.key(0))


def from_scratch(
    seed: int, model: ModelConfig, optimizer: optax.GradientTransformation, abstract: TrainState, mesh: Mesh
) -> TrainState:
    """Returns an initial state, computed on its devices."""
    draw = jax.jit(_initial(model, optimizer), out_shardings=shardings(abstract, mesh))
    return draw(jax.random.key(seed))


def make_train_step(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    abstract_state: TrainState,
    mesh: Mesh,
    micro_batch_rows: int,
    objective: Mapping[str, float] = LM,
    letter_ids: np.ndarray | None = None,
    frozen: tuple[Callable[[dict, dict], dict], dict] | None = None,
) -> Callable[..., tuple[TrainState, dict]]:
    """Returns the jitted `(state, batch, learning_rate) -> (state, metrics)`; the old state's memory is donated.

    The batch [B, T] is cut into micro-batches of `micro_batch_rows` rows over all devices. Each contributes its sums
    over the denominators of the full batch, so the update does not depend on the cut, except for which units dropout
    draws. An update whose gradient is not finite changes nothing but `skipped`.

    Metrics: `loss` (minimised, in nats), `loss_<objective>` for each where there are several, `grad_norm` (before
    clipping), `supervised` (tokens of the loss), `skipped` (updates so far).

    Args:
      objective: mixing weight of each of `loss.OBJECTIVES`.
      letter_ids: ids [K] of the option letters, for the letter objective.
      frozen: `(merge, shapes)` where the state holds only a part of the model's parameters: `merge(rest, params)` is
        the whole, and the function takes the rest, of these shapes, as its last argument.
    """
    in_state, in_batch = shardings(abstract_state, mesh), batch_sharding(mesh)
    model = model.clone(rows=in_batch)
    dropout = model.config.dropout > 0
    merge, shapes = frozen or (None, ())

    def step(state: TrainState, batch: dict, learning_rate: jax.Array, *rest: dict) -> tuple[TrainState, dict]:
        def gradient(params: dict, rows: dict, over: dict, key: jax.Array | None) -> tuple[dict, dict]:
            def of(params: dict) -> tuple:
                whole = merge(*rest, params) if merge else params
                return loss(model, whole, rows, over, objective, letter_ids, key)

            (total, parts), grads = jax.value_and_grad(of, has_aux=True)(params)
            return {"loss": total} | {f"loss_{name}": part for name, part in parts.items()}, grads

        losses, grads = _accumulated(gradient, state, batch, micro_batch_rows, mesh, dropout)
        grad_norm = optax.global_norm(grads)
        finite = jnp.isfinite(grad_norm)
        direction, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, d: p - learning_rate * d, state.params, direction)
        # Selected and not multiplied by zero: zero times NaN is NaN.
        params, opt_state = optax.tree.where(finite, (params, opt_state), (state.params, state.opt_state))
        skipped = state.skipped + (1 - finite.astype(jnp.int32))
        new = state.replace(step=state.step + 1, params=params, opt_state=opt_state, skipped=skipped)
        alone = {name: weight for name, weight in objective.items() if weight} == {"lm": 1.0}
        metrics = {"loss": losses["loss"]} if alone else losses
        metrics |= {"grad_norm": grad_norm, "supervised": jnp.sum(batch["weights"] > 0), "skipped": skipped}
        return new, metrics

    return jax.jit(
        step,
        in_shardings=(in_state, in_batch, replicated(mesh), *([shardings(shapes, mesh)] if merge else [])),
        out_shardings=(in_state, replicated(mesh)),
        donate_argnums=0,
        compiler_options=_compiler_options(mesh, model.config.dtype),
    )


def _accumulated(
    gradient: Callable, state: TrainState, batch: dict, micro_batch_rows: int, mesh: Mesh, dropout: bool
) -> tuple[dict, dict]:
    """Returns the losses and the gradient of the full batch, summed over its micro-batches."""
    micro_batches = batch["tokens"].shape[0] // micro_batch_rows
    update_key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    over = denominators(batch)

    def of_micro_batch(index: jax.Array, rows: dict) -> tuple[dict, dict]:
        key = jax.random.fold_in(update_key, index) if dropout else None
        return gradient(state.params, rows, over, key)

    if micro_batches == 1:
        return of_micro_batch(jnp.int32(0), batch)
    # Row r is in micro-batch r % A: each device keeps its own rows, nothing moves between devices.
    cut = jax.tree.map(lambda x: x.reshape(micro_batch_rows, micro_batches, *x.shape[1:]).swapaxes(0, 1), batch)
    cut = jax.lax.with_sharding_constraint(cut, jax.NamedSharding(mesh, jax.P(None, *BATCH)))

    def add(carry: tuple, inputs: tuple) -> tuple:
        return jax.tree.map(jnp.add, carry, of_micro_batch(*inputs)), None

    first = jax.tree.map(lambda x: x[0], cut)
    zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(of_micro_batch, jnp.int32(0), first))
    return jax.lax.scan(add, zero, (jnp.arange(micro_batches), cut))[0]


def _compiler_options(mesh: Mesh, dtype: str) -> dict[str, bool | str]:
    if mesh.devices.flat[0].platform != "cpu":
        return {}
    # The default schedule starts all independent work at once, and holds the attention of all layers for it. YNN, a
    # library, multiplies bfloat16 fast; of float32 it is slower here, and holds gigabytes beside what is planned.
    in_order = {"xla_cpu_enable_concurrency_optimized_scheduler": False}
    return in_order if dtype == "bfloat16" else in_order | {"xla_cpu_experimental_ynn_fusion_type": ""}


def make_eval_step(model: Transformer, abstract_params: dict, mesh: Mesh) -> Callable[[dict, dict], tuple]:
    """Returns the jitted `(params, batch) -> (loss sum in nats, weight sum)`."""
    model = model.clone(rows=batch_sharding(mesh))
    return jax.jit(
        lambda params, batch: loss_sum(model, params, batch),
        in_shardings=(shardings(abstract_params, mesh), batch_sharding(mesh)),
        out_shardings=replicated(mesh),
        compiler_options=_compiler_options(mesh, model.config.dtype),
    )


def make_predict(config: ModelConfig, abstract_params: dict, mesh: Mesh) -> Callable[..., jax.Array]:
    """Returns the jitted `(params, batch, at, targets) -> log-probabilities` of evaluations.

    The batch has `tokens`, `positions`, `segments` and `branches`, each [B, T] int32, as `Transformer.hidden` takes
    them. For the token after position `at` [B, R] it returns the log-probabilities [B, R, K] of `targets` [B, R, K];
    the head is applied at those positions only. Compiled once a shape; B need not divide over the mesh. Attention is
    "blocks", which has the masks of these rows.
    """
    sharding = batch_sharding(mesh)
    model = Transformer(dataclasses.replace(config, attention="blocks"), rows=sharding)

    def predict(params: dict, batch: dict, at: jax.Array, targets: jax.Array) -> jax.Array:
        hidden = model.apply({"params": params}, **batch, at=at, method="hidden")  # [B, R, D]
        return log_probabilities(hidden, params[tables_of(config)[-1]], targets, config.vocab_size, batch_shards(mesh))

    jitted = jax.jit(
        predict,
        in_shardings=(shardings(abstract_params, mesh), sharding, sharding, sharding),
        out_shardings=replicated(mesh),
        compiler_options=_compiler_options(mesh, model.config.dtype),
    )

    def padded(params: dict, batch: dict, at: np.ndarray, targets: np.ndarray) -> jax.Array:
        count = len(at)
        missing = -count % batch_shards(mesh)  # rows, until the batch divides
        arrays = {**batch, "at": at, "targets": targets}
        arrays = {name: np.pad(x, ((0, missing), *[(0, 0)] * (x.ndim - 1))) for name, x in arrays.items()}
        placed = place(arrays, sharding)
        return jitted(params, placed, placed.pop("at"), placed.pop("targets"))[:count]

    return padded
