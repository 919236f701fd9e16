"""One process or many: how they find each other, who this one is, and how they stay together until the end.

Each process runs the same program on its own devices; a computation over all of them waits for all of them. So a
process that is lost would leave the others waiting for ever: here they end within a minute, each with one paragraph.
"""

import atexit
import contextlib
import ctypes
import os
import re
import signal
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed  # its barrier, which needs no device, has no public name
from jax._src.clusters import ClusterEnv  # which cluster this is, before anything is started: no public name either
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ghost_jax.core.errors import FAILED, UserError, say_error

# What launch/local.py tells each of the processes that it starts.
COORDINATOR, PROCESSES, PROCESS = "GHOST_COORDINATOR", "GHOST_PROCESSES", "GHOST_PROCESS"

MEETING_SECONDS = 300  # for all processes to appear: the nodes of a cluster do not start at once
HEARTBEAT_SECONDS = 30  # of silence, after which a process counts as lost
SHUTDOWN_SECONDS = 20  # that a process which is done waits for the others to be done too
BARRIER_SECONDS = 24 * 3600  # one process may prepare data for hours while the others wait

# How gloo and the coordination service say that the other end is gone.
_BROKEN = re.compile(
    r"Gloo .*(closed by peer|reset by peer|Broken pipe|[Tt]imed out)|Socket closed|heartbeat timeout"
    r"|stopped sending heartbeats|Barrier failed",
    re.DOTALL,
)


# ---- Meeting ----


def start() -> None:
    """Joins this process to the others of its run, if there are others; call it before any JAX computation.

    There are others where launch/local.py says so, or where JAX recognises a job of several processes: Slurm, Open
    MPI, Kubernetes, a Cloud TPU pod. A job of one process, as a Slurm job of one task or a TPU of one host, needs
    nobody and starts nothing.

    Raises UserError where the variables contradict each other or the others do not appear.
    """
    told = _told()
    if told is None and not _detected():
        return
    _end_with_a_paragraph_on_abort()
    try:
        jax.distributed.initialize(
            **(told or {"local_device_ids": _slurm_devices()}),
            initialization_timeout=MEETING_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except jax.errors.JaxRuntimeError as fault:
        raise UserError(
            f"The processes of this run did not meet within {MEETING_SECONDS} s ({str(fault).splitlines()[0]}). See "
            "that all of them are started, and that they reach the first one's machine over the network."
        ) from None
    atexit.register(_leave)  # after JAX's own, so that it runs before: at the end an abort needs no paragraph


def _told() -> dict[str, Any] | None:
    """Returns the arguments of `jax.distributed.initialize` that launch/local.py put into the environment."""
    given = {name: os.environ[name] for name in (COORDINATOR, PROCESSES, PROCESS) if os.environ.get(name)}
    if not given:
        return None
    try:
        processes, process = int(given[PROCESSES]), int(given[PROCESS])
        host, _, port = given[COORDINATOR].rpartition(":")
        if not (0 <= process < processes and host and 0 < int(port) < 2**16):
            raise ValueError
    except (KeyError, ValueError):
        said = ", ".join(f"{name}={value}" for name, value in given.items())
        raise UserError(
            f"The environment says {said}. Several processes need all of {COORDINATOR}=HOST:PORT, {PROCESSES} (how "
            f"many) and {PROCESS} (which one, from 0); python -m launch.local sets them. For one process, unset them."
        ) from None
    if processes == 1:
        return None
    return {
        "coordinator_address": given[COORDINATOR],
        "num_processes": processes,
        "process_id": process,
        "cluster_detection_method": "deactivate",  # local processes may well run inside one task of a cluster
    }


def _detected() -> bool:
    """Returns whether JAX recognises a cluster on which this run has several processes."""
    here = (kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method and kind.is_env_present())
    cluster = next(here, None)
    return cluster is not None and cluster.get_process_count() > 1


def _slurm_devices() -> list[int] | None:
    """Returns the GPUs of this node where Slurm runs one task on each; JAX would give a task one GPU alone."""
    tasks, nodes, gpus = (os.environ.get(f"SLURM_{name}") for name in ("NTASKS", "STEP_NUM_NODES", "GPUS_ON_NODE"))
    return list(range(int(gpus))) if gpus and gpus.isdecimal() and tasks == nodes else None


# ---- Who this one is ----


def is_main() -> bool:
    """Returns whether this process writes what is written once: logs, tables, reports."""
    return jax.process_index() == 0


def to_global(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, Any]:
    """Returns the global batch on the devices; each process passes its own rows, in process order."""
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def local_rows(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns this process's rows of a global batch that every process holds whole."""
    here, processes = jax.process_index(), jax.process_count()
    return {name: np.split(rows, processes)[here] for name, rows in batch.items()}


# ---- Staying together ----


def barrier(name: str) -> None:
    """Waits until every process has come to the barrier of this name; ends this one where another is lost.

    It is the coordination service's and computes nothing on a device, whose time-outs are shorter than the hours for
    which one process may prepare data.
    """
    if jax.process_count() > 1:
        with staying_together():
            distributed.global_state.client.wait_at_barrier(name, BARRIER_SECONDS * 1000)


def anywhere(here: bool) -> bool:
    """Returns whether it holds in any process; call it in all of them."""
    return here if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.bool_(here)).any())


class StopVote:
    """Lets all processes stop after the same update when any one of them was asked to.

    Call it once an update, in every process. One process gets its own answer back at once. Of several, each call
    sends a vote behind the update that was dispatched last and returns the outcome of the call before, which is
    there by then: no device ever waits for it, and the answer is the same everywhere, one update late.
    """

    def __init__(self):
        self._outcome = None
        if jax.process_count() > 1:
            first = {device.process_index: device for device in reversed(jax.devices())}
            mesh = Mesh(np.array([first[process] for process in range(jax.process_count())]), ("process",))
            self._votes = NamedSharding(mesh, PartitionSpec("process"))
            self._any = jax.jit(lambda votes: votes.any(), out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, asked: bool) -> bool:
        """Returns whether to stop now; `asked` says whether this process was asked to."""
        if jax.process_count() == 1:
            return asked
        before = self._outcome
        self._outcome = self._any(jax.make_array_from_process_local_data(self._votes, np.array([asked])))
        return before is not None and bool(before)


@contextlib.contextmanager
def staying_together() -> Iterator[None]:
    """Around everything that computes over all processes: ends this one where another is lost.

    It ends at once and without unwinding: whatever closes on the way out would wait for the lost process again, and
    files that are whole or absent need no closing.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as fault:
        if jax.process_count() == 1 or not _BROKEN.search(str(fault)):
            raise
        _end()


def _end(*_: Any) -> NoReturn:
    say_error(
        "Another process of this run is gone: it failed, was killed, or its machine was lost, and its own output says "
        "which. This one cannot go on alone and ends too. Start all of them again with the same command: the run goes "
        "on from its newest checkpoint."
    )
    os._exit(FAILED)


# The C library's signal handlers: Python's own run between two bytecodes, and after an abort there is no next one.
_ON_ABORT = ctypes.CFUNCTYPE(None, ctypes.c_int)
_end_on_abort = _ON_ABORT(_end)
_leave_on_abort = _ON_ABORT(lambda _: os._exit(FAILED))


def _end_with_a_paragraph_on_abort() -> None:
    """Has an abort say what it means. JAX aborts a process whose run has lost another, from a thread of its own.

    (It has a callback for that, which jaxlib 0.10 cannot call: std::bad_cast.)
    """
    ctypes.CDLL(None).signal(signal.SIGABRT, _end_on_abort)


def _leave() -> None:
    ctypes.CDLL(None).signal(signal.SIGABRT, _leave_on_abort)
