"""Reads what a report is made of: the records of runs, and the JSON reports beside them.

A file that cannot be read is named and left out, so that one broken file does not hide the others.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ghost_jax.core.atomic_io import read_json
from ghost_jax.core.errors import UserError
from ghost_jax.data.items.items import orders_per_item
from ghost_jax.runs import evaluation, run_record
from ghost_jax.runs.evaluation import SIGNIFICANT, Evaluation
from ghost_jax.runs.run_record import RunRecord


@dataclass(frozen=True)
class Sweep:
    """What the page shows of a sweep; its picture is copied under the name, which must not lead to another folder."""

    name: Annotated[str, Field(pattern=r"^[^/]+$")]
    axis: str
    notes: list[str]
    table: list[list[str]] = field(default_factory=list)


@dataclass(frozen=True)
class Beside:
    """The JSON reports beside runs: of the lexical reader, audits (model -> report), comparisons and sweeps.

    A sweep has `picture`, the path of its picture, which may be missing; one of an older version has no `table`.
    """

    lexical: list[Evaluation] = field(default_factory=list)
    audits: list[dict[str, Evaluation]] = field(default_factory=list)
    comparisons: list[dict] = field(default_factory=list)
    sweeps: list[dict] = field(default_factory=list)


def find_runs(folder: Path) -> list[Path]:
    """Returns the run directories at or below `folder`, by name. Raises UserError where there is none."""
    runs = [*_runs_at(folder, "config.json"), *_runs_at(folder, "*/config.json")]
    if not runs:
        deeper = "".join(f" {each} has some." for each in deeper_runs(folder))
        raise UserError(
            f"There is no run in {folder}.{deeper} Name its folder, or train one: python -m ghost_jax.train "
            "--config=configs/chat_v5.py:nano."
        )
    return sorted(runs)


def _runs_at(folder: Path, pattern: str) -> list[Path]:
    """Returns the run directories whose config has a path of this pattern; others are exports."""
    return [path.parent for path in folder.glob(pattern) if b'"architectures"' not in path.read_bytes()]


def deeper_runs(folder: Path) -> list[Path]:
    """Returns the folders in `folder` that hold runs, which `find_runs` does not look for."""
    found = {run.parent for run in _runs_at(folder, "*/*/config.json")}
    return sorted(found - set(_runs_at(folder, "*/config.json")))


def read_runs(workdirs: Iterable[Path]) -> tuple[list[RunRecord], list[str]]:
    """Returns the runs that can be read, and a message for each that cannot. Raises UserError where none can."""
    runs, left_out = [], []
    for workdir in workdirs:
        try:
            runs.append(run_record.read(workdir))
        except UserError as fault:
            left_out.append(str(fault))
    if not runs:
        raise UserError(left_out[0])
    return runs, left_out


def read_beside(paths: Iterable[Path]) -> tuple[Beside, list[str]]:
    """Returns the reports among JSON files, and a message for each file that cannot be read. Others are ignored."""
    found, left_out = Beside(), []
    for path in paths:
        try:
            content = read_json(path)
            keys = content.keys() if isinstance(content, dict) else set()
            if evaluation.is_evaluation(content):
                found.lexical.append(evaluation.from_json(content, name=path))
            elif "predictions" in keys and isinstance(content["predictions"], dict):
                audited = content["predictions"].items()
                found.audits.append({name: evaluation.from_json(each, name=path) for name, each in audited})
            elif keys >= {"reference", "rows", "orders"}:
                sentences_of(content), runs_compared(content)  # read once here, where a damaged file is named
                if len(content["rows"]) > 1:  # the seeds of one recipe are no comparison
                    found.comparisons.append(content)
            elif keys >= {"name", "axis", "settings", "notes"}:
                evaluation.from_json(content, Sweep, path, "Repeat the sweep's command.")
                found.sweeps.append(content | {"picture": path.with_suffix(".png")})
        except UserError as fault:
            left_out.append(str(fault))
        except (LookupError, TypeError, AttributeError, ValueError) as fault:
            left_out.append(f"{path} is damaged, or no report of this version ({fault!r}). Write it again.")
    return found, left_out


def sentences_of(comparison: dict) -> list[str]:
    """Returns what a comparison found: a summary, and a sentence for each run but the reference."""
    others = [row["against_reference"] for row in comparison["rows"][1:]]
    apart = [each for each in others if each["p_holm"] < SIGNIFICANT]
    better = sum(each["mean"] > 0 for each in apart)
    in_one = orders_per_item(comparison["orders"]) == 1
    asked = "in one order, where a constant letter can look like knowledge" if in_one else "in all orders"
    found = f"none of {len(others)} told apart from it"
    if apart:
        found = f"{better} better, {len(apart) - better} worse, {len(others) - len(apart)} not told apart"
    lead = (
        f"{comparison['items']['name']}, {comparison['n']:,} questions {asked}, {comparison['book']} book, against "
        f"{comparison['reference']}: {found}."
    )
    return [lead, *(each["text"] for each in others)]


def runs_compared(comparison: dict) -> list[str]:
    """Returns the names of the run directories whose reports were compared: `NAME/evals/FILE.json`."""
    reports = [Path(run["report"]) for row in comparison["rows"] for run in row["runs"]]
    return [report.resolve().parent.parent.name for report in reports if report.parent.name == "evals"]
