"""Low-rank adapters: a kernel W becomes W + alpha / rank · A B, and only A and B are trained.

The tokens that a base lacks (the roles of the chat format) have rows of their own in its tables, which are trained as
well. The trained tree maps the name of a parameter ("block_0/attention/qkv/kernel") to its `a` and `b`, or its `rows`.

Source: Hu et al. 2021 (arXiv 2106.09685).
"""

import dataclasses
import math
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ghost_jax.core.errors import UsageError
from ghost_jax.model.config import ModelConfig
from ghost_jax.model.transformer import named_leaves, tables_of

Trained = dict[str, dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which kernels of a model have adapters."""

    rank: int  # columns of A and rows of B
    alpha: float  # the product is scaled by alpha / rank
    targets: str  # a regular expression, found in the names of the kernels
    old_vocab: int  # tokens of the base; those after them are new

    def init(self, params: Mapping, model: ModelConfig, key: jax.Array) -> Trained:
        """Returns the trained tree before the first update, under which the model computes what `params` do.

        Raises UsageError where no kernel has a name in which `targets` is found.
        """
        trained: Trained = {}
        kernels = {name: leaf for name, leaf in named_leaves(params).items() if name.endswith("kernel")}
        chosen = {name: leaf for name, leaf in kernels.items() if re.search(self.targets, name)}
        if not chosen:
            names = ", ".join(sorted({re.sub(r"^blocks?(_\d+)?/", "", name) for name in kernels}))
            raise UsageError(f"lora.targets {self.targets!r} is found in no kernel. Their names end in: {names}.")
        for number, (name, leaf) in enumerate(chosen.items()):
            stack, inputs, outputs = _axes(name, leaf.shape)
            bound = 1 / math.sqrt(math.prod(inputs))
            shape = (*stack, *inputs, self.rank)
            a = jax.random.uniform(jax.random.fold_in(key, number), shape, minval=-bound, maxval=bound)
            trained[name] = {"a": a, "b": jnp.zeros((*stack, self.rank, *outputs))}
        if model.vocab_size > self.old_vocab:
            new = slice(self.old_vocab, model.vocab_size)
            trained |= {name: {"rows": jnp.asarray(params[name])[new]} for name in tables_of(model)}
        return trained

    def merge(self, params: Mapping, trained: Trained) -> dict:
        """Returns the parameters of the base with the trained tree added."""

        def of(path: tuple, leaf: jax.Array) -> jax.Array:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            if name not in trained:
                return leaf
            own = trained[name]
            if "rows" in own:
                return jax.lax.dynamic_update_slice_in_dim(leaf, own["rows"], self.old_vocab, 0)
            stack, inputs, outputs = _axes(name, leaf.shape)
            a = own["a"].reshape(*stack, math.prod(inputs), self.rank)
            b = own["b"].reshape(*stack, self.rank, math.prod(outputs))
            return leaf + self.alpha / self.rank * (a @ b).reshape(leaf.shape)

        return jax.tree_util.tree_map_with_path(of, params)


def _axes(name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Returns the layers of stacked blocks, the inputs and the outputs of a kernel."""
    layers = 1 if name.startswith("blocks/") else 0
    inputs = layers + (2 if name.endswith("out/kernel") else 1)  # of heads and their width
    return shape[:layers], shape[layers:inputs], shape[inputs:]
