"""Runs a command as several processes of one run on this machine, over the loopback interface.

    python -m launch.local --processes=2 --devices=4 -- python -m ghost_jax.train --config=configs/chat_v5.py:nano

It does what a pod does; the tests use it. Each line of output begins with the number of its process.
"""

import argparse
import contextlib
import ctypes
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

from ghost_jax.core.errors import UsageError, command, parser_of, positive
from ghost_jax.parallel.distributed import COORDINATOR, PROCESS, PROCESSES

LEAVING_SECONDS = 45  # the others notice by missed heartbeats, at the latest, that a process failed
STOPPING_SECONDS = 10  # from asking the others to stop until they are killed
PR_SET_PDEATHSIG = 1  # from linux/prctl.h


def environment(process: int, processes: int, port: int, devices: int | None) -> dict[str, str]:
    """Returns the environment of one process; with `devices`, it has so many simulated CPU devices."""
    env = os.environ | {
        COORDINATOR: f"127.0.0.1:{port}",
        PROCESSES: str(processes),
        PROCESS: str(process),
        "PYTHONUNBUFFERED": "1",
    }
    if devices is not None:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        env |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}
    return env


def run(words: list[str], processes: int, devices: int | None = None) -> int:
    """Runs `words` as so many processes and returns 0, or the exit code of the first that failed.

    SIGTERM and SIGINT are passed on to all and to what they started. Where one fails and the others do not end by
    themselves, they are ended within LEAVING_SECONDS + STOPPING_SECONDS. A process that a signal killed counts as 128 +
    signal, as in a shell.
    """
    libc = ctypes.CDLL(None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def die_with_parent() -> None:
        if sys.platform == "linux":
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    try:
        group = [
            subprocess.Popen(
                words,
                env=environment(process, processes, port, devices),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # a terminal's Ctrl-C reaches this process alone, which passes it on once
                preexec_fn=die_with_parent,
            )
            for process in range(processes)
        ]
    except OSError as fault:
        raise UsageError(f"{shlex.quote(words[0])} cannot be run here: {fault.strerror}.") from None
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda received, _: _signal(group, received))
    one_writer = threading.Lock()
    readers = [
        threading.Thread(target=_copy, args=(source, target, f"[{process}] ".encode(), one_writer))
        for process, one in enumerate(group)
        for source, target in ((one.stdout, sys.stdout.buffer), (one.stderr, sys.stderr.buffer))
    ]
    for reader in readers:
        reader.start()
    code = _wait(group)
    for reader in readers:
        reader.join()
    return code


def _wait(group: list[subprocess.Popen]) -> int:
    """Waits until all processes have ended, stops them after a failure, and returns the first failure's code."""
    first, stop_at, signum, running = 0, math.inf, signal.SIGTERM, dict(enumerate(group))
    while running:
        for process in [process for process, one in running.items() if one.poll() is not None]:
            code = running.pop(process).returncode
            code = 128 - code if code < 0 else code
            if code:
                print(f"[{process}] ended with exit code {code}", file=sys.stderr, flush=True)
            if code and not first:
                first, stop_at = code, time.monotonic() + LEAVING_SECONDS
        if time.monotonic() > stop_at:
            _signal(group, signum)
            signum, stop_at = signal.SIGKILL, stop_at + STOPPING_SECONDS
        time.sleep(0.01)
    return first


def _signal(group: list[subprocess.Popen], signum: int) -> None:
    for one in group:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.pid, signum)  # also where it ended: what it started may run on, and hold its output open


def _copy(source: IO[bytes], target: IO[bytes], prefix: bytes, one_writer: threading.Lock) -> None:
    with source, contextlib.suppress(OSError):  # where nothing can be written, as behind `| head`, the process is told
        for line in source:
            with one_writer:
                target.write(prefix + line.rstrip(b"\n") + b"\n")
                target.flush()


@command
def main(argv: Sequence[str]) -> int:
    """Runs a command as several processes of one run on this machine."""
    parser = parser_of(main)
    add = parser.add_argument
    add("--processes", type=positive, required=True, metavar="N", help="how many to start")
    add("--devices", type=positive, metavar="N", help="simulated CPU devices of each (default: its own)")
    add("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what each of them runs")
    flags = parser.parse_args(argv)
    words = flags.command[1:] if flags.command[:1] == ["--"] else flags.command
    if not words:
        raise UsageError("There is no command to run: write it after --, e.g. -- python -m ghost_jax.train --help.")
    if words[0] in ("python", "python3"):
        words[0] = sys.executable  # the installation that this runs in, whatever PATH says
    return run(words, flags.processes, flags.devices)


if __name__ == "__main__":
    sys.exit(main())
