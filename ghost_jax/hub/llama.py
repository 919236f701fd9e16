"""The v0.5 model in the format of Hugging Face's Llama: the same architecture under other names and shapes.

Both rotate the halves of a head, and in both neighbouring heads share keys. Their linear layers are [out, in]; ours are
[in, ..., out] with an axis for heads.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ghost_jax.config.keys import DOMAINS
from ghost_jax.core.errors import UserError
from ghost_jax.model import transformer
from ghost_jax.model.config import ModelConfig

ARCHITECTURE = "LlamaForCausalLM"
QWEN = "qwen2"
HEAD = "lm_head.weight"
# Fields of our model and their names there; those that Llama has a default for.
FIELDS = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "mlp_dim": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "context": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "attention_bias": "attention_bias",
    "tied": "tie_word_embeddings",
}
DEFAULTS = {"norm_eps": 1e-6, "attention_bias": False, "tied": False}
STRETCHED = "llama3"  # the scaling of rotary positions that our model has
STRETCH = {
    "rope_factor": "factor",
    "rope_context": "original_max_position_embeddings",
    "rope_low": "low_freq_factor",
    "rope_high": "high_freq_factor",
}
# Fields that change what is computed, each with the one value that our model computes; None where only absence does.
NEUTRAL = {
    "architectures": [ARCHITECTURE],
    "hidden_act": "silu",
    **dict.fromkeys(("mlp_bias", "rope_interleaved", "use_parallel_residual"), False),
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "logit_scale", "logits_scaling"), 1),
    "partial_rotary_factor": 1,
    **dict.fromkeys(("attention_chunk_size", "attention_multiplier", "attn_logit_softcapping", "clip_qkv"), None),
    **dict.fromkeys(("final_logit_softcapping", "layer_types", "no_rope_layers", "sliding_window"), None),
    **dict.fromkeys(("quantization_config", "auto_map"), None),  # auto_map: the checkpoint's own code
}


def config_of(model: ModelConfig) -> dict:
    """Returns the `config.json` of a v0.5 model, without the ids of its special tokens."""
    stretch = {key: getattr(model, field) for field, key in STRETCH.items()}
    scaling = {} if model.rope_factor == 1 else {"rope_scaling": {"rope_type": STRETCHED, **stretch}}
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "llama",
        **{key: getattr(model, field) for field, key in FIELDS.items()},
        "num_key_value_heads": model.cached_heads,
        "head_dim": model.head_width,
        "hidden_act": "silu",
        "rope_theta": model.rope_base,
        **scaling,
        "mlp_bias": False,
    }


def model_of(config: Any) -> ModelConfig:
    """Returns the shape of the model that a `config.json` describes.

    Raises UserError for what our model cannot compute, and for values that are invalid.
    """
    config = _object(config, "config.json")
    if config.get("model_type") == QWEN:
        config = _of_qwen(config)
    elif config.get("model_type") != "llama":
        raise UserError(
            f"The checkpoint's config.json has model_type {config.get('model_type')}. Only llama and {QWEN} can be "
            "imported."
        )
    ropes = [_object(config[key], key) for key in ("rope_parameters", "rope_scaling") if key in config]
    rope = ropes[0] if ropes else {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    unsupported = [
        f"{key} {json.dumps(part[key])}"
        for part in (config, rope)
        for key, neutral in NEUTRAL.items()
        if part.get(key, neutral) != neutral
    ]
    if kind not in ("default", STRETCHED):
        unsupported.append(f"rope_type {json.dumps(kind)}")
    if ropes[1:] and ropes[1] != rope:
        unsupported.append("rope_scaling unlike its rope_parameters")
    if unsupported:
        raise UserError(
            f"The checkpoint's config.json has {', '.join(unsupported)}, which our model does not compute. Import "
            "another checkpoint."
        )
    found = {field: _value(config, key, field, DEFAULTS.get(field)) for field, key in FIELDS.items()}
    heads, width = found["heads"], found["width"]
    shared = _value(config, "num_key_value_heads", "kv_heads", heads)
    head = _value(config, "head_dim", "head_dim", width // heads)
    base = _value(config, "rope_theta", "rope_base", 10_000.0)
    if kind == STRETCHED:
        found |= {field: _value(rope, key, field) for field, key in STRETCH.items()}
    model = ModelConfig(
        **found,
        kv_heads=0 if shared == heads else shared,
        head_dim=0 if head * heads == width else head,
        rope_base=float(_value(rope, "rope_theta", "rope_base", base)),
    )
    if 0 in (shared, head) or heads % shared or head % 2 or model.rope_low >= model.rope_high:
        raise UserError(
            f"The checkpoint's config.json has an impossible shape: num_attention_heads {heads} must be a multiple of "
            f"num_key_value_heads {shared}, head_dim {head} even and above 0, low_freq_factor {model.rope_low} below "
            f"high_freq_factor {model.rope_high}. Fetch the checkpoint again."
        )
    return model


def _of_qwen(config: Mapping) -> dict:
    """Returns the config of the Llama that computes what a Qwen 2 does: its QKV has a bias, and its output has none."""
    windows = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")
    types = config.get("layer_types", [])
    full = not config.get("use_sliding_window") and isinstance(types, list) and types == ["full_attention"] * len(types)
    kept = {key: value for key, value in config.items() if not (full and key in windows)}
    return kept | {"architectures": [ARCHITECTURE], "attention_bias": True}


def _object(found: Any, where: str) -> dict:
    """Returns a JSON object without its nulls, which stand for absent fields."""
    if not isinstance(found, Mapping):
        raise UserError(f"The checkpoint's {where} is not a JSON object. Fetch the checkpoint again.")
    return {key: value for key, value in found.items() if value is not None}


def _value(config: Mapping, key: str, field: str, default: float | None = None) -> Any:
    """Returns the value of a field of our model. Raises UserError where it is invalid, or required and absent."""
    value, domain = config.get(key, default), DOMAINS[f"model.{field}"]
    if not domain.holds(value):
        raise UserError(
            f"By {key} in the checkpoint's config.json, {field} is {json.dumps(value)}; our model has {domain}. Import "
            "another checkpoint, or fetch this one again."
        )
    return value


def tensors_of(params: Mapping, model: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Yields name and values of each tensor of Llama; views of `params` where these are NumPy arrays.

    `params` are those of a model without `scan`.
    """
    yield "model.embed_tokens.weight", np.asarray(params["embedding"])[: model.vocab_size]
    for i in range(model.layers):
        for name, values in _layer(params[f"block_{i}"], model):
            yield f"model.layers.{i}.{name}", values
    yield "model.norm.weight", np.asarray(params["final_norm"]["scale"])
    if not model.tied:
        yield HEAD, np.asarray(params["unembedding"])[: model.vocab_size]


def _layer(block: Mapping, model: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    attention = block["attention"]
    for kind, suffix in (("kernel", "weight"), ("bias", "bias"))[: 1 + model.attention_bias]:
        if "q" in attention:
            parts = [np.asarray(attention["q"][kind]), *np.moveaxis(np.asarray(attention["kv"][kind]), -3, 0)]
        else:
            parts = np.moveaxis(np.asarray(attention["qkv"][kind]), -3, 0)
        for letter, part in zip("qkv", parts, strict=True):  # [D, heads, K] or [heads, K]
            yield f"self_attn.{letter}_proj.{suffix}", part.reshape(*part.shape[:-2], -1).T
        out = np.asarray(attention["out"][kind])
        yield f"self_attn.o_proj.{suffix}", out.reshape(-1, model.width).T if kind == "kernel" else out
    for name in ("gate", "up", "down"):
        yield f"mlp.{name}_proj.weight", np.asarray(block["feed_forward"][name]["kernel"]).T
    yield "input_layernorm.weight", np.asarray(block["attention_norm"]["scale"])
    yield "post_attention_layernorm.weight", np.asarray(block["feed_forward_norm"]["scale"])


def params_of(
    read: Callable[[str, tuple[int, ...]], np.ndarray], model: ModelConfig, *, output_bias: bool = True
) -> dict:
    """Returns our float32 parameters of a Llama; `read` returns the values of a tensor by name and shape.

    Without `output_bias` the bias at the output of attention is 0, as in Qwen 2, which has none.
    """
    shapes = jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    for name, values in tensors_of(params, model):
        if output_bias or not name.endswith("o_proj.bias"):
            values[...] = read(name, values.shape)
    return params
