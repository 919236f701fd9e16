"""Runs a grid of settings and seeds: `python -m ghost_jax.sweep --config=configs/sweeps/lr.py:nano`.

Every run is a process of the train command in one folder. Runs on the same base share it: the first that needs it
trains it, and the others wait. A repeated command resumes what is unfinished. A failed run does not stop the others.
At the end it writes a table (`sweep.json`, `sweep.md`) and pictures.
"""

import dataclasses
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ghost_jax.config import load as config_lib
from ghost_jax.core.atomic_io import locked
from ghost_jax.core.console import Progress, duration, make_console
from ghost_jax.core.errors import DONE, UsageError, UserError, command, parser_of, positive
from ghost_jax.core.object_store import path_of
from ghost_jax.core.paths import local_path
from ghost_jax.runs import run_dir, run_record
from ghost_jax.sweeps import grid as sweep_grid
from ghost_jax.sweeps import results as sweep_table
from ghost_jax.sweeps.grid import Run, Sweep
from ghost_jax.sweeps.jobs import cores, start, stop

POLL_SECONDS = 0.2
TAIL = 12  # lines of a failed run's log that are shown


@dataclasses.dataclass(frozen=True)
class Task:
    """One run's process: its command, its run directory, and that of its base, if it has one."""

    name: str
    command: list[str]
    config: ConfigDict
    workdir: Path
    base: Path | None

    @property
    def log(self) -> Path:
        """The output of all attempts."""
        return self.workdir.with_name(f"{self.name}.log")

    @property
    def trains_base(self) -> bool:
        """Whether it would train its base first, were it started now."""
        return self.base is not None and not run_record.is_finished(self.base)


def tasks_of(sweep: Sweep, folder: Path, overrides: Sequence[tuple[str, str]], data_dir: Path | None) -> list[Task]:
    """Returns the processes of a sweep in order; `overrides` are key and text of what is set for every run.

    Raises UsageError for a key or value that does not fit, or one that the sweep itself varies, and UserError where
    the folder holds runs of another config.
    """
    tasks, bases = [], {}
    for run in sweep.runs():
        config = config_of(run, overrides)
        workdir, base = folder / run.name, None
        check_same(workdir, config)
        if config.stage == "chat":
            base = folder / run_dir.name_of(config.base)
            check_same(base, config.base)
            asked = config_lib.decisive(config.base.to_dict())
            if bases.setdefault(base, asked) != asked:
                raise UsageError(
                    f"The runs of {sweep.name} have bases of different configs that are all called {base.name}. "
                    "Vary what the chat model alone has, or make a sweep file for each base."
                )
        flags = [f"--config.{key}={text}" for key, text in (*run.overrides.items(), *overrides)]
        flags += [f"--workdir={workdir}"] + ([f"--data_dir={data_dir}"] if data_dir else [])
        words = [sys.executable, "-m", "ghost_jax.train", f"--config={run.setting.spec}", *flags]
        tasks.append(Task(run.name, words, config, workdir, base))
    if shared := sorted({base.name for base in bases} & {task.name for task in tasks}):
        raise UsageError(f"{sweep.name}: a run and a base are both called {shared[0]}. Give the setting another name.")
    return tasks


def config_of(run: Run, overrides: Sequence[tuple[str, str]]) -> ConfigDict:
    """Returns the config of a run. Raises UsageError for an override that does not fit."""
    config = config_lib.load(run.setting.spec)
    for key, _ in overrides:
        if key in run.overrides:
            raise UsageError(f"--config.{key}: {key} is what the sweep varies. Set it in the sweep file.")
    config_lib.override_all(config, (*run.overrides.items(), *overrides))
    config_lib.validate(config)
    return config


def check_same(workdir: Path, config: ConfigDict) -> None:
    """Raises UserError where the directory holds a run of another config."""
    if not (workdir / run_record.CONFIG).is_file():
        return
    try:
        run_dir.settle(config, workdir)
        run_dir.check_same(workdir, config)
    except UserError as fault:
        raise UserError(f"{fault} To use another folder for the sweep, add --runs.") from None


def run_all(tasks: Sequence[Task], jobs: int, lock: int) -> dict[str, str]:
    """Runs every task, `jobs` at a time; returns name -> "finished", "stopped", "failed" or "not started".

    A task is not started where training its base failed. Whatever ends this function stops the running tasks, which
    inherit the file descriptor `lock`.
    """
    states = {task.name: ended for task in tasks if (ended := run_record.ended(task.workdir))}
    if states:
        print(f"{len(states)} of {len(tasks)} runs had ended before", flush=True)
    for task in tasks:
        if states.get(task.name) == "finished":
            run_dir.evals_of(task.workdir, task.config)  # says where it was scored otherwise
    waiting = [task for task in tasks if task.name not in states]
    running: dict[str, tuple[Task, subprocess.Popen, float]] = {}
    failed_bases: dict[Path, Path] = {}  # run directory of a base -> the log that shows why
    with Progress("sweep", len(tasks), unit="runs", done=len(states)) as progress:
        try:
            while waiting or running:
                for task in list(waiting):
                    bases = {other.base for other, _, _ in running.values()}
                    if task.base in failed_bases:
                        states[task.name] = "not started"
                        print(f"{task.name}: not started, its base failed: see {failed_bases[task.base]}", flush=True)
                        progress.advance(1)
                    elif len(running) < jobs and not (task.trains_base and task.base in bases):
                        # A task that trains a base uses the cores of those that wait for it.
                        rivals = {other.base for other in tasks if other.trains_base} if task.trains_base else tasks
                        job = start(task.command, task.log, share=min(jobs, len(rivals)), jobs=jobs, lock=lock)
                        running[task.name] = (task, job, time.time())
                    else:
                        continue
                    waiting.remove(task)
                for task, job, started in list(running.values()):
                    code = job.poll()
                    if code is None:
                        continue
                    del running[task.name]
                    states[task.name] = run_record.ended(task.workdir) or "failed"  # also where its base was stopped
                    if task.trains_base and _was_tried(task.base, started):
                        failed_bases[task.base] = task.log
                    print(_outcome(task, states[task.name], code, time.time() - started), flush=True)
                    progress.advance(1)
                time.sleep(POLL_SECONDS)
        finally:
            stop([job for _, job, _ in running.values()])
    return states


def _was_tried(base: Path, since: float) -> bool:
    """Returns whether an unfinished base was stopped, or trained after a time: else its run failed by its own fault."""
    data = base / run_record.DATA  # written when the training begins
    return bool(run_record.stopped(base)) or (data.is_file() and data.stat().st_mtime >= since)


def _outcome(task: Task, state: str, code: int, seconds: float) -> str:
    """Returns a line on a run that ended, and where it did not finish the end of its log."""
    line = f"{task.name}: {state} in {duration(seconds)}"
    if code == DONE:
        return line
    tail = task.log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
    return "\n".join([f"{line}, exit code {code}; the end of {task.log}:", *(f"    {each}" for each in tail)])


def show(table: Sequence[tuple[str, ...]], notes: Sequence[str], console: Console) -> None:
    """Prints the table of a sweep and its notes."""
    header, *rows = table
    drawn = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)  # many columns on 120 characters
    for number, name in enumerate(header):
        drawn.add_column(name, justify="right" if number else "left", overflow="fold", no_wrap=not number)
    for row in rows:
        drawn.add_row(*row)
    console.print(drawn)
    for note in notes:
        console.print(note, highlight=False, soft_wrap=True)


@command
def main(argv: Sequence[str]) -> int:
    """Runs a grid of settings and seeds, resumably, and pools their results in one table and one picture."""
    parser = parser_of(main)
    parser.epilog = "Any value of the configs can be set for every run by --config.KEY=VALUE or --config.KEY VALUE."
    add = parser.add_argument
    add("--config", required=True, metavar="FILE[:PRESET]", help="sweep file, e.g. configs/sweeps/lr.py:nano")
    add("--runs", type=local_path, metavar="DIR", help="their folder (default: runs/sweeps/<name>-<preset>)")
    add("--jobs", type=positive, metavar="N", help="runs at a time (default: one per two cores); on a TPU: 1")
    add("--data_dir", type=path_of, metavar="DIR", help="folder of raw/, corpus/, ctibench/ (default: $GHOST_DATA)")
    add("--dry_run", action="store_true", help="print every run's command; start nothing")
    overrides, words = config_lib.overrides_in(argv)
    flags = parser.parse_args(words)
    sweep = sweep_grid.load(flags.config)
    folder = flags.runs or Path("runs") / "sweeps" / sweep.name
    tasks = tasks_of(sweep, folder, overrides, flags.data_dir)
    jobs = flags.jobs or max(1, cores() // 2)

    if flags.dry_run:
        for task in tasks:
            print(shlex.join(task.command))
        return DONE
    refusal = (
        f"Another sweep is at work in {folder}, or runs that a killed one left behind. Wait until they are done, or "
        "give this sweep another folder with --runs."
    )
    with locked(folder / ".lock", refusal=refusal) as lock:
        print(f"{sweep.name}: {len(tasks)} runs in {folder}, {jobs} at a time", flush=True)
        states = run_all(tasks, jobs, lock)
        table, notes = sweep_table.write(sweep, folder, states)
    show(table, notes, make_console())
    print(f"table and picture: {folder / 'sweep.md'}, {folder / 'sweep.png'}", flush=True)
    if failed := [name for name, state in states.items() if state in ("failed", "not started")]:
        raise UserError(
            f"{len(failed)} of {len(tasks)} runs came to no result: {', '.join(failed)}. Their logs in {folder} show "
            "why; repeat the command to try them again and keep the others."
        )
    return DONE


if __name__ == "__main__":
    sys.exit(main())
