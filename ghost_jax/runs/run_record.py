"""The record of a run, typed: one reader and one writer of the JSON files in a run directory."""

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ghost_jax.core.atomic_io import read_config, read_json, write_json
from ghost_jax.data.mixture import Packing, Share
from ghost_jax.runs import evaluation, metrics
from ghost_jax.runs.evaluation import Evaluation

CONFIG, ENVIRONMENT, DATA = "config.json", "environment.json", "data.json"
STATUS, STOPPED = "status.json", "stopped.json"
NAMED = 4  # as many runs of one kind are "the others"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Environment:
    """What is needed to repeat a run. `command` has the words that decide what is computed; older runs have none.

    `resumed` has the other fields, and the `update`, of each start that resumed the run with other ones than before.
    """

    ghost_jax: str = ""
    git_commit: str = ""
    git_dirty: bool = False
    python: str = ""
    command: list[str] = dataclasses.field(default_factory=list)
    packages: dict[str, str] = dataclasses.field(default_factory=dict)
    machine: str = ""
    processes: int = 1
    resumed: list[dict] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataRecord:
    """What a run is trained on; an imported model has no corpus, stores, mixture and packing."""

    made_from: dict = dataclasses.field(default_factory=dict)  # input files of the corpus, with hashes
    # documents, duplicates_dropped, licenses: of the corpus, by source
    documents: dict[str, int] = dataclasses.field(default_factory=dict)
    duplicates_dropped: dict[str, dict] = dataclasses.field(default_factory=dict)
    licenses: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    corpus: str = ""
    stores: dict[str, str] = dataclasses.field(default_factory=dict)  # dataset -> name of its store
    trained_on: list[str]  # names of the stores whose text the run learns from, its base's included
    mixture: list[Share] = dataclasses.field(default_factory=list)
    packing: Packing | None = None


@dataclasses.dataclass(frozen=True)
class Stopped:
    """Why the divergence watch stopped a run, and after which update."""

    step: int
    reason: str


Part = TypeVar("Part", Environment, DataRecord, Stopped)


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What a run directory records; an absent file gives an empty part. Neither finished nor stopped is unfinished."""

    name: str
    config: dict  # the resolved config, as its JSON has it
    environment: Environment
    data: DataRecord
    metrics: list[dict]  # the lines of metrics.jsonl
    finished: bool
    stopped: Stopped | None
    evals: dict[str, Evaluation]

    @property
    def code(self) -> str:
        """The version and commit of each start with other ones than the start before."""
        dirty = " with changes"
        return self._of_starts(lambda at: f"{at['ghost_jax']} {at['git_commit'][:10]}{dirty * at['git_dirty']}".strip())

    @property
    def machine(self) -> str:
        """The machine of each start on another one than the start before."""
        return self._of_starts(lambda at: at["machine"])

    def _of_starts(self, value_of: Callable[[dict], str]) -> str:
        first = dataclasses.asdict(self.environment)
        starts = [first, *(first | each for each in self.environment.resumed or [])]
        return ", then ".join(value for value, _ in itertools.groupby(map(value_of, starts)))


def differences(runs: Sequence[RunRecord]) -> list[str]:
    """Returns a sentence on each thing in which runs differ beside their settings: code, machine, type, input files."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))  # what -> value -> names of runs
    for run in runs:
        data = defaultdict(list)
        for each in run.data.made_from.get("inputs", []):
            data[f"files of {each['source']}"].append(each["sha256"][:8])
        files = {what: " ".join(sorted(hashes)) for what, hashes in data.items()}
        of_run = {"code": run.code, "machine": run.machine, "type": run.config.get("model", {}).get("dtype", "")}
        for what, value in (of_run | files).items():
            found[what][value or "not recorded"].append(run.name)
    sentences = []
    for what, by_value in found.items():
        *few, (most, names) = sorted(by_value.items(), key=lambda each: len(each[1]))
        if few:
            last = (most, names if len(names) < NAMED else ["the others"])
            listed = [f"{value} ({', '.join(of_value)})" for value, of_value in [*few, last]]
            sentences.append(f"These runs differ in their {what}: {'; '.join(listed)}.")
    return sentences


def read(workdir: Path, *, scored: bool = True) -> RunRecord:
    """Reads the record of a run, its evaluations only where `scored` is on.

    Raises UserError where a file is broken, or config.json is not a run's.
    """
    return RunRecord(
        name=workdir.name,
        config=read_config(workdir / CONFIG) if (workdir / CONFIG).is_file() else {},
        environment=read_environment(workdir) if (workdir / ENVIRONMENT).is_file() else Environment(),
        data=read_data(workdir) if (workdir / DATA).is_file() else DataRecord(trained_on=[]),
        metrics=metrics.read(workdir),
        finished=is_finished(workdir),
        stopped=stopped(workdir),
        evals=evaluation.read_all(workdir) if scored else {},
    )


def read_environment(workdir: Path) -> Environment:
    """Reads environment.json. Raises UserError where it is absent or broken."""
    return _read(Environment, workdir / ENVIRONMENT)


def read_data(workdir: Path) -> DataRecord:
    """Reads data.json. Raises UserError where it is absent, broken, or has no `trained_on`."""
    return _read(DataRecord, workdir / DATA)


def stopped(workdir: Path) -> Stopped | None:
    """Returns at which update and why the watch stopped the run; None where it did not."""
    path = workdir / STOPPED
    return _read(Stopped, path) if path.is_file() else None


def is_finished(workdir: Path) -> bool:
    """Returns whether the run was trained and scored to its end."""
    return (workdir / STATUS).is_file()


def ended(workdir: Path) -> str:
    """Returns "finished", "stopped" by the divergence watch, or "" for a run that can be resumed."""
    if is_finished(workdir):
        return "finished"
    return "stopped" if stopped(workdir) else ""


def write(workdir: Path, part: Part) -> None:
    """Writes one part of the record into its file."""
    name = {Environment: ENVIRONMENT, DataRecord: DATA, Stopped: STOPPED}[type(part)]
    content = dataclasses.asdict(part)
    write_json(workdir / name, {key: value for key, value in content.items() if value is not None})


def write_finished(workdir: Path, steps: int, evals: dict | None = None) -> None:
    """Marks the run as finished; `evals` are the evaluations that scored it, with their options."""
    write_json(workdir / STATUS, {"status": "finished", "steps": steps, "evals": evals or {}})


def _read(kind: type[Part], path: Path) -> Part:
    return evaluation.from_json(read_json(path), kind, path, "Train the run again.")
