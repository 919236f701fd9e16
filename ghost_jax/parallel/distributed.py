"""Several processes of one run: their start, the part of a batch that each reads, and their end.

A computation over all processes waits for all of them. Where one is lost, the others end within a minute, each with one
paragraph.
"""

import atexit
import collections
import contextlib
import ctypes
import os
import re
import signal
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed  # its barrier, which needs no device, has no public name
from jax._src.clusters import ClusterEnv  # the number of processes before anything is started has no public name
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ghost_jax.core.errors import FAILED, UserError, say_error

# Variables that launch/local.py and launch/jobset.yaml set.
COORDINATOR, PROCESSES, PROCESS = "GHOST_COORDINATOR", "GHOST_PROCESSES", "GHOST_PROCESS"

START_SECONDS = 300  # for all processes to appear: the nodes of a cluster do not start at once
HEARTBEAT_SECONDS = 30  # of silence, after which a process counts as lost
SHUTDOWN_SECONDS = 20  # that a finished process waits for the others
BARRIER_SECONDS = 24 * 3600  # one process may prepare data for hours while the others wait

# Messages of gloo and of the coordination service about a lost process.
_PEER_LOST = re.compile(
    r"Gloo .*(closed by peer|reset by peer|Broken pipe|[Tt]imed out)|Socket closed|heartbeat timeout"
    r"|stopped sending heartbeats|Barrier failed",
    re.DOTALL,
)


def start() -> None:
    """Joins this process to the others of its run, if there are any; call it before any JAX computation.

    There are others where these variables are set, or where JAX recognises a job of several processes: Slurm, Open MPI,
    a Cloud TPU pod.

    Raises UserError where the others do not appear.
    """
    arguments = _local_arguments() if os.environ.get(COORDINATOR) else _cluster_arguments()
    if arguments is None:
        return
    ctypes.CDLL(None).signal(signal.SIGABRT, _report_on_abort)
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except jax.errors.JaxRuntimeError as fault:
        raise UserError(
            f"The processes of this run did not connect within {START_SECONDS} s ({str(fault).splitlines()[0]}). Check "
            "that all of them are started and reach the first one's machine over the network."
        ) from None
    # JAX takes SIGTERM for a notice of its own, and a process that prepares data would not end.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    # Registered after JAX's own exit function, so run before it: an abort at the end needs no paragraph.
    atexit.register(lambda: ctypes.CDLL(None).signal(signal.SIGABRT, _exit_on_abort))


def _local_arguments() -> dict[str, Any] | None:
    """Returns the arguments of `jax.distributed.initialize` of those variables; None for one process."""
    address, processes, process = (os.environ[name] for name in (COORDINATOR, PROCESSES, PROCESS))
    if processes == "1":
        return None
    # Local processes may run inside one task of a cluster, which is not to be detected.
    own = {"num_processes": int(processes), "process_id": int(process), "cluster_detection_method": "deactivate"}
    return {"coordinator_address": address, **own}


def _cluster_arguments() -> dict[str, Any] | None:
    """Returns the arguments of `jax.distributed.initialize` on a cluster; None for a job of one process, or none."""
    present = (kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method and kind.is_env_present())
    cluster = next(present, None)
    if cluster is None or cluster.get_process_count() == 1:
        return None
    # Where Slurm runs one task on a node, the task gets all its GPUs; JAX would give it one.
    tasks, nodes, gpus = (os.environ.get(f"SLURM_{name}") for name in ("NTASKS", "STEP_NUM_NODES", "GPUS_ON_NODE"))
    one_task_a_node = gpus and gpus.isdecimal() and tasks == nodes
    return {"local_device_ids": list(range(int(gpus))) if one_task_a_node else None}


def is_main() -> bool:
    """Returns whether this process writes the logs, tables and reports.

    It starts no backend: a sweep asks it too, and its runs need the devices.
    """
    return distributed.global_state.process_id == 0


def part_of_batch(sharding: NamedSharding) -> tuple[int, int]:
    """Returns which part of each batch this process reads, and of how many parts.

    Processes whose devices hold the same rows, because a tensor axis goes over all of them, read the same part.
    """
    rows = collections.defaultdict(set)
    for device, (index,) in sharding.devices_indices_map((sharding.num_devices,)).items():
        rows[device.process_index].add(index.start or 0)
    parts = sorted({tuple(sorted(starts)) for starts in rows.values()})
    return parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts)


def to_global(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, Any]:
    """Returns the global batch on the devices; each process passes its `part_of_batch`.

    The order of all rows is that of the mesh, whose devices need not go by process: sums do not depend on it.
    """
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def place(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """Returns a global batch that every process holds on the devices, its rows in their order."""
    return {name: jax.make_array_from_callback(x.shape, sharding, x.__getitem__) for name, x in batch.items()}


def barrier(name: str) -> None:
    """Waits until every process has called the barrier of this name; ends this one where another is lost.

    It computes nothing on a device: time-outs there are shorter than the hours that one process may prepare data.
    """
    if jax.process_count() > 1:
        with end_with_peers():
            distributed.global_state.client.wait_at_barrier(name, BARRIER_SECONDS * 1000)


def any_process(condition: bool) -> bool:
    """Returns whether a condition holds in any process; call it in all of them."""
    return bool(np.any(multihost_utils.process_allgather(np.bool_(condition))))


def check_same(values: Mapping[str, Any]) -> None:
    """Raises UserError, in every process, where one has another value of a name than the first; call it in all of them.

    The first 64 bytes of a value's text are compared.
    """
    here = np.array([str(value).encode()[:64] for value in values.values()], "S64")
    of_all = multihost_utils.process_allgather(here.view(np.uint8)).view("S64")  # [processes, values]
    for process, there in enumerate(of_all):
        pairs = zip(values, of_all[0].tolist(), there.tolist(), strict=True)
        differ = [f"{name} is {a.decode()[:12]} and {b.decode()[:12]}" for name, a, b in pairs if a != b]
        if differ:
            raise UserError(
                f"Processes 0 and {process} of this run differ: {'; '.join(differ)}. Start the same command on every "
                "machine, each with the same files at GHOST_DATA or --data_dir."
            )


class StopVote:
    """Stops all processes after the same update when any one of them was asked to stop.

    Call it once an update, in every process, with whether this one was asked. One process gets its own answer at once.
    Of several, each call sends a vote behind the last update and returns the result of the call before: no device
    waits, and the answer is the same everywhere, one update late.
    """

    def __init__(self):
        self._last = None
        if jax.process_count() > 1:
            devices = {device.process_index: device for device in reversed(jax.devices())}
            mesh = Mesh(np.array([devices[process] for process in range(jax.process_count())]), ("process",))
            self._votes = NamedSharding(mesh, PartitionSpec("process"))
            self._any = jax.jit(lambda votes: votes.any(), out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, asked: bool) -> bool:
        """Returns whether to stop now."""
        if jax.process_count() == 1:
            return asked
        last = self._last
        self._last = self._any(jax.make_array_from_process_local_data(self._votes, np.array([asked])))
        return last is not None and bool(last)


@contextlib.contextmanager
def end_with_peers() -> Iterator[None]:
    """Ends this process where a computation over all processes fails because another one is lost.

    It ends without closing anything: that would wait for the lost process, and atomic files need no closing.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as fault:
        if jax.process_count() == 1 or not _PEER_LOST.search(str(fault)):
            raise
        _end()


def _end(*_: Any) -> NoReturn:
    say_error(
        "Another process of this run is gone: it failed, was killed, or its machine was lost; its own output has the "
        "reason. This process ends too. Start all of them again with the same command: the run resumes from its newest "
        "checkpoint."
    )
    os._exit(FAILED)


# JAX aborts a process whose run has lost another, from a thread of its own. (It has a callback for that, which jaxlib
# 0.10 cannot call: std::bad_cast.) Handlers of the C library: Python's run between two bytecodes, of which an abort
# leaves none.
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
_report_on_abort = _HANDLER(_end)
_exit_on_abort = _HANDLER(lambda _: os._exit(FAILED))
