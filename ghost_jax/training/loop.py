"""The training loop of one stage: updates, validation losses and checkpoints, from the newest checkpoint on."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from ghost_jax.config.load import SHARED
from ghost_jax.core.object_store import local_folder
from ghost_jax.data import mixture
from ghost_jax.data.mixture import Mix
from ghost_jax.data.prepare import Prepared, letters_of
from ghost_jax.parallel import distributed
from ghost_jax.parallel.mesh import batch_sharding
from ghost_jax.text.mcq_format import letter_ids
from ghost_jax.training.checkpoint import Checkpoints
from ghost_jax.training.loading import write_adapted
from ghost_jax.training.setup import TrainSetup
from ghost_jax.training.step import make_eval_step

Measure = Callable[[dict], dict[str, float]]  # parameters to named figures


def train(
    setup: TrainSetup,
    workdir: Path,
    base_workdir: Path,
    prepared: Prepared,
    identity: dict,
    open_journal: Callable[[int], Any],
    probe: Measure | None,
) -> None:
    """Trains one stage to its last update, from its newest checkpoint, else its base, else from scratch.

    Args:
      identity: of the run, see `TrainSetup.identity`; a checkpoint of another one is refused.
      open_journal: number of updates done to a `runs.logger.Journal`, which logs the metrics.
      probe: an evaluation every `online_probe.every` updates.

    Raises:
      Diverged: of the journal, for a loss that is not finite or keeps rising.
      KeyboardInterrupt: the process was asked to stop; the state is saved.
    """
    config, mesh = setup.config, setup.mesh
    with Checkpoints(workdir, config.keep) as checkpoints:
        state = checkpoints.newest(lambda step: checkpoints.restore(step, setup.abstract, mesh, identity))
        frozen = [setup.base_params(base_workdir, prepared)] if setup.lora else []
        if state is None:
            state = setup.first_state(base_workdir, prepared, *frozen)
            if setup.lora and distributed.is_main():
                write_adapted(workdir, setup.lora, base_workdir, identity["base"])
        elif distributed.is_main():
            print(f"resuming {workdir} after update {int(state.step):,}", flush=True)
        start, first_save = int(state.step), checkpoints.latest is None
        letters = letter_ids(prepared.tokenizer, letters_of(prepared)) if config.stage == "chat" else None
        train_step = setup.make_step(letters)
        validate = make_validation(setup, prepared.mix)
        stream = mixture.train_batches(prepared.mix, *distributed.part_of_batch(batch_sharding(mesh)))
        batches = mixture.read_from(stream, start)
        stop_vote = distributed.StopVote()
        with open_journal(start) as journal, stop_requests() as asked_to_stop:
            for update in range(start + 1, config.steps + 1):
                batch = journal.next_batch(batches)
                lr = setup.rate(update - 1)
                traces = update == config.log.trace_at and distributed.is_main()
                step = profiled(train_step, workdir / "trace") if traces else train_step
                state, metrics = step(state, distributed.to_global(batch, batch_sharding(mesh)), lr, *frozen)
                journal.dispatched(update, lr, metrics)
                last, stopping = update == config.steps, stop_vote(asked_to_stop())
                due = [validate] if last or update % config.eval_every == 0 else []
                if probe and update % config.online_probe.every == 0:
                    due.append(probe)
                saves = last or stopping or update % config.save_every == 0
                if due or saves:  # a state is saved only after its loss is known to be finite
                    journal.settle(_measured(due, setup.whole(state.params, *frozen)) if due else None)
                if saves:
                    checkpoints.save(state, identity)
                    if first_save:
                        # A run whose checkpoints cannot be read ends here, not when it is resumed: once a run it waits
                        # for a write and a read. No device holds the state twice.
                        state, first_save = checkpoints.read_back(state, mesh, identity), False
                if stopping:
                    break
            checkpoints.wait()  # here, where a second SIGTERM does not interrupt the save
            if distributed.any_process(asked_to_stop()):  # or at the end: scoring takes longer than a scheduler waits
                raise KeyboardInterrupt


def _measured(measures: list[Measure], params: dict) -> Callable[[], dict[str, float]]:
    return lambda: {name: value for measure in measures for name, value in measure(params).items()}


def make_validation(setup: TrainSetup, mix: Mix) -> Measure:
    """Returns `params -> losses` in nats a supervised token.

    `val_loss` is over the datasets that the mixture holds at any time, each once, whatever its multiplier;
    `val_loss_<name>` is one dataset's. `val_loss_shared` is over those that every chat recipe is prepared with, mixed
    in or not, so that the losses of two recipes with one layout and truncation compare. Of a dataset the same
    `data.validation_records` are read; `val_share` is their share of the mixed datasets' validation records. A dataset
    without a supervised token in them has no loss.
    """
    records = setup.config.data.validation_records
    read = {name: mixture.validation_batches(mix, name, batch_size=setup.rows, records=records) for name in mix.stores}
    read = {name: batches for name, batches in read.items() if any(batch["weights"].any() for batch in batches)}
    sizes = [mixture.validation_size(mix, name) for name in mix.datasets]
    share = sum(min(size, records) for size in sizes) / max(sum(sizes), 1)
    eval_step = make_eval_step(setup.model, setup.shapes, setup.mesh)
    sharding = batch_sharding(setup.mesh)

    def sums_of(params: dict, batches: list[dict]) -> tuple[float, float]:
        parts = [eval_step(params, distributed.place(batch, sharding)) for batch in batches]
        return jax.tree.map(lambda *xs: sum(float(x) for x in xs), *parts)

    def losses_of(sums: dict[str, tuple[float, float]]) -> dict[str, float]:
        mixed = [sums[name] for name in sums if name in mix.datasets]
        shared = [sums[name] for name in sums if name in SHARED]
        losses = {"val_loss": _mean(mixed), "val_share": share} if mixed else {}
        if len(sums) > 1:
            losses |= {"val_loss_shared": _mean(shared)} if shared else {}
            losses |= {f"val_loss_{name}": total / weight for name, (total, weight) in sums.items()}
        return losses

    return lambda params: losses_of({name: sums_of(params, batches) for name, batches in read.items()})


def _mean(sums: list[tuple[float, float]]) -> float:
    return sum(total for total, _ in sums) / sum(weight for _, weight in sums)


def profiled(step: Callable, folder: Path) -> Callable:
    """Returns a training step that writes a profiler trace, for TensorBoard, XProf or Perfetto."""

    def traced(*arguments: Any) -> Any:
        jax.block_until_ready(arguments)  # the update before is not part of the trace
        with local_folder(folder) as local, jax.profiler.trace(local):
            return jax.block_until_ready(step(*arguments))

    return traced


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether SIGTERM or Ctrl-C was received; a second Ctrl-C interrupts at once."""
    asked = False

    def ask(signum: int, frame) -> None:
        nonlocal asked
        if asked and signum == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    before = {signum: signal.signal(signum, ask) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: asked
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
