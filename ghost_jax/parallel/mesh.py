"""The device mesh: axes `data`, `fsdp` and `tensor`, over one CPU, eight simulated devices or a pod alike."""

import math

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ghost_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))  # the batch axis is split over both; FSDP devices hold different examples


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """Returns the mesh of these axis sizes; one of them may be -1, which takes the devices that are left.

    Raises UserError where the sizes do not multiply to the number of devices.
    """
    sizes, devices = [data, fsdp, tensor], jax.device_count()
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and known > 0 and devices % known == 0:
        sizes[sizes.index(-1)] = devices // known
    if math.prod(sizes) != devices or min(sizes) < 1:
        raise UserError(
            f"A mesh of data={data}, fsdp={fsdp}, tensor={tensor} does not cover the {devices} device(s) here. Set "
            f"--config.mesh.data, .fsdp and .tensor so that they multiply to {devices}; one may be -1."
        )
    # Auto axes: the compiler propagates shardings from the inputs'; Explicit ones would have to be spelled at each op.
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch [B, ...]."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a value that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh) -> int:
    """Returns into how many parts a batch is split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
