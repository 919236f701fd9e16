"""ghost_jax: pretrain, chat-tune and honestly score small domain language models in JAX."""

import importlib.util
import os
import sys
from pathlib import Path

__version__ = "0.4.0"


def _claim_evals() -> None:
    """Makes `evals` the package beside this one: `python -m` puts the current folder first, which may hold another."""
    folder = Path(__file__).resolve().parents[1] / "evals"
    spec = importlib.util.spec_from_file_location(
        "evals", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules.setdefault("evals", importlib.util.module_from_spec(spec))


HUGE_PAGES = "glibc.malloc.hugetlb=1"  # glibc's malloc asks Linux for huge pages; read when a process starts
_POLICY = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def _start_with_huge_pages() -> None:
    """Starts a command of ours anew with `HUGE_PAGES`, where Linux gives huge pages only to whoever asks for them.

    On a CPU, JAX allocates the memory of a step anew for each step. In pages of 4 KiB the kernel takes so long to hand
    it over that a step of mini takes 9% longer and one of nano 16%, on two cores (tests/bench/NOTES.md).
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    module = sys.orig_argv[sys.orig_argv.index("-m") + 1 :] if "-m" in sys.orig_argv else []
    ours = bool(module) and module[0].partition(".")[0] in ("ghost_jax", "evals")
    if ours and "glibc.malloc.hugetlb" not in tunables and _POLICY.is_file() and "[madvise]" in _POLICY.read_text():
        both = ":".join(filter(None, (tunables, HUGE_PAGES)))
        os.execve(sys.executable, sys.orig_argv, os.environ | {"GLIBC_TUNABLES": both})


_start_with_huge_pages()
_claim_evals()
