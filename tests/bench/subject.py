"""What the sides work on: models with weights as they are drawn, prompts, conversations.

How fast a model is computed does not depend on how well it is trained.
"""

import dataclasses
import platform as platform_lib
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from evals.answering.letters import prompt_of
from evals.items.answers import orders_of
from ghost_jax.config import load as config_lib
from ghost_jax.core import jax_setup
from ghost_jax.data import mixture
from ghost_jax.data.items.formats import read_items
from ghost_jax.data.items.items import Item, permute
from ghost_jax.data.prepare import Prepared, prepare
from ghost_jax.export import write_model
from ghost_jax.hub import llama, weights
from ghost_jax.model import transformer
from ghost_jax.model.config import ModelConfig
from ghost_jax.runs import run_dir, run_record
from ghost_jax.runs.metrics import peak_flops
from ghost_jax.runs.run_record import Environment
from ghost_jax.text.mcq_format import letter_ids
from ghost_jax.text.tokenizer import Tokenizer
from ghost_jax.training.checkpoint import Checkpoints, identity_of
from ghost_jax.training.step import new_state
from tests.bench import ragged
from tests.bench.work import BFLOAT16, FLOAT32, LETTERS, SEED, Files, Work

# Of a processor, what decides how fast it multiplies matrices; the first two multiply bfloat16 ones.
FLAGS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")


def machine() -> dict:
    """Returns what the sides run on, and which code.

    `name`: in words. `platform`: "cpu", "gpu" or "tpu". `processor` and `flags`: its model, and those of `FLAGS` that
    it has. `default`: the precision that `model.dtype=auto` stands for here. `peak_flops`: an accelerator's bfloat16
    FLOP/s by its data sheet; None for a CPU.
    """
    devices = jax.devices()
    platform = devices[0].platform
    processor, flags = _processor()
    environment = run_dir.environment()
    return {
        "name": environment.machine,
        "platform": platform,
        "processor": processor if platform == "cpu" else environment.machine,
        "flags": flags,
        "default": jax_setup.fast_dtype(),
        "peak_flops": None if platform == "cpu" else peak_flops(devices, BFLOAT16),
        "code": code_of(environment),
    }


def code_of(environment: Environment) -> dict:
    """Returns which code an environment is of."""
    return {key: getattr(environment, key) for key in ("ghost_jax", "git_commit", "git_dirty")}


def _processor() -> tuple[str, list[str]]:
    """Returns the processor's model in words and its flags. Clouds give several models one name: numbers tell them."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return platform_lib.processor() or platform_lib.machine(), []
    first = path.read_text(encoding="utf-8").split("\n\n")[0]
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    numbers = [f"{key} {said[key]}" for key in ("cpu family", "model") if key in said]
    name = said.get("model name", platform_lib.machine())
    return ", ".join([name, *numbers]), [flag for flag in FLAGS if flag in said.get("flags", "").split()]


# ---- Models ----


def base_model(work: Work, dtype: str = FLOAT32) -> ModelConfig:
    """Returns the shape that is pretrained, without dropout."""
    shape = config_lib.load(work.base_recipe).model.to_dict()
    return ModelConfig(**{**shape, "dropout": 0.0, "dtype": dtype})


def chat_config(work: Work, dtype: str = FLOAT32) -> ConfigDict:
    """Returns the recipe of the chat model, computed in a precision."""
    config = config_lib.load(work.chat_recipe)
    config_lib.override(config, "model.dtype", dtype)
    return config


def chat_model(config: ConfigDict, prepared: Prepared) -> ModelConfig:
    """Returns the shape of the chat model over the vocabulary of its data."""
    return ModelConfig(**{**config.model, "vocab_size": prepared.tokenizer.vocab_size})


def write_base(work: Work, folder: str) -> dict:
    """Writes the weights and the rows that pretraining starts from, as PyTorch's sides read them; returns the shape."""
    model, files = base_model(work), Files(Path(folder))
    files.base.mkdir()
    params = transformer.init(model, jax.random.key(SEED))
    params = transformer.unstack_blocks(params) if model.scan else params
    weights.write(files.base, llama.tensors_of(params, model), jnp.dtype("float32"))
    shape = (work.batch_size, work.seq_len + 1)
    tokens = np.random.default_rng(SEED).integers(0, model.vocab_size, shape, dtype=np.int32)
    ragged.write(files.rows, tokens=list(tokens))
    return {
        "shape": dataclasses.asdict(model),
        "parameters": model.parameters(),
        "flops_per_token": model.flops_per_token(work.seq_len),
    }


# ---- Conversations and prompts ----


def write_records(work: Work, folder: str) -> None:
    """Writes the conversations that our packed rows hold, turn by turn, in an order of their own.

    A conversation that lost its beginning to a row's length has lost it here too.
    """
    config = chat_config(work)
    batches, rng = mixture.train_batches(prepare(config, None).mix), np.random.default_rng(SEED)
    columns = {}
    for turn in range(work.turns):
        records = [each for t in range(work.steps) for each in records_of(batches[turn * work.steps + t])]
        records = [records[i] for i in rng.permutation(len(records))]
        columns[f"ids {turn}"], columns[f"learnt {turn}"] = zip(*records, strict=True)
    ragged.write(Files(Path(folder)).records, **columns)


def records_of(batch: dict) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the conversations of packed rows: ids [n + 1], and which of them are learnt [n + 1]."""
    found = []
    for tokens, targets, learnt, segments in zip(
        *(batch[name] for name in ("tokens", "targets", "weights", "segments")), strict=True
    ):
        for segment in range(1, segments.max() + 1):
            places = np.flatnonzero(segments == segment)
            ids = np.append(tokens[places], targets[places[-1]])
            found.append((ids, np.append(False, learnt[places] > 0)))
    return found


def write_chat(work: Work, folder: str) -> dict:
    """Writes a run directory of the chat model, its export, and the prompts; returns the file of their questions."""
    files, config = Files(Path(folder)), chat_config(work)
    prepared = prepare(config, None)
    model, tokenizer = chat_model(config, prepared), prepared.tokenizer
    state = new_state(transformer.init(model, jax.random.key(SEED)), optax.identity(), jax.random.key(SEED))
    with Checkpoints(files.chat, keep=1) as checkpoints:
        checkpoints.save(state, identity_of(model, tokenizer.sha256, ""))
    tokenizer.save(files.chat / "tokenizer.json")
    run_record.write_finished(files.chat, steps=0)
    files.exported.mkdir()
    write_model(files.exported, files.chat, FLOAT32)

    source = Path(work.items) if work.items else prepared.mix.stores["mcq"] / "items-test.jsonl"
    parts = parts_of(source, work)
    prompts = {f"part {number}": _prompts(tokenizer, part) for number, part in enumerate(parts)}
    whole = np.concatenate([prompt for of_part in prompts.values() for prompt in of_part])
    continued = whole[: work.prompt_tokens]
    ragged.write(files.prompts, **prompts, continued=[continued], letters=[letter_ids(tokenizer)])
    return {"items": str(source)}


def parts_of(source: Path, work: Work) -> list[list[Item]]:
    """Returns the questions asked, spread over a file's, in as many parts as there are rounds."""
    items = [item for item in read_items(source).items if len(item.options) == len(LETTERS)]
    asked = items[:: max(1, len(items) // work.questions)][: work.questions]
    return [asked[number :: work.rounds] for number in range(work.rounds)]


def _prompts(tokenizer: Tokenizer, items: Sequence[Item]) -> list[np.ndarray]:
    return [
        prompt_of(tokenizer, permute(item, order))
        for item, orders in zip(items, orders_of(items, "cyclic"), strict=True)
        for order in orders
    ]
