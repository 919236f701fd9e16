"""Which axis of which parameter is split over which axis of the mesh: one regex table, for optimizer state as well."""

import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ghost_jax.core.errors import UserError

STACKED = re.compile(r"(^|/)blocks/")  # parameters of all blocks, stacked over a first axis
# The first pattern found in a parameter's path wins. Optimizer moments carry the path of their parameter.
RULES: tuple[tuple[str, P], ...] = (
    (r"/(a|b|rows)$", P()),  # of adapters, which are small
    (r"(^|/)(un)?embedding$", P("tensor", "fsdp")),  # [V, D]
    (r"(^|/)position_embedding$", P(None, "fsdp")),  # [context, D]
    (r"q?kv/kernel$", P("fsdp", None, "tensor", None)),  # [D, 3, H, K], or [D, 2, G, K]
    (r"q?kv/bias$", P(None, "tensor", None)),  # [3, H, K], or [2, G, K]
    (r"q/kernel$", P("fsdp", "tensor", None)),  # [D, H, K]
    (r"q/bias$", P("tensor", None)),  # [H, K]
    (r"attention/out/kernel$", P("tensor", None, "fsdp")),  # [H, K, D]
    (r"(up|gate)/kernel$", P("fsdp", "tensor")),  # [D, F]
    (r"up/bias$", P("tensor")),  # [F]
    (r"down/kernel$", P("tensor", "fsdp")),  # [F, D]
    (r"(out|down)/bias$", P()),  # [D]
    (r"norm/(scale|bias)$", P()),  # [D]
    (r"(^|/)ns_coeffs$", P()),  # [3], Muon's Newton-Schulz coefficients, which Optax keeps in the state
)


def spec_of(path: str, leaf: Any) -> P:
    """Returns the PartitionSpec of the leaf at `path` ("opt_state/1/mu/block_0/attention/qkv/kernel").

    Stacked layers are not split: each step of the scan reads one of them on every device. Scalars and PRNG keys are
    replicated. Raises ValueError for a path without a rule.
    """
    if leaf.ndim == 0 or path == "key":
        return P()
    for pattern, spec in RULES:
        if re.search(pattern, path):
            return P(None, *spec) if spec and STACKED.search(path) else spec
    raise ValueError(f"no sharding rule matches parameter {path} {leaf.shape}; add one to RULES in {__name__}")


def shardings(tree: Any, mesh: Mesh) -> Any:
    """Returns the NamedShardings of a tree of arrays or shapes. Raises UserError where an axis does not divide."""

    def of(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = spec_of(name, leaf)
        for axis, length in zip(spec, leaf.shape, strict=False):
            if axis and length % mesh.shape[axis]:
                raise UserError(
                    f"An axis of length {length} of {name} does not divide over the mesh's {axis}={mesh.shape[axis]}. "
                    f"Set --config.mesh.{axis} to a divisor of {length}."
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(of, tree)
