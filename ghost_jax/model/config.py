"""The named model sizes, and the exact number of parameters of each."""

import dataclasses

ROW_MULTIPLE = 128  # embedding rows are padded to this, so that any mesh divides them and the MXU tiles are full


@dataclasses.dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a transformer; hashable, so that it can be a static argument.

    Attributes:
      layers, width, heads, mlp_dim: depth, residual width D, attention heads H, feed-forward width F.
      vocab_size: real vocabulary V; the embedding has `padded_vocab` rows.
      context: longest sequence in tokens; with learned positions also the number of position rows.
      generation: "v05" (RoPE, RMSNorm, SwiGLU) or "v04" (learned positions, LayerNorm, GELU).
      attention_bias: whether the QKV and output projections have a bias.
      dropout: rate in training, applied to the embedding and each residual branch.
      dtype: compute type, "float32" or "bfloat16"; parameters are float32 always.
      remat: whether the backward pass computes all of a block again, rather than only what is cheap.
      attention: how whole sequences attend, a name of `ghost_jax.model.attention_kernels`; "auto", which that module's
        `choose` resolves for a run, is computed as "blocks". It is no part of a checkpoint's identity.
      scan: whether training goes through the blocks in a loop over stacked parameters: a deep model compiles as fast as
        a shallow one, and of what a block can compute again only one block's is held. Who reads a model has them apart.
      kv_heads: heads of keys and values, each shared by heads / kv_heads queries (Ainslie et al. 2023); 0: one a query.
      head_dim: width K of a head; 0: width / heads.
      rope_base: wavelengths of rotary positions reach up to 2 pi times this.
      rope_factor: how much longer the long ones then are made, as Llama 3.1 and later have it; 1: none is.
      rope_context, rope_low, rope_high: a wave is long if it turns less than `rope_low` times in `rope_context` tokens,
        and stays as it is if more than `rope_high` times.
      norm_eps: what norms add to a variance.
      tied: whether the head is the embedding; else it has a table of its own.
    """

    layers: int
    width: int
    heads: int
    mlp_dim: int
    vocab_size: int
    context: int = 1024
    generation: str = "v05"
    attention_bias: bool = True
    dropout: float = 0.0
    dtype: str = "float32"
    remat: bool = False
    scan: bool = False
    kv_heads: int = 0
    head_dim: int = 0
    rope_base: float = 10_000.0
    rope_factor: float = 1.0
    rope_context: int = 8192
    rope_low: float = 1.0
    rope_high: float = 4.0
    norm_eps: float = 1e-6
    tied: bool = True
    attention: str = "blocks"

    @property
    def head_width(self) -> int:
        return self.head_dim or self.width // self.heads

    @property
    def cached_heads(self) -> int:
        """Heads of keys and values, which are what a cache keeps."""
        return self.kv_heads or self.heads

    @property
    def padded_vocab(self) -> int:
        return -(-self.vocab_size // ROW_MULTIPLE) * ROW_MULTIPLE

    def parameters(self) -> int:
        """Parameters without the padding rows, by arithmetic; a test holds it to the built model."""
        norms, bias = (2, 1) if self.generation == "v04" else (1, int(self.attention_bias))
        queries, keys = self.heads * self.head_width, self.cached_heads * self.head_width
        attention = self.width * 2 * (queries + keys) + bias * (queries + 2 * keys + self.width)
        if self.generation == "v04":
            feed_forward = 2 * self.width * self.mlp_dim + self.mlp_dim + self.width
        else:
            feed_forward = 3 * self.width * self.mlp_dim
        block = attention + feed_forward + 2 * norms * self.width
        positions = self.context * self.width if self.generation == "v04" else 0
        tables = (1 if self.tied else 2) * self.vocab_size * self.width
        return tables + positions + self.layers * block + norms * self.width

    def flops_per_token(self, length: int) -> int:
        """Floating-point operations of one training step a token (forward and backward), attention included."""
        looked_up = (0 if self.tied else self.vocab_size) + (self.context if self.generation == "v04" else 0)
        matrices = self.parameters() - looked_up * self.width
        return 6 * matrices + 12 * self.layers * self.heads * self.head_width * length

    def record(self) -> dict:
        """Returns the fields as runs keep them, the later ones only where they differ from their default.

        A record from before those existed thus equals one of the same model from today.
        """
        fields = [(field.name, getattr(self, field.name), field.default) for field in dataclasses.fields(self)]
        return {name: value for name, value, default in fields if name not in LATER or value != default}


# What only models made elsewhere set, and what a run sets for its devices.
LATER = (
    "attention",
    *("kv_heads", "head_dim", "norm_eps", "tied"),
    *("rope_base", "rope_factor", "rope_context", "rope_low", "rope_high"),
)


SIZES = {
    "nano": ModelConfig(layers=4, width=128, heads=4, mlp_dim=352, vocab_size=4096, context=1024, scan=True),
    "mini": ModelConfig(layers=6, width=256, heads=4, mlp_dim=704, vocab_size=8192, scan=True),
    "small36m": ModelConfig(layers=6, width=512, heads=8, mlp_dim=1408, vocab_size=32000, scan=True),
    "base350m": ModelConfig(
        layers=24, width=1024, heads=16, mlp_dim=2816, vocab_size=32000, attention_bias=False, scan=True
    ),
    "v04": ModelConfig(layers=6, width=512, heads=8, mlp_dim=2048, vocab_size=50264, generation="v04", scan=True),
}
