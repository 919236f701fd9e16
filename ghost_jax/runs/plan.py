"""What a run will be: size, mesh, mixture, and an estimate of its time on this machine."""

from pathlib import Path

import jax
from ml_collections import ConfigDict
from rich.console import Console

from ghost_jax.core.console import duration
from ghost_jax.data import mixture, mixture_table
from ghost_jax.data.prepare import Prepared, mix_of
from ghost_jax.model.config import ModelConfig
from ghost_jax.parallel.mesh import batch_shards, micro_batch_rows
from ghost_jax.runs import run_dir
from ghost_jax.runs.metrics import measured_flops
from ghost_jax.training import setup

EFFICIENCY = 0.4  # share of the measured matrix product that a training step reaches; for estimates only
LONG = 600  # seconds; a longer run names a quicker preset


def announce(config: ConfigDict, workdir: Path, asked: ConfigDict, console: Console) -> None:
    """Prints one line: what will run, for about how long, and a quicker preset. `config` is `asked` or its base."""
    size, updates = ModelConfig(**config.model), f"{config.steps:,} updates of {config.batch_size} x "
    seconds = estimated_seconds(config)
    why = f"The base {workdir} is not trained yet, so it is trained first: " if config is not asked else ""
    smaller = seconds > LONG and "nano" not in asked.preset.split(",")
    quick = f" For a smaller model, use the preset {asked.name}.py:nano." if smaller else ""
    console.print(
        f"{why}{config.name} ({config.preset or 'full size'}, {size.parameters():,} parameters), {updates}"
        f"{config.data.seq_len} tokens, about {duration(seconds)} on this machine ({run_dir.machine()}), without "
        f"preparing data, compiling, validation and scoring.{quick}",
        highlight=False,
        soft_wrap=True,
    )


def estimated_seconds(config: ConfigDict) -> float:
    """Returns an estimate of the time of a config's updates on the devices of this process."""
    tokens = config.steps * config.batch_size * config.data.seq_len
    work = tokens * ModelConfig(**config.model).flops_per_token(config.data.seq_len)
    # The simulated devices of a process share its cores.
    workers = {device.process_index if device.platform == "cpu" else device.id for device in jax.devices()}
    return work / (measured_flops(config.model.dtype) * len(workers) * EFFICIENCY)


def show(config: ConfigDict, prepared: Prepared, console: Console) -> None:
    """Prints notes on the data, parameters, mesh, schedule and the mixture table."""
    mesh = setup.mesh_of(config)
    rows = micro_batch_rows(config.batch_size, config.micro_batch_size, mesh)
    size = ModelConfig(**config.model)
    axes = ", ".join(f"{axis}={count}" for axis, count in mesh.shape.items())
    grown = prepared.tokenizer.vocab_size - size.vocab_size
    optim = config.optim
    then = "constant" if optim.schedule == "constant" else f"{optim.schedule} to {optim.min_lr:g}"
    lines = [
        *(f"NOTE: {note}" for note in prepared.notes),
        f"{config.name}: {size.parameters():,} parameters ({size.layers} layers x {size.width}), "
        f"vocabulary {size.vocab_size:,}" + (f" + {grown} chat tokens" if grown else ""),
        f"mesh {axes} on {run_dir.machine()}; {config.batch_size // rows} micro-batch(es) of {rows} rows, "
        f"{rows // batch_shards(mesh)} a device; {config.model.dtype}; attention {setup.attention_of(config, mesh)}",
        f"{config.steps:,} updates, rate {optim.peak_lr:g} after {optim.warmup_steps:,}, then {then}; "
        f"optimizer {optim.name}; "
        f"about {duration(estimated_seconds(config))} for the updates alone",
    ]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)
    mix = mix_of(config, prepared)
    rows = mixture.packing_of(mix)
    lines = mixture.shares(mix, config.steps)
    console.print(mixture_table.table(lines))
    for remark in mixture_table.remarks(mix, lines, rows):
        console.print(remark, highlight=False, soft_wrap=True)
