"""What a run measures: metrics.jsonl always, TensorBoard beside it, and how fast this machine multiplies."""

import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from tensorboardX import SummaryWriter

from ghost_jax.whole import write_text

FILE = "metrics.jsonl"


class MetricsLog:
    """Appends to the metrics of a run; lines after `start_step` are of a run that was cut short and are dropped.

    With that, the file of an interrupted and resumed run reads like that of an uninterrupted one.
    """

    def __init__(self, workdir: Path, start_step: int):
        path = workdir / FILE
        kept = [line for line in read(workdir) if line["step"] <= start_step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1, flush_secs=10)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
        self._board.close()

    def write(self, step: int, **values: float) -> None:
        """Writes one line: `step` is the number of updates done."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)


def read(workdir: Path) -> list[dict]:
    """Returns the lines of a run's metrics.jsonl, without a last one that was cut off in the middle."""
    path = workdir / FILE
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def measured_flops() -> float:
    """Returns the float32 FLOP/s of one device on a large matrix product, measured in about half a second."""
    size = 1024
    x = jnp.ones((size, size))
    multiply = jax.jit(lambda a: a @ a)
    multiply(x).block_until_ready()
    best, end = 0.0, time.perf_counter() + 0.5
    while time.perf_counter() < end:
        started = time.perf_counter()
        multiply(x).block_until_ready()
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best
