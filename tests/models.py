"""Models, parameters and meshes that several test files share."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from ghost_jax.model import transformer
from ghost_jax.model.config import ModelConfig
from ghost_jax.parallel.mesh import make_mesh

needs_eight = pytest.mark.skipif(jax.device_count() != 8, reason="needs the 8 simulated CPU devices of conftest.py")


def slow(case: object) -> object:
    """A case of a parametrized test that runs in `make test-all` only."""
    return pytest.param(case, marks=pytest.mark.slow)


@functools.cache
def one_device() -> Mesh:
    return make_mesh(devices=jax.devices()[:1])


@functools.cache
def abstract(config: ModelConfig) -> dict:
    """The shapes of a model's parameters."""
    return jax.eval_shape(lambda: transformer.init(config, jax.random.key(0)))


def drawn(config: ModelConfig, std: float, seed: int = 0) -> dict:
    """Parameters that are random everywhere: initial zeros or ones (biases, scales) would hide an error there.

    NumPy draws them: compiling the model's own draws takes longer than most tests.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        return np.float32(path[-1].key == "scale") + np.float32(std) * rng.standard_normal(leaf.shape, np.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract(config))


@functools.cache
def build(config: ModelConfig, std: float = 0.2) -> dict:
    """Weights so large that a wrong one shows; rows of no token are zero."""
    params = drawn(dataclasses.replace(config, scan=False), std)
    for table in transformer.tables_of(config):
        params[table][config.vocab_size :] = 0.0
    return transformer.stack_blocks(params) if config.scan else params
