"""ghost_jax/training/step.py: the update does not depend on how the batch is cut or on the devices."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ghost_jax.data import mixture
from ghost_jax.model.config import ModelConfig
from ghost_jax.model.transformer import Transformer
from ghost_jax.parallel.distributed import part_of_batch, to_global
from ghost_jax.parallel.mesh import batch_sharding, make_mesh, micro_batch_rows
from ghost_jax.parallel.sharding_rules import shardings
from ghost_jax.training.checkpoint import Checkpoints, identity_of
from ghost_jax.training.loop import make_validation
from ghost_jax.training.optimizer import adamw, muon
from ghost_jax.training.step import abstract_state, make_eval_step, make_train_step
from tests.models import drawn, needs_eight, one_device, slow

TINY = ModelConfig(layers=1, width=64, heads=8, mlp_dim=128, vocab_size=512, context=32)
HALF = dataclasses.replace(TINY, dtype="bfloat16")
STACKED = dataclasses.replace(TINY, layers=2, scan=True)
ROWS, LENGTH = 32, 16
# Adam divides a gradient by its own size, so the rounding of one near zero moves a parameter by up to the rate: five
# updates of rounding at this rate stay below the tolerances.
RATE = 1e-4
MESHES = {"fsdp": ((1, 8, 1), ROWS), "mixed": ((2, 2, 2), 8), "replica": ((2, 2, 1, 2), 16)}
ADAMW, MUON = adamw(0.9, 0.95, 0.1, 1.0), muon(0.9, 0.95, 0.1, 1.0)
both_optimizers = pytest.mark.parametrize(("config", "optimizer"), [(TINY, ADAMW), (STACKED, MUON)])


@functools.cache
def first_state(config: ModelConfig, optimizer: optax.GradientTransformation):
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_state(config, optimizer))
    start = {"opt_state": optimizer.init(zeros.params), "key": np.array([0, 1], np.uint32)}
    return zeros.replace(params=drawn(config, 0.02), **start)


@functools.cache
def compiled(mesh: Mesh, micro_batch_rows: int, config: ModelConfig, optimizer: optax.GradientTransformation):
    state = first_state(config, optimizer)
    return make_train_step(Transformer(config), optimizer, state, mesh, micro_batch_rows)


def batch_number(t: int) -> dict[str, np.ndarray]:
    """Rows with 0 to LENGTH supervised tokens: a mean of means over micro-batches would differ from the mean."""
    rng = np.random.default_rng(t)
    tokens = rng.integers(0, TINY.vocab_size, (ROWS, LENGTH + 1)).astype(np.int32)
    weights = np.arange(LENGTH) < rng.permutation(np.linspace(0, LENGTH, ROWS).astype(int))[:, None]
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights.astype(np.float32)}


class Run:
    """A model in training on a mesh; `losses` and `state` are the results of the updates so far."""

    def __init__(self, mesh: Mesh, micro_batch_rows: int = ROWS, config: ModelConfig = TINY, optimizer=ADAMW):
        state = first_state(config, optimizer)
        self.mesh, self.placed, self.losses = mesh, shardings(state, mesh), []
        # Copied: on a CPU, device_put may lend the host's memory, which a donation would overwrite.
        self.state = jax.device_put(jax.tree.map(np.array, state), self.placed)
        self.step = compiled(mesh, micro_batch_rows, config, optimizer)

    def update(self, batch: dict, rate: float = RATE) -> dict:
        part, parts = part_of_batch(batch_sharding(self.mesh))  # of this process
        rows = {name: np.split(values, parts)[part] for name, values in batch.items()}
        self.state, metrics = self.step(self.state, to_global(rows, batch_sharding(self.mesh)), rate)
        self.losses.append(float(metrics["loss"]))
        return metrics

    def updates(self, count: int) -> "Run":
        for t in range(count):
            self.update(batch_number(t))
        return self


def assert_trees_close(tree, other, tolerance: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), tree, other)


@functools.cache
def reference(config: ModelConfig = TINY, optimizer=ADAMW) -> Run:
    """Five updates of the full batch on one device."""
    return Run(one_device(), config=config, optimizer=optimizer).updates(5)


@pytest.mark.parametrize("rows", [8, slow(1)])
def test_the_update_does_not_depend_on_how_the_batch_is_cut(rows):
    cut = Run(one_device(), rows).updates(5)
    assert cut.losses == pytest.approx(reference().losses, rel=1e-6)
    assert_trees_close(cut.state.params, reference().state.params, 1e-5)


@needs_eight
@pytest.mark.parametrize("name", ["mixed", "muon", "fsdp", "replica"])
def test_the_update_does_not_depend_on_the_mesh(name):
    sizes, rows = MESHES.get(name, MESHES["mixed"])
    config, optimizer = (STACKED, MUON) if name == "muon" else (TINY, ADAMW)
    run, one = Run(make_mesh(*sizes), rows, config, optimizer).updates(5), reference(config, optimizer)
    assert run.losses == pytest.approx(one.losses, abs=1e-5)
    assert_trees_close(run.state.params, one.state.params, 1e-5)
    for leaf, wanted in zip(*map(jax.tree.leaves, (run.state, run.placed)), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim)
    assert run.step._cache_size() == 1


@needs_eight
def test_in_bfloat16_the_update_depends_on_neither():
    run, one = Run(make_mesh(2, 2, 2), 8, HALF).updates(5), reference(HALF)
    assert run.losses == pytest.approx(one.losses, rel=1e-3)
    apart = optax.tree.sub(*(jax.device_get(each.state.params) for each in (run, one)))
    assert optax.global_norm(apart) < 1e-3 * optax.global_norm(one.state.params)
    assert one.losses == pytest.approx(reference().losses, rel=0.01)
    assert one.losses != reference().losses
    assert {leaf.dtype for leaf in jax.tree.leaves(one.state.params)} == {np.dtype("float32")}


@both_optimizers
def test_updates_move_every_parameter_by_more_than_the_tolerances(config, optimizer):
    before, after = first_state(config, optimizer).params, reference(config, optimizer).state.params
    moved = jax.tree.map(lambda a, b: float(np.abs(a - np.asarray(b)).max()), before, after)
    assert min(jax.tree.leaves(moved)) > RATE


def test_the_loss_is_the_mean_over_supervised_tokens():
    run, batch = Run(one_device(), 8), batch_number(0)

    def mean_loss(params):
        logits = Transformer(TINY).apply({"params": params}, batch["tokens"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        return (losses * batch["weights"]).sum() / batch["weights"].sum()

    expected, gradient = jax.jit(jax.value_and_grad(mean_loss))(run.state.params)
    metrics = run.update(batch)
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(float(optax.global_norm(gradient)), rel=1e-4)
    assert int(metrics["supervised"]) == batch["weights"].sum()
    assert "loss_lm" not in metrics


@both_optimizers
def test_an_update_whose_gradient_is_not_finite_changes_nothing_and_is_counted(config, optimizer):
    run, batch = Run(one_device(), config=config, optimizer=optimizer), batch_number(0)
    old = run.state
    before = jax.tree.map(np.array, (old.params, old.opt_state))  # a view could not be donated
    weights = np.where(np.arange(ROWS)[:, None] == 3, np.nan, batch["weights"]).astype(np.float32)
    assert not np.isfinite(float(run.update(batch | {"weights": weights})["grad_norm"]))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((old.params, old.opt_state))), "memory is donated"
    jax.tree.map(np.testing.assert_array_equal, (run.state.params, run.state.opt_state), before)
    assert (int(run.state.step), int(run.state.skipped)) == (1, 1)
    assert int(run.update(batch)["skipped"]) == 1
    assert np.abs(before[0]["embedding"] - np.asarray(run.state.params["embedding"])).max() > 0


def test_a_batch_without_a_supervised_token_changes_nothing_and_the_rate_compiles_nothing():
    run, batch = Run(one_device()), batch_number(0)
    before = np.asarray(run.state.params["embedding"])
    metrics = run.update(batch | {"weights": np.zeros_like(batch["weights"])})
    assert (float(metrics["loss"]), float(metrics["grad_norm"])) == (0.0, 0.0)
    np.testing.assert_array_equal(run.state.params["embedding"], before)
    run.update(batch, 0.0)
    run.update(batch, 1e-3)
    assert run.step._cache_size() == 1


def test_a_resumed_muon_run_is_the_same_bit_for_bit(tmp_path):
    run, identity = Run(one_device(), config=STACKED, optimizer=MUON).updates(2), identity_of(STACKED, "t", "d")
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(run.state, identity)
        checkpoints.wait()
        run.state = checkpoints.restore(2, abstract_state(STACKED, MUON), one_device(), identity)
    for t in (2, 3, 4):
        run.update(batch_number(t))
    assert run.losses == reference(STACKED, MUON).losses
    jax.tree.map(np.testing.assert_array_equal, run.state, reference(STACKED, MUON).state)


def test_dropout_depends_on_the_key_and_the_update_alone():
    config = dataclasses.replace(TINY, dropout=0.2)
    one, other, still = Run(one_device(), config=config), Run(one_device(), config=config), Run(one_device())
    for run in (one, other, still):
        for _ in range(3):
            run.update(batch_number(0), 0.0)  # without a rate, the mask of dropped units is all that changes
    assert one.losses == other.losses
    assert (len(set(one.losses)), len(set(still.losses))) == (3, 1)
    assert one.losses[0] == pytest.approx(still.losses[0], rel=0.2)


@needs_eight
def test_the_evaluation_step_gives_sums_that_add_up():
    params, batch = first_state(TINY, ADAMW).params, batch_number(0)
    eval_step = make_eval_step(Transformer(TINY), params, make_mesh(2, 2, 2))
    total, weight = eval_step(params, batch)
    assert float(weight) == batch["weights"].sum()
    assert float(total) / float(weight) == pytest.approx(reference().losses[0], rel=1e-5)
    first = np.arange(ROWS)[:, None] < 20  # rows without weight, as padding of a last batch, add nothing
    parts = [eval_step(params, batch | {"weights": batch["weights"] * half}) for half in (first, ~first)]
    assert sum(float(part) for part, _ in parts) == pytest.approx(float(total), rel=1e-5)
    assert sum(float(part) for _, part in parts) == float(weight)


@pytest.mark.parametrize("several", [False, True])
def test_validation_losses_are_per_token_of_what_is_mixed_of_what_all_share_and_of_each_dataset(monkeypatch, several):
    batch, other = batch_number(0), batch_number(1)
    batches = {"qa": [batch], "mine": [batch | {"weights": np.zeros_like(batch["weights"])}], "empty": []}
    if several:  # one that is mixed alone, and one that is shared alone
        batches |= {"own": [other | {"weights": other["weights"] * 3}], "mcq": [other, batch]}
    monkeypatch.setattr(mixture, "validation_batches", lambda mix, name, **_: batches[name])
    monkeypatch.setattr(mixture, "validation_size", lambda mix, name: len(batches[name]))
    mix = SimpleNamespace(stores=list(batches), datasets=[name for name in batches if name != "mcq"])
    config, params = ConfigDict({"data": {"validation_records": 9}}), first_state(TINY, ADAMW).params
    setup = SimpleNamespace(config=config, rows=ROWS, model=Transformer(TINY), mesh=one_device(), shapes=params)
    losses = make_validation(setup, mix)(params)
    if not several:
        assert losses == {"val_loss": pytest.approx(reference().losses[0]), "val_share": 1.0}
        return
    sums = [
        map(float, make_eval_step(Transformer(TINY), params, one_device())(params, each)) for each in (batch, other)
    ]
    (first, a), (second, b) = sums
    means = {"val_loss": (first + 3 * second) / (a + 3 * b), "val_loss_shared": (2 * first + second) / (2 * a + b)}
    means |= {"val_loss_qa": first / a, "val_loss_own": second / b, "val_loss_mcq": (first + second) / (a + b)}
    assert losses == pytest.approx(means | {"val_share": 1.0})


@needs_eight
def test_a_micro_batch_is_what_all_devices_compute_at_once():
    assert micro_batch_rows(128, 8, make_mesh(8, 1, 1)) == 64
    assert micro_batch_rows(32, 4, make_mesh(2, 2, 2)) == 16
    assert micro_batch_rows(8, 8, make_mesh(8, 1, 1)) == 8, "no more than the batch"
