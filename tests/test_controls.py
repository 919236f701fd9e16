"""evals/answering/controls.py: the questions that controls ask, and the verdicts that they allow."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.analysis.report import report_of
from evals.answering.controls import (
    controls_of,
    read_trained_without_questions,
    swapped,
    trained_without_questions,
    with_controls,
    without_questions,
)
from evals.items.answers import Answers, orders_of
from ghost_jax.core.errors import UserError
from ghost_jax.data.items.items import Item, Items
from ghost_jax.runs import evaluation


def item(number: int, page: str) -> Item:
    # No shortcut helps: options are of one length and the gold one moves.
    options = tuple(f"{number:03} {place}" for place in range(4))
    return Item(str(number), f"Question {number}?", options, number % 4, page)


ITEMS = Items("made here", "", "sha", tuple(item(number, f"page {number // 2}") for number in range(200)))


@settings(max_examples=50)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=40))
def test_each_question_is_asked_of_an_item_of_another_page(pages):
    items = [item(number, f"page {page}" if page else "") for number, page in enumerate(pages)]
    asked = swapped(items)
    assert Counter(each.question for each in asked) == Counter(each.question for each in items)
    assert [(each.options, each.answer, each.url) for each in asked] == [(e.options, e.answer, e.url) for e in items]
    assert all(new.question != old.question for new, old in zip(asked, items, strict=True))
    if max(Counter(each.url or each.id for each in items).values()) <= len(items) / 2:
        page_of = {each.question: each.url or each.id for each in items}
        assert all(page_of[new.question] != (old.url or old.id) for new, old in zip(asked, items, strict=True))


def test_no_question_is_asked_of_an_item_with_the_same_options_or_page_even_in_a_large_component():
    sets = [dataclasses.replace(item(row // 4, f"page {row}"), question=f"{row}") for row in range(40)]
    for old, new in zip(sets, swapped(sets), strict=True):
        assert sets[int(new.question)].options != old.options
    chain = [  # one component of all
        Item(str(row), f"{row}", (f"{row // 2}", f"{row // 2} not"), 0, f"page {(row + 1) // 2}") for row in range(20)
    ]
    assert all(chain[int(new.question)].url != new.url for new in swapped(chain))
    # Two thirds are one component of sets of four, whose pages two sets share: none is asked a question of its own set.
    mixed = [dataclasses.replace(item(row // 4, f"page {row // 4 % 2 * row}"), question=f"{row}") for row in range(40)]
    mixed += [dataclasses.replace(item(row, ""), question=f"{row}") for row in range(40, 60)]
    assert all(mixed[int(new.question)].options != new.options for new in swapped(mixed))


GOLD = {each.question: each.options[each.answer] for each in ITEMS}


def knows(each: Item) -> int:
    """Reads the question and knows its answer; else the first option."""
    answer = GOLD.get(each.question)
    return each.options.index(answer) if answer in each.options else 0


def peeks(each: Item) -> int:
    return int(each.id) % 4


def answers_by(rule, items=ITEMS) -> Answers:
    orders = orders_of(items, "cyclic")
    chosen = [rule(each) for each in items]
    letters = [[-1 if c is None else o[c] for o in asked] for c, asked in zip(chosen, orders, strict=True)]
    return Answers.from_letters(orders, letters)


def report_on(rule) -> evaluation.Evaluation:
    answers = answers_by(rule)
    without = {name: answers_by(rule, items) for name, items in without_questions(ITEMS).items()}
    return with_controls(report_of(answers, ITEMS), controls_of(without, answers, ITEMS))


def refuses(each: Item) -> int | None:
    """Peeks, and answers nothing where the question is not the item's own."""
    return peeks(each) if each.question == f"Question {each.id}?" else None


def test_a_control_that_is_refused_shows_no_gain():
    report = report_on(refuses)
    assert report.verdict == "shortcut"
    for control in report.controls.values():
        assert (control.accuracy, control.gain, control.no_letter) == (1, 0, 1)


@pytest.mark.parametrize(("rule", "accuracy", "verdict"), [(knows, 0.25, "knowledge"), (peeks, 1, "shortcut")])
def test_accuracy_that_remains_without_the_question_is_a_shortcut(rule, accuracy, verdict):
    report = report_on(rule)
    assert report.headline.accuracy == 1
    assert list(report.controls) == ["options only", "question swapped"]
    for control in report.controls.values():
        assert (control.accuracy, control.gain) == (accuracy, 1 - accuracy)
    assert report.verdict == verdict
    assert report.controls_missing == ("trained options-only",)


@pytest.fixture
def third_control(tmp_path):
    """The control of a run that knows, by a second run that peeks, with these changes to its config and report."""

    def write(name: str, config: dict, report: evaluation.Evaluation):
        evaluation.write(tmp_path / name / "evals" / "ctibench.json", report)
        recipe = {"stage": "chat", "seed": 0, "steps": 10, "model": {}, "optim": {}}
        (tmp_path / name / "config.json").write_text(json.dumps(recipe | config))
        return tmp_path / name

    def control(step: int = 10, sha256: str = ITEMS.sha256, **config) -> evaluation.Control:
        answers = answers_by(knows)
        run = write("run", {"data": {"layout": "classic"}}, report_of(answers, ITEMS))
        items = dataclasses.replace(ITEMS, sha256=sha256)
        peeking = dataclasses.replace(report_of(answers_by(peeks), items), step=step)
        other = write("control", {"data": {"layout": "options_only"}} | config, peeking)
        found = read_trained_without_questions(other, run, "ctibench", ITEMS)
        return trained_without_questions(found, run, report_of(answers, ITEMS), answers, ITEMS)

    return control


def test_a_second_run_trained_without_questions_is_the_third_control(third_control):
    found = third_control()
    assert (found.accuracy, found.gain, found.run) == (1, 0, "control")
    report = with_controls(report_on(knows), {"trained options-only": found})
    assert report.verdict == "shortcut", "a model that knows is no better than one that cannot"
    assert report.controls_missing == ()
    assert np.isfinite(third_control(seed=7).gain), "another seed of the recipe"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data": {"layout": "classic"}}, "classic"),
        ({"steps": 20}, "recipe"),
        ({"step": 3}, "3 of 10"),
        ({"sha256": "another"}, "other items"),
    ],
)
def test_another_run_is_refused_as_a_control(third_control, change, named):
    with pytest.raises(UserError, match=named):
        third_control(**change)
