"""Runs the study's experiments one after another, unattended: `make campaign`, or `python -m launch.campaign`.

    python -m launch.campaign                 # run or resume; CAMPAIGN names the folder (default ../ghost_jax-campaign)
    python -m launch.campaign --list          # what is done, what is left and for how long

One folder outside of this checkout holds worktrees, an environment, caches and run directories. Runs that are compared
share a commit, that of the first of them; the sweep files are those of this checkout. The records of a finished run are
copied to evals/records/campaign at once, for you to commit; a run with records there is not run again. Without the
folder only unfinished runs and the bases are lost. All processes have the lowest priority. SIGTERM stops it, and the
next start resumes.
"""

import contextlib
import dataclasses
import functools
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ghost_jax.core.atomic_io import locked, new_folder, write_text
from ghost_jax.core.console import duration
from ghost_jax.core.errors import UserError, command, parser_of
from ghost_jax.core.paths import data_folders, local_path
from ghost_jax.runs.run_record import CONFIG, ended
from ghost_jax.sweeps import grid as sweep_grid

ROOT = Path(__file__).resolve().parents[1]
RECORDS = Path("evals/records/campaign")
COMMIT = "commit.txt"  # of all runs of a folder, which are compared
POLL_SECONDS = 20.0
LOWEST = 19  # priority


@dataclasses.dataclass(frozen=True)
class Part:
    """A sweep of the campaign."""

    sweep: str  # as after `--config=`
    folder: str  # of its runs; sweeps that share a base share a folder
    # base_hours, run_hours: of a base and a run on two idle cores, scores included; a base counts once a folder
    base_hours: float
    run_hours: float


PARTS = (
    Part("configs/sweeps/knowledge.py:mini", "facts-mini", 1.5, 0.2),  # of either setting
    Part("configs/sweeps/exposure.py:nano", "exposure-nano", 0.0, 0.25),
    Part("configs/sweeps/exposure.py:mini", "exposure-mini", 0.0, 0.6),
    Part("configs/sweeps/latch.py:mini", "facts-mini", 1.5, 0.2),
    Part("configs/sweeps/letters.py:mini", "letters-mini", 1.5, 0.4),
    Part("configs/sweeps/recipes.py:mini", "recipes-mini", 2.8, 0.2),
    Part("configs/sweeps/reader.py:mini", "recipes-mini", 1.4, 0.3),
    Part("configs/sweeps/muon.py:nano", "muon-nano", 0.0, 0.17),
    Part("configs/sweeps/muon.py:mini", "muon-mini", 0.0, 0.5),
    Part("configs/sweeps/size.py:mini", "size-mini", 0.0, 0.6),
    Part("configs/sweeps/chat36m.py", "chat-36m", 2.0, 0.7),
)


@functools.cache  # while the campaign runs, this checkout may change
def names_of(part: Part) -> list[str]:
    """Returns the names of a part's runs, in their order."""
    return [run.name for run in sweep_grid.load(str(ROOT / part.sweep)).runs()]


def left(folder: Path) -> list[tuple[Part, int, int, float]]:
    """Returns of each part the number of runs left, of all its runs, and the hours left on two idle cores."""
    found, bases = [], set()
    for part in PARTS:
        names = names_of(part)
        missing = [name for name in names if not ended(ROOT / RECORDS / part.folder / name)]
        has_base = part.folder in bases or any((folder / "runs" / part.folder).glob("pretrain_*/checkpoints"))
        hours = part.run_hours * len(missing) + part.base_hours * bool(missing and not has_base)
        bases |= {part.folder} if missing else set()
        found.append((part, len(missing), len(names), hours))
    return found


def show(folder: Path) -> None:
    """Prints what is done and what is left."""
    parts = left(folder)
    for part, missing, total, hours in parts:
        when = f"about {duration(3600 * hours)} left" if missing else "done"
        print(f"{part.sweep:36} {total - missing:3} of {total:2} runs recorded, {when}", flush=True)
    print(f"all: about {duration(3600 * sum(hours for *_, hours in parts))} on two idle cores", flush=True)


def set_up(folder: Path, part: Part) -> Path:
    """Returns a worktree at the commit of the part's folder; makes it and the environment where they are missing."""
    tree, pinned = folder / "trees" / part.folder, ROOT / RECORDS / part.folder / COMMIT
    if not pinned.is_file():
        if _git("status", "--porcelain", "--untracked-files=no"):
            raise UserError(f"All runs of {part.folder} share one commit, and this checkout has changes: commit them.")
        write_text(pinned, _git("rev-parse", "HEAD") + "\n")
    if not tree.is_dir():
        _git("worktree", "prune")
        _git("worktree", "add", "--detach", str(tree), pinned.read_text(encoding="utf-8").strip())
    if not python_of(folder).with_name("pip").is_file():  # made last
        _run(sys.executable, "-m", "venv", str(folder / "environment"))
    install = ("-m", "pip", "install", "--quiet", "--no-compile", "-r", str(tree / "requirements.txt"))
    _run(str(python_of(folder)), *install)
    return tree


def python_of(folder: Path) -> Path:
    """Returns the interpreter of the campaign's environment."""
    return folder / "environment" / "bin" / "python"


def restore(part: Part, runs: Path) -> None:
    """Copies the records of runs that have ended to where the sweep looks for them; a base needs its weights."""
    for name in names_of(part):
        record = ROOT / RECORDS / part.folder / name
        if ended(record) and not ended(runs / name):
            with new_folder(runs / name) as partial:  # a part of a record may look like one that has ended
                shutil.copytree(record, partial, dirs_exist_ok=True)


def keep(part: Part, runs: Path) -> None:
    """Copies the records of the runs and bases that have ended since, by `make record`."""
    for config in runs.glob(f"*/{CONFIG}"):
        record = ROOT / RECORDS / part.folder / config.parent.name
        if ended(config.parent) and not (record / CONFIG).is_file():
            _run("make", "--silent", "record", f"RUN={config.parent}", f"INTO={RECORDS / part.folder}")
            print(f"recorded {part.folder}/{record.name}", flush=True)


def run(part: Part, folder: Path, tree: Path, data: Path) -> bool:
    """Runs a part to its end and keeps records on the way; returns whether every run of it ended."""
    runs = folder / "runs" / part.folder
    runs.mkdir(parents=True, exist_ok=True)
    restore(part, runs)
    words = [str(python_of(folder)), "-m", "ghost_jax.sweep", f"--config={ROOT / part.sweep}", f"--runs={runs}"]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "GHOST_DATA": str(data)}
    print(f"$ {' '.join(words)}", flush=True)
    # In a session of its own: Linux shares the cores between sessions first, each with a priority of its own.
    options = {"cwd": tree, "env": environment, "start_new_session": True, "preexec_fn": _give_way}
    sweep = subprocess.Popen(words, **options)
    try:
        while sweep.poll() is None:
            time.sleep(POLL_SECONDS)
            keep(part, runs)
    finally:
        sweep.terminate()
        sweep.wait()
        keep(part, runs)
    return sweep.returncode == 0


@command
def main(argv: Sequence[str]) -> int:
    """Runs or resumes every experiment of the campaign, in order, and keeps the records of what is finished."""
    parser = parser_of(main)
    parser.add_argument("--list", action="store_true", help="print what is done and what is left; run nothing")
    flags = parser.parse_args(argv)
    folder = local_path(os.environ.get("CAMPAIGN") or str(ROOT.parent / "ghost_jax-campaign")).resolve()
    show(folder)
    if flags.list:
        return 0
    if not os.environ.get("GHOST_DATA"):
        raise UserError("The campaign reads raw/, corpus/ and ctibench/ in $GHOST_DATA, which is not set. Export it.")
    data = data_folders(None)[0].resolve()
    failed, refusal = [], f"Another campaign is at work in {folder}. Wait until it is done, or name another CAMPAIGN."
    with locked(folder / ".lock", refusal=refusal):
        for part, missing, *_ in left(folder):
            if missing and not run(part, folder, set_up(folder, part), data):
                failed.append(part.sweep)
    show(folder)
    if failed:
        raise UserError(f"Runs of {', '.join(failed)} failed; their logs in {folder / 'runs'} show why. Repeat it.")
    return 0


def _give_way() -> None:
    """Gives this process and its session the lowest priority."""
    os.nice(LOWEST)
    with contextlib.suppress(OSError):  # not on every system
        Path("/proc/self/autogroup").write_text(str(LOWEST), encoding="ascii")


def _run(*words: str) -> None:
    if subprocess.run(words, cwd=ROOT, check=False).returncode:
        raise UserError(f"{shlex.join(words)} failed; the reason is above. Correct it and repeat the command.")


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"git {' '.join(words)} failed: {done.stderr.strip()}")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
