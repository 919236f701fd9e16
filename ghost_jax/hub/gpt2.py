"""The v0.4 model in the format of Hugging Face's GPT-2, whose linear layers are [in, out] as ours are."""

from collections.abc import Iterator, Mapping

import numpy as np

from ghost_jax.model.config import ModelConfig

ARCHITECTURE = "GPT2LMHeadModel"
# Our names and theirs, within a layer.
NORMS = {"attention_norm": "ln_1", "feed_forward_norm": "ln_2"}
LINEAR = {
    ("attention", "qkv"): "attn.c_attn",
    ("attention", "out"): "attn.c_proj",
    ("feed_forward", "up"): "mlp.c_fc",
    ("feed_forward", "down"): "mlp.c_proj",
}


def config_of(model: ModelConfig) -> dict:
    """Returns the `config.json` of a v0.4 model, without the ids of its special tokens."""
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "gpt2",
        "vocab_size": model.vocab_size,
        "n_embd": model.width,
        "n_inner": model.mlp_dim,
        "n_layer": model.layers,
        "n_head": model.heads,
        "n_positions": model.context,
        "activation_function": "gelu_new",  # GELU by its tanh approximation
        "layer_norm_epsilon": model.norm_eps,
        "tie_word_embeddings": True,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


def tensors_of(params: Mapping, model: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Yields name and values of each tensor of GPT-2; `params` are those of a model without `scan`."""
    yield "transformer.wte.weight", np.asarray(params["embedding"])[: model.vocab_size]
    yield "transformer.wpe.weight", np.asarray(params["position_embedding"])
    for i in range(model.layers):
        block, prefix = params[f"block_{i}"], f"transformer.h.{i}"
        for ours, theirs in NORMS.items():
            yield from _norm(f"{prefix}.{theirs}", block[ours])
        for (group, ours), theirs in LINEAR.items():
            kernel, bias = np.asarray(block[group][ours]["kernel"]), np.asarray(block[group][ours]["bias"])
            yield f"{prefix}.{theirs}.weight", kernel.reshape(-1, bias.size)
            yield f"{prefix}.{theirs}.bias", bias.ravel()
    yield from _norm("transformer.ln_f", params["final_norm"])


def _norm(name: str, norm: Mapping) -> Iterator[tuple[str, np.ndarray]]:
    yield f"{name}.weight", np.asarray(norm["scale"])
    yield f"{name}.bias", np.asarray(norm["bias"])
