"""Reports of scored answers, read back: which run each is of, what it was asked, and the credits its letters earn."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evals.items.answers import Answers
from evals.items.formats import read_items
from evals.items.items import LETTERS, Items, Order, parse_order
from evals.items.locate import FILE, HELD_OUT
from evals.items.splits import part_of
from ghost_jax.config.load import recipe_of
from ghost_jax.core.atomic_io import read_config, read_json
from ghost_jax.core.errors import UsageError, UserError
from ghost_jax.core.paths import data_folders


@dataclasses.dataclass(frozen=True)
class Report:
    """A report of scored answers, as a run or an audit wrote it.

    Attributes:
      name: what the table calls it.
      path: the JSON file.
      content: what stands there.
      workdir: the run directory it lies in; None for a report that lies elsewhere.
      config: that run's config; empty where there is none.
    """

    name: str
    path: Path
    content: dict
    workdir: Path | None
    config: dict

    @property
    def seed(self) -> tuple[int, ...]:
        """The seed of the run, and that of its base; empty for a report of no run."""
        stages = [self.config, self.config.get("base", {})]
        return tuple(stage["seed"] for stage in stages if "seed" in stage)

    @property
    def recipe(self) -> str:
        """What is equal for the seeds of one recipe, asked in the same way; for a report of no run its path."""
        if not self.config:
            return str(self.path)
        how = {key: self.content.get(key) for key in ("step", "reader", "layout")}
        return json.dumps([recipe_of(self.config), how], sort_keys=True)


def read_reports(places: Sequence[str], stem: str) -> list[Report]:
    """Returns the reports of run directories (`evals/<stem>.json` there) or report files.

    Raises:
      UsageError: there are fewer than two, or one is named twice.
      UserError: one is absent, or no report of multiple-choice answers.
    """
    reports = [read_report(Path(place), stem) for place in places]
    if len(reports) < 2:
        raise UsageError("There is nothing to compare. Name at least two runs with a comma between: --runs=A,B.")
    paths = [report.path.resolve() for report in reports]
    twice = [place for number, place in enumerate(places) if paths[number] in paths[:number]]
    if twice:
        raise UsageError(f"--runs names {', '.join(twice)} twice. Name every run once; the first is the reference.")
    names = [report.name for report in reports]
    if len(set(names)) == len(names):
        return reports
    return [dataclasses.replace(report, name=place) for report, place in zip(reports, places, strict=True)]


def read_report(place: Path, stem: str) -> Report:
    """Returns the report at `place`, a run directory or a JSON file. Raises UserError where there is none."""
    path = place / "evals" / f"{stem}.json" if place.is_dir() else place
    if not path.is_file():
        raise UserError(
            f"{path}: there is no such report. Score the run first (python -m evals.ctibench --workdir=DIR, with the "
            "same --items if you give any), and name run directories or their JSON reports in --runs."
        )
    workdir = path.resolve().parents[1] if path.resolve().parent.name == "evals" else None
    config = read_config(workdir / "config.json") if workdir and (workdir / "config.json").is_file() else None
    content = read_json(path)
    try:
        content["items"]["sha256"], content["headline"]["accuracy"], content["headline"]["orders"][0], content["book"]
        predicted, _ = content["predicted"], content["baselines"]
        whole = len(predicted) == content["n"] and all(isinstance(letters, str) for letters in predicted)
    except (KeyError, IndexError, TypeError):
        whole = False
    if not whole:
        raise UserError(
            f"{path} is no whole report of multiple-choice answers: it must hold items, book, headline, baselines, and "
            "as many predicted letters as its n says. Score the run again with python -m evals.ctibench or evals.audit."
        )
    if config is None:
        return Report(path.stem, path, content, None, {})
    return Report(workdir.name, path, content, workdir, config)


def check_alike(reports: Sequence[Report]) -> None:
    """Raises UserError, naming both, where a report is of other questions or was asked otherwise than the first."""
    first = reports[0]
    there = _asked(first.content)
    for report in reports[1:]:
        here = _asked(report.content)
        differ = [what for what in there if there[what] != here[what]]
        if differ:
            both = [f"{each.path} ({each.content['items'].get('name', 'items')})" for each in (report, first)]
            raise UserError(
                f"{both[0]} cannot be compared with {both[1]}: their {differ[0]} differ, {here[differ[0]]} here and "
                f"{there[differ[0]]} there. Score both runs on the same items in the same way."
            )


def _asked(content: Mapping) -> dict[str, str]:
    """Returns in words what must be equal in two reports, so that they differ in nothing but who answered."""
    return {
        "items": f"sha256 {content['items']['sha256']}",
        "numbers of items": f"{content['n']:,}",
        "orders": " ".join(content["headline"]["orders"]),
        "books": content["book"],
        "splits": content.get("split", "all"),
    }


def items_of(reports: Sequence[Report], path: Path | None) -> Items:
    """Returns the items that reports are of: those at `path`, else of the data folders and runs the ones that match.

    Raises UserError where the file holds other items, or none is found.
    """
    wanted = reports[0].content["items"]["sha256"]
    split = reports[0].content.get("split", "all")
    if path:
        items = read_items(path)
        if items.sha256 != wanted:
            raise UserError(
                f"{path} (sha256 {items.sha256}) does not hold the items of {reports[0].path}, whose sha256 is "
                f"{wanted}. Give the file that the runs were scored on, unchanged."
            )
        return part_of(items, split)
    places = [folder / FILE for folder in data_folders(None)]
    places += [report.workdir / HELD_OUT for report in reports if report.workdir]
    for place in places:
        if place.is_file() and hashlib.sha256(place.read_bytes()).hexdigest() == wanted:
            return part_of(read_items(place), split)
    raise UserError(
        f"The items of {reports[0].path} (sha256 {wanted}) are in none of {', '.join(map(str, places))}. Name "
        "their file with --items, or set GHOST_DATA to the folder that holds ctibench/."
    )


def credits_of(report: Report, items: Items) -> list[np.ndarray]:
    """Returns of each item [O] the credit in each order, 1 where the recorded letter is gold.

    Raises UserError where the letters do not fit the items.
    """

    def misfit(what: str) -> UserError:
        return UserError(
            f"{report.path} does not fit {items.path}: {what}. Score the run on these items again, or give the file "
            "it was scored on with --items."
        )

    names, predicted = report.content["headline"]["orders"], report.content["predicted"]
    if len(predicted) != len(items):
        raise misfit(f"it holds answers to {len(predicted):,} items, the file {len(items):,}")
    asked: list[list[Order]] = []
    for item, letters in zip(items, predicted, strict=True):
        k = len(item.options)
        asked.append([parse_order(name, k) for name in names if len(name) == k])  # items may differ in their k
        if not asked[-1] or len(letters) != len(asked[-1]) or not set(letters) <= {*LETTERS[:k], "-"}:
            raise misfit(
                f'"{letters}" are no answers to {item.id}, which has {k} options, in the orders {" ".join(names)}'
            )
    indices = [[LETTERS.find(letter) for letter in letters] for letters in predicted]  # "-" is none: -1
    return Answers.from_letters(asked, indices).credits(items.items)
