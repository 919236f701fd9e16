"""Settings of a process that uses JAX: the cache of compiled programs, its log, and the type that is fast here."""

import errno
import functools
import logging
import os
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import jax

from ghost_jax.core.paths import cache_dir

# Of asyncio, of TensorBoard's queue, and of reads that Orbax drops after another one failed.
_REPEATED = re.compile("Event loop is closed|handle is closed|Encountered error while reading array")


def set_up() -> None:
    """Prepares this process for computing; call it before the first array is made. Compiled programs are cached."""
    programs = cache_dir() / "xla"
    programs.mkdir(parents=True, exist_ok=True)  # one error here, and not one of JAX for each program
    jax.config.update("jax_compilation_cache_dir", str(programs))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # a start has thirty small programs
    # JAX sets its platforms itself where it finds a TPU. Else it tries every platform, and an installed libtpu (for
    # launch.compile_check) prints errors. None makes `import libtpu` fail; the variable was set by JAX's own import.
    if jax.config.jax_platforms is None:
        sys.modules["libtpu"] = None
        os.environ.pop("TPU_LIBRARY_PATH", None)
    # On a full disk Orbax raises the reason and closes its event loop. TensorStore's threads, asyncio and TensorBoard's
    # writer then print a hundred tracebacks more.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = functools.partial(_show_if_new, sys.unraisablehook)
    threading.excepthook = functools.partial(_show_if_new, threading.excepthook)


def _show_if_new(show: Callable, raised: "sys.UnraisableHookArgs | threading.ExceptHookArgs") -> None:
    fault = raised.exc_value
    if not _REPEATED.search(str(fault)) and getattr(fault, "errno", None) != errno.ENOSPC:
        show(raised)


def fast_dtype(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Returns the type in which this machine trains fastest: "bfloat16", or "float32" on a CPU without instructions
    for it and on an NVIDIA GPU before Ampere. `cpuinfo` lists a CPU's instructions, on Linux alone.
    """
    if jax.default_backend() != "cpu":
        capability = getattr(jax.local_devices()[0], "compute_capability", "")
        return "float32" if re.fullmatch(r"[1-7]\.\d", str(capability)) else "bfloat16"
    flags = set(cpuinfo.read_text(encoding="utf-8").split()) if cpuinfo.is_file() else set()
    return "bfloat16" if flags & {"amx_bf16", "avx512_bf16"} else "float32"
