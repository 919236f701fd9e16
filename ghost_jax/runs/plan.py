"""What a run will be: size, mesh, mixture, and an estimate of its time on this machine."""

from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Column, Table

from ghost_jax.core.console import duration
from ghost_jax.data import mixture
from ghost_jax.data.mixture import MOST_PASSES, Mix, Packing, Share, copies_of, validation_size
from ghost_jax.data.prepare import Prepared
from ghost_jax.model.config import ModelConfig
from ghost_jax.parallel.mesh import batch_shards, micro_batch_rows
from ghost_jax.runs import run_dir
from ghost_jax.runs.metrics import measured_flops, peak_flops
from ghost_jax.training import setup

EFFICIENCY = 0.4  # share of the measured matrix product that a training step reaches; for estimates only
LONG = 600  # seconds; a longer run names a quicker preset
TASK_SHARE = 0.2  # below it, by the SmolLM2 reference of the study, small talk outweighs the task
NO_TASK = "small_talk"
INEXACT = 0.03  # of a multiplier; the passes of an epoch are good to 1%, of this dataset and of another
COLUMNS = ("mult", "records", "tokens", "supervised", "share", "superv. share", "epochs", "truncated", "A/B/C/D")


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
    devices, dtype = jax.devices(), config.model.dtype
    # The table is of bfloat16. One product on a fast accelerator measures little but its start.
    peak = peak_flops(devices, dtype) if dtype == "bfloat16" or devices[0].platform == "cpu" else None
    return work / (EFFICIENCY * (peak or measured_flops(dtype) * len(devices)))


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
    rows = [mixture.packing_of(prepared.mix, number) for number in range(len(prepared.mix.phases))]
    lines = mixture.shares(prepared.mix, config.steps)
    console.print(table(lines))
    for remark in remarks(prepared.mix, lines, rows):
        console.print(remark, highlight=False, soft_wrap=True)


def table(lines: Sequence[Share]) -> Table:
    """Returns the mixture table for the screen."""
    numbers = (Column(name, justify="right") for name in COLUMNS)
    drawn = Table("source", *numbers, title="Mixture", title_justify="left")
    for line in lines:
        drawn.add_row(
            line.name,
            "x" + ", ".join(f"{multiplier:g}" for multiplier in line.multiplier),
            f"{line.records:,}",
            f"{line.tokens:,}",
            f"{line.supervised:,}",
            f"{line.record_share:.1%}",
            f"{line.supervised_share:.1%}",
            f"{line.epochs:.2f}",
            f"{line.truncated:,}",
            "/".join(map(str, line.letters)),
        )
    return drawn


def remarks(mix: Mix, lines: Sequence[Share], rows: Sequence[Packing]) -> list[str]:
    """Returns the lines below the table: task share, rows of each phase, over-long records, and warnings."""
    found = []
    tasks = [line for line in lines if line.name != NO_TASK]
    if len(tasks) < len(lines):
        by_record, by_token = sum(line.record_share for line in tasks), sum(line.supervised_share for line in tasks)
        low = min(by_record, by_token) < TASK_SHARE
        found.append(
            f"{'WARNING: ' if low else ''}task share (everything but {NO_TASK}): {by_record:.1%} of the records, "
            f"{by_token:.1%} of the supervised tokens{f', below {TASK_SHARE:.0%}' if low else ''}."
        )
    for start, of_phase in zip(mix.phases, rows, strict=True) if mix.packing else ():
        when = f" after update {start:,}" if start else ""
        found.append(
            f"packing{when}: {of_phase.share:.1%} of a row's {mix.seq_len} places "
            f"hold a token; {of_phase.records_per_row:.2f} records a row, about "
            f"{of_phase.records_per_row * mix.batch_size:.0f} an update."
        )
    for multipliers in mix.phases.values():
        copies = copies_of(multipliers)
        most = max(copies, key=multipliers.get)
        for name, count in copies.items():
            mixed = multipliers[most] * count / copies[most]
            if abs(mixed / multipliers[name] - 1) > INEXACT:
                limit = f"an epoch has at most {MOST_PASSES} passes of x1"
                found.append(f"WARNING: {name} is mixed in x{mixed:g} and not x{multipliers[name]:g}: {limit}.")
    if not any(validation_size(mix, name) for name in mix.datasets):
        found.append("WARNING: no dataset of the mixture has a validation record: there is no validation loss.")
    if truncated := sum(line.truncated for line in lines):
        fate = "lose their beginning" if mix.truncation == "crop" else "are left out"
        found.append(f"{truncated:,} records are longer than a row and {fate} (data.truncation={mix.truncation}).")
    return found
