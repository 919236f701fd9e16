"""The adapters of a run as `peft` loads them: on the base in `BASE`, exported for transformers with the new tokens.

A fused QKV kernel has one A for its three parts; there each part has a copy.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ghost_jax.core.atomic_io import write_json
from ghost_jax.hub import weights
from ghost_jax.model.lora import Lora, Trained

BASE = "base"
PARTS = {"qkv": ("q_proj", "k_proj", "v_proj"), "kv": ("k_proj", "v_proj"), "q": ("q_proj",)}


def write(folder: Path, lora: Lora, trained: Trained) -> int:
    """Writes adapter_model.safetensors and adapter_config.json; returns the bytes of the adapters."""
    tensors = dict(tensors_of(trained))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": BASE,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted({name.split(".")[-3] for name in tensors}),
    }
    write_json(folder / "adapter_config.json", config)
    return weights.write(folder, tensors.items(), np.dtype(np.float32), "adapter_model.safetensors")


def tensors_of(trained: Trained) -> Iterator[tuple[str, np.ndarray]]:
    """Yields name and values of each tensor: A [r, inputs] and B [outputs, r] of a linear layer."""
    for name, own in trained.items():
        block, group, kind, _ = name.split("/")
        a, b = np.asarray(own["a"]), np.asarray(own["b"])
        layers = zip(a, b, strict=True) if block == "blocks" else [(a, b)]
        first = 0 if block == "blocks" else int(block.removeprefix("block_"))
        for number, (a_of, b_of) in enumerate(layers, first):
            rank = b_of.shape[0]
            columns = a_of.reshape(-1, rank).T
            if group == "feed_forward":
                parts = {f"mlp.{kind}_proj": b_of}
            elif kind == "out":
                parts = {"self_attn.o_proj": b_of}
            else:  # [r, parts, heads, K], or [r, heads, K] of queries alone
                of_part = b_of[:, None] if kind == "q" else b_of
                parts = {f"self_attn.{part}": of_part[:, n] for n, part in enumerate(PARTS[kind])}
            for part, rows in parts.items():
                stem = f"base_model.model.model.layers.{number}.{part}"
                yield f"{stem}.lora_A.weight", columns
                yield f"{stem}.lora_B.weight", rows.reshape(rank, -1).T
