"""Reads evaluations back: the run of each, what it was asked, and the credits of its letters."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from evals.items.answers import Answers
from evals.items.ctibench import FILE, HELD_OUT, part_of
from ghost_jax.config.load import recipe_of
from ghost_jax.core.atomic_io import read_config
from ghost_jax.core.errors import UsageError, UserError
from ghost_jax.core.object_store import path_of
from ghost_jax.core.paths import data_folders
from ghost_jax.data.items.formats import read_items
from ghost_jax.data.items.items import LETTERS, Items, parse_order
from ghost_jax.data.storage.artifact_cache import sha256_of
from ghost_jax.runs import evaluation
from ghost_jax.runs.evaluation import Evaluation


@dataclasses.dataclass(frozen=True)
class Report:
    """An evaluation as a run or an audit wrote it."""

    name: str  # its name in a comparison
    path: Path  # the JSON file
    evaluation: Evaluation
    workdir: Path | None  # the run directory that the file lies in; None for a file elsewhere
    config: dict  # that run's config; empty where there is none

    @property
    def seed(self) -> tuple[int, ...]:
        """The seed of the run and that of its base; empty for a report of no run."""
        stages = [self.config, self.config.get("base", {})]
        return tuple(stage["seed"] for stage in stages if "seed" in stage)

    @property
    def recipe(self) -> str:
        """A key that the seeds of one recipe share when they are asked in the same way."""
        if not self.config:
            return str(self.path)
        asked = [self.evaluation.step, self.evaluation.reader, self.evaluation.layout, _book_of(self.evaluation)]
        return json.dumps([recipe_of(self.config), asked], sort_keys=True)


def read_reports(places: Sequence[str], stem: str) -> list[Report]:
    """Returns the reports of at least two run directories (`evals/<stem>.json` there) or report files.

    Raises UsageError where there are fewer than two or one is named twice, UserError where one is absent or broken.
    """
    reports = [read_report(path_of(place), stem) for place in places]
    if len(reports) < 2:
        raise UsageError("There is nothing to compare. Name at least two runs with a comma between: --runs=A,B.")
    paths = [report.path.resolve() for report in reports]
    twice = [place for number, place in enumerate(places) if paths[number] in paths[:number]]
    if twice:
        raise UsageError(f"--runs names {', '.join(twice)} twice. Name every run once; the first is the reference.")
    if len({report.name for report in reports}) == len(reports):
        return reports
    return [dataclasses.replace(report, name=place) for report, place in zip(reports, places, strict=True)]


def read_report(place: Path, stem: str) -> Report:
    """Returns the report at `place`, a run directory or a JSON file. Raises UserError where it is absent or broken."""
    path = place / "evals" / f"{stem}.json" if place.is_dir() else place
    if not path.is_file():
        raise UserError(
            f"{path}: there is no such report. Score the run first (python -m evals.ctibench --workdir=DIR, with the "
            "same --items if you give any), and name run directories or their JSON reports in --runs."
        )
    workdir = path.resolve().parent.parent
    if path.resolve().parent.name == "evals" and (workdir / "config.json").is_file():
        config = read_config(workdir / "config.json")
        return Report(workdir.name, path, evaluation.read(path), workdir, config)
    return Report(path.stem, path, evaluation.read(path), None, {})


def check_alike(reports: Sequence[Report]) -> None:
    """Raises UserError, naming both, where a report is of other questions or was asked otherwise than the first."""
    first, *others = reports
    for report in others:
        for what, expected in _asked(first.evaluation).items():
            found = _asked(report.evaluation)[what]
            if found != expected:
                here, there = (f"{each.path} ({each.evaluation.items.name})" for each in (report, first))
                raise UserError(
                    f"{here} cannot be compared with {there}: their {what} differ, {found} and {expected}. Score both "
                    "runs on the same items in the same way."
                )


def _asked(report: Evaluation) -> dict[str, str]:
    """What must be equal in two reports that are compared."""
    return {
        "items": f"sha256 {report.items.sha256}",
        "numbers of items": f"{report.n:,}",
        "orders": " ".join(report.headline.orders),
        "books": _book_of(report),
        "splits": report.split or "all",
    }


def _book_of(report: Evaluation) -> str:
    """Returns the kind of book of a report and, where it was open, the beginnings of its files' hashes."""
    inputs = report.book_index.inputs if report.book_index else ()
    return " ".join([report.book, *sorted(each["sha256"][:8] for each in inputs)])


def items_of(reports: Sequence[Report], path: Path | None) -> Items:
    """Returns the items of the reports: those at `path`, else the matching ones of the data folders and runs.

    Raises UserError where the file holds other items, or none is found.
    """
    first = reports[0]
    wanted, split = first.evaluation.items.sha256, first.evaluation.split or "all"
    if path:
        items = read_items(path)
        if items.sha256 != wanted:
            raise UserError(
                f"{path} (sha256 {items.sha256}) does not hold the items of {first.path} (sha256 {wanted}). Give the "
                "file that the runs were scored on, unchanged."
            )
        return part_of(items, split)
    places = [folder / FILE for folder in data_folders(None)]
    places += [report.workdir / HELD_OUT for report in reports if report.workdir]
    for place in places:
        if place.is_file() and sha256_of(place) == wanted:
            return part_of(read_items(place), split)
    raise UserError(
        f"The items of {first.path} (sha256 {wanted}) are in none of {', '.join(map(str, places))}. Name their file "
        "with --items, or set GHOST_DATA to the folder that holds ctibench/."
    )


def answers_of(report: Report, items: Items) -> Answers:
    """Returns the recorded letters as answers to the items. Raises UserError where they do not fit these."""
    names, predicted = report.evaluation.headline.orders, report.evaluation.predicted
    if len(predicted) != len(items):
        raise _misfit(report, items, f"it holds answers to {len(predicted):,} items, the file {len(items):,}")
    asked = []
    for item, letters in zip(items, predicted, strict=True):
        k = len(item.options)
        asked.append([parse_order(name, k) for name in names if len(name) == k])  # items may differ in their k
        if not asked[-1] or len(letters) != len(asked[-1]) or not set(letters) <= {*LETTERS[:k], "-"}:
            what = f'"{letters}" are no answers to {item.id}, which has {k} options, in the orders {" ".join(names)}'
            raise _misfit(report, items, what)
    indices = [[LETTERS.find(letter) for letter in letters] for letters in predicted]  # "-" is none: -1
    return Answers.from_letters(asked, indices)


def _misfit(report: Report, items: Items, what: str) -> UserError:
    return UserError(
        f"{report.path} does not fit {items.path}: {what}. Score the run on these items again, or give the file that "
        "it was scored on with --items."
    )
