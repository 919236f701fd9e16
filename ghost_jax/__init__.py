"""ghost_jax: pretrain, chat-tune and score small domain language models in JAX."""

import importlib.util
import os
import sys
from pathlib import Path

__version__ = "0.4.0"

HUGE_PAGES = "glibc.malloc.hugetlb=1"  # glibc's malloc asks Linux for huge pages; read when a process starts
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def _use_own_evals() -> None:
    """Makes `evals` the package beside this one: `python -m` searches the current folder first."""
    path = Path(__file__).resolve().parents[1] / "evals" / "__init__.py"
    spec = importlib.util.spec_from_file_location("evals", path, submodule_search_locations=[str(path.parent)])
    sys.modules.setdefault("evals", importlib.util.module_from_spec(spec))


def _restart_with_huge_pages() -> None:
    """Restarts a command of ours with `HUGE_PAGES`, where Linux gives huge pages on request only.

    On a CPU, JAX allocates the memory of each step again; in pages of 4 KiB a step of mini takes 9% longer and one of
    nano 16%, on two cores (tests/bench/NOTES.md).
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    module = sys.orig_argv[sys.orig_argv.index("-m") + 1 :] if "-m" in sys.orig_argv else []
    installed = len(sys.orig_argv) > 1 and Path(sys.orig_argv[1]).name == "ghost"
    ours = installed or (bool(module) and module[0].partition(".")[0] in ("ghost_jax", "evals"))
    if ours and "glibc.malloc.hugetlb" not in tunables and _SETTING.is_file() and "[madvise]" in _SETTING.read_text():
        both = f"{tunables}:{HUGE_PAGES}" if tunables else HUGE_PAGES
        os.execve(sys.executable, sys.orig_argv, os.environ | {"GLIBC_TUNABLES": both})


_restart_with_huge_pages()
_use_own_evals()
