"""Where the runs of a sweep are computed: processes on this machine, or jobs of a Slurm cluster.

A launcher has `start(command, log, share) -> Job`. A job appends its output to `log`.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path

from ghost_jax.core.errors import FAILED, UserError

STOP_SECONDS = 60.0  # a run that is asked to stop saves within 30 s and the micro-step in progress
SUBMITIT = "submitit==1.5.4"
# As launch/slurm.sbatch asks. SBATCH_PARTITION, SBATCH_GPUS_PER_NODE and the like override them.
RESOURCES = {"timeout_min": 24 * 60, "mem_gb": 32, "cpus_per_task": 8, "gpus_per_node": 1}


def stop(jobs: Collection["Job"]) -> None:
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


class Local:
    """Processes on this machine.

    Args:
      jobs: how many run at a time, at most; they share a GPU's memory.
      lock: file descriptor of the sweep's lock, or None. Its runs inherit it: while runs of a killed sweep are left,
        the folder stays locked.
    """

    def __init__(self, jobs: int, lock: int | None = None):
        self._jobs, self._inherited = jobs, () if lock is None else (lock,)

    def start(self, command: list[str], log: Path, share: int) -> "Job":
        """Starts a process on one `share`-th of the cores, in a process group that the terminal does not stop."""
        threads = str(max(1, cores() // share))
        environment = {"OMP_NUM_THREADS": threads, "NPROC": threads}  # NPROC sizes XLA's pool of CPU threads
        if self._jobs > 1 and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:
            environment["XLA_CLIENT_MEM_FRACTION"] = f"{0.9 / self._jobs:.3f}"
        with log.open("ab") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment | os.environ,  # the user's own settings win
                pass_fds=self._inherited,
                process_group=0,
            )


class Submitted:
    """Jobs of a cluster, through submitit. Raises UserError where submitit or the cluster is missing.

    Args:
      folder: of submitit's files; all nodes must see it.
      cluster: what submitit calls it; "local" runs the same jobs as processes here.
    """

    def __init__(self, folder: Path, cluster: str = "slurm"):
        try:
            import submitit  # an optional dependency
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

    def start(self, command: list[str], log: Path, share: int) -> "Job":
        """Submits a job; the cluster decides its cores."""
        return SubmittedJob(self._executor.submit(Command(command, log)), log)


class Command:
    """The work of a cluster's job: a process with its output in `log`. submitit sends it to the node as a pickle."""

    def __init__(self, command: list[str], log: Path):
        self._command, self._log = command, log

    def __call__(self) -> int:
        """Runs the process to its end and returns its exit code."""
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(self._command, stdout=output, stderr=subprocess.STDOUT)
            return self._process.wait()

    def checkpoint(self):
        """Stops the process when the job is preempted or out of time; submitit queues what this returns."""
        import submitit

        self._process.terminate()
        self._process.wait()
        return submitit.helpers.DelayedSubmission(Command(self._command, self._log))


class SubmittedJob:
    """A submitit job with the methods of a process."""

    def __init__(self, job, log: Path):
        self._job, self._log = job, log

    def poll(self) -> int | None:
        """Returns the exit code of its process; FAILED, with a line in the log, where the cluster lost the job."""
        if not self._job.done():
            return None
        fault = self._job.exception()
        if fault is None:
            return self._job.result()
        with self._log.open("a", encoding="utf-8") as log:
            log.write(f"error: job {self._job.job_id} did not finish: {fault}\n")
        return FAILED

    def terminate(self) -> None:
        """Cancels it."""
        self._job.cancel()

    def wait(self, timeout: float) -> int:
        """Does not wait: the cluster ends a cancelled job by itself."""
        return FAILED

    def kill(self) -> None:
        """Does nothing: `terminate` cancelled it."""


Job = subprocess.Popen | SubmittedJob
