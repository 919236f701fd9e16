"""Trains a config: `python -m ghost_jax.train --config=configs/chat_v5.py:nano`.

A chat config whose base was not trained yet trains it first. Repeating a command resumes what is unfinished, bit for
bit, and only reports what is done.
"""

import argparse
import functools
import importlib
import math
import sys
import time
from pathlib import Path

import jax
from ml_collections import ConfigDict
from rich.console import Console

from ghost_jax import config as config_lib
from ghost_jax import report, run_dir
from ghost_jax.checkpoint import Checkpoints, identity_of, load_model, read_json
from ghost_jax.compile_cache import use_compile_cache
from ghost_jax.data import mixture, store
from ghost_jax.data.prepare import BUILDERS, Prepared, prepare
from ghost_jax.errors import STOPPED_BY_WATCH, UserError, command
from ghost_jax.metrics import MetricsLog, measured_flops
from ghost_jax.model import transformer
from ghost_jax.model.sizes import ModelConfig
from ghost_jax.model.transformer import Transformer
from ghost_jax.optim import adamw, schedule
from ghost_jax.parallel.hosts import is_main, to_global
from ghost_jax.parallel.mesh import batch_sharding, batch_shards, make_mesh
from ghost_jax.parallel.rules import shardings
from ghost_jax.progress import Progress, duration
from ghost_jax.step import TrainState, make_eval_step, make_predict, make_train_step, new_state, state_shardings

CPU_EFFICIENCY = 0.5  # of the measured matrix product, what a training step reaches here; for estimates only


class Diverged(UserError):
    """The loss is no number any more."""

    exit_code = STOPPED_BY_WATCH


def main_of(argv: list[str]) -> int:
    """Parses the command line and trains; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ghost_jax.train",
        description="Trains a config and scores it; repeated, it resumes what is unfinished.",
    )
    parser.add_argument("--workdir", type=Path, metavar="DIR", help="run directory (default: runs/<config>-<preset>)")
    parser.add_argument(
        "--plan", action="store_true", help="print parameters, mesh, mixture, steps, ETA; train nothing"
    )
    config, flags = config_lib.parse(parser, argv)
    use_compile_cache()
    workdir = flags.workdir or run_dir.default(config)
    stages = [(config, workdir)]
    if config.stage == "chat":
        stages.insert(0, (config.base, workdir.parent / run_dir.name_of(config.base)))
    console = Console()
    for stage, directory in stages:
        announce(stage, directory, first_of_two=stage is not config, console=console)
    for stage, directory in stages:
        prepared = prepare(stage, flags.data_dir)
        if flags.plan:
            plan(stage, prepared, console)
        elif not run_dir.is_finished(directory):
            with run_dir.locked(directory):
                train(stage, directory, prepared, base_workdir=stages[0][1], console=console)
                evaluate(stage, directory, flags.data_dir, console)
                run_dir.write_json(directory / "status.json", {"status": "finished", "steps": stage.steps})
        elif stage is config:
            run_dir.open_run(directory, stage)
            console.print(f"{directory} is finished: {stage.steps:,} updates. Its results again:", highlight=False)
            show_evals(stage, directory, console)
    if not flags.plan:
        page = report.write([workdir], workdir / "report")
        console.print(f"report: {page}", highlight=False, soft_wrap=True)
    return 0


def announce(config: ConfigDict, workdir: Path, first_of_two: bool, console: Console) -> None:
    """Says what is about to run, for how long about, and what would be quicker."""
    if run_dir.is_finished(workdir):
        return
    model = ModelConfig(**config.model)
    tokens = config.steps * config.batch_size * config.data.seq_len
    seconds = tokens * model.flops_per_token(config.data.seq_len) / (_flops() * jax.device_count() * CPU_EFFICIENCY)
    why = f"The base {workdir} is not trained yet, so it is trained first: " if first_of_two else ""
    quick = ""
    if seconds > 600 and config.preset != "nano":
        quick = f" For minutes instead, add :nano to the config ({config.spec or 'FILE'}:nano)."
    console.print(
        f"{why}{config.name} ({config.preset or 'full size'}, {model.parameters():,} parameters), {config.steps:,} updates of "
        f"{config.batch_size} x {config.data.seq_len} tokens, about {duration(seconds)} on this machine "
        f"({run_dir.machine()}).{quick}",
        highlight=False,
        soft_wrap=True,
    )


@functools.cache
def _flops() -> float:
    return measured_flops()


def multipliers_of(config: ConfigDict) -> dict[str, float]:
    """Returns dataset name -> record repetition. Raises UserError where the recipe names a builder that is none."""
    if config.stage == "pretrain":
        return {"pretrain": 1.0}
    multipliers = {name: float(config.data.mixture[name]) for name in config.data.mixture}
    if max(multipliers.values()) <= 0 or min(multipliers.values()) < 0:
        raise UserError("The mixture is empty or negative: give a --config.data.mixture.NAME above zero.")
    return multipliers


def plan(config: ConfigDict, prepared: Prepared, console: Console) -> None:
    """Prints what a run would be: notes, parameters, mesh, mixture. Trains nothing."""
    mesh = make_mesh(**config.mesh)
    check_batch(config, mesh)
    model = ModelConfig(**config.model)
    axes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    grown = prepared.tokenizer.vocab_size - model.vocab_size
    for note in prepared.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    lines = [
        f"{config.name}: {model.parameters():,} parameters ({model.layers} layers x {model.width}), "
        f"vocabulary {model.vocab_size:,}" + (f" + {grown} chat tokens" if grown else ""),
        f"mesh {axes} on {run_dir.machine()}; {config.batch_size // config.micro_batch_size} micro-batch(es) of "
        f"{config.micro_batch_size}; {config.model.dtype}",
        f"{config.steps:,} updates, rate {config.optim.peak_lr:g} after {config.optim.warmup_steps:,}, "
        f"down to {config.optim.floor_lr:g}",
    ]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)
    console.print(mixture.table(shares_of(config, prepared)))


def shares_of(config: ConfigDict, prepared: Prepared) -> list[mixture.Share]:
    """Returns the lines of the run's mixture table."""
    draws = config.steps * config.batch_size
    return mixture.shares(prepared.examples, multipliers_of(config), draws, config.data.seq_len)


def check_batch(config: ConfigDict, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError where the micro-batch cannot be split over the mesh."""
    shards = batch_shards(mesh)
    if config.micro_batch_size % shards:
        raise UserError(
            f"micro_batch_size is {config.micro_batch_size}, but the mesh splits a batch over {shards} devices. Set "
            f"--config.micro_batch_size to a multiple of {shards}."
        )


def train(config: ConfigDict, workdir: Path, prepared: Prepared, base_workdir: Path, console: Console) -> None:
    """Trains one stage from its newest checkpoint, its base or scratch, in this order, to its last update."""
    mesh = make_mesh(**config.mesh)
    check_batch(config, mesh)
    run_dir.open_run(workdir, config)
    if is_main():
        plan(config, prepared, console)
        record_data(config, workdir, prepared)

    seq_len, batch_size, multipliers = config.data.seq_len, config.batch_size, multipliers_of(config)
    model_config = ModelConfig(**{**config.model, "vocab_size": prepared.tokenizer.vocab_size})
    model = Transformer(model_config)
    optimizer = adamw(config.optim.b1, config.optim.b2, config.optim.weight_decay, config.optim.clip_norm)
    rate = schedule(config.optim.peak_lr, config.optim.floor_lr, config.optim.warmup_steps, config.steps)
    key = jax.random.key(config.seed)
    abstract = jax.eval_shape(lambda k: new_state(transformer.init(model_config, k), optimizer, k), key)
    data = mixture.fingerprint(prepared.examples, multipliers, config.seed, batch_size, seq_len)
    identity = identity_of(model_config, prepared.tokenizer.sha256, data)

    with Checkpoints(workdir, config.keep) as checkpoints:
        if checkpoints.latest is not None:
            state = checkpoints.restore(checkpoints.latest, abstract, mesh, identity)
            console.print(f"resuming {workdir} after update {checkpoints.latest:,}", highlight=False)
        else:
            state = first_state(config, model_config, optimizer, abstract, mesh, base_workdir, prepared)
        start = int(state.step)
        batches = mixture.read_from(
            mixture.train_batches(
                prepared.examples,
                multipliers,
                seed=config.seed,
                batch_size=batch_size,
                seq_len=seq_len,
                process=jax.process_index(),
                processes=jax.process_count(),
            ),
            start,
        )
        train_step = make_train_step(model, optimizer, abstract, mesh, config.micro_batch_size)
        validate = make_validation(config, model, abstract, mesh, prepared, multipliers)
        with (
            MetricsLog(workdir, start) as log,
            Progress("training", config.steps, unit="updates", done=start, shown=is_main()) as progress,
        ):
            pending = None  # the last update's metrics: read when the next one is already under way
            clock = time.perf_counter()
            for step in range(start, config.steps):
                lr = rate(step)
                state, metrics = train_step(state, to_global(next(batches), batch_sharding(mesh)), lr)
                if pending:
                    clock = write_metrics(config, log, progress, clock, *pending)
                pending = (step + 1, lr, metrics)
                done = step + 1
                if done % config.eval_every == 0 or done == config.steps:
                    clock = write_metrics(config, log, progress, clock, *pending, extra=validate(state.params))
                    pending = None
                if done % config.save_every == 0 or done == config.steps:
                    checkpoints.save(state, identity)


def write_metrics(
    config: ConfigDict,
    log: MetricsLog,
    progress: Progress,
    clock: float,
    step: int,
    lr: float,
    metrics: dict,
    extra: dict | None = None,
) -> float:
    """Fetches the metrics of an update, shows and logs them; returns the time, from which the next update counts.

    Raises Diverged where the loss is not finite. The last checkpoint is from before it.
    """
    loss = float(metrics["loss"])
    now = time.perf_counter()
    if not math.isfinite(loss):
        raise Diverged(
            f"The loss of update {step:,} is {loss}. The run is stopped; its last checkpoint is from before. Lower "
            "--config.optim.peak_lr and use another --workdir."
        )
    tokens_per_s = config.batch_size * config.data.seq_len / (now - clock)
    progress.advance(1, f"loss {loss:.3f}  lr {lr:.1e}  {tokens_per_s:,.0f} tok/s")
    if extra or step % config.log_every == 0 or step == 1:
        values = {
            "loss": loss,
            "lr": lr,
            "grad_norm": float(metrics["grad_norm"]),
            "supervised_tokens": float(metrics["weights"]),
            "tokens_per_s": tokens_per_s,
        }
        log.write(step, **values, **(extra or {}))
    return time.perf_counter()


def first_state(
    config: ConfigDict,
    model: ModelConfig,
    optimizer,
    abstract: TrainState,
    mesh,
    base_workdir: Path,
    prepared: Prepared,
) -> TrainState:
    """Returns the state before the first update: from scratch, or from the base with a grown embedding."""
    key = jax.random.key(config.seed)
    if config.stage == "pretrain":
        make = jax.jit(
            lambda k: new_state(transformer.init(model, k), optimizer, k), out_shardings=state_shardings(abstract, mesh)
        )
        return make(key)
    base, params, _ = load_model(base_workdir, mesh)
    wanted = store.manifest(prepared.examples)["made_from"]["base_tokenizer"]
    found = prepared_tokenizer(base_workdir)
    if wanted != found:
        raise UserError(
            f"The base {base_workdir} was trained with another tokenizer ({found[:12]}) than the data now gives "
            f"({wanted[:12]}): its sources changed. Train the base anew in another --workdir."
        )
    grow = jax.jit(
        lambda p, k: new_state(transformer.grow_vocabulary(p, base, model, k), optimizer, k),
        in_shardings=(shardings(params, mesh), None),
        out_shardings=state_shardings(abstract, mesh),
    )
    return grow(params, key)


def prepared_tokenizer(workdir: Path) -> str:
    """Returns the hash of the tokenizer that a run was trained with."""
    return read_json(workdir / "data.json")["tokenizer"]


def make_validation(config, model, abstract, mesh, prepared, multipliers):
    """Returns `params -> {"val_loss": …}`: the own mix's loss, every dataset's, and that of all datasets together.

    `val_loss_shared` covers the same records for every recipe of one data set, so that losses of recipes compare.
    """
    names = list(BUILDERS) if config.stage == "chat" else ["pretrain"]
    options = {
        "batch_size": config.micro_batch_size,
        "seq_len": config.data.seq_len,
        "records": config.data.validation_records,
    }
    held_out = {name: mixture.validation_batches(prepared.examples, name, **options) for name in names}
    eval_step = make_eval_step(model, abstract.params, mesh)
    rows = batch_sharding(mesh)
    first = slice(*_process_rows(config.micro_batch_size))

    def validate(params: dict) -> dict[str, float]:
        sums = {}
        for name, batches in held_out.items():
            parts = [eval_step(params, to_global({k: v[first] for k, v in b.items()}, rows)) for b in batches]
            sums[name] = (sum(float(total) for total, _ in parts), sum(float(weight) for _, weight in parts))
        sums = {name: pair for name, pair in sums.items() if pair[1] > 0}
        losses = {}
        own = [sums[name] for name in sums if multipliers.get(name, 0) > 0]
        if own:
            losses["val_loss"] = sum(total for total, _ in own) / sum(weight for _, weight in own)
        if config.stage == "chat":
            losses["val_loss_shared"] = sum(t for t, _ in sums.values()) / sum(w for _, w in sums.values())
            losses |= {f"val_loss_{name}": total / weight for name, (total, weight) in sums.items()}
        return losses

    return validate


def _process_rows(batch_size: int) -> tuple[int, int]:
    share = batch_size // jax.process_count()
    return jax.process_index() * share, (jax.process_index() + 1) * share


def record_data(config: ConfigDict, workdir: Path, prepared: Prepared) -> None:
    """Writes what the run eats into its directory: tokenizer, mixture, sources, notes, held-out questions."""
    prepared.tokenizer.save(workdir / "tokenizer.json")
    corpus, examples = store.manifest(prepared.corpus), store.manifest(prepared.examples)
    run_dir.write_json(
        workdir / "data.json",
        {
            "notes": prepared.notes,
            "tokenizer": prepared.tokenizer.sha256,
            "corpus": {key: corpus[key] for key in ("made_from", "documents", "duplicates_dropped", "licenses")},
            "examples": {"store": prepared.examples.name, "fingerprint": examples["fingerprint"]},
            "mixture": [
                {name: getattr(share, name) for name in share.__dataclass_fields__}
                for share in shares_of(config, prepared)
            ],
        },
    )
    held_out = prepared.examples / "heldout.jsonl"
    if held_out.is_file():
        aside = workdir / "heldout.jsonl.partial"
        aside.write_bytes(held_out.read_bytes())
        aside.replace(workdir / "heldout.jsonl")


def evaluate(config: ConfigDict, workdir: Path, data_dir: str | None, console: Console) -> None:
    """Runs each evaluation of the config on the finished run and writes `evals/<name>.json`."""
    if config.stage == "pretrain":
        return
    mesh = make_mesh(**config.mesh)
    model, params, step = load_model(workdir, mesh)
    from ghost_jax.text import tokenizer as tokenizer_lib

    vocabulary = tokenizer_lib.load(workdir / "tokenizer.json")
    predict = make_predict(model, params, mesh)
    for name in config.evals:
        module = importlib.import_module(f"evals.{name}")
        items, note = module.find_items(data_dir, workdir)
        if note:
            console.print(note, highlight=False, soft_wrap=True)
        result = module.evaluate(predict, vocabulary, items, context=model.context, **config.evals[name])
        record = result | {"step": step, "machine": run_dir.machine(), "note": note}
        run_dir.write_json(workdir / "evals" / f"{name}.json", record)
        module.show(result, console)


def show_evals(config: ConfigDict, workdir: Path, console: Console) -> None:
    """Shows the stored scores of a finished run again."""
    if config.stage == "pretrain":
        return
    for name in config.evals:
        module = importlib.import_module(f"evals.{name}")
        module.show(read_json(workdir / "evals" / f"{name}.json"), console)


@command
def main() -> int:
    return main_of(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
