"""ghost_jax/parallel: every leaf has a rule, every size divides, and an impossible mesh is refused with its numbers."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from ghost_jax.core.errors import UserError
from ghost_jax.model.config import SIZES, ModelConfig
from ghost_jax.model.transformer import named_leaves
from ghost_jax.parallel.mesh import AXES, batch_shards, make_mesh
from ghost_jax.parallel.sharding_rules import STACKED, shardings, spec_of
from ghost_jax.training import step
from ghost_jax.training.optimizer import OPTIMIZERS

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason="needs the 8 simulated CPU devices of conftest.py")
SHARED = ModelConfig(layers=2, width=64, heads=8, mlp_dim=96, vocab_size=200, kv_heads=2, tied=False)
MESHES = [(1, 1, 1), (8, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 2), (1, 8, 1), (1, 2, 4)]  # data, fsdp, tensor


def abstract_state(config: ModelConfig, name: str = "adamw"):
    return step.abstract_state(config, OPTIMIZERS[name](0.9, 0.95, 0.1, 1.0))


@pytest.fixture(scope="module", params=SIZES)
def state(request):
    return abstract_state(SIZES[request.param])


def test_every_leaf_has_a_rule_as_long_as_its_shape(state):
    for path, leaf in named_leaves(state).items():
        spec = spec_of(path, leaf)
        assert len(spec) in (0, leaf.ndim), path
        if leaf.ndim - bool(STACKED.search(path)) >= 2:
            assert any(spec), f"{path} {leaf.shape} is replicated on every device"


def test_every_size_divides_on_every_mesh_and_fsdp_over_eight_holds_an_eighth(state):
    for sizes in MESHES:
        shardings(state, make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)]))
    placed = shardings(state, make_mesh(1, 8, 1))
    here = jax.tree.map(lambda leaf, sharding: math.prod(sharding.shard_shape(leaf.shape)), state, placed)
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))
    assert sum(jax.tree.leaves(here)) < 1.2 * total / 8


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("config", [SIZES["nano"], SIZES["v04"], SHARED], ids=["nano", "v04", "shared"])
def test_moments_are_sharded_as_their_parameters(config, optimizer):
    placed = shardings(abstract_state(config, optimizer), make_mesh(2, 2, 2))
    params = named_leaves(placed.params)
    seen = set()
    for path, sharding in named_leaves((placed.opt_state, placed.step, placed.key)).items():
        moment, name = re.fullmatch(r"(?:.*/(mu|nu)/)?(.*)", path).groups()
        assert sharding == params[name] if moment else sharding.spec == P(), path
        seen |= {name} if moment else set()
    assert seen == params.keys()


@pytest.mark.parametrize("size", ["nano", "v04"])
def test_stacked_blocks_are_split_as_each_block_is_and_never_between_layers(size):
    config = SIZES[size]
    alone = named_leaves(abstract_state(dataclasses.replace(config, scan=False)))
    stacked = named_leaves(abstract_state(dataclasses.replace(config, scan=True)))
    assert {path.replace("/block_0/", "/blocks/") for path in alone if "/block_0/" in path} <= stacked.keys()
    for path, leaf in stacked.items():
        one = path.replace("/blocks/", "/block_0/")
        of_one = spec_of(one, alone[one])
        if "/blocks/" in path:
            assert leaf.shape == (config.layers, *alone[one].shape)
            of_one = P(None, *of_one) if of_one else P()
        assert spec_of(path, leaf) == of_one


@pytest.mark.parametrize("path", ["params/extra", "opt_state/1/mu/block_0/adapter/kernel", "params/my_embedding_2"])
def test_a_parameter_without_a_rule_is_an_error(path):
    tree = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    for part in reversed(path.split("/")):
        tree = {part: tree}
    with pytest.raises(ValueError, match=rf"{path} \(8, 8\)"):
        shardings(tree, make_mesh())
    assert spec_of(path, jax.ShapeDtypeStruct((), jnp.float32)) == P()


def test_a_mesh_with_more_parts_than_an_axis_is_refused_with_the_parameter():
    with pytest.raises(UserError, match=r"params/blocks/attention/.*tensor=8"):
        shardings(abstract_state(SIZES["nano"]), make_mesh(1, 1, 8))


@pytest.mark.parametrize(
    ("asked", "made"),
    [((), (1, 8, 1, 1)), ((-1, 2, 2), (1, 2, 2, 2)), ((2, -1, 1), (1, 2, 4, 1)), ((-1, 2, 1, 2), (2, 2, 2, 1))],
)
def test_minus_one_takes_the_devices_that_are_left(asked, made):
    mesh = make_mesh(*asked)
    assert dict(mesh.shape) == dict(zip(AXES, made, strict=True))
    assert batch_shards(mesh) == made[0] * made[1] * made[2]


@pytest.mark.parametrize("asked", [(3, 1, 1), (4, 1, 1), (2, 2, 4), (0, 1, 1), (-1, 3, 1), (-1, -1, 1), (-1, 0, 1)])
def test_a_mesh_that_does_not_cover_the_devices_is_refused_with_its_numbers(asked):
    data, fsdp, tensor = asked
    with pytest.raises(UserError, match=f"replica=1, data={data}, fsdp={fsdp}, tensor={tensor}.* 8 "):
        make_mesh(*asked)
