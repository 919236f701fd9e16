"""ghost_jax/training/optimizer.py: the rate of each update, the directions of AdamW and Muon, and skipped updates."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ghost_jax.config import load as config_lib
from ghost_jax.model.config import ModelConfig
from ghost_jax.model.transformer import named_leaves, stack_blocks, unstack_blocks
from ghost_jax.training.optimizer import MUON_AXES, MUON_MOMENTUM, MUON_RMS, adamw, muon, schedule
from ghost_jax.training.setup import TrainSetup
from tests.conftest import ROOT
from tests.models import abstract, drawn

close = pytest.approx


@pytest.mark.parametrize(("warmup", "steps"), [(0, 101), (1, 3), (10, 110), (100, 2000)])
@pytest.mark.parametrize(("name", "halfway", "end"), [("cosine", 0.5, 0), ("linear", 0.5, 0), ("constant", 1, 1)])
def test_the_rate_warms_up_to_the_peak_and_follows_its_curve(name, halfway, end, warmup, steps):
    peak, least = 1e-3, 1e-5
    rate, top, last = schedule(peak, least, warmup, steps, name=name), max(warmup - 1, 0), steps - 1
    warming_up = [peak * (update + 1) / (top + 1) for update in range(top + 1)]
    assert [rate(update) for update in range(top + 1)] == close(warming_up, rel=1e-5)
    assert rate((top + last) // 2) == close(least + (peak - least) * halfway, rel=1e-4)
    assert rate(last) == rate(10 * steps) == close(least + (peak - least) * end, rel=1e-4)


def test_wsd_stays_at_the_peak_and_decays_linearly_in_the_share_of_all_updates():
    rate = schedule(1e-3, 1e-4, 10, 200, name="wsd", decay_share=0.1)
    assert not isinstance(rate(0), jax.Array), "it is computed without a device"
    assert [rate(update) for update in range(9, 180)] == close([1e-3] * 171)
    assert [rate(update) for update in range(180, 200)] == close([1e-3 - 9e-4 * i / 20 for i in range(1, 21)])


LAYERS, WIDTH, HEADS, HIDDEN = 2, 32, 4, 48
V05 = ModelConfig(LAYERS, WIDTH, HEADS, HIDDEN, 100, context=16)
MODELS = {
    "v05": V05,
    "v04": dataclasses.replace(V05, generation="v04"),
    "shared": dataclasses.replace(V05, kv_heads=2, tied=False),
}
UNDECAYED = {"weight_decay": 0.0, "clip_norm": 0.0}


def updated(optimizer: optax.GradientTransformation, params: dict, *grads: dict) -> tuple:
    @jax.jit
    def run(params: dict, grads: tuple[dict, ...]) -> tuple:
        state = optimizer.init(params)
        for each in grads:
            direction, state = optimizer.update(each, state, params)
        return direction, state

    return run(params, grads)


@pytest.mark.parametrize("optimizer", [adamw, muon])
def test_weight_decay_moves_kernels_alone(optimizer):
    params = drawn(V05, 1.0)
    direction, _ = updated(optimizer(0.9, 0.95, 0.25, 1.0), params, jax.tree.map(np.zeros_like, params))
    for path, leaf in named_leaves(direction).items():
        expected = 0.25 * named_leaves(params)[path] if path.endswith("kernel") else 0 * leaf
        np.testing.assert_allclose(leaf, expected, rtol=1e-6, err_msg=path)


@pytest.mark.parametrize(("clip", "norm", "seen"), [(1.0, 10.0, 1.0), (1.0, 0.5, 0.5), (0.0, 10.0, 10.0)])
def test_gradients_are_clipped_to_the_global_norm(clip, norm, seen):
    grads = {"kernel": np.full((4, 4), norm / 4, np.float32)}
    _, state = updated(adamw(0.9, 0.95, 0.0, clip), grads, grads)
    # After one update the first moment is (1 - b1) times the clipped gradient.
    assert float(optax.global_norm(state[1].mu)) == close(0.1 * seen, rel=1e-4)


def matrices_of(kernels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every matrix [inputs, outputs] of single blocks, q, k and v apart."""
    found = {}
    for path, leaf in kernels.items():
        if "kv/kernel" in path:
            found |= {f"{path}/{part}": leaf[:, part].reshape(WIDTH, -1) for part in range(leaf.shape[1])}
        elif path.endswith("kernel"):
            found[path] = leaf.reshape(-1, WIDTH) if "/out/" in path else leaf.reshape(leaf.shape[0], -1)
    return found


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    """Five steps of the quintic iteration of Jordan et al., in float64."""
    x = matrix.astype(np.float64) / np.linalg.norm(matrix)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


@pytest.mark.parametrize("model", ["v05", "shared"])
def test_muon_orthogonalizes_each_matrix_and_gives_the_rest_adamws_direction(model):
    params, *grads = (drawn(MODELS[model], 1.0, seed) for seed in range(3))
    direction, _ = updated(muon(0.9, 0.95, **UNDECAYED), *map(stack_blocks, (params, *grads)))
    direction = unstack_blocks(direction)
    matrices, before, last = (matrices_of(named_leaves(each)) for each in (direction, *grads))
    assert len([path for path in matrices if "kv/" in path or "/q/" in path]) == 3 * LAYERS
    b = MUON_MOMENTUM
    for path, matrix in matrices.items():
        momentum = b * (b * (1 - b) * before[path] + (1 - b) * last[path]) / (1 - b**3)
        momentum += (1 - b) * last[path] / (1 - b**2)  # Nesterov
        expected = MUON_RMS * math.sqrt(max(matrix.shape)) * newton_schulz(momentum)
        np.testing.assert_allclose(matrix, expected, rtol=0, atol=2e-4, err_msg=path)
    adamws = named_leaves(updated(adamw(0.9, 0.95, **UNDECAYED), params, *grads)[0])
    for path, leaf in named_leaves(direction).items():
        if not path.endswith("kernel"):
            np.testing.assert_array_equal(leaf, adamws[path], err_msg=path)


def test_every_kernel_has_axes_and_one_without_is_refused():
    paths = {path for config in MODELS.values() for path in named_leaves(abstract(config))}
    assert {path.split("/")[-2] for path in paths if path.endswith("kernel")} == MUON_AXES.keys()
    params, optimizer = {"block_0": {"adapter": {"kernel": jnp.ones((4, 4))}}}, muon(0.9, 0.95, **UNDECAYED)
    with pytest.raises(ValueError, match="block_0/adapter/kernel"):
        optimizer.update(params, optimizer.init(params), params)


def test_the_config_chooses_the_optimizer_and_its_numbers():
    config = config_lib.load(f"{ROOT}/configs/pretrain_v05.py:nano")
    values = {"model.dtype": "float32", "optim.b1": "0.5", "optim.b2": "0.6", "optim.weight_decay": "0.7"}
    config_lib.override_all(config, [*values.items(), ("optim.clip_norm", "0.8")])
    params, grads = ({"kernel": np.full((4, 4), value, np.float32)} for value in (1.0, 3.0))
    found, _ = updated(TrainSetup(config, 4096).optimizer, params, grads)
    expected, _ = updated(adamw(0.5, 0.6, 0.7, 0.8), params, grads)
    np.testing.assert_array_equal(found["kernel"], expected["kernel"])
    config_lib.override(config, "optim.name", "muon")
    assert "muon" in str(jax.tree.structure(TrainSetup(config, 4096).abstract.opt_state))


def test_adapters_decay_and_the_rows_of_new_tokens_do_not():
    adapters = {"a": np.ones((4, 2)), "b": np.ones((2, 4))}
    params = {"block_0/up/kernel": adapters, "embedding": {"rows": np.ones((1, 4))}}
    direction, _ = updated(adamw(0.9, 0.95, 0.25, 1.0), params, jax.tree.map(np.zeros_like, params))
    assert [float(leaf.max()) for leaf in jax.tree.leaves(direction)] == [0.25, 0.25, 0.0]
