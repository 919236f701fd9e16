"""Settings of the process that computes: kept compilations, kept memory on the CPU, one quieted library."""

import ctypes
import errno
import logging
import re
import sys
import threading
from collections.abc import Callable

import jax

from ghost_jax.paths import cache_dir

# glibc's names for mallopt(3), from malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def set_up() -> None:
    """Prepares this process for computing; call it before the first array is made.

    Compiled programs go into the user's cache of this project, so that only the first start of a run waits for the
    compiler. Where the arrays live in this process's own memory, freed memory is kept for the next step.
    """
    programs = cache_dir() / "xla"
    programs.mkdir(parents=True, exist_ok=True)  # where it cannot be made, that is said once and not by JAX each time
    jax.config.update("jax_compilation_cache_dir", str(programs))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    _keep_freed_memory()
    _hush_echoes()


_ECHO = re.compile("Event loop is closed|handle is closed")  # asyncio's, and that of TensorBoard's queue


def _hush_echoes() -> None:
    """Keeps the echoes of a failed save off the screen; the failure itself is raised, and told in one paragraph.

    When a save fails, say on a full disk, Orbax raises the reason and closes its event loop. TensorStore's threads
    then find the loop closed, asyncio misses a reader for each write that was under way, and TensorBoard's writer,
    in its thread and at exit, cannot write its last lines either: a hundred tracebacks that tell nothing new.
    """
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)

    def without_echoes(show: Callable) -> Callable:
        def hook(raised: "sys.UnraisableHookArgs | threading.ExceptHookArgs") -> None:
            fault = raised.exc_value
            if not _ECHO.search(str(fault)) and getattr(fault, "errno", None) != errno.ENOSPC:
                show(raised)

        return hook

    sys.unraisablehook = without_echoes(sys.unraisablehook)
    threading.excepthook = without_echoes(threading.excepthook)


def _keep_freed_memory() -> None:
    """Stops glibc from handing freed blocks back to the kernel.

    A step on the CPU frees hundreds of megabytes of temporaries and asks for the same again; by default every page
    of them is faulted in and zeroed anew each time, which was a quarter of a nano step. One arena, so that a block
    freed by one thread serves another.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_ARENA_MAX, 1)
