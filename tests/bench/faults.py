"""Faults survived of faults tried: `python -m tests.bench.faults --out=DIR` writes faults.json and faults.md.

What is damaged, and when a process is killed, is drawn from `--seed`. The faults themselves are in `fault_cases.py`.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ghost_jax.errors import FAILED, command
from ghost_jax.whole import read_json, write_json, write_text
from tests.bench.fault_cases import FAULTS, NotTried, Place
from tests.conftest import FinishedRun, Ghost, tiny_chat


def attempt(name: str, at: Place) -> dict:
    """Tries one fault; returns whether it was survived (None: not tried), what was said, and the seconds it took."""
    start = time.monotonic()
    try:
        survived, said = True, FAULTS[name](at)
    except NotTried as why:
        survived, said = None, str(why)
    except (AssertionError, subprocess.TimeoutExpired) as why:
        survived, said = False, str(why)[-600:]
    said = said.replace(str(at.folder), "…").replace(str(at.finished.workdir.parent), "…")
    return {"fault": name, "survived": survived, "said": " ".join(said.split()), "seconds": time.monotonic() - start}


def table(report: dict) -> str:
    """Returns the Markdown table of a report."""
    words = {True: "survived", False: "**not survived**", None: "not tried"}
    lines = [
        f"{report['survived']} faults survived of {report['tried']} tried, on a {report['machine']}.",
        "",
        "| fault | outcome | what is said | s |",
        "|---|---|---|---|",
    ]
    for one in report["faults"]:
        said = one["said"].replace("|", "\\|")[:200]
        lines.append(f"| {one['fault']} | {words[one['survived']]} | {said} | {one['seconds']:.0f} |")
    return "\n".join(lines) + "\n"


@command
def main() -> int:
    """Tries every fault on the smallest run and writes how many were survived."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.faults", description=main.__doc__)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="faults.json and faults.md go there")
    parser.add_argument("--seed", type=int, default=0, help="of what is damaged and when (default: 0)")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        ghost, workdir = Ghost(Path(folder) / "cache"), Path(folder) / "sound" / "chat"
        finished = FinishedRun(workdir, workdir.parent / "pretrain_v05-nano", ghost(*tiny_chat(workdir)).stdout)
        results = []
        for name in FAULTS:
            place = Path(tempfile.mkdtemp(dir=folder))
            results.append(attempt(name, Place(place, ghost, finished, random.Random(f"{flags.seed} {name}"))))
            print(f"{name}: {results[-1]['survived']} ({results[-1]['seconds']:.0f} s)", flush=True)
    outcomes = [one["survived"] for one in results if one["survived"] is not None]
    machine = read_json(workdir / "environment.json")["machine"]
    report = {"machine": machine, "seed": flags.seed, "tried": len(outcomes), "survived": sum(outcomes)}
    write_json(flags.out / "faults.json", report | {"faults": results})
    write_text(flags.out / "faults.md", table(report | {"faults": results}))
    print(f"{report['survived']} of {report['tried']} faults survived: {flags.out / 'faults.md'}")
    return 0 if all(outcomes) else FAILED


if __name__ == "__main__":
    sys.exit(main())
