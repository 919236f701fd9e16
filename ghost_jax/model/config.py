"""Named model sizes and the exact number of parameters of each."""

import dataclasses

ROW_MULTIPLE = 128  # embedding rows are padded to this, so that any mesh divides them and the MXU tiles are full


@dataclasses.dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a transformer; hashable, so that it can be a static argument."""

    layers: int
    # width, mlp_dim: residual width D, feed-forward width F
    width: int
    heads: int
    mlp_dim: int
    vocab_size: int  # real vocabulary V; the embedding has `padded_vocab` rows
    context: int = 1024  # longest sequence in tokens; with learned positions also the number of position rows
    generation: str = "v05"  # "v05" (RoPE, RMSNorm, SwiGLU) or "v04" (learned positions, LayerNorm, GELU)
    attention_bias: bool = True  # whether the QKV and output projections have a bias
    dropout: float = 0.0  # rate in training, applied to the embedding and each residual branch
    dtype: str = "float32"  # compute type, "float32" or "bfloat16"; parameters are float32 always
    remat: bool = False  # whether the backward pass computes all of a block again, rather than only what is cheap
    # whether training loops over the stacked parameters of blocks, which compiles faster and holds the recomputed
    # values of one block. Readers of a checkpoint get the blocks unstacked.
    scan: bool = False
    # heads of keys and values, each shared by heads / kv_heads queries (Ainslie et al. 2023); 0: one a query.
    kv_heads: int = 0
    head_dim: int = 0  # width K of a head; 0: width / heads
    rope_base: float = 10_000.0  # wavelengths of rotary positions reach 2 pi times this
    # how much longer the long wavelengths become, as in Llama 3.1. A wave is long if it turns less than `rope_low`
    # times in `rope_context` tokens, and unchanged if it turns more than `rope_high` times.
    rope_factor: float = 1.0
    rope_context: int = 8192
    rope_low: float = 1.0
    rope_high: float = 4.0
    norm_eps: float = 1e-6
    tied: bool = True  # whether the head shares the embedding's table
    attention: str = "blocks"  # kernel for full sequences, a name of `ghost_jax.model.attention_kernels`

    @property
    def head_width(self) -> int:
        return self.head_dim or self.width // self.heads

    @property
    def cached_heads(self) -> int:
        """Heads of keys and values, which a cache holds."""
        return self.kv_heads or self.heads

    @property
    def padded_vocab(self) -> int:
        return -(-self.vocab_size // ROW_MULTIPLE) * ROW_MULTIPLE

    def parameters(self) -> int:
        """Returns the number of parameters without the padding rows."""
        v04 = self.generation == "v04"
        norm = (1 + v04) * self.width
        queries, keys = self.heads * self.head_width, self.cached_heads * self.head_width
        attention = self.width * 2 * (queries + keys)
        if v04 or self.attention_bias:
            attention += queries + 2 * keys + self.width
        feed_forward = (
            2 * self.width * self.mlp_dim + self.mlp_dim + self.width if v04 else 3 * self.width * self.mlp_dim
        )
        tables = (1 if self.tied else 2) * self.vocab_size * self.width + v04 * self.context * self.width
        return tables + self.layers * (attention + feed_forward + 2 * norm) + norm

    def flops_per_token(self, length: int) -> int:
        """Returns the floating-point operations of a training step (forward and backward) a token, with attention."""
        looked_up = (0 if self.tied else self.vocab_size) + (self.context if self.generation == "v04" else 0)
        matrices = self.parameters() - looked_up * self.width
        return 6 * matrices + 12 * self.layers * self.heads * self.head_width * length

    def record(self) -> dict:
        """Returns the fields as runs record them, those of `LATER` only where they differ from their default.

        A record from before those fields existed thus equals one of the same model from today.
        """
        fields = [(field.name, getattr(self, field.name), field.default) for field in dataclasses.fields(self)]
        return {name: value for name, value, default in fields if name not in LATER or value != default}


# Fields that only imported models set, and the one that a run sets for its devices.
LATER = (
    *("attention", "kv_heads", "head_dim", "norm_eps", "tied"),
    *("rope_base", "rope_factor", "rope_context", "rope_low", "rope_high"),
)

SIZES = {
    "nano": ModelConfig(4, 128, 4, 352, 4096, scan=True),
    "mini": ModelConfig(6, 256, 4, 704, 8192, scan=True),
    "small36m": ModelConfig(6, 512, 8, 1408, 32000, scan=True),
    "base350m": ModelConfig(24, 1024, 16, 2816, 32000, attention_bias=False, scan=True),
    "v04": ModelConfig(6, 512, 8, 2048, 50264, generation="v04", scan=True),
}
