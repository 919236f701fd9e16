"""Counts the faults that are survived: `python -m tests.bench.faults --out=DIR` writes faults.json and faults.md.

`--seed` draws which bits are corrupted and when a process is killed. The faults are in `fault_cases.py`.
"""

import argparse
import importlib.util
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ghost_jax.core.atomic_io import write_json, write_text
from ghost_jax.core.errors import FAILED, UserError, command
from ghost_jax.core.paths import local_path
from ghost_jax.runs import run_record

NEEDED = ("pytest", "hypothesis")  # the faults use fixtures of the tests


def table(report: dict) -> str:
    """Returns the Markdown table of a report."""
    words = {True: "survived", False: "**not survived**", None: "not tried"}
    lines = [
        f"{report['survived']} faults survived of {report['tried']} tried, on a {report['machine']}, with "
        f"{in_words(report['code'])}.",
        "",
        "| fault | outcome | message | s |",
        "|---|---|---|---|",
    ]
    for one in report["faults"]:
        said = one["output"].replace("|", "\\|")[:200]
        lines.append(f"| {one['fault']} | {words[one['survived']]} | {said} | {one['seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def in_words(code: Mapping) -> str:
    """Returns the code of a record for a sentence."""
    commit = f" at {code['git_commit'][:7]}" if code["git_commit"] else ", installed as a package"
    return f"ghost_jax {code['ghost_jax']}{commit}{' with uncommitted changes' if code['git_dirty'] else ''}"


@command
def main(argv: Sequence[str]) -> int:
    """Tries every fault on the smallest run and writes how many were survived."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.faults", description=main.__doc__)
    parser.add_argument(
        "--out", required=True, type=local_path, metavar="DIR", help="faults.json and faults.md go there"
    )
    parser.add_argument("--seed", type=int, default=0, help="draws bits and moments of kills (default: 0)")
    flags = parser.parse_args(argv)
    if lacking := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"The faults need {' and '.join(lacking)}, which this Python lacks. Run make test once, which installs it, "
            f"or {sys.executable} -m pip install -r requirements-dev.txt, and repeat the command."
        )
    from tests.bench.fault_cases import FAULTS, Place, attempt  # not above: these need pytest
    from tests.bench.subject import code_of
    from tests.conftest import FinishedRun, Ghost, tiny_chat

    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        ghost, workdir = Ghost(Path(folder) / "cache"), Path(folder) / "sound" / "chat"
        finished = FinishedRun(workdir, workdir.parent / "pretrain_v05-nano", ghost(*tiny_chat(workdir)).stdout)
        environment = run_record.read_environment(workdir)
        results = []
        for name in FAULTS:
            place = Path(tempfile.mkdtemp(dir=folder))
            results.append(attempt(name, Place(place, ghost, finished, random.Random(f"{flags.seed} {name}"))))
            print(f"{name}: {results[-1]['survived']} ({results[-1]['seconds']:.0f} s)", flush=True)
    outcomes = [one["survived"] for one in results if one["survived"] is not None]
    head = {"machine": environment.machine, "code": code_of(environment), "seed": flags.seed}
    report = head | {"tried": len(outcomes), "survived": sum(outcomes), "faults": results}
    write_json(flags.out / "faults.json", report)
    write_text(flags.out / "faults.md", table(report))
    print(f"{report['survived']} of {report['tried']} faults survived: {flags.out / 'faults.md'}")
    return 0 if all(outcomes) else FAILED


if __name__ == "__main__":
    sys.exit(main())
