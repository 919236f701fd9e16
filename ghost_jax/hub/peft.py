"""The adapters of a run as `peft` loads them: on the base in `BASE`, exported for transformers with the new tokens.

A fused QKV kernel has one A for its three parts; there each part has a copy.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ghost_jax.core.atomic_io import write_text
from ghost_jax.model.lora import Lora, Trained

BASE = "base"
FILES = ("adapter_model.safetensors", "adapter_config.json")
PARTS = {"qkv": ("q_proj", "k_proj", "v_proj"), "kv": ("k_proj", "v_proj"), "q": ("q_proj",)}


def write(folder: Path, lora: Lora, trained: Trained) -> int:
    """Writes `FILES`; returns the bytes of the adapters."""
    tensors = dict(tensors_of(trained))
    save_file(tensors, folder / FILES[0], metadata={"format": "pt"})
    (folder / FILES[0]).chmod(folder.stat().st_mode & 0o666)
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
    write_text(folder / FILES[1], json.dumps(config, indent=1))
    return sum(values.nbytes for values in tensors.values())


def tensors_of(trained: Trained) -> Iterator[tuple[str, np.ndarray]]:
    """Yields name and values of each tensor: A [r, inputs] and B [outputs, r] of a linear layer."""
    for name, own in trained.items():
        block, group, kind, _ = name.split("/")
        a, b = (np.asarray(own[each], np.float32) for each in "ab")
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
                yield f"{stem}.lora_A.weight", np.ascontiguousarray(columns)
                yield f"{stem}.lora_B.weight", np.ascontiguousarray(rows.reshape(rank, -1).T)
