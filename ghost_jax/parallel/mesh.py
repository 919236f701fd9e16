"""The device mesh: axes `replica`, `data`, `fsdp` and `tensor`, on one CPU, simulated devices or TPU slices alike.

Only `replica` crosses from one slice to another, over the data-centre network (DCN): parameters are sharded inside a
slice, and what slices exchange are sums of gradients.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ghost_jax.core.errors import UserError

AXES = ("replica", "data", "fsdp", "tensor")
BATCH = PartitionSpec(("replica", "data", "fsdp"))  # the batch axis is split over these; the rest share its rows


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, replica: int = -1, *, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Returns the mesh of these axis sizes over `devices`, by default all.

    A `replica` of -1 is the number of slices; one of the other sizes may be -1, for the rest of the devices.

    Raises UserError where the sizes do not multiply to the number of devices, or `replica` is not that of the slices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    # Of TPUs alone: on a GPU the attribute tells hosts apart, and there parameters may well be sharded over hosts.
    slices = len({getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"}) or 1
    replica = slices if replica == -1 else replica
    if slices > 1 and replica != slices:
        raise UserError(
            f"A mesh of replica={replica} does not fit devices of {slices} slices. Set --config.mesh.replica={slices}, "
            "or -1, which is the number of slices."
        )
    try:
        sizes = np.empty(count).reshape(replica, data, fsdp, tensor).shape
    except ValueError:
        raise UserError(
            f"A mesh of replica={replica}, data={data}, fsdp={fsdp}, tensor={tensor} does not cover the {count} "
            "device(s) here. Set --config.mesh.replica, .data, .fsdp and .tensor so that they multiply to "
            f"{count}; one may be -1."
        ) from None
    # jax.make_mesh refuses, on every TPU but v5e, an axis that is no product of the torus's: tensor=2 on 4x4x4.
    if slices > 1:
        inside, across = (1, *sizes[1:]), (slices, 1, 1, 1)
        grid = mesh_utils.create_hybrid_device_mesh(inside, across, devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    # Auto axes: the compiler propagates shardings from the inputs'; Explicit ones would have to be spelled at each op.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch [B, ...]."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a value that every device holds."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh) -> int:
    """Returns the number of parts of a batch."""
    return mesh.shape["replica"] * mesh.shape["data"] * mesh.shape["fsdp"]


def micro_batch_rows(batch_size: int, micro_batch_size: int, mesh: Mesh) -> int:
    """Returns the rows of a micro-batch over all devices: at most `micro_batch_size` a device.

    Raises UserError where the batch does not divide over the devices, or a device's rows over its micro-batches.
    """
    shards = batch_shards(mesh)
    if batch_size % shards:
        raise UserError(
            f"batch_size is {batch_size}, which does not divide over the {shards} devices of the mesh's axes replica, "
            f"data and fsdp. Set --config.batch_size to a multiple of {shards}, use fewer devices, or raise "
            "--config.mesh.tensor, which splits each matrix over several devices."
        )
    rows = batch_size // shards  # of a device
    if rows % min(rows, micro_batch_size):
        fitting = ", ".join(str(size) for size in range(1, rows + 1) if rows % size == 0)
        raise UserError(
            f"micro_batch_size is {micro_batch_size}, which does not divide the {rows} rows of a device (batch_size "
            f"{batch_size} over {shards} device(s)). Set --config.micro_batch_size to one of {fitting}."
        )
    return shards * min(rows, micro_batch_size)
