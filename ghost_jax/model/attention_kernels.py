"""Attention of full sequences by a fused kernel of the platform, and the choice of the kernel.

`splash` is JAX's Pallas kernel for TPUs, `cudnn` is cuDNN's for NVIDIA GPUs, and `blocks` is
`ghost_jax.model.attention.causal_attention`, which runs anywhere with any mask. Shapes: B sequences, T tokens, H
heads, G heads of keys and values, K head width.
"""

import math
from typing import NamedTuple

import jax
from jax import Array
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
      mask: "causal"; "segments" for packed rows; "branches" where options of a question share its prompt.
      length: T of training rows; `head_width` is K.

    Raises UsageError for a named kernel that cannot be used.
    """
    native = NATIVE.get(platform)
    name = (native or "blocks") if asked == "auto" else asked
    kernels = {  # name -> what it needs, as a predicate, and whether this run has that
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
    missing = [needs for needs, met in kernels[name].items() if not met]
    if not missing:
        return Choice(name, f"there is no kernel for {platform}" if asked == "auto" and not native else "")
    run = f"platform {platform}, model.dtype {dtype}, heads {head_width} wide, data.seq_len {length}"
    obstacle = f"{missing[0]}; this run has {run}"
    if asked != "auto":
        raise UsageError(f"model.attention is {asked}, which {obstacle}. Use --config.model.attention=auto.")
    return Choice("blocks", f"{name} {obstacle}")


def kernel_mask(name: str, segments: Array | None, branches: Array | None, at: Array | None) -> Array | None:
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


def kernel_attention(name: str, q: Array, k: Array, v: Array, mask: Array | None, rows: NamedSharding | None) -> Array:
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


def cudnn(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    """Returns what `causal_attention` does, by cuDNN's kernel. Not tested: no GPU was available."""
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, implementation="cudnn")


def splash(q: Array, k: Array, v: Array, segments: Array | None, interpret: bool = False) -> Array:
    """Returns what `causal_attention` does within segments [B, T] int32 (None: one segment), by the kernel for TPUs.

    `interpret` computes the kernel's steps one by one on any platform, for tests.
    """
    # Not imported above: Pallas takes a second to import, and only TPUs need it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, heads = q.shape[1:3]
    block = next(size for size in SPLASH_BLOCKS if length % size == 0)
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    kernel = kernels.make_splash_mha_single_device(
        masks.MultiHeadMask([masks.CausalMask((length, length))] * heads),
        block_sizes=kernels.BlockSizes(**dict.fromkeys(names, block), use_fused_bwd_kernel=True),
        residual_checkpoint_name=KEPT,  # kept for the backward pass, so that the forward kernel runs once
        interpret=interpret,
    )
    q = q * (1 / math.sqrt(q.shape[-1]))  # the kernel does not scale; a power of two in bfloat16 for most head widths
    ids = None if segments is None else kernels.SegmentIds(segments, segments)
    return jax.vmap(kernel)(*(each.swapaxes(1, 2) for each in (q, k, v)), ids).swapaxes(1, 2)


KERNELS = {"cudnn": cudnn, "splash": splash}
