"""From the shell to the end of the first update, with everything compiled and prepared by an earlier start."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ghost_jax.core.errors import UserError
from ghost_jax.runs import metrics
from tests.bench.work import Work

# One row an update: the start is the same as of a larger batch, and the update adds little to it.
ROWS = 1
SECONDS = 600  # that no start needs; the first one of all prepares its data


def measure(work: Work, say: Callable[[str], None]) -> dict:
    """Returns the seconds of `work.rounds` starts of a base's training and their median, one update's time taken off.

    `first_s` is the start that found nothing compiled or prepared, if none was made before.
    """
    starts = []
    for number in range(work.rounds + 1):
        starts.append(_started(work))
        say(f"start {number} of {work.rounds}: {starts[-1]:.2f} s" if number else f"first start: {starts[0]:.1f} s")
    first, *warm = starts
    return {"config": work.base_recipe, "first_s": first, "seconds": warm, "median_s": statistics.median(warm)}


def _started(work: Work) -> float:
    """Returns the seconds from starting a training run to the end of its first update, without the update's own.

    Those are taken from the second update: the first one's hold what was compiled or found for it.
    """
    values = {"steps": 100, "batch_size": ROWS, "micro_batch_size": ROWS, "data.seq_len": work.seq_len, "log_every": 1}
    values["model.dropout"] = 0.0
    with tempfile.TemporaryDirectory(prefix="ghost_jax-start-") as folder:
        command = [sys.executable, "-m", "ghost_jax.train", f"--config={work.base_recipe}", f"--workdir={folder}/run"]
        command += [f"--config.{key}={value}" for key, value in values.items()]
        # As a user starts it, without the peers: TensorBoard's writer imports PyTorch, in seconds, where it finds it.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with (Path(folder) / "said").open("w+", encoding="utf-8") as said:
            started = time.perf_counter()
            process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
            try:
                _lines(process, Path(folder) / "run", 1, started)
                seconds = time.perf_counter() - started
                second = _lines(process, Path(folder) / "run", 2, started)[1]
            except UserError:
                said.seek(0)
                print(said.read(), file=sys.stderr)
                raise
            finally:
                process.kill()
                process.wait()
    return seconds - ROWS * work.seq_len / second["tokens_per_s"]


def _lines(process: subprocess.Popen, workdir: Path, count: int, started: float) -> list[dict]:
    """Returns the lines of a run's metrics as soon as there are so many."""
    while time.perf_counter() - started < SECONDS and process.poll() is None:
        if len(lines := metrics.read(workdir)) >= count:
            return lines
        time.sleep(0.01)
    raise UserError(f"The training run that was started made no {count} update(s); what it said stands above.")
