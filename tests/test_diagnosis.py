"""evals/analysis/report.py: every figure of an evaluation against a computation by hand."""

from dataclasses import replace

import numpy as np
import pytest

from evals.analysis.report import flip_rate, report_of
from evals.items.answers import Answers, orders_of
from ghost_jax.data.items.items import Item, Items, cyclic_orders
from ghost_jax.runs.evaluation import Evaluation, from_json, to_json


def items_of(*rows: Item, **more) -> Items:
    return Items("the test", "folder/test.jsonl", "0" * 64, rows, **more)


def some(n: int, k: int) -> Items:
    """Items whose gold letters are spread evenly, and of whose options none stands out."""
    return items_of(*(Item(str(row), f"Question {row}?", tuple("abcdefghij"[:k]), row % k) for row in range(n)))


def answered(items: Items, choose, orders: str = "cyclic") -> Evaluation:
    """The evaluation of letters `choose(item, order)`, -1 for none."""
    asked = orders_of(items.items, orders)
    letters = [[choose(item, order) for order in of_item] for item, of_item in zip(items, asked, strict=True)]
    return report_of(Answers.from_letters(asked, letters), items)


def scored(items: Items, scores, orders: str = "cyclic") -> Evaluation:
    return report_of(Answers.from_log_probs(orders_of(items.items, orders), scores), items)


def test_a_constant_letter_is_collapsed_at_exactly_a_quarter():
    report = answered(some(10, 4), lambda item, order: 2)
    assert report.headline.accuracy == report.balanced_accuracy == 0.25
    assert report.headline.orders == ("ABCD", "BCDA", "CDAB", "DABC")
    assert report.single_order == report.baselines["always_C"]
    assert report.recall == {"A": 0, "B": 0, "C": 1, "D": 0}
    assert (report.letter_spread, report.recall_spread, report.flip_rate) == (1, 1, 1)
    assert report.verdict == "collapsed"


def test_a_case_without_a_letter_has_no_confidence_in_one():
    items, scores = some(2, 4), [np.log([[0.9, 0.05, 0.03, 0.02]]), np.log([[0.4, 0.03, 0.01, 0.01]])]
    answers = Answers.from_log_probs(orders_of(items.items, "published"), scores)
    named = replace(answers, said=[answers.said[0], 0 * answers.said[1]])
    report = report_of(named, items)
    assert report.no_letter == 0.5
    assert sum(each.n for each in report.calibration.bins) == 1


def test_figures_of_one_order_by_hand():
    letters = iter([0, 0, 1, 2, -1])
    items = items_of(*(Item(str(row), "Which?", tuple("abcd"), gold) for row, gold in enumerate([0, 0, 0, 2, 2])))
    report = answered(items, lambda item, order: next(letters), "published")
    assert report.headline.orders == ("ABCD",)
    assert report.headline.accuracy == report.single_order == 3 / 5
    assert report.letter_share == {"A": 2 / 5, "B": 1 / 5, "C": 1 / 5, "D": 0}
    assert report.no_letter == 1 / 5
    assert report.recall == {"A": 2 / 3, "B": None, "C": 1 / 2, "D": None}
    assert report.balanced_accuracy == pytest.approx(7 / 12)
    assert report.recall_spread == pytest.approx(1 / 6)
    assert report.flip_rate is report.calibration is report.letter_log_probs is None
    assert report.predicted == ("A", "A", "B", "C", "-")


def test_accuracy_where_the_gold_option_is_longest_and_by_the_publisher_of_the_page():
    attack = "https://attack.mitre.org/techniques/T1566/"
    others = ("https://notattack.mitre.org.example.com/x", "https://[broken", "Manual")
    items = items_of(
        Item("1", "Which?", ("a", "long"), 1, attack),
        Item("2", "Which?", ("long", "also"), 1, attack),
        Item("3", "Which?", ("a", "long"), 0, "http://CWE.mitre.org/data/1"),
        *(Item(url, "Which?", ("a", "long"), 0, url) for url in others),
    )
    report = answered(items, lambda item, order: 1, "published")
    found = {name: (each.n, each.accuracy) for name, each in (report.gold_longest | report.by_source).items()}
    by_length = {"longest": (2, 1.0), "not longest": (4, 0.0)}
    assert found == by_length | {"ATT&CK": (2, 1.0), "CWE": (1, 0.0), "documents": (3, 0.0)}
    assert report.by_source["ATT&CK"].ci95 == (0, 1), "one page has no spread"


def test_items_with_different_numbers_of_options_count_alike():
    items = items_of(Item("1", "Which?", ("a", "b"), 0), Item("2", "Which?", ("a", "b", "c"), 2))
    report = scored(items, [np.log([[0.9, 0.1]] * 2), np.log([[0.2, 0.2, 0.6]] * 3)])
    assert report.headline.orders == ("AB", "BA", "ABC", "BCA", "CAB")
    assert report.headline.accuracy == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert report.letter_share == {"A": 0.5, "B": 0, "C": 0.5}
    assert report.predicted == ("AA", "CCC")
    assert sum(report.letter_log_probs.counts["C"]) == 3


def test_the_flip_rate_by_hand():
    letters = [[0, 1, 2, 3], [0, 1, 3, 2], [0, 0, -1, -1]]  # the same option always, in one of six pairs, never
    assert flip_rate(Answers.from_letters([cyclic_orders(4)] * 3, letters)) == pytest.approx((0 + 5 / 6 + 1) / 3)
    tied = Answers.from_log_probs([cyclic_orders(2)], [np.array([[1.0, 0.0], [0.0, 0.0]])])
    assert flip_rate(tied) == 0.5, "an option, then both"


def test_calibration_by_hand():
    # Confidences 0.95, 0.95, 0.55 and 0.5, right, wrong, right and wrong. Bins: (14/15, 1], (8/15, 9/15], (7/15, 8/15].
    items = items_of(*(Item(str(row), "Which?", ("a", "b"), gold) for row, gold in enumerate([0, 1, 0, 1])))
    scores = [np.log([[p, 1 - p]]) + 7 for p in (0.95, 0.95, 0.55, 0.501)]
    calibration = scored(items, scores, "published").calibration
    assert calibration.ece == pytest.approx(0.5 * abs(0.5 - 0.95) + 0.25 * 0.45 + 0.25 * 0.501)
    assert [each.n for each in calibration.bins] == [0] * 7 + [1, 1] + [0] * 5 + [2]
    assert (calibration.bins[-1].confidence, calibration.bins[-1].accuracy) == (pytest.approx(0.95), 0.5)


def test_scores_that_tie_or_are_minus_infinity_share_an_answer():
    scores = np.array([[0.0, 0.0, -1000.0], [-np.inf, -np.inf, 3.0], [-np.inf, -np.inf, -np.inf]])
    report = scored(some(6, 3), [scores] * 6)
    assert report.letter_share == pytest.approx({"A": 5 / 18, "B": 5 / 18, "C": 8 / 18})
    assert report.headline.accuracy == pytest.approx(1 / 3), "whatever is answered, each letter is gold equally often"
    assert sum(each.n for each in report.calibration.bins) == 6 * 3
    assert {sum(counts) for counts in report.letter_log_probs.counts.values()} == {6 * 3}
    assert from_json(to_json(report)) == report
