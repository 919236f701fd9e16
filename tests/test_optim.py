"""ghost_jax/training/optimizer.py: the rate of each update by hand, what AdamW touches, and what an update moved."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ghost_jax.model import transformer
from ghost_jax.model.config import ModelConfig
from ghost_jax.training.optimizer import SCHEDULES, adamw, finite_or_same, norms_by_layer, schedule

pytestmark = pytest.mark.usefixtures("compile_quickly")
close = pytest.approx


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [1, 2, 10, 99])
def test_warm_up_starts_at_a_share_and_ends_at_the_peak(name, warmup):
    rate = schedule(1e-3, 1e-5, warmup, 100, name=name)
    rising = [rate(update) for update in range(warmup)]
    assert rising == close([1e-3 * (update + 1) / warmup for update in range(warmup)])


@pytest.mark.parametrize(
    ("name", "of_all"), [("cosine", 1.0), ("linear", 1.0), ("wsd", 0.2), ("wsd", 0.5), ("constant", 0.0)]
)
@pytest.mark.parametrize(("warmup", "steps"), [(0, 100), (1, 100), (10, 100), (1, 2), (50, 1000)])
def test_the_first_and_the_last_update_have_the_rates_of_the_schedule(name, of_all, warmup, steps):
    rate = schedule(1e-3, 1e-5, warmup, steps, name=name, decay_share=of_all)
    assert rate(0) == close(1e-3 / max(warmup, 1), rel=1e-5)
    assert rate(max(warmup - 1, 0)) == close(1e-3)
    assert rate(steps - 1) == close(1e-5 if of_all else 1e-3)
    assert rate(steps * 10) == close(rate(steps - 1))


CURVES = {  # part of the way from the peak to the last update -> part of the way from the floor to the peak
    "cosine": lambda part: (1 + math.cos(math.pi * part)) / 2,
    "linear": lambda part: 1 - part,
    "constant": lambda part: 1.0,
}


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize(("warmup", "steps"), [(0, 100), (10, 100), (1, 3), (100, 2000)])
def test_the_rate_follows_its_curve_to_an_absolute_floor(name, warmup, steps):
    peak, floor = 1e-3, 1e-5
    rate, top = schedule(peak, floor, warmup, steps, name=name), max(warmup - 1, 0)
    for update in {top, top + 1, (top + steps) // 2, steps - 2, steps - 1}:
        part = (update - top) / (steps - 1 - top)
        assert rate(update) == close(floor + (peak - floor) * CURVES[name](part), rel=1e-4)


def test_wsd_stays_at_the_peak_and_decays_linearly_in_the_share_of_all_updates():
    rate = schedule(1e-3, 1e-4, 10, 200, name="wsd", decay_share=0.1)
    assert [rate(update) for update in range(9, 180)] == close([1e-3] * 171)
    assert [rate(update) for update in range(180, 200)] == close([1e-3 - 9e-4 * i / 20 for i in range(1, 21)])


def test_wsd_that_decays_longer_than_is_left_decays_from_the_warm_up_on():
    longest, linear = (schedule(1e-3, 0.0, 50, 100, name=name, decay_share=0.9) for name in ("wsd", "linear"))
    assert [longest(update) for update in range(100)] == close([linear(update) for update in range(100)])


@pytest.mark.parametrize("name", SCHEDULES)
def test_after_its_warm_up_no_rate_rises_and_none_is_below_the_floor(name):
    rate = schedule(3e-4, 1e-5, 20, 200, name=name)
    after = [rate(update) for update in range(19, 200)]
    assert after == sorted(after, reverse=True)
    assert min(after) >= 1e-5 * (1 - 1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_shorter_than_its_warm_up_still_reaches_the_peak(name, steps):
    assert schedule(1e-3, 0.0, 100, steps, name=name)(steps - 1) == close(1e-3)


@pytest.mark.parametrize("name", SCHEDULES)
def test_no_rate_at_all_is_a_rate(name):
    rate = schedule(0.0, 0.0, 10, 100, name=name)
    assert [rate(update) for update in (0, 9, 50, 99)] == [0.0] * 4


def test_a_rate_that_does_not_decay_has_no_floor():
    assert schedule(1e-6, 1e-5, 1, 100, name="constant")(99) == close(1e-6)


def test_rates_are_numbers_on_the_host():
    assert type(schedule(1e-3, 1e-5, 10, 100)(5)) is float


# ---- AdamW ----


@pytest.fixture(scope="module", params=["v04", "v05"])
def params(request):
    config = ModelConfig(1, 16, 2, 32, 100, context=16, generation=request.param)
    # Ones everywhere: a norm's bias at zero would not show whether it decays.
    abstract = jax.eval_shape(lambda key: transformer.init(config, key), jax.random.key(0))
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), abstract)


def updates(params, grads: list[float], **settings):
    """The last direction, and the optimizer's state, after gradients that are the same number everywhere."""
    optimizer = adamw(0.9, 0.95, **settings)

    @jax.jit
    def run(params):
        state = optimizer.init(params)
        for value in grads:
            direction, state = optimizer.update(
                jax.tree.map(lambda leaf, value=value: jnp.full_like(leaf, value), params), state, params
            )
        return direction, state

    return run(params)


def test_weight_decay_moves_kernels_and_nothing_else(params):
    direction, _ = updates(params, [0.0], weight_decay=0.25, clip_norm=1.0)
    names = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(direction):
        names.add(path[-1].key)
        assert np.all(leaf == (0.25 if path[-1].key == "kernel" else 0.0)), jax.tree_util.keystr(path)
    assert {"kernel", "scale", "bias", "embedding"} <= names


@pytest.mark.parametrize(("clip", "norm", "seen"), [(1.0, 10.0, 1.0), (1.0, 0.5, 0.5), (0.0, 10.0, 10.0)])
def test_gradients_are_clipped_to_the_global_norm(params, clip, norm, seen):
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    _, state = updates(params, [norm / math.sqrt(size)], weight_decay=0.0, clip_norm=clip)
    # After one update the first moment is (1 - b1) times the gradient that Adam saw.
    moment = math.sqrt(sum(float(np.sum(np.square(leaf))) for leaf in jax.tree.leaves(state[1].mu)))
    assert moment == close(0.1 * seen, rel=1e-4)


def test_the_direction_is_adams(params):
    grads, first, second = [0.3, -0.1, 0.2], 0.0, 0.0
    for value in grads:
        first, second = 0.9 * first + 0.1 * value, 0.95 * second + 0.05 * value**2
    expected = first / (1 - 0.9**3) / (math.sqrt(second / (1 - 0.95**3)) + 1e-8)
    direction, _ = updates(params, grads, weight_decay=0.0, clip_norm=1e9)
    for leaf in jax.tree.leaves(direction):
        np.testing.assert_allclose(leaf, expected, rtol=1e-4)


# ---- What an update moved ----


def test_an_update_that_is_skipped_moves_nothing(params):
    optimizer = adamw(0.9, 0.95, weight_decay=0.1, clip_norm=1.0)

    @jax.jit
    def step(params, state, value):
        grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, value), params)
        ok = jnp.isfinite(optax.global_norm(grads))
        direction, moved = optimizer.update(grads, state, params)
        new = jax.tree.map(lambda p, d: p - 0.1 * d, params, direction)
        return finite_or_same((params, state), (new, moved), ok)

    before = step(params, optimizer.init(params), 0.5)
    assert all(np.all(leaf != old) for leaf, old in zip(*map(jax.tree.leaves, (before[0], params)), strict=True))
    for bad in (math.nan, math.inf):
        jax.tree.map(np.testing.assert_array_equal, step(*before, bad), before)


def test_norms_are_told_layer_by_layer(params):
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params)
    norms = jax.jit(norms_by_layer)(params, grads)
    layers = {"embedding", "block_0", "final_norm"}
    assert {name.removeprefix("grad_norm/") for name in norms if name.startswith("grad_norm/")} >= layers
    for layer in params:
        ones = sum(leaf.size for leaf in jax.tree.leaves(params[layer]))
        assert norms[f"param_norm/{layer}"] == close(math.sqrt(ones), rel=1e-5)
        squares = sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(grads[layer]))
        assert norms[f"grad_norm/{layer}"] == close(math.sqrt(squares), rel=1e-4)
    whole = math.sqrt(sum(float(norms[f"grad_norm/{layer}"]) ** 2 for layer in params))
    assert whole == close(float(optax.global_norm(grads)), rel=1e-4), "together they are the norm of all"
