"""Muon by `optim.name`: which matrices it orthogonalizes, and the same update on any mesh and after a resume."""

import dataclasses
import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

from configs.sweeps.ablation import RECIPES
from ghost_jax.config import load as config_lib
from ghost_jax.core.errors import UserError
from ghost_jax.model import transformer
from ghost_jax.model.config import ModelConfig
from ghost_jax.model.transformer import stack_blocks, unstack_blocks
from ghost_jax.parallel.mesh import make_mesh
from ghost_jax.runs import run_dir
from ghost_jax.sweep import config_of, tasks_of
from ghost_jax.sweeps import grid as sweep_grid
from ghost_jax.training import setup
from ghost_jax.training.checkpoint import Checkpoints, identity_of
from ghost_jax.training.optimizer import MUON_AXES, MUON_MOMENTUM, MUON_RMS, adamw, muon
from tests.conftest import ROOT
from tests.test_step import RATE, ROWS, Run, assert_trees_close, batch_number, first_state, needs_eight, one_device

pytestmark = pytest.mark.usefixtures("compile_quickly")

LAYERS, WIDTH, HEADS, HIDDEN = 2, 32, 4, 48
MODELS = {
    "v05": ModelConfig(LAYERS, WIDTH, HEADS, HIDDEN, 100, context=16),
    "v04": ModelConfig(LAYERS, WIDTH, HEADS, HIDDEN, 100, context=16, generation="v04"),
    "shared": ModelConfig(LAYERS, WIDTH, HEADS, HIDDEN, 100, context=16, kv_heads=2, tied=False),
}
MUON = muon(0.9, 0.95, 0.1, 1.0)
UNDECAYED = {"weight_decay": 0.0, "clip_norm": 0.0}
STACKED = ModelConfig(layers=2, width=64, heads=8, mlp_dim=128, vocab_size=512, context=32, scan=True)


def abstract(config: ModelConfig) -> dict:
    return jax.eval_shape(lambda key: transformer.init(config, key), jax.random.key(0))


def drawn(config: ModelConfig, seed: int) -> dict:
    """Normal numbers in the shape of a model's parameters."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), abstract(config))


def directions(optimizer: optax.GradientTransformation, params: dict, *grads: dict) -> dict:
    """The direction of the last of several updates."""

    @jax.jit
    def run(params: dict, grads: tuple[dict, ...]) -> dict:
        state = optimizer.init(params)
        for each in grads:
            direction, state = optimizer.update(each, state, params)
        return direction

    return run(params, grads)


def named(tree: dict) -> dict[str, np.ndarray | jax.ShapeDtypeStruct]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def matrices_of(kernels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every matrix [inputs, outputs] of single blocks, q, k and v apart."""
    found = {}
    for path, leaf in kernels.items():
        if not path.endswith("kernel"):
            continue
        if "kv/" in path:
            found |= {f"{path}/{part}": leaf[:, part].reshape(WIDTH, -1) for part in range(leaf.shape[1])}
        else:
            found[path] = leaf.reshape(-1, WIDTH) if "/out/" in path else leaf.reshape(leaf.shape[0], -1)
    return found


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    """Five steps of the quintic iteration of Jordan et al., in float64."""
    x = matrix.astype(np.float64) / np.linalg.norm(matrix)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


# ---- Which matrices ----


@dataclasses.dataclass(frozen=True)
class Case:
    """A model's parameters and gradients, and the second direction of Muon for its stacked blocks, unstacked."""

    params: dict
    grads: tuple[dict, dict]
    direction: dict


@pytest.fixture(scope="module", params=MODELS)
def case(request) -> Case:
    params, *grads = (drawn(MODELS[request.param], seed) for seed in range(3))
    stacked = directions(muon(0.9, 0.95, **UNDECAYED), *map(stack_blocks, (params, *grads)))
    return Case(params, tuple(grads), unstack_blocks(stacked))


def test_each_matrix_of_each_layer_is_orthogonalized_alone(case):
    matrices, before, last = (matrices_of(named(each)) for each in (case.direction, *case.grads))
    kinds = {path.partition("/")[2] for path in matrices}
    assert len([kind for kind in kinds if "kv/" in kind or "/q/" in kind]) == 3
    assert len(matrices) == LAYERS * len(kinds)
    b = MUON_MOMENTUM
    for path, matrix in matrices.items():
        momentum = b * (b * (1 - b) * before[path] + (1 - b) * last[path]) / (1 - b**3)
        momentum += (1 - b) * last[path] / (1 - b**2)  # Nesterov
        expected = MUON_RMS * math.sqrt(max(matrix.shape)) * newton_schulz(momentum)
        np.testing.assert_allclose(matrix, expected, rtol=0, atol=2e-4, err_msg=path)


def test_all_other_parameters_get_adamws_direction(case):
    adamws, ours = (
        named(each) for each in (directions(adamw(0.9, 0.95, **UNDECAYED), case.params, *case.grads), case.direction)
    )
    others = [path for path in ours if not path.endswith("kernel")]
    assert {path.split("/")[-1] for path in others} >= {"embedding", "scale"}
    for path in others:
        np.testing.assert_array_equal(ours[path], adamws[path], err_msg=path)


def test_the_rms_is_adamws_whatever_the_shape(case):
    for path, matrix in matrices_of(named(case.direction)).items():
        assert 0.15 < np.sqrt(np.mean(np.square(matrix))) < 0.25, path
        singular = np.linalg.svd(matrix, compute_uv=False) / (MUON_RMS * math.sqrt(max(matrix.shape)))
        assert 0.3 < np.median(singular) < singular.max() < 1.3, path


def test_q_k_and_v_do_not_change_one_another():
    params, grads = (
        {"qkv": {"kernel": each["block_0"]["attention"]["qkv"]["kernel"]}}
        for each in map(partial(drawn, MODELS["v05"]), range(2))
    )
    changed = jax.tree.map(np.array, grads)
    changed["qkv"]["kernel"][:, 2] *= -100
    before, after = (
        directions(muon(0.9, 0.95, **UNDECAYED), params, each)["qkv"]["kernel"] for each in (grads, changed)
    )
    np.testing.assert_allclose(after[:, :2], before[:, :2], rtol=0, atol=1e-6)
    np.testing.assert_allclose(after[:, 2], -before[:, 2], rtol=0, atol=1e-4)


SHAPES = {
    "up": {"kernel": (32, 48), "bias": (48,)},
    "qkv": {"kernel": (32, 3, 4, 8)},
    "out": {"kernel": (4, 8, 32)},
    "norm": {"scale": (32,)},
}


def small(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: rng.standard_normal(shape, np.float32), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
    )


def test_single_blocks_get_the_directions_of_stacked_ones():
    params, *grads = ({f"block_{layer}": small(10 * seed + layer) for layer in range(3)} for seed in range(3))
    stacked = directions(MUON, *map(stack_blocks, (params, *grads)))
    assert_trees_close(unstack_blocks(stacked), directions(MUON, params, *grads), 1e-5)


def test_matrices_get_what_optax_muon_gives():
    axes = {
        "up": {"kernel": MuonDimensionNumbers(0, 1), "bias": None},
        "qkv": {"kernel": MuonDimensionNumbers(0, (2, 3))},
        "out": {"kernel": MuonDimensionNumbers((0, 1), 2)},
        "norm": {"scale": None},
    }
    theirs = optax.contrib.muon(
        -1.0, weight_decay=0.1, consistent_rms=MUON_RMS, muon_weight_dimension_numbers=lambda _: axes
    )
    ours = muon(0.9, 0.95, weight_decay=0.1, clip_norm=0.0)
    found, expected = (directions(each, *map(small, range(3))) for each in (ours, theirs))
    for name in ("up", "qkv", "out"):
        np.testing.assert_allclose(found[name]["kernel"], expected[name]["kernel"], rtol=0, atol=1e-6)


def test_weight_decay_moves_kernels_and_nothing_else():
    params, zeros = small(0), jax.tree.map(np.zeros_like, small(0))
    for path, leaf in named(directions(muon(0.9, 0.95, 0.25, 1.0), params, zeros)).items():
        np.testing.assert_array_equal(leaf, 0.25 * named(params)[path] if path.endswith("kernel") else 0 * leaf)


def test_a_kernel_without_axes_is_an_error():
    params = {"block_0": {"adapter": {"kernel": jnp.ones((4, 4))}}}
    with pytest.raises(ValueError, match="block_0/adapter/kernel"):
        MUON.update(params, MUON.init(params), params)


def test_the_axes_are_those_of_the_kernels_there_are():
    paths = {path for config in MODELS.values() for path in named(abstract(config))}
    assert {path.split("/")[-2] for path in paths if path.endswith("kernel")} == MUON_AXES.keys()


# ---- The same update ----


@pytest.fixture(scope="module")
def reference() -> Run:
    """Four updates of the whole batch at once, on one device, through a scan over stacked blocks."""
    return Run(one_device(), config=STACKED, optimizer=MUON).updates(4)


@needs_eight
def test_the_update_depends_neither_on_the_mesh_nor_on_how_the_batch_is_cut(reference):
    run = Run(make_mesh(2, 2, 2), ROWS // 4, STACKED, MUON).updates(4)
    assert run.losses == pytest.approx(reference.losses, abs=1e-5)
    assert_trees_close(run.state.params, reference.state.params, 1e-5)
    for leaf, wanted in zip(*map(jax.tree.leaves, (run.state, run.placed)), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim)


def test_the_updates_move_every_parameter_by_more_than_the_tolerances(reference):
    before, after = named(first_state(STACKED, MUON).params), named(reference.state.params)
    for path in before:
        assert np.abs(before[path] - after[path]).max() > RATE, path


def test_an_update_whose_gradient_is_not_finite_changes_nothing():
    run, batch = Run(one_device(), config=STACKED, optimizer=MUON), batch_number(0)
    before = jax.tree.map(np.asarray, (run.state.params, run.state.opt_state))
    run.update(batch | {"weights": np.full_like(batch["weights"], np.nan)})
    jax.tree.map(np.testing.assert_array_equal, (run.state.params, run.state.opt_state), before)
    assert int(run.state.skipped) == 1


def test_a_resumed_run_is_the_same_bit_for_bit(reference, tmp_path):
    run, identity = Run(one_device(), config=STACKED, optimizer=MUON).updates(2), identity_of(STACKED, "t", "d")
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(run.state, identity, {})
        checkpoints.wait()
        resumed = Run(one_device(), config=STACKED, optimizer=MUON)
        resumed.state = checkpoints.restore(2, first_state(STACKED, MUON), one_device(), identity)
    for t in (2, 3):
        resumed.update(batch_number(t))
    assert resumed.losses == reference.losses[2:]
    jax.tree.map(np.testing.assert_array_equal, resumed.state, reference.state)


# ---- The key of the config ----


def test_the_studys_recipes_train_with_adamw():
    for name in RECIPES:
        for preset in ("", "mini", "nano"):
            config = config_lib.load(f"{ROOT}/configs/{name}.py:{preset}")
            assert (config.optim.name, config.base.optim.name) == ("adamw", "adamw")


def test_the_key_chooses_the_optimizer():
    config = config_lib.load(f"{ROOT}/configs/pretrain_v05.py:nano")
    assert config.optim.name == "adamw"
    for name, value in (("b1", "0.5"), ("b2", "0.6"), ("weight_decay", "0.7"), ("clip_norm", "0.8")):
        config_lib.override(config, f"optim.{name}", value)
    found, expected = (
        directions(each, *map(small, range(3))) for each in (setup.optimizer_of(config), adamw(0.5, 0.6, 0.7, 0.8))
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    config_lib.override(config, "optim.name", "muon")
    states = (jax.eval_shape(each.init, small(0)) for each in (setup.optimizer_of(config), MUON))
    assert len(set(map(jax.tree.structure, states))) == 1


def test_the_sweep_compares_the_optimizers_on_the_same_tokens(tmp_path):
    sweep = sweep_grid.load(f"{ROOT}/configs/sweeps/muon.py")
    assert [setting.name for setting in sweep.settings] == ["nano-adamw", "nano-muon", "mini-adamw", "mini-muon"]
    assert len(tasks_of(sweep, tmp_path, [], None)) == 4 * 3
    configs = {run.name: config_of(run, []).to_dict() for run in sweep.runs()}
    for size in ("nano", "mini"):
        ours, theirs = configs[f"{size}-muon-seed2"], configs[f"{size}-adamw-seed2"]
        assert (ours["optim"].pop("name"), theirs["optim"].pop("name")) == ("muon", "adamw")
        assert ours == theirs
        assert ours["steps"] * ours["batch_size"] * ours["data"]["seq_len"] == pytest.approx(5e6, rel=2e-3)
    one_size = sweep_grid.load(f"{ROOT}/configs/sweeps/muon.py:nano")
    assert [setting.name for setting in one_size.settings] == ["nano-adamw", "nano-muon"]


def of_an_earlier_version(config: dict) -> dict:
    older = {key: value for key, value in config["optim"].items() if key != "name"}
    return config | {"optim": older} | ({"base": of_an_earlier_version(config["base"])} if "base" in config else {})


@pytest.mark.parametrize("recipe", ["pretrain_v05", "chat_v5"])
def test_a_run_directory_without_the_key_is_one_of_adamw(tmp_path, recipe):
    config = config_lib.load(f"{ROOT}/configs/{recipe}.py:nano")
    now = json.loads(config_lib.to_json(config))
    older = of_an_earlier_version(now)
    assert older != now
    assert config_lib.recipe_of(older) == config_lib.recipe_of(now)
    (tmp_path / "config.json").write_text(json.dumps(older))
    run_dir.open_run(tmp_path, config)
    config_lib.override(config, "optim.name", "muon")
    assert config_lib.recipe_of(older) != config_lib.recipe_of(json.loads(config_lib.to_json(config)))
    with pytest.raises(UserError, match=r"optim\.name"):
        run_dir.open_run(tmp_path, config)
