"""Limits of TPU chips, a row a generation, and the slices that they form.

From the Cloud TPU documentation, https://cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e; the slices of GKE from
https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus. The links of a v4 chip, six of 50 GB/s: Jouppi et
al., "TPU v4: An Optically Reconfigurable Supercomputer for Machine Learning" (2023). Between slices the pages state
50 Gbit/s a v5p chip, and 6.4 (v5e) and 25.6 Tbit/s (v6e) for 256 chips; for v4, nothing.
"""

import dataclasses
import math

from ghost_jax.core.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip's limits."""

    kind: str  # what JAX calls the chip: its peak FLOP/s are in `ghost_jax.runs.metrics`
    hbm_bytes: int  # high-bandwidth memory as documented; the runtime keeps a little of it
    hbm_bytes_per_s: float  # to and from that memory
    ici_bytes_per_s: float  # to the other chips, over all links, one way; the pages state both ways together
    dcn_bytes_per_s: float | None  # to other slices, a chip's share of its host's network, one way; None: not published
    dimensions: int  # of the slice's shape, "4x4" or "4x4x4"
    type_name: str  # what the cloud calls a slice of `{0}` chips or `{1}` cores, two a chip
    gke_name: str  # what GKE calls the nodes that have it
    largest: int  # chips of the largest slice


GIB = 2**30
CHIPS = {
    "v4": Chip("TPU v4", 32 * GIB, 1200e9, 300e9, None, 3, "v4-{1}", "tpu-v4-podslice", 4096),
    "v5e": Chip("TPU v5 lite", 16 * GIB, 819e9, 200e9, 3.125e9, 2, "v5litepod-{0}", "tpu-v5-lite-podslice", 256),
    "v5p": Chip("TPU v5", 95 * GIB, 2765e9, 600e9, 6.25e9, 3, "v5p-{1}", "tpu-v5p-slice", 6144),
    "v6e": Chip("TPU v6 lite", 32 * GIB, 1638e9, 400e9, 12.5e9, 2, "v6e-{0}", "tpu-v6e-slice", 256),
}
# Slices that GKE forms, and beyond them in three dimensions every box of cubes of 4x4x4, the shortest side first.
SLICES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16", "2x2x1", "2x2x2", "2x2x4", "2x4x4")


def parse(topology: str) -> tuple[str, list[int]]:
    """Returns the generation and the sides of a slice, e.g. "v5e:4x4". Raises UsageError for what is no slice."""
    generation, _, shape = topology.partition(":")
    sides = shape.split("x")
    known = CHIPS.get(generation)
    if known is None or len(sides) != known.dimensions or not all(side.isdecimal() and int(side) for side in sides):
        raise UsageError(
            f"--topology={topology} is not a TPU slice. Name a generation and its shape: v5e:4x4 or v6e:4x4 in two "
            "dimensions, v4:2x2x4 or v5p:4x4x4 in three."
        )
    return generation, list(map(int, sides))


def gke_hosts(topology: str) -> tuple[int, int]:
    """Returns the hosts of a slice in GKE, and the chips of each: four, but one where the slice is one chip.

    Raises UsageError for a slice that GKE does not form.
    """
    generation, sides = parse(topology)
    chips = math.prod(sides)
    cubes = len(sides) == 3 and sides == sorted(sides) and not any(side % 4 for side in sides)
    if topology.partition(":")[2] not in SLICES and not (cubes and chips <= CHIPS[generation].largest):
        raise UsageError(
            f"GKE has no slice {topology}. In two dimensions: {', '.join(SLICES[:8])}. In three: "
            f"{', '.join(SLICES[8:])}, and multiples of 4 in ascending order up to {CHIPS[generation].largest} chips."
        )
    return (chips // 4, 4) if chips > 1 else (1, 1)
