"""The runs of a sweep as processes on this machine; a run appends its output to a log."""

import contextlib
import os
import subprocess
import time
from collections.abc import Collection
from pathlib import Path

STOP_SECONDS = 60.0  # a run that is asked to stop saves within 30 s and the micro-step in progress


def stop(jobs: Collection[subprocess.Popen]) -> None:
    """Asks jobs to stop, and kills those that have not within STOP_SECONDS or when interrupted again."""
    for job in jobs:
        job.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    try:
        for job in jobs:
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for job in jobs:
            job.kill()


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start(command: list[str], log: Path, *, share: int, jobs: int, lock: int | None = None) -> subprocess.Popen:
    """Starts a process on one `share`-th of the cores, in a process group that the terminal does not stop.

    Args:
      jobs: how many run at a time, at most; they share a GPU's memory.
      lock: file descriptor of the sweep's lock. Its runs inherit it: while runs of a killed sweep are left, the folder
        stays locked.
    """
    threads = str(max(1, cores() // share))
    environment = {"OMP_NUM_THREADS": threads, "NPROC": threads}  # NPROC sizes XLA's pool of CPU threads
    if jobs > 1 and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:
        environment["XLA_CLIENT_MEM_FRACTION"] = f"{0.9 / jobs:.3f}"
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment | os.environ,  # the user's own settings win
            pass_fds=() if lock is None else (lock,),
            process_group=0,
        )
