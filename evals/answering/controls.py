"""Controls: the accuracy of a model without the question, see docs/scoring.md#controls.

A model may fail on blank questions because it never saw one. Therefore the third control is a second run, of the same
recipe trained without questions.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evals.analysis import stats
from evals.analysis.recorded import Report, answers_of, check_alike, read_report
from evals.analysis.verdict import CONTROLS, judged
from evals.items.answers import Answers
from ghost_jax.config.load import recipe_of
from ghost_jax.core.atomic_io import read_config
from ghost_jax.core.errors import UserError
from ghost_jax.data.items.items import Item, Items, clusters_of, components
from ghost_jax.runs.evaluation import Control, Evaluation

OPTIONS_ONLY, SWAPPED, TRAINED = CONTROLS


def controls_of(without: dict[str, Answers], answers: Answers, items: Items) -> dict[str, Control]:
    """Returns the controls of a model by its answers to `without_questions`, in the orders of `answers`."""
    return {name: _control(answers, each, items) for name, each in without.items()}


def without_questions(items: Items) -> dict[str, list[Item]]:
    """Returns what each control of a model asks in place of the items: options only, of several question swapped."""
    controls = {OPTIONS_ONLY: [dataclasses.replace(item, question="") for item in items]}
    return controls | ({SWAPPED: swapped(items.items)} if len(items) > 1 else {})


def swapped(items: Sequence[Item]) -> list[Item]:
    """Returns the items with questions of others, a fixed permutation.

    Items are sorted by component (`ghost_jax.data.items.items`) and page, and each has the question of the item that
    is as far on as the largest component is long. That item is never of the same component: of two questions with the
    same options, each would be answered by a wrong option of the other, and the control be below chance. Where one
    component has more than half of all items, the distance is the first, from the length of the largest page on, at
    which the fewest items have the question of one with the same options.
    """
    component = components(items)
    page = [item.url or row for row, item in enumerate(items)]
    place = [{name: number for number, name in enumerate(dict.fromkeys(names))} for names in (component, page)]
    in_turn = sorted(range(len(items)), key=lambda row: (place[0][component[row]], place[1][page[row]]))
    largest = max(Counter(component).values())
    if largest > len(items) / 2:
        sets = {options: number for number, options in enumerate({frozenset(item.options) for item in items})}
        offered = np.array([sets[frozenset(items[row].options)] for row in in_turn])
        longest = min(max(Counter(page).values()), len(items) - 1)
        distances = range(longest, max(longest, len(items) - longest) + 1)  # farther on it is the same page again
        largest = min(distances, key=lambda distance: int((offered == np.roll(offered, -distance)).sum()))
    further = np.roll(in_turn, -min(largest, len(items) - 1))
    question_of = {row: items[other].question for row, other in zip(in_turn, further, strict=True)}
    return [dataclasses.replace(item, question=question_of[row]) for row, item in enumerate(items)]


def read_trained_without_questions(other: Path, workdir: Path, stem: str, items: Items) -> Report:
    """Returns the report `stem` in the directory of a run, its score on `items`.

    Raises UserError where `other` is no finished run of the recipe `workdir` has, with data.layout=options_only.
    """
    if not (other / "config.json").is_file():
        raise UserError(f"{other} is not a run directory. Name the run trained with data.layout=options_only.")
    found = read_report(other, stem)
    ours, its = (read_config(folder / "config.json") for folder in (workdir, other))
    layout = its["data"].get("layout")
    recipes = [recipe_of(config | {"data": config["data"] | {"layout": ""}}) for config in (ours, its)]
    if layout != "options_only":
        fault = f"its data.layout is {layout}"
    elif recipes[0] != recipes[1]:
        fault = "its recipe differs beside data.layout"
    elif found.evaluation.step != its["steps"]:
        fault = f"it was scored after update {found.evaluation.step} of {its['steps']}"
    elif found.evaluation.items.sha256 != items.sha256:
        fault = f"{found.path} is of other items than {items.path}"
    else:
        return found
    raise UserError(
        f"{other} is not a control of {workdir}: {fault}. Train the control to its end with the same command and "
        "--config.data.layout=options_only, and score it again."
    )


def trained_without_questions(
    found: Report, workdir: Path, report: Evaluation, answers: Answers, items: Items
) -> Control:
    """Returns the control that is a second run's report. Raises UserError where it was asked otherwise."""
    check_alike([dataclasses.replace(found, path=workdir, evaluation=report), found])
    return _control(answers, answers_of(found, items), items, run=found.name)


def with_controls(report: Evaluation, controls: dict[str, Control]) -> Evaluation:
    """Returns the report with more controls, and the verdict that they allow."""
    controls = report.controls | controls
    missing = tuple(name for name in CONTROLS if name not in controls)
    return judged(dataclasses.replace(report, controls=controls, controls_missing=missing))


def _control(answers: Answers, control: Answers, items: Items, run: str | None = None) -> Control:
    """The control, and the gain over it. Where it has no letter, the model's own answer counts in its place.

    A model may refuse whatever lacks a fitting question. As a wrong answer, each refusal would count as knowledge.
    """
    answered = [said.any(axis=1) for said in control.said]
    own, other = (each.credits(items.items) for each in (answers, control))
    credits = [np.where(named, of, its) for named, of, its in zip(answered, other, own, strict=True)]
    figures = {
        "single_order": float(np.mean([each[0] for each in credits])),
        "no_letter": 1 - float(np.mean([named.mean() for named in answered])) or None,
    }
    means = ([each.mean() for each in of_items] for of_items in (own, credits))
    return stats.control_of(*means, clusters_of(items.items), run=run, **figures)
