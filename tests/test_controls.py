"""evals/answering/controls.py: the questions that controls ask, and what they allow a verdict to say."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.analysis.report import report_of
from evals.answering.controls import (
    check_trained_without_questions,
    controls_of,
    swapped,
    trained_without_questions,
    with_controls,
)
from evals.items.answers import Answers, orders_of
from evals.items.items import Item, Items
from ghost_jax.core.errors import UserError
from ghost_jax.runs import evaluation
from ghost_jax.runs.evaluation import Control, Evaluation


def item(number: int, page: str) -> Item:
    # No shortcut helps: options are of one length and the gold one moves.
    return Item(
        str(number), f"Question {number}?", tuple(f"{number:03} {place}" for place in range(4)), number % 4, page
    )


ITEMS = Items("made here", "", "sha", tuple(item(number, f"page {number // 2}") for number in range(200)))


@given(st.lists(st.integers(0, 5), min_size=2, max_size=40))
def test_each_question_is_put_to_an_item_of_another_page(pages):
    items = [item(number, f"page {page}" if page else "") for number, page in enumerate(pages)]
    asked = swapped(items)
    assert Counter(each.question for each in asked) == Counter(each.question for each in items)
    assert [(each.options, each.answer, each.url) for each in asked] == [(e.options, e.answer, e.url) for e in items]
    largest = max(Counter(each.url or each.id for each in items).values())
    assert all(new.question != old.question for new, old in zip(asked, items, strict=True))
    if largest <= len(items) / 2:
        page_of = {each.question: each.url or each.id for each in items}
        assert all(page_of[new.question] != (old.url or old.id) for new, old in zip(asked, items, strict=True))


def test_no_question_is_put_to_an_item_with_the_same_options():
    # Four questions on four pages have the same options: another of the four would be answered by a wrong option.
    items = [
        Item(str(row), f"Question {row}?", tuple(f"{row // 4} {place}" for place in range(4)), row % 4, f"page {row}")
        for row in range(40)
    ]
    for options, (row, asked) in zip([each.options for each in items], enumerate(swapped(items)), strict=True):
        other = int(asked.question.split()[1].rstrip("?"))
        assert (asked.options, other != row) == (options, True)
        assert items[other].options != options


def test_where_one_component_is_most_of_all_the_question_is_still_of_another_page():
    items = [
        Item(str(row), f"Question {row}?", (f"{row // 2}", f"{row // 2} not"), 0, f"page {(row + 1) // 2}")
        for row in range(20)
    ]
    page_of = {each.question: each.url for each in items}
    assert all(page_of[asked.question] != asked.url for asked in swapped(items))


def answers_by(items, rule) -> Answers:
    """The answers of whoever chooses the option `rule(item)`, an index in the published order, in the cyclic orders."""
    orders = orders_of(items, "cyclic")
    letters = [[order[rule(each)] for order in asked] for each, asked in zip(items, orders, strict=True)]
    return Answers.from_letters(orders, letters)


GOLD = {each.question: each.options[each.answer] for each in ITEMS}


def knows(each: Item) -> int:
    """Reads the question and knows its answer; without one of its own it says the first option."""
    answer = GOLD.get(each.question)
    return each.options.index(answer) if answer in each.options else 0


def peeks(each: Item) -> int:
    """Has learnt which option tends to be gold, whatever is asked."""
    return int(each.id) % 4


def report_on(rule) -> Evaluation:
    answers = answers_by(ITEMS, rule)

    def ask(items, doing):
        return answers_by(items, rule)

    return with_controls(report_of(answers, ITEMS), controls_of(ask, answers, ITEMS))


def test_who_reads_the_question_is_said_to_know():
    report = report_on(knows)
    assert report.headline.accuracy == 1
    assert {name: control.accuracy for name, control in report.controls.items()} == {
        "options only": 0.25,
        "question swapped": 0.25,
    }
    assert all(control.gain == 0.75 for control in report.controls.values())
    assert report.verdict == "knowledge"
    assert report.controls_missing == ("trained options-only",)


def test_who_is_right_without_the_question_takes_a_shortcut():
    report = report_on(peeks)
    assert report.headline.accuracy == 1
    assert all(control.accuracy == 1 and control.gain == 0 for control in report.controls.values())
    assert report.verdict == "shortcut"


@pytest.fixture
def runs(tmp_path):
    """A run and its control, which answers as `peeks` does; a function that changes the control's config."""

    def write(name: str, layout: str, rule, **others) -> None:
        folder = tmp_path / name
        (folder / "evals").mkdir(parents=True, exist_ok=True)
        config = {"seed": 0, "steps": 10, "data": {"layout": layout}, **others}
        (folder / "config.json").write_text(json.dumps(config))
        report = report_of(answers_by(ITEMS, rule), ITEMS, step=10)
        evaluation.write(folder / "evals" / "ctibench.json", report)

    write("run", "classic", knows)
    write("control", "options_only", peeks)
    return tmp_path / "run", tmp_path / "control", write


def third_control(run, control) -> Control:
    check_trained_without_questions(control, run, "ctibench")
    answers = answers_by(ITEMS, knows)
    return trained_without_questions(control, run, "ctibench", report_of(answers, ITEMS), answers, ITEMS)


def test_a_second_run_trained_without_questions_is_the_third_control(runs):
    run, control, _ = runs
    found = third_control(run, control)
    assert (found.accuracy, found.gain, found.run) == (1, 0, "control")
    report = with_controls(report_on(knows), {"trained options-only": found})
    assert report.verdict == "shortcut", "a model that knows is no better than one that cannot"
    assert report.controls_missing == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layout": "classic"}, "was trained with its questions"),
        ({"steps": 20}, "is of another recipe"),
        ({"step": 3}, "was scored after update 3 of 10"),
        ({"items": Items("others", "", "other sha", ITEMS.items)}, "cannot be compared"),
    ],
)
def test_another_run_is_no_control(runs, change, said):
    run, control, write = runs
    if "items" in change or "step" in change:
        path = control / "evals" / "ctibench.json"
        report = json.loads(path.read_text())
        others = {"step": 3} if "step" in change else {"items": {**report["items"], "sha256": "other"}}
        path.write_text(json.dumps(report | others))
    else:
        write("control", change.pop("layout", "options_only"), peeks, **change)
    with pytest.raises(UserError, match=said):
        third_control(run, control)


def test_another_seed_of_the_recipe_is_a_control(runs):
    run, control, write = runs
    write("control", "options_only", peeks, seed=7)
    assert np.isfinite(third_control(run, control).gain)
