"""Attention of full sequences by a fused kernel of the platform, and the choice of the kernel.

`splash` is JAX's Pallas kernel for TPUs, `cudnn` is cuDNN's for NVIDIA GPUs, and `blocks` is
`ghost_jax.model.attention.causal_attention`, which runs anywhere with any mask. Shapes: B sequences, T tokens, H
heads, G heads of keys and values, K head width.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ghost_jax.core.errors import UsageError
from ghost_jax.model.attention import attention_mask, causal_attention
from ghost_jax.model.dense import KEPT

NATIVE = {"cpu": "blocks", "cuda": "cudnn", "tpu": "splash"}  # platform -> kernel that `auto` means there
LANES = 128  # of a TPU's vector register: splash requires a multiple of it as the length of a sequence
SPLASH_BLOCKS = (512, 384, 256, LANES)  # queries, and keys, of a tile: the largest that divides the sequence is used
CUDNN_HEAD_WIDTH = 128  # the largest on every GPU that the kernel runs on
CUDNN_CAPABILITY = 8.0  # the lowest compute capability, Ampere's
HEADS_AXIS = "tensor"  # of the mesh: splits heads, see ghost_jax/parallel/sharding_rules.py


class Choice(NamedTuple):
    """The attention of a run: "blocks", "cudnn" or "splash", and why it is not the platform's own kernel, else ""."""

    name: str
    fallback: str = ""

    def __str__(self) -> str:
        return self.name + (f" ({self.fallback})" if self.fallback else "")


def platform_of(device: jax.Device) -> str:
    """Returns "cpu", "tpu", "cuda" or "rocm"; of a GPU that is too old for cuDNN's attention "cuda before 8.0"."""
    if device.platform != "gpu":
        return device.platform
    if "cuda" not in device.client.platform_version.lower():
        return "rocm"
    return "cuda" if float(device.compute_capability) >= CUDNN_CAPABILITY else f"cuda before {CUDNN_CAPABILITY}"


def choose(asked: str, platform: str, *, dtype: str, head_width: int, mask: str, length: int) -> Choice:
    """Returns the attention of a run. `auto` is the platform's kernel, or `blocks` where that cannot be used.

    Args:
      asked: the config's `model.attention`: "auto", "blocks", "cudnn" or "splash".
      platform: see `platform_of`.
      dtype: compute type of the model.
      head_width: K.
      mask: "causal"; "segments" for packed rows; "branches" where options of a question share its prompt.
      length: T of training rows.

    Raises UsageError for a named kernel that cannot be used.
    """
    native = NATIVE.get(platform)
    name = (native or "blocks") if asked == "auto" else asked
    obstacle = _obstacle(name, platform, dtype, head_width, mask, length)
    if obstacle and asked != "auto":
        raise UsageError(f"model.attention is {asked}, which {obstacle}. Use --config.model.attention=auto.")
    if obstacle:
        return Choice("blocks", f"{name} {obstacle}")
    return Choice(name, f"there is no kernel for {platform}" if asked == "auto" and not native else "")


def _obstacle(name: str, platform: str, dtype: str, head_width: int, mask: str, length: int) -> str:
    """Returns why a kernel cannot be used, as a predicate of its name; "" if it can."""
    checks = {
        "blocks": {},
        "cudnn": {
            f"needs an NVIDIA GPU of compute capability {CUDNN_CAPABILITY} or later": platform == "cuda",
            "computes in bfloat16": dtype == "bfloat16",
            f"needs heads of a multiple of 8, at most {CUDNN_HEAD_WIDTH} wide": head_width % 8 == 0
            and head_width <= CUDNN_HEAD_WIDTH,
            "needs an even number of tokens a row with a mask": mask == "causal" or length % 2 == 0,
        },
        "splash": {
            "needs a TPU": platform == "tpu",
            "cannot mask ranked options, which share a prompt": mask != "branches",
            f"needs a multiple of {LANES} tokens a row": length % LANES == 0,
        },
    }
    run = f"platform {platform}, model.dtype {dtype}, heads {head_width} wide, data.seq_len {length}"
    return next((f"{needs}; this run has {run}" for needs, met in checks[name].items() if not met), "")


def kernel_mask(
    name: str, segments: jax.Array | None, branches: jax.Array | None, at: jax.Array | None
) -> jax.Array | None:
    """Returns the mask of `kernel_attention`: segment ids [B, T] for splash, else `attention_mask` [B, 1, T, T].

    Splash lets a token attend to equal segment ids, `attention_mask` to segment 0 as well. In packed training rows both
    are the same: segment 0 is padding behind all others (`ghost_jax.data.packing.fill`), where causality hides it.

    Raises ValueError for splash with branches or with positions `at` of `Transformer.hidden`: rows that are scored
    share a prompt in segment 0.
    """
    if name != "splash":
        return attention_mask(segments, branches)
    if branches is not None or at is not None:
        raise ValueError("splash attention cannot mask branches or `at`: use a model whose attention is blocks")
    return segments


def kernel_attention(
    name: str, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, rows: NamedSharding | None
) -> jax.Array:
    """Returns the causal attention [B, T, H, K] of q [B, T, H, K] to k and v [B, T, G, K] by a kernel.

    Args:
      name: "cudnn" or "splash"; any other is "blocks".
      mask: of `kernel_mask`; None for causality alone.
      rows: the sharding of the batch. The compiler cannot split a kernel over devices, so each device calls it for its
        own rows and heads. None on one device.
    """
    if name not in KERNELS:
        return causal_attention(q, k, v, mask)
    kernel = KERNELS[name]
    if rows is None:
        return kernel(q, k, v, mask)
    by_head = P(*rows.spec, None, HEADS_AXIS)
    in_specs = (by_head, by_head, by_head, rows.spec)
    return jax.shard_map(kernel, mesh=rows.mesh, in_specs=in_specs, out_specs=by_head, check_vma=False)(q, k, v, mask)


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Returns what `causal_attention` does, by cuDNN's kernel. Not tested: no GPU was available."""
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, implementation="cudnn")


def splash(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None, interpret: bool = False) -> jax.Array:
    """Returns what `causal_attention` does within segments [B, T] int32 (None: one segment), by the kernel for TPUs.

    `interpret` computes the kernel's steps one by one on any platform, for tests.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import SegmentIds

    q = q * (1 / math.sqrt(q.shape[-1]))  # the kernel does not scale; a power of two in bfloat16 for most head widths
    ids = None if segments is None else SegmentIds(segments, segments)
    kernel = _splash_kernel(q.shape[2], q.shape[1], interpret)
    return jax.vmap(kernel)(*(each.swapaxes(1, 2) for each in (q, k, v)), ids).swapaxes(1, 2)


def _splash_kernel(heads: int, length: int, interpret: bool) -> Callable:
    # Not imported above: Pallas takes a second to import, and only TPUs need it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    block = next(size for size in SPLASH_BLOCKS if length % size == 0)
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    sizes = kernels.BlockSizes(**dict.fromkeys(names, block), use_fused_bwd_kernel=True)
    return kernels.make_splash_mha_single_device(
        masks.MultiHeadMask([masks.CausalMask((length, length))] * heads),
        block_sizes=sizes,
        residual_checkpoint_name=KEPT,  # kept for the backward pass, so that the forward kernel runs once
        interpret=interpret,
    )


KERNELS = {"cudnn": cudnn, "splash": splash}
