"""Where the runs of a sweep are computed: processes on this machine, or jobs of a Slurm cluster.

A launcher has `start(command, log, share) -> Job`. What it starts writes all its output at the end of `log`.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from ghost_jax.core.errors import FAILED, UserError

STOP_SECONDS = 60.0  # a run that is asked to stop saves within 30 s and the micro-step in progress
SUBMITIT = "submitit==1.5.4"
# As launch/slurm.sbatch asks; sbatch lets SBATCH_PARTITION, SBATCH_GPUS_PER_NODE and the like win over them.
RESOURCES = {"timeout_min": 24 * 60, "mem_gb": 32, "cpus_per_task": 8, "gpus_per_node": 1}


class Job(Protocol):
    """A run on its way. `subprocess.Popen` is one."""

    def poll(self) -> int | None:
        """Returns its exit code, None while it runs."""

    def terminate(self) -> None:
        """Asks it to stop."""

    def wait(self, timeout: float) -> int:
        """Waits for its end. Raises subprocess.TimeoutExpired."""

    def kill(self) -> None:
        """Ends it."""


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Local:
    """Processes on this machine.

    Args:
      jobs: how many run at a time, at most; a GPU's memory is split between so many.
      lock: file descriptor of the sweep's lock, or None. A run holds it too: should the sweep be killed outright,
        its folder stays locked until the runs that it left behind are done.
    """

    def __init__(self, jobs: int, lock: int | None = None):
        self._jobs, self._kept = jobs, () if lock is None else (lock,)

    def start(self, command: list[str], log: Path, share: int) -> Job:
        """Starts a process on one `share`-th of the cores. It stops when the sweep says so, not by the terminal."""
        with log.open("ab") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment(share),
                pass_fds=self._kept,
                process_group=0,
            )

    def _environment(self, share: int) -> dict[str, str]:
        threads = str(max(1, cores() // share))
        # NPROC sizes XLA's pool of CPU threads
        mine = {"OMP_NUM_THREADS": threads, "NPROC": threads}
        if self._jobs > 1 and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:
            mine["XLA_CLIENT_MEM_FRACTION"] = f"{0.9 / self._jobs:.3f}"
        return mine | os.environ  # what the user set wins


def stop(jobs: Collection[Job]) -> None:
    """Asks jobs to stop, and ends those that have not within STOP_SECONDS or when asked a second time."""
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


class Submitted:
    """Jobs of a cluster, through submitit.

    Args:
      folder: where submitit keeps its files; all nodes must see it.
      cluster: what submitit calls it; "local" runs the same jobs as processes here.

    Raises UserError where submitit is not installed, or there is no such cluster.
    """

    def __init__(self, folder: Path, cluster: str = "slurm"):
        try:
            import submitit  # an optional dependency: only those with a cluster need it
        except ImportError:
            raise UserError(
                f"--launcher=slurm needs the package submitit: install it by {sys.executable} -m pip install "
                f'"{SUBMITIT}", or leave the flag away to run on this machine.'
            ) from None
        try:
            self._executor = submitit.AutoExecutor(folder, cluster=cluster)
        except RuntimeError as fault:
            raise UserError(
                f"--launcher=slurm: {fault} Give the command on a machine that has sbatch and srun, or leave the flag "
                "away to run here."
            ) from None
        self._executor.update_parameters(name="ghost_jax", **RESOURCES)

    def start(self, command: list[str], log: Path, share: int) -> Job:
        """Submits a job; its cores are the cluster's to share."""
        return SubmittedJob(self._executor.submit(Command(command, log)), log)


class Command:
    """What a job of a cluster computes: a process, its output in `log`. It is sent to the node as a pickle."""

    def __init__(self, command: list[str], log: Path):
        self._command, self._log = command, log

    def __call__(self) -> int:
        """Runs the process to its end and returns its exit code."""
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(self._command, stdout=output, stderr=subprocess.STDOUT)
            return self._process.wait()

    def checkpoint(self):
        """Called by submitit when the job is preempted or out of time; what is returned is queued again."""
        import submitit

        self._process.terminate()
        self._process.wait()
        return submitit.helpers.DelayedSubmission(Command(self._command, self._log))


class SubmittedJob:
    """A submitit job that is asked like a process."""

    def __init__(self, job, log: Path):
        self._job, self._log = job, log

    def poll(self) -> int | None:
        """Returns the exit code of its process; FAILED where the cluster lost it, and the log then says how."""
        if not self._job.done():
            return None
        fault = self._job.exception()
        if fault is None:
            return self._job.result()
        with self._log.open("a", encoding="utf-8") as log:
            log.write(f"error: job {self._job.job_id} did not come to its end: {fault}\n")
        return FAILED

    def terminate(self) -> None:
        """Cancels it."""
        self._job.cancel()

    def wait(self, timeout: float) -> int:
        """Does not wait: the cluster ends a cancelled job by itself."""
        return FAILED

    def kill(self) -> None:
        """Does nothing more than `terminate` did."""
