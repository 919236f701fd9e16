"""What a run reports while it trains: progress, metrics.jsonl, and the divergence watch."""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ghost_jax.core.console import Progress
from ghost_jax.core.errors import STOPPED_BY_WATCH, UserError
from ghost_jax.model.config import ModelConfig
from ghost_jax.parallel.distributed import barrier, is_main
from ghost_jax.runs import metrics as metrics_lib
from ghost_jax.runs.metrics import Meter, MetricsLog

ENDED = (
    "the run is stopped, and its last checkpoint is from before. Lower --config.optim.peak_lr, and give the new run "
    "another --workdir."
)


class Diverged(UserError):
    """The loss is not finite, or the divergence watch stops the run; `update` is where."""

    exit_code = STOPPED_BY_WATCH

    def __init__(self, update: int, message: str):
        super().__init__(message)
        self.update = update


class Journal(contextlib.ExitStack):
    """Reads the metrics of an update while the next one runs; shows and logs them. Use as a context manager.

    Every process reads them, so that all reach the same decision; the main one writes.
    """

    def __init__(self, config: ConfigDict, workdir: Path, start: int, model: ModelConfig, mesh: Mesh):
        super().__init__()
        self._config, self._workdir, self._start = config, workdir, start
        self._history = [line for line in metrics_lib.read(workdir) if line["step"] <= start]
        self._meter = Meter(model.flops_per_token(config.data.seq_len), list(mesh.devices.flat), model.dtype)
        self._progress = Progress("training", config.steps, unit="updates", done=start, shown=is_main())
        self._log: MetricsLog | None = None
        self._pending: tuple[int, float, dict] | None = None

    def __enter__(self) -> "Journal":
        barrier(f"the metrics of {self._workdir.name}")  # every process has read them before the main one drops lines
        if is_main():
            log = MetricsLog(self._workdir, self._start, project=self._config.log.wandb, config=self._config.to_dict())
            self._log = self.enter_context(log)
        self.enter_context(self._progress)
        return self

    def next_batch(self, batches: Iterator[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Returns the batch of an update and measures the wait for it."""
        asked = time.perf_counter()
        if self._pending is None:  # a validation and a save, or the start, lie before: their time belongs to no update
            self._clock = asked
        batch = next(batches)
        self._meter.add(waited=time.perf_counter() - asked)
        return batch

    def dispatched(self, update: int, lr: float, metrics: dict) -> None:
        """Keeps the metrics of an update that was dispatched, and reports those of the one before.

        Raises Diverged where that one's loss is not finite.
        """
        if self._pending:
            self._report(*self._pending, validate=None)
        self._pending = (update, lr, metrics)

    def settle(self, validate: Callable[[], dict[str, float]] | None) -> None:
        """Waits for the dispatched update and reports it with the losses of `validate`.

        Raises Diverged where its loss is not finite, or where losses rise and `divergence.stop` is on.
        """
        pending, self._pending = self._pending, None
        self._report(*pending, validate=validate)
        if self._log:
            self._log.flush()  # before a checkpoint from which a resumed run would not write them again

    def _report(self, update: int, lr: float, metrics: dict, validate: Callable | None) -> None:
        config = self._config
        values = {name: float(value) for name, value in metrics.items()}
        tokens, seconds = config.batch_size * config.data.seq_len, time.perf_counter() - self._clock
        if not math.isfinite(values["loss"]):
            raise Diverged(update, f"The loss of update {update:,} is {values['loss']}: {ENDED}")
        self._progress.advance(1, f"loss {values['loss']:.3f}  lr {lr:.1e}  {tokens / seconds:,.0f} tok/s")
        losses = validate() if validate else {}
        logged = losses or update % config.log_every == 0 or update in (1, config.steps)
        if update == 1 or update > self._start + 1:  # the first update of a process compiles: it joins no others' rates
            self._meter.add(tokens=tokens, supervised=values["supervised"], seconds=seconds)
        if logged:
            line = {"loss": values.pop("loss"), "lr": lr, **self._meter.line(), **values, **losses}
            self._history.append({"step": update, **line})
            if self._log:
                self._log.write(update, **line)
        wrong = divergence(self._history, config.divergence.evaluations) if "val_loss" in losses else None
        if wrong and config.divergence.stop:
            raise Diverged(update, f"{wrong} As its config asks (divergence.stop): {ENDED}")
        if wrong and is_main():
            print(f"WARNING: {wrong} The run continues (divergence.stop is off).", flush=True)
        self._clock = time.perf_counter()  # the time of the report belongs to no update


# ---- The divergence watch ----


def divergence(history: Sequence[Mapping[str, float]], evaluations: int) -> str | None:
    """Returns what is wrong with the newest validation loss in a sentence with updates and losses, or None.

    A loss that is not finite is wrong at once, and counts as a rise; others are wrong after `evaluations` (2 or more)
    losses, each above the last.

    Args:
      history: the lines of metrics.jsonl. Only those over all validation records count (`val_share` is 1): a sample's
        loss may rise by its size alone.
    """
    evaluated = [line for line in history if "val_loss" in line]
    if evaluated and not math.isfinite(evaluated[-1]["val_loss"]):
        return f"The validation loss after update {evaluated[-1]['step']:,} is {evaluated[-1]['val_loss']}."
    full = [line for line in evaluated if line.get("val_share") == 1][-evaluations:]
    if len(full) < evaluations or full[-1] is not evaluated[-1]:
        return None
    losses = [line["val_loss"] for line in full]
    if not all(after > before or not math.isfinite(after) for before, after in itertools.pairwise(losses)):
        return None
    shown, updates = " → ".join(f"{loss:.6g}" for loss in losses), ", ".join(f"{line['step']:,}" for line in full)
    return f"The validation loss rose over {evaluations} evaluations in a row: {shown} (updates {updates})."
