"""The peer of our base in PyTorch: the same architecture with PyTorch's own fused attention, norms and optimizer."""

import torch
import torch.nn.functional as F
from torch import nn

# Our module of a block -> those of a Llama's layer that it holds, one above the other
LAYER = {
    "attention_norm": ("input_layernorm",),
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "feed_forward_norm": ("post_attention_layernorm",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


class Block(nn.Module):
    """One pre-norm layer over x [B, T, D]: attention with rotary positions, SwiGLU."""

    def __init__(self, shape: dict):
        super().__init__()
        width, mlp_dim, bias = shape["width"], shape["mlp_dim"], shape["attention_bias"]
        self.heads = shape["heads"]
        self.attention_norm = nn.RMSNorm(width, eps=shape["norm_eps"])
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.feed_forward_norm = nn.RMSNorm(width, eps=shape["norm_eps"])
        self.gate_up = nn.Linear(width, 2 * mlp_dim, bias=False)
        self.down = nn.Linear(mlp_dim, width, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        rows, length, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(rows, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, H, T, K]
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(rows, length, width))
        gate, up = self.gate_up(self.feed_forward_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Returns x [B, H, T, K] turned by the angles whose cosines and sines are [T, K/2]."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1).to(x.dtype)


class Model(nn.Module):
    """Tokens [B, T] and the next ones [B, T] in, their mean cross-entropy out; the head is the embedding."""

    def __init__(self, shape: dict, length: int):
        super().__init__()
        self.embedding = nn.Embedding(shape["vocab_size"], shape["width"])
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape["layers"]))
        self.final_norm = nn.RMSNorm(shape["width"], eps=shape["norm_eps"])
        half = shape["width"] // shape["heads"] // 2
        frequency = shape["rope_base"] ** (-torch.arange(half, dtype=torch.float32) / half)
        angle = torch.arange(length, dtype=torch.float32)[:, None] * frequency
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = F.linear(self.final_norm(x), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def load(model: Model, llama: dict[str, torch.Tensor]) -> None:
    """Puts the weights of a Llama into the model."""
    own = {"embedding.weight": llama["model.embed_tokens.weight"], "final_norm.weight": llama["model.norm.weight"]}
    for name in model.state_dict():
        if name.startswith("blocks."):
            _, number, module, kind = name.split(".")
            own[name] = torch.cat([llama[f"model.layers.{number}.{part}.{kind}"] for part in LAYER[module]])
    model.load_state_dict(own)
