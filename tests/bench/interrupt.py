"""How long a run takes from SIGTERM to a complete checkpoint: `python -m tests.bench.interrupt --out=FILE`.

A training run is interrupted and resumed in one directory. Only its first save is read back. The time to write is what
the updates under way leave of the time to the checkpoint, and the time of a larger model is computed from its bytes.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ghost_jax.core.atomic_io import write_json
from ghost_jax.core.errors import UserError, command
from ghost_jax.core.paths import local_path
from ghost_jax.model.config import SIZES
from ghost_jax.runs import metrics, run_record
from tests.bench.subject import machine

UPDATES = 4  # logged in each start before the signal; the first holds what was compiled
LARGER = "base350m"
BYTES = 3 * 4  # of a parameter and its two moments


def interrupted(words: list[str], workdir: Path) -> dict:
    """Starts or resumes a run, interrupts it right after an update was logged, and returns the seconds and bytes."""
    checkpoints = workdir / "checkpoints"
    before = latest(checkpoints)
    with (workdir.parent / "said").open("w+", encoding="utf-8") as said:
        process = subprocess.Popen(words, stdout=said, stderr=said)
        while len(new := [line for line in metrics.read(workdir) if line["step"] > before]) < UPDATES:
            if process.poll() is not None:
                said.seek(0)
                raise UserError(f"The run ended before {UPDATES} updates were logged: {said.read()[-1000:]}")
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        asked, saved = time.perf_counter(), None
        while process.poll() is None:
            saved = saved or (time.perf_counter() if latest(checkpoints) > before else None)
            time.sleep(0.001)
        ended = time.perf_counter()
    if saved is None:
        raise UserError(f"The run ended with exit code {process.returncode} and saved nothing; see {workdir}.")
    step = latest(checkpoints)
    config = run_record.read(workdir).config
    tokens = config["batch_size"] * config["data"]["seq_len"]
    update_s = statistics.median(tokens / line["tokens_per_s"] for line in new[1:])
    size = sum(path.stat().st_size for path in (checkpoints / str(step)).rglob("*") if path.is_file())
    times = {"saved_s": saved - asked, "ended_s": ended - asked, "update_s": update_s}
    updates = step - new[-1]["step"]  # that were under way when the signal came, and completed
    write_s = max(times["saved_s"] - updates * update_s, 0.0)
    return times | {"updates": updates, "write_s": write_s, "bytes": size, "read_back": not before}


def latest(checkpoints: Path) -> int:
    """Returns the step of the newest complete checkpoint, 0 without one."""
    names = os.listdir(checkpoints) if checkpoints.is_dir() else []
    return max((int(name) for name in names if name.isdecimal()), default=0)


@command
def main(argv: Sequence[str]) -> int:
    """Measures the time from SIGTERM to a complete checkpoint, and writes a record."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.interrupt", description=main.__doc__)
    parser.add_argument("--out", required=True, type=local_path, metavar="FILE", help="the record")
    parser.add_argument("--config", default="configs/pretrain_v05.py", help="what is trained (default: the 36M base)")
    parser.add_argument("--rounds", type=int, default=4, help="interruptions, the first with a read-back (default: 4)")
    flags, others = parser.parse_known_args(argv)
    values = {"log_every": 1, "steps": 10_000, "eval_every": 10_000, "save_every": 10_000}
    words = [sys.executable, "-m", "ghost_jax.train", f"--config={flags.config}"]
    words += [f"--config.{key}={value}" for key, value in values.items()] + others
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(flags.rounds):
            found.append(interrupted([*words, f"--workdir={folder}/run"], Path(folder) / "run"))
            print(json.dumps(found[-1]), flush=True)
    later = [one for one in found if not one["read_back"]] or found
    rate = min(one["bytes"] / max(one["write_s"], 1e-3) for one in later)  # the longest write: others hide in an update
    size = BYTES * SIZES[LARGER].parameters()
    computed = {"model": LARGER, "bytes": size, "write_s": size / rate}
    record = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "config": flags.config, "flags": others}
    write_json(flags.out, record | {"interruptions": found, "bytes_per_s": rate, "computed": computed})
    return 0


if __name__ == "__main__":
    sys.exit(main())
