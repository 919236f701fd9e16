"""Attention of whole sequences by a fused kernel of the platform, and which one a run gets.

`splash` is JAX's Pallas kernel for TPUs, `cudnn` is cuDNN's for NVIDIA GPUs, and `blocks` is
`ghost_jax.model.attention.attend_causally`, which runs anywhere and takes any mask. Shapes: B sequences, T tokens, H
heads, G heads of keys and values, K head width.
"""

import dataclasses
import math
from typing import TYPE_CHECKING

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ghost_jax.core.errors import UsageError
from ghost_jax.model.attention import attend_causally, visibility
from ghost_jax.model.dense import KEPT

if TYPE_CHECKING:
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import SplashAttentionKernel

NATIVE = {"cpu": "blocks", "cuda": "cudnn", "tpu": "splash"}  # platform -> what `auto` means there
MASKS = ("causal", "segments", "branches")  # what limits attention beside causality
LANES = 128  # of a TPU's vector register: splash takes sequences of a multiple of it
SPLASH_BLOCKS = (512, 384, 256, LANES)  # queries, and keys, of a tile: the largest that divides the sequence is used
CUDNN_HEAD_WIDTH = 128  # the largest on every GPU that the kernel runs on
CUDNN_CAPABILITY = 8.0  # the least compute capability, Ampere's
HEADS_AXIS = "tensor"  # of the mesh: splits heads, see ghost_jax/parallel/sharding_rules.py


@dataclasses.dataclass(frozen=True)
class Choice:
    """The attention that a run uses.

    Attributes:
      name: "blocks", "cudnn" or "splash".
      fallback: why it is not the platform's own kernel; empty where it is.
    """

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
    """Returns which attention a run uses. `auto` is the platform's kernel, or `blocks` where that cannot be used.

    Args:
      asked: the config's `model.attention`: "auto", "blocks", "cudnn" or "splash".
      platform: see `platform_of`.
      dtype: compute type of the model.
      head_width: K.
      mask: one of `MASKS`: "segments" for packed rows, "branches" where options of a question share its prompt.
      length: T of the rows that are trained on.

    Raises UsageError for a kernel that was asked for by name and cannot be used.
    """
    name = NATIVE.get(platform, "blocks") if asked == "auto" else asked
    obstacle = _obstacle(name, platform, dtype, head_width, mask, length)
    if not obstacle:
        native = NATIVE.get(platform)
        return Choice(name, "" if asked != "auto" or native else f"there is no kernel for {platform}")
    if asked == "auto":
        return Choice("blocks", f"{name} {obstacle}")
    raise UsageError(
        f"model.attention is {asked}, which {obstacle}. Use --config.model.attention=auto, which takes the kernel of "
        "the platform where it can be used and blocks elsewhere."
    )


def _obstacle(name: str, platform: str, dtype: str, head_width: int, mask: str, length: int) -> str:
    """Returns why an attention cannot be used, as the end of a sentence that begins with its name; "" if it can."""
    if name == "cudnn":
        if platform != "cuda":
            return f"needs an NVIDIA GPU of compute capability {CUDNN_CAPABILITY} or later; this platform is {platform}"
        if dtype != "bfloat16":
            return f"computes in bfloat16; model.dtype is {dtype}"
        if head_width % 8 or head_width > CUDNN_HEAD_WIDTH:
            return f"needs heads of a multiple of 8, at most {CUDNN_HEAD_WIDTH} wide; they are {head_width} wide"
        if mask != "causal" and length % 2:
            return f"needs an even number of tokens a row with a mask; data.seq_len is {length}"
    if name == "splash":
        if platform != "tpu":
            return f"needs a TPU; this platform is {platform}"
        if mask == "branches":
            return "compares segment ids for equality, and ranked options see a prompt that they share"
        if length % LANES:
            return f"needs a multiple of {LANES} tokens a row; data.seq_len is {length}"
    return ""


def mask_for(
    name: str, segments: jax.Array | None, branches: jax.Array | None, at: jax.Array | None
) -> jax.Array | None:
    """Returns the mask that `attend_whole` takes: segment ids [B, T] for splash, else `visibility` [B, 1, T, T].

    Splash lets a token see equal segment ids, `visibility` segment 0 besides. In packed training rows both are the
    same: segment 0 is padding and stands last (`ghost_jax.data.packing.fill`), so causality hides it from all others.

    Raises ValueError for splash with branches or with places `at`, as `Transformer.hidden` takes them: in rows that are
    scored, prompts share segment 0. `choose` gives splash to no run with branches; `step.make_predict` uses blocks.
    """
    if name != "splash":
        return visibility(segments, branches)
    if branches is not None or at is not None:
        raise ValueError("splash attention takes neither branches nor `at`: use a model whose attention is blocks")
    return segments


def attend_whole(
    name: str, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, rows: NamedSharding | None
) -> jax.Array:
    """Returns the causal attention [B, T, H, K] of q [B, T, H, K] to k and v [B, T, G, K] by a kernel of this name.

    Any other name than "cudnn" and "splash" is "blocks".

    Args:
      mask: of `mask_for`; None where all see all that came before.
      rows: the sharding of the batch. The compiler cannot split a kernel over devices, so each device calls it for its
        own rows and heads. None on one device.
    """
    if name not in KERNELS:
        return attend_causally(q, k, v, mask)
    kernel = KERNELS[name]
    if rows is None:
        return kernel(q, k, v, mask)
    by_head = P(*rows.spec, None, HEADS_AXIS)
    each = jax.shard_map(
        kernel, mesh=rows.mesh, in_specs=(by_head, by_head, by_head, rows.spec), out_specs=by_head, check_vma=False
    )
    return each(q, k, v, mask)


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array | None) -> jax.Array:
    """Returns what `attend_causally` does, by cuDNN's kernel. Untested and unmeasured: no GPU was there."""
    return jax.nn.dot_product_attention(q, k, v, mask=visible, is_causal=True, implementation="cudnn")


def splash(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None, interpret: bool = False) -> jax.Array:
    """Returns what `attend_causally` does where a token sees the tokens of its own segment, by the kernel for TPUs.

    Args:
      segments: [B, T] int32; None for one segment.
      interpret: computes the kernel's steps one by one on any platform; for tests.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import SegmentIds

    q = q * (1 / math.sqrt(q.shape[-1]))  # the kernel does not scale; a power of two in bfloat16 for most head widths
    ids = None if segments is None else SegmentIds(segments, segments)
    kernel = _splash_kernel(q.shape[2], q.shape[1], interpret)
    return jax.vmap(kernel)(*(each.swapaxes(1, 2) for each in (q, k, v)), ids).swapaxes(1, 2)


def _splash_kernel(heads: int, length: int, interpret: bool) -> "SplashAttentionKernel":
    # Not imported above: Pallas takes a second to import, and no other platform needs it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    block = next(size for size in SPLASH_BLOCKS if length % size == 0)
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    sizes = kernels.BlockSizes(**dict.fromkeys(names, block), use_fused_bwd_kernel=True)
    return kernels.make_splash_mha_single_device(
        masks.MultiHeadMask([masks.CausalMask((length, length))] * heads),
        block_sizes=sizes,
        residual_checkpoint_name=KEPT,  # what the backward pass keeps, so that it computes nothing twice
        interpret=interpret,
    )


KERNELS = {"cudnn": cudnn, "splash": splash}
