"""ghost_jax/training/step.py: the update does not depend on how the batch is cut or on how many devices compute it."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from ghost_jax.model import transformer
from ghost_jax.model.config import ModelConfig
from ghost_jax.model.transformer import Transformer
from ghost_jax.parallel.distributed import to_global
from ghost_jax.parallel.mesh import AXES, batch_sharding, make_mesh
from ghost_jax.training.optimizer import adamw
from ghost_jax.training.step import make_eval_step, make_train_step, new_state, state_shardings

TINY = ModelConfig(layers=2, width=64, heads=8, mlp_dim=128, vocab_size=512, context=32)
ROWS, LENGTH = 32, 16
# Adam divides a gradient by its own size, so where one is near zero its rounding moves a parameter by up to the rate:
# the rate is small enough that five updates of rounding stay below the tolerances.
RATE = 1e-4
# name -> mesh and micro-batch size
MESHES = {
    "data": ((8, 1, 1), ROWS),
    "fsdp": ((1, 8, 1), ROWS),
    "tensor": ((1, 1, 8), ROWS),
    "mixed": ((2, 2, 2), 8),
}
OPTIMIZER = adamw(0.9, 0.95, 0.1, 1.0)
needs_eight = pytest.mark.skipif(jax.device_count() != 8, reason="needs the 8 simulated CPU devices of conftest.py")


pytestmark = pytest.mark.usefixtures("compile_quickly")


@functools.cache
def one_device() -> Mesh:
    return jax.make_mesh((1, 1, 1), AXES, devices=jax.devices()[:1], axis_types=(jax.sharding.AxisType.Auto,) * 3)


@functools.cache
def first_state(config: ModelConfig, optimizer: optax.GradientTransformation = OPTIMIZER):
    """The state before the first update, on the host: a step gives up the memory of what it is given."""
    state = jax.eval_shape(lambda key: new_state(transformer.init(config, key), optimizer, key), jax.random.key(0))
    rng = np.random.default_rng(0)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)

    def draw(path, leaf):  # by NumPy: compiling the model's own draws would take longer than all its updates
        return np.ones_like(leaf) if path[-1].key == "scale" else 0.02 * rng.standard_normal(leaf.shape, leaf.dtype)

    return zeros.replace(
        params=jax.tree_util.tree_map_with_path(draw, zeros.params),
        opt_state=optimizer.init(zeros.params),
        key=np.array([0, 1], np.uint32),
    )


@functools.cache
def compiled(mesh: Mesh, micro_batch_size: int, config: ModelConfig, optimizer: optax.GradientTransformation):
    """One jitted step for all tests that need the same one: compiling is what takes the time here."""
    return make_train_step(Transformer(config), optimizer, first_state(config, optimizer), mesh, micro_batch_size)


def batch_number(t: int) -> dict[str, np.ndarray]:
    """Rows with 0 to LENGTH supervised tokens: a mean of means over micro-batches would differ from the mean."""
    rng = np.random.default_rng(t)
    tokens = rng.integers(0, TINY.vocab_size, (ROWS, LENGTH + 1)).astype(np.int32)
    weights = np.arange(LENGTH) < rng.permutation(np.linspace(0, LENGTH, ROWS).astype(int))[:, None]
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights.astype(np.float32)}


class Run:
    """A model in training on a mesh; `losses` and `state` are what the updates so far gave."""

    def __init__(self, mesh: Mesh, micro_batch_size: int = ROWS, config: ModelConfig = TINY, optimizer=OPTIMIZER):
        state = first_state(config, optimizer)
        self.mesh, self.placed = mesh, state_shardings(state, mesh)
        # Copied: on a CPU, device_put may lend the host's memory, which a donation would then overwrite.
        self.state = jax.device_put(jax.tree.map(np.array, state), self.placed)
        self.step = compiled(mesh, micro_batch_size, config, optimizer)
        self.losses = []

    def update(self, batch: dict, rate: float = RATE) -> dict:
        self.state, metrics = self.step(self.state, to_global(batch, batch_sharding(self.mesh)), rate)
        self.losses.append(float(metrics["loss"]))
        return metrics

    def updates(self, count: int) -> "Run":
        for t in range(count):
            self.update(batch_number(t))
        return self


def assert_trees_close(tree, other, tolerance: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), tree, other)


@pytest.fixture(scope="module")
def reference() -> Run:
    """Five updates of the whole batch at once, on one device."""
    return Run(one_device()).updates(5)


@pytest.fixture(scope="module", params=MESHES)
def sharded(request) -> Run:
    """The same five updates on eight devices."""
    sizes, micro_batch_size = MESHES[request.param]
    return Run(make_mesh(*sizes), micro_batch_size).updates(5)


# ---- Equivalences ----


@pytest.mark.parametrize("micro_batch_size", [8, 1], ids=["4x8", "32x1"])
def test_the_update_does_not_depend_on_how_the_batch_is_cut(reference, micro_batch_size):
    cut = Run(one_device(), micro_batch_size).updates(5)
    assert cut.losses == pytest.approx(reference.losses, rel=1e-6)
    assert_trees_close(cut.state.params, reference.state.params, 1e-6)


@needs_eight
def test_the_update_does_not_depend_on_the_mesh(reference, sharded):
    assert sharded.losses == pytest.approx(reference.losses, abs=1e-5)
    assert_trees_close(sharded.state.params, reference.state.params, 1e-5)


HALF = dataclasses.replace(TINY, dtype="bfloat16")


@pytest.fixture(scope="module")
def in_half() -> Run:
    """The same five updates in bfloat16."""
    return Run(one_device(), config=HALF).updates(5)


def distance(run: Run, other: Run) -> float:
    """Returns that of their parameters, over the length of the latter."""
    apart = optax.tree.sub(jax.device_get(run.state.params), jax.device_get(other.state.params))
    return float(optax.global_norm(apart) / optax.global_norm(other.state.params))


def test_in_bfloat16_the_losses_are_about_those_of_float32(reference, in_half):
    assert in_half.losses == pytest.approx(reference.losses, rel=0.01)
    assert in_half.losses != reference.losses
    still = Run(one_device(), config=HALF)
    assert distance(in_half, still) > 3e-3, "five updates go much further than the tolerances"
    assert {leaf.dtype for leaf in jax.tree.leaves(in_half.state.params)} == {np.dtype("float32")}


@pytest.mark.parametrize("micro_batch_size", [8, 1], ids=["4x8", "32x1"])
def test_in_bfloat16_the_update_does_not_depend_on_how_the_batch_is_cut(in_half, micro_batch_size):
    cut = Run(one_device(), micro_batch_size, HALF).updates(5)
    assert cut.losses == pytest.approx(in_half.losses, rel=1e-3)
    assert distance(cut, in_half) < 1e-3


@needs_eight
def test_in_bfloat16_the_update_does_not_depend_on_the_mesh(in_half):
    run = Run(make_mesh(2, 2, 2), 8, HALF).updates(5)
    assert run.losses == pytest.approx(in_half.losses, rel=1e-3)
    assert distance(run, in_half) < 1e-3


def test_five_updates_move_the_parameters_by_far_more_than_the_tolerances(reference):
    for (path, before), after in zip(
        jax.tree_util.tree_leaves_with_path(first_state(TINY).params),
        jax.tree.leaves(reference.state.params),
        strict=True,
    ):
        assert np.abs(before - np.asarray(after)).max() > 2e-4, jax.tree_util.keystr(path)


def test_the_loss_is_the_mean_over_supervised_tokens(reference):
    run, batch = Run(one_device(), micro_batch_size=8), batch_number(0)
    logits = np.asarray(jax.jit(Transformer(TINY).apply)({"params": run.state.params}, batch["tokens"]), np.float64)
    log_z = np.log(np.exp(logits).sum(-1))
    losses = log_z - np.take_along_axis(logits, batch["targets"][..., None], axis=-1)[..., 0]
    metrics = run.update(batch)
    assert float(metrics["loss"]) == pytest.approx((losses * batch["weights"]).sum() / batch["weights"].sum(), rel=1e-5)
    assert int(metrics["supervised"]) == batch["weights"].sum()
    assert float(metrics["grad_norm"]) > 0
    assert int(metrics["skipped"]) == 0


def test_an_update_whose_gradient_is_not_finite_changes_nothing_and_is_counted():
    run, batch = Run(one_device()), batch_number(0)
    broken = batch | {"weights": np.where(np.arange(ROWS)[:, None] == 3, np.nan, batch["weights"]).astype(np.float32)}
    before = jax.tree.map(np.asarray, (run.state.params, run.state.opt_state))
    metrics = run.update(broken)
    assert not np.isfinite(float(metrics["grad_norm"]))
    jax.tree.map(np.testing.assert_array_equal, (run.state.params, run.state.opt_state), before)
    assert (int(run.state.step), int(metrics["skipped"])) == (1, 1)
    assert int(run.update(batch)["skipped"]) == 1
    assert np.abs(before[0]["embedding"] - np.asarray(run.state.params["embedding"])).max() > 0


def test_a_batch_without_a_supervised_token_teaches_nothing():
    run, batch = Run(one_device()), batch_number(0)
    before = np.asarray(run.state.params["embedding"])
    metrics = run.update(batch | {"weights": np.zeros_like(batch["weights"])})
    assert (float(metrics["loss"]), float(metrics["grad_norm"])) == (0.0, 0.0)
    np.testing.assert_array_equal(run.state.params["embedding"], before)


# ---- Placement and compilation ----


@needs_eight
def test_the_state_stays_where_the_rules_put_it(sharded):
    for (path, leaf), wanted in zip(
        jax.tree_util.tree_leaves_with_path(sharded.state), jax.tree.leaves(sharded.placed), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), jax.tree_util.keystr(path)
    moment = sharded.state.opt_state[1].mu["block_0"]["feed_forward"]["up"]["kernel"]
    shape = (64 // sharded.mesh.shape["fsdp"], 128 // sharded.mesh.shape["tensor"])
    assert {shard.data.shape for shard in moment.addressable_shards} == {shape}


@needs_eight
def test_a_sharded_step_compiles_once(sharded):
    assert sharded.step._cache_size() == 1


@pytest.mark.parametrize("micro_batch_size", [ROWS, 8])
def test_the_step_compiles_once_whatever_the_rate(micro_batch_size):
    run = Run(one_device(), micro_batch_size)
    for t, rate in enumerate([1e-3, 5e-4, 0.0, np.float32(1e-4).item()]):
        run.update(batch_number(t), rate)
    assert run.step._cache_size() == 1
    assert int(run.state.step) == 4


def test_the_memory_of_the_old_state_is_given_up():
    run = Run(one_device())
    old = run.state
    run.update(batch_number(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((old.params, old.opt_state)))


# ---- Randomness ----


def test_dropout_depends_on_the_key_and_the_update_alone():
    config = dataclasses.replace(TINY, layers=1, dropout=0.2)
    runs = [Run(one_device(), config=config) for _ in range(2)]
    for run in runs:
        for _ in range(3):
            run.update(batch_number(0), 0.0)  # without a rate, the mask of dropped units is all that changes
    assert runs[0].losses == runs[1].losses
    assert len(set(runs[0].losses)) == 3
    still = Run(one_device())
    for _ in range(2):
        still.update(batch_number(0), 0.0)
    assert len(set(still.losses)) == 1
    assert runs[0].losses[0] == pytest.approx(still.losses[0], rel=0.2)


# ---- Evaluation ----


@needs_eight
def test_the_evaluation_step_gives_sums_that_add_up(reference):
    params, batch = first_state(TINY).params, batch_number(0)
    eval_step = make_eval_step(Transformer(TINY), params, make_mesh(2, 2, 2))
    total, weight = eval_step(params, batch)
    assert float(weight) == batch["weights"].sum()
    assert float(total) / float(weight) == pytest.approx(reference.losses[0], rel=1e-5)
    first = np.arange(ROWS)[:, None] < 20  # rows that weigh nothing, as padding of a last batch, add nothing
    parts = [eval_step(params, batch | {"weights": batch["weights"] * half}) for half in (first, ~first)]
    assert sum(float(part) for part, _ in parts) == pytest.approx(float(total), rel=1e-5)
    assert sum(float(part) for _, part in parts) == float(weight)
