"""Limits of TPU chips, a row a generation.

From the Cloud TPU documentation, https://cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e. The links of a v4 chip, six
of 50 GB/s: Jouppi et al., "TPU v4: An Optically Reconfigurable Supercomputer for Machine Learning" (2023). Between
slices the pages state 50 Gbit/s a v5p chip, and 6.4 (v5e) and 25.6 Tbit/s (v6e) for 256 chips; for v4, nothing.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip's limits."""

    # peak bfloat16 FLOP/s, of float32 products too: JAX rounds their factors to bfloat16 on a TPU by default
    flops: float
    hbm_bytes: int  # high-bandwidth memory as documented; the runtime keeps a little of it
    hbm_bytes_per_s: float  # to and from that memory
    ici_bytes_per_s: float  # to the other chips, over all links, one way; the pages state both ways together
    dcn_bytes_per_s: float | None  # to other slices, a chip's share of its host's network, one way; None: not published
    dimensions: int  # of the slice's shape, "4x4" or "4x4x4"
    type_name: str  # what the cloud calls a slice of `{0}` chips or `{1}` cores, two a chip


GIB = 2**30
CHIPS = {
    "v4": Chip(275e12, 32 * GIB, 1200e9, 300e9, None, 3, "v4-{1}"),
    "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9, 3.125e9, 2, "v5litepod-{0}"),
    "v5p": Chip(459e12, 95 * GIB, 2765e9, 600e9, 6.25e9, 3, "v5p-{1}"),
    "v6e": Chip(918e12, 32 * GIB, 1638e9, 400e9, 12.5e9, 2, "v6e-{0}"),
}
