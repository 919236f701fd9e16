"""What slices of TPUs would allow at most, by `launch.compile_check`, and where their links become the limit."""

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ghost_jax.core.atomic_io import read_json
from ghost_jax.core.errors import UserError
from tests.bench.work import Work

# Of an update, the same on all slices: the more chips, the fewer rows has each, and the more the links weigh.
ROWS = 256
KEPT = ("config", "topology", "chips", "mesh", "tokens", "memory", "fits", "seconds", "bound_by", "tokens_per_s")


def measure(work: Work, say: Callable[[str], None]) -> dict:
    """Returns the reports of the pretraining step on `work.slices`, and `links_take_over`.

    Of each generation that is the least number of chips from which on the links need longer than arithmetic and memory;
    None where they do on no slice, or not on the largest. Without the compiler, only why it was `left_out`.
    """
    if importlib.util.find_spec("libtpu") is None:
        say("left out, libtpu not installed")
        return {"left_out": "libtpu not installed"}
    reports = []
    for topology in work.slices:
        reports.append(_report(work.base_recipe, topology))
        say(f"{topology}: at most {reports[-1]['tokens_per_s']:,.0f} tokens/s, bound by {reports[-1]['bound_by']}")
    return {"slices": reports, "links_take_over": taken_over(reports)}


def taken_over(reports: Sequence[dict]) -> dict[str, int | None]:
    """Returns generation -> the least number of chips from which on the links are the limit, None where there is none.

    A larger slice that another limit binds again ends what was below it.
    """
    found: dict[str, int | None] = {}
    for report in sorted(reports, key=lambda report: report["chips"]):
        generation = report["topology"].partition(":")[0]
        linked = report["bound_by"] == "links"
        found[generation] = (found.get(generation) or report["chips"]) if linked else None
    return found


def _report(config: str, topology: str) -> dict:
    with tempfile.TemporaryDirectory(prefix="ghost_jax-slice-") as folder:
        out = Path(folder) / "report.json"
        command = [sys.executable, "-m", "launch.compile_check", f"--config={config}", f"--topology={topology}"]
        command += [f"--config.{key}={ROWS}" for key in ("batch_size", "micro_batch_size")]
        done = subprocess.run([*command, f"--out={out}"], stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise UserError(f"The step of {config} was not compiled for {topology}; why stands above.")
        report = read_json(out)
    return {key: report[key] for key in KEPT}
