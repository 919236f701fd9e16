"""Our v0.5 model and Hugging Face's Llama: one architecture under two sets of names.

Both rotate the halves of a head, and in both neighbouring heads share keys, so that only names and shapes change, and
not one value. Their linear layers are [out, in]; ours are [in, …, out] with an axis for heads.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ghost_jax.core.errors import UserError
from ghost_jax.model.config import ModelConfig

ARCHITECTURE = "LlamaForCausalLM"
HEAD = "lm_head.weight"
MOST = 2**31 - 1  # of what programs count in int32
COUNT, NUMBER, FLAG = f"a whole number from 1 to {MOST:,}", "a number above 0", "true or false"
KINDS: dict[str, Callable[[Any], bool]] = {
    COUNT: lambda value: type(value) is int and 1 <= value <= MOST,
    NUMBER: lambda value: type(value) in (int, float) and 0 < value <= sys.float_info.max,
    FLAG: lambda value: type(value) is bool,
}
STRETCHED = "llama3"  # the scaling of rotary positions that our model has: its fields, and their names and kinds there
STRETCH = {
    "rope_factor": ("factor", NUMBER),
    "rope_context": ("original_max_position_embeddings", COUNT),
    "rope_low": ("low_freq_factor", NUMBER),
    "rope_high": ("high_freq_factor", NUMBER),
}
# Fields that change what is computed, each with the one value that our model computes; None where there is none.
# pretraining_tp is no such field: it splits products and leaves their values.
NEUTRAL = {
    "architectures": [ARCHITECTURE],
    "attention_chunk_size": None,
    "attention_multiplier": None,
    "attn_logit_softcapping": None,
    "auto_map": None,  # code of the checkpoint's own
    "clip_qkv": None,
    "embedding_multiplier": 1,
    "final_logit_softcapping": None,
    "hidden_act": "silu",
    "layer_types": None,
    "logit_scale": 1,
    "logits_scaling": 1,
    "mlp_bias": False,
    "no_rope_layers": None,
    "partial_rotary_factor": 1,
    "quantization_config": None,
    "residual_multiplier": 1,
    "rope_interleaved": False,
    "sliding_window": None,
    "use_parallel_residual": False,
}
Read = Callable[[str, tuple[int, ...]], np.ndarray]  # name and shape of a tensor to its values, float32


def config_of(model: ModelConfig) -> dict:
    """Returns the `config.json` of a v0.5 model, without the ids of its special tokens."""
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "llama",
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "intermediate_size": model.mlp_dim,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.cached_heads,
        "head_dim": model.head_width,
        "max_position_embeddings": model.context,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_base,
        **_rope_scaling_of(model),
        "attention_bias": model.attention_bias,
        "mlp_bias": False,
        "tie_word_embeddings": model.tied,
    }


def _rope_scaling_of(model: ModelConfig) -> dict:
    if model.rope_factor == 1:
        return {}
    scaling = {key: getattr(model, field) for field, (key, _) in STRETCH.items()}
    return {"rope_scaling": {"rope_type": STRETCHED, **scaling}}


def model_of(config: Mapping) -> ModelConfig:
    """Returns the shape of the model that a `config.json` describes.

    Raises UserError for another architecture, for what a Llama may have and our model has not, and for what means
    nothing.
    """
    _check_object(config, "config.json")
    config = _without_nulls(config)
    if config.get("model_type") != "llama":
        raise UserError(
            f"The checkpoint is a {config.get('model_type')} model, and only the Llama architecture can be imported "
            '(model_type "llama" in its config.json).'
        )
    ropes = [config[key] for key in ("rope_parameters", "rope_scaling") if key in config]
    for rope in ropes:
        _check_object(rope, "rope_scaling in config.json")
    rope = ropes[0] if ropes else {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    lacking = [
        f"{key} {json.dumps(part[key])}"
        for part in (config, rope)
        for key, neutral in NEUTRAL.items()
        if part.get(key, neutral) != neutral
    ]
    if kind not in ("default", STRETCHED):
        lacking.append(f"rotary positions scaled by {kind}")
    if ropes[1:] and ropes[1] != rope:
        lacking.append("rope_scaling unlike its rope_parameters")
    if lacking:
        raise UserError(
            f"The checkpoint's config.json has {', '.join(lacking)}, which our model has not. Import another one."
        )
    width, heads = _value(config, "hidden_size", COUNT), _value(config, "num_attention_heads", COUNT)
    shared = _value(config, "num_key_value_heads", COUNT, heads)
    head = _value(config, "head_dim", COUNT, width // heads)
    stretch = {field: _value(rope, *of_file) for field, of_file in STRETCH.items()} if kind == STRETCHED else {}
    model = ModelConfig(
        layers=_value(config, "num_hidden_layers", COUNT),
        width=width,
        heads=heads,
        mlp_dim=_value(config, "intermediate_size", COUNT),
        vocab_size=_value(config, "vocab_size", COUNT),
        context=_value(config, "max_position_embeddings", COUNT),
        attention_bias=_value(config, "attention_bias", FLAG, False),
        kv_heads=0 if shared == heads else shared,
        head_dim=0 if head * heads == width else head,
        rope_base=float(_value(rope, "rope_theta", NUMBER, _value(config, "rope_theta", NUMBER, 10_000.0))),
        norm_eps=_value(config, "rms_norm_eps", NUMBER, 1e-6),
        tied=_value(config, "tie_word_embeddings", FLAG, False),
        **stretch,
    )
    if heads % shared or head % 2:
        raise UserError(
            f"The checkpoint's config.json names {heads} heads of width {head} over {shared} of keys, which no model "
            "can have: the first must be a multiple of the last, and the width even. Fetch the checkpoint again."
        )
    if model.rope_low >= model.rope_high:
        raise UserError(
            f"The checkpoint's config.json has low_freq_factor {model.rope_low} and high_freq_factor {model.rope_high} "
            "in its rope_scaling; the first must be below the second. Fetch the checkpoint again."
        )
    return model


def _without_nulls(value: Any) -> Any:
    """Returns a JSON value without the keys that are null: a null in an optional field stands for its absence."""
    if not isinstance(value, Mapping):
        return value
    return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}


def _check_object(found: object, where: str) -> None:
    if not isinstance(found, Mapping):
        raise UserError(f"The checkpoint's {where} is no JSON object. Fetch the checkpoint again.")


def _value(config: Mapping, key: str, kind: str, default: float | None = None) -> Any:
    """Returns a value of a `config.json`, the default where it is absent.

    Raises UserError where it must be there and is not, and where it is of another kind.
    """
    value = config.get(key, default)
    if value is None:
        raise UserError(f"The checkpoint's config.json lacks {key!r}. Fetch the checkpoint again.")
    if not KINDS[kind](value):
        raise UserError(
            f"The checkpoint's config.json has {json.dumps(value)} as {key}, which must be {kind}. Fetch the "
            "checkpoint again."
        )
    return value


def tensors_of(params: Mapping, model: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Yields name and values of each tensor of Llama's; `params` are those of a model without `scan`."""
    yield "model.embed_tokens.weight", np.asarray(params["embedding"])[: model.vocab_size]
    for i in range(model.layers):
        block = params[f"block_{i}"]
        for name, values in _layer(block, model):
            yield f"model.layers.{i}.{name}", values
    yield "model.norm.weight", np.asarray(params["final_norm"]["scale"])
    if not model.tied:
        yield HEAD, np.asarray(params["unembedding"])[: model.vocab_size]


def _layer(block: Mapping, model: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    attention, feed_forward = block["attention"], block["feed_forward"]
    for kind in ("kernel", "bias") if model.attention_bias else ("kernel",):
        suffix = "weight" if kind == "kernel" else "bias"
        if model.kv_heads:
            parts = [np.asarray(attention["q"][kind]), *np.moveaxis(np.asarray(attention["kv"][kind]), -3, 0)]
        else:
            parts = np.moveaxis(np.asarray(attention["qkv"][kind]), -3, 0)
        for letter, part in zip("qkv", parts, strict=True):  # [D, heads, K] or [heads, K]
            yield f"self_attn.{letter}_proj.{suffix}", part.reshape(*part.shape[:-2], -1).T
        out = np.asarray(attention["out"][kind])
        yield f"self_attn.o_proj.{suffix}", out.reshape(-1, model.width).T if kind == "kernel" else out
    for name in ("gate", "up", "down"):
        yield f"mlp.{name}_proj.weight", np.asarray(feed_forward[name]["kernel"]).T
    yield "input_layernorm.weight", np.asarray(block["attention_norm"]["scale"])
    yield "post_attention_layernorm.weight", np.asarray(block["feed_forward_norm"]["scale"])


def params_of(read: Read, model: ModelConfig) -> dict:
    """Returns our parameters of a Llama, the padding rows zero; the inverse of `tensors_of`."""

    def table(name: str) -> np.ndarray:
        rows = read(name, (model.vocab_size, model.width))
        return np.pad(rows, ((0, model.padded_vocab - model.vocab_size), (0, 0)))

    params = {"embedding": table("model.embed_tokens.weight")}
    for i in range(model.layers):
        params[f"block_{i}"] = _block(lambda name, shape, i=i: read(f"model.layers.{i}.{name}", shape), model)
    params["final_norm"] = {"scale": read("model.norm.weight", (model.width,))}
    return params if model.tied else {**params, "unembedding": table(HEAD)}


def _block(read: Read, model: ModelConfig) -> dict:
    width, mlp_dim, head = model.width, model.mlp_dim, model.head_width

    def projection(letter: str, heads: int) -> dict[str, np.ndarray]:
        found = {"kernel": read(f"self_attn.{letter}_proj.weight", (heads * head, width)).T.reshape(width, heads, head)}
        if model.attention_bias:
            found["bias"] = read(f"self_attn.{letter}_proj.bias", (heads * head,)).reshape(heads, head)
        return found

    def joined(*parts: dict) -> dict:
        return {kind: np.stack([part[kind] for part in parts], axis=-3) for kind in parts[0]}

    q, k, v = projection("q", model.heads), projection("k", model.cached_heads), projection("v", model.cached_heads)
    out = read("self_attn.o_proj.weight", (width, model.heads * head)).T.reshape(model.heads, head, width)
    attention = {"q": q, "kv": joined(k, v)} if model.kv_heads else {"qkv": joined(q, k, v)}
    attention["out"] = {"kernel": out}
    if model.attention_bias:
        attention["out"]["bias"] = read("self_attn.o_proj.bias", (width,))
    return {
        "attention": attention,
        "attention_norm": {"scale": read("input_layernorm.weight", (width,))},
        "feed_forward": {
            "gate": {"kernel": read("mlp.gate_proj.weight", (mlp_dim, width)).T},
            "up": {"kernel": read("mlp.up_proj.weight", (mlp_dim, width)).T},
            "down": {"kernel": read("mlp.down_proj.weight", (width, mlp_dim)).T},
        },
        "feed_forward_norm": {"scale": read("post_attention_layernorm.weight", (width,))},
    }
