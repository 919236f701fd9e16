"""Controls: what a model scores when the question is taken from it. What remains of its accuracy is no knowledge.

Options only: the question is blank. Question swapped: it is another item's, so that the prompt is one as the model was
trained on. A model that never saw a blank question may be lost without one for no better reason, so that a second run,
of the same recipe trained without questions, is the third control.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from evals.analysis import stats
from evals.analysis.recorded import check_alike, credits_of, read_report
from evals.analysis.verdict import CONTROLS, judged
from evals.items.answers import Answers
from evals.items.clusters import clusters_of, components
from evals.items.items import Item, Items
from ghost_jax.config.load import recipe_of
from ghost_jax.core.atomic_io import read_config
from ghost_jax.core.errors import UserError
from ghost_jax.runs.evaluation import Control, Evaluation

# `(items, what the progress line says) -> answers in the orders of the headline`
Asking = Callable[[Sequence[Item], str], Answers]

OPTIONS_ONLY, SWAPPED, TRAINED = CONTROLS


def controls_of(ask: Asking, answers: Answers, items: Items) -> dict[str, Control]:
    """Returns the controls that the model itself answers: options only, and, of several items, question swapped."""
    blank = [dataclasses.replace(item, question="") for item in items]
    asked = {OPTIONS_ONLY: ask(blank, "scoring, options only")}
    if len(items) > 1:
        asked[SWAPPED] = ask(swapped(items.items), "scoring, question swapped")
    credits = answers.credits(items.items)
    return {name: _control(credits, control.credits(items.items), items) for name, control in asked.items()}


def swapped(items: Sequence[Item]) -> list[Item]:
    """Returns the items with questions of others, of another page each where there are two pages; the same each time.

    Every question is asked once. Items are taken component by component (`evals/items/clusters.py`), in these page by
    page, and each is given the question of the one that stands as far on as the largest component is long. That is
    never one of its own component: of questions with the same options, each would be answered by another option than
    the gold one, and the control be below chance. Where one component has more than half of all, the largest page
    counts in its place, and the question is of another page unless that page has more than half of all.
    """
    component = components(items)
    page = [item.url or row for row, item in enumerate(items)]
    place = [{name: number for number, name in enumerate(dict.fromkeys(names))} for names in (component, page)]
    in_turn = sorted(range(len(items)), key=lambda row: (place[0][component[row]], place[1][page[row]]))
    largest = max(Counter(component).values())
    if largest > len(items) / 2:
        largest = max(Counter(page).values())
    further = np.roll(in_turn, -min(largest, len(items) - 1))
    question_of = {row: items[other].question for row, other in zip(in_turn, further, strict=True)}
    return [dataclasses.replace(item, question=question_of[row]) for row, item in enumerate(items)]


def check_trained_without_questions(other: Path, workdir: Path, stem: str) -> None:
    """Raises UserError where `other` is no finished, scored run of the same recipe with data.layout=options_only."""
    if not (other / "config.json").is_file():
        raise UserError(f"{other} is no run directory. Name the run that was trained with data.layout=options_only.")
    found = read_report(other, stem)
    mine, its = (read_config(folder / "config.json") for folder in (workdir, other))
    if its["data"].get("layout") != "options_only":
        raise UserError(
            f"{other} was trained with its questions: data.layout is {its['data'].get('layout')}. Train the control "
            "with the same command and --config.data.layout=options_only."
        )
    if _but_layout(mine) != _but_layout(its):
        raise UserError(
            f"{other} is of another recipe than {workdir}: beside data.layout, its config differs. Train the control "
            "with the same command and --config.data.layout=options_only."
        )
    if found.evaluation.step != its["steps"]:
        raise UserError(
            f"{other} was scored after update {found.evaluation.step} of {its['steps']}. Let it finish its "
            "training, and score it again."
        )


def trained_without_questions(
    other: Path, workdir: Path, stem: str, report: Evaluation, answers: Answers, items: Items
) -> Control:
    """Returns the control that a second run's report is, once `check_trained_without_questions` has let it pass.

    Raises UserError where it was scored on other items, or asked in other orders.
    """
    found = read_report(other, stem)
    check_alike([dataclasses.replace(found, path=workdir, evaluation=report), found])
    return _control(answers.credits(items.items), credits_of(found, items), items, run=other.name)


def _but_layout(config: dict) -> dict:
    return recipe_of({**config, "data": {**config["data"], "layout": ""}})


def with_controls(report: Evaluation, controls: dict[str, Control]) -> Evaluation:
    """Returns the report with controls beside those it has, and the verdict that they allow."""
    controls = {**report.controls, **controls}
    missing = tuple(name for name in CONTROLS if name not in controls)
    return judged(dataclasses.replace(report, controls=controls, controls_missing=missing))


def _control(
    credits: Sequence[np.ndarray], of_control: Sequence[np.ndarray], items: Items, run: str | None = None
) -> Control:
    """Returns a control's accuracy over the orders and in the first, and what the model gains on it, paired by item."""
    mean, own = (np.array([each.mean() for each in both]) for both in (of_control, credits))
    single = float(np.mean([each[0] for each in of_control]))
    return stats.control_of(own, mean, clusters_of(items.items), single_order=single, run=run)
