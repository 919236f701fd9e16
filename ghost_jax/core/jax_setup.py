"""Settings of the process that computes: kept compilations, no TPU where there is none, one quieted library."""

import errno
import logging
import os
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import jax

from ghost_jax.core.paths import cache_dir


def set_up() -> None:
    """Prepares this process for computing; call it before the first array is made.

    Compiled programs go into the user's cache of this project, so that only the first start of a run waits for the
    compiler. Without a TPU, an installed libtpu is not loaded: it is there for `launch.compile_check` alone.
    """
    programs = cache_dir() / "xla"
    programs.mkdir(parents=True, exist_ok=True)  # where it cannot be made, that is said once and not by JAX each time
    jax.config.update("jax_compilation_cache_dir", str(programs))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    # JAX sets its platforms itself where it finds a TPU, and so does a user. Where neither did, JAX would try every
    # platform, and libtpu prints errors when it finds no TPU. So it is hidden: None makes `import libtpu` fail, and the
    # variable is what its import, by JAX, has set.
    if jax.config.jax_platforms is None:
        sys.modules["libtpu"] = None
        os.environ.pop("TPU_LIBRARY_PATH", None)
    _hush_echoes()


def fast_dtype(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Returns the type in which the devices at hand train fastest: "bfloat16", or "float32" on a CPU without it.

    A CPU that has bfloat16 instructions lists them in `cpuinfo`, a file that Linux alone has; elsewhere it is float32.
    """
    if jax.default_backend() != "cpu":
        return "bfloat16"
    flags = set(cpuinfo.read_text(encoding="utf-8").split()) if cpuinfo.is_file() else set()
    return "bfloat16" if flags & {"amx_bf16", "avx512_bf16"} else "float32"


# Of asyncio, of TensorBoard's queue, and of reads that Orbax drops when another one has failed.
_ECHO = re.compile("Event loop is closed|handle is closed|Encountered error while reading array")


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
