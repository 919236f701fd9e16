"""ghost_jax/optim.py: the rate of each update by hand, and what AdamW touches."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghost_jax.errors import UserError
from ghost_jax.model import transformer
from ghost_jax.model.sizes import ModelConfig
from ghost_jax.optim import adamw, schedule

close = pytest.approx


@pytest.mark.parametrize("warmup", [1, 2, 10, 99])
def test_warm_up_starts_at_a_share_and_ends_at_the_peak(warmup):
    rate = schedule(1e-3, 1e-5, warmup, 100)
    assert rate(0) == close(1e-3 / warmup)
    assert rate(warmup - 1) == close(1e-3)
    assert rate(warmup) == close(1e-3)
    rising = [rate(update) for update in range(warmup)]
    assert rising == close([1e-3 * (update + 1) / warmup for update in range(warmup)])


@pytest.mark.parametrize(("warmup", "steps"), [(0, 100), (10, 100), (1, 2), (100, 2000)])
def test_the_decay_is_a_cosine_to_an_absolute_floor(warmup, steps):
    peak, floor = 1e-3, 1e-5
    rate = schedule(peak, floor, warmup, steps)
    for update in {warmup, warmup + 1, (warmup + steps) // 2, steps - 1}:
        part = min((update - warmup) / (steps - warmup), 1)
        assert rate(update) == close(floor + (peak - floor) * (1 + math.cos(math.pi * part)) / 2, rel=1e-4)
    assert rate(steps) == close(floor)
    assert rate(steps * 10) == close(floor)


def test_the_last_update_is_near_the_floor_and_none_is_below():
    rate = schedule(3e-4, 1e-5, 20, 200)
    after = [rate(update) for update in range(20, 200)]
    assert after == sorted(after, reverse=True)
    assert min(after) >= 1e-5 * (1 - 1e-6)
    assert after[-1] == close(1e-5, rel=0.01)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_shorter_than_its_warm_up_still_reaches_the_peak(steps):
    rate = schedule(1e-3, 0.0, 100, steps)
    assert rate(steps - 1) == close(1e-3)


def test_no_rate_at_all_is_a_rate():
    rate = schedule(0.0, 0.0, 10, 100)
    assert [rate(update) for update in (0, 9, 50, 99)] == [0.0] * 4


@pytest.mark.parametrize("floor", [-1e-6, 2e-3])
def test_a_floor_outside_zero_and_the_peak_is_refused(floor):
    with pytest.raises(UserError, match=rf"optim\.floor_lr is {floor}.*optim\.peak_lr \(0\.001\)"):
        schedule(1e-3, floor, 10, 100)


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


@pytest.mark.parametrize(("norm", "seen"), [(10.0, 1.0), (0.5, 0.5)])
def test_gradients_are_clipped_to_the_global_norm(params, norm, seen):
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    _, state = updates(params, [norm / math.sqrt(size)], weight_decay=0.0, clip_norm=1.0)
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
