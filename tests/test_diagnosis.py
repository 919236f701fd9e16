"""report.py: every figure of a report against a hand or a slow computation, and what the verdicts say."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from evals.analysis.report import flip_rate, report_of, show, source_of
from evals.analysis.verdict import words_of
from evals.items.answers import Answers, orders_of
from evals.items.items import LETTERS, Item, Items, cyclic_orders


def items_of(*rows: Item, **more) -> Items:
    return Items("the test", "folder/test.jsonl", "0" * 64, rows, **more)


def some(n: int, k: int = 4) -> Items:
    """Items whose gold letters are spread evenly, and of whose options none stands out."""
    return items_of(*(Item(str(row), f"Question {row}?", tuple("abcdefghij"[:k]), row % k) for row in range(n)))


def answered(items: Items, choose, orders: str = "cyclic") -> Answers:
    """The answers of whoever chooses the letter `choose(item, order)`, -1 for none."""
    asked = orders_of(items.items, orders)
    return Answers.from_letters(
        asked, [[choose(item, order) for order in of_item] for item, of_item in zip(items, asked, strict=True)]
    )


def oracle(item: Item, order) -> int:
    return order[item.answer]


def printed(report: dict) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show(report, console)
    return console.export_text()


# ---- Figures ----


def test_an_oracle_is_right_everywhere():
    report = report_of(answered(some(48), oracle), some(48))
    headline = report["headline"]
    assert (headline["accuracy"], headline["orders"]) == (1, ["ABCD", "BCDA", "CDAB", "DABC"])
    assert headline["orders_per_item"] == 4
    low, high = headline["ci95"]
    assert 0.9 < low < high == 1, "so many pages all right may still be luck"
    assert (report["single_order"], report["single_order_ci95"]) == (1, [low, high])
    assert report["letter_share"] == dict.fromkeys("ABCD", 0.25)
    assert report["recall"] == dict.fromkeys("ABCD", 1.0)
    assert report["letter_spread"] == report["recall_spread"] == report["no_letter"] == report["flip_rate"] == 0
    assert report["balanced_accuracy"] == 1
    assert report["predicted"][:2] == ["ABCD", "BCDA"]


@pytest.mark.parametrize("letter", range(4))
def test_a_constant_letter_is_collapsed_at_exactly_a_quarter(letter):
    items = some(10)
    report = report_of(answered(items, lambda item, order: letter), items)
    assert report["headline"]["accuracy"] == report["balanced_accuracy"] == 0.25
    assert report["single_order"] == report["baselines"][f"always_{LETTERS[letter]}"]
    assert report["recall"] == dict(zip("ABCD", np.eye(4)[letter], strict=True))
    assert (report["letter_spread"], report["recall_spread"], report["flip_rate"]) == (1, 1, 1)
    assert report["verdict"] == "collapsed"
    assert words_of(report).startswith(f"COLLAPSED to one letter: 100.0% of the answers are {LETTERS[letter]};")


def test_figures_of_one_order_by_hand():
    items = items_of(*(Item(str(row), "Which?", tuple("abcd"), gold) for row, gold in enumerate([0, 0, 0, 2, 2])))
    letters = iter([0, 0, 1, 2, -1])
    report = report_of(answered(items, lambda item, order: next(letters), "published"), items)
    assert report["headline"]["orders"] == ["ABCD"]
    assert report["headline"]["accuracy"] == report["single_order"] == 3 / 5
    assert report["letter_share"] == {"A": 2 / 5, "B": 1 / 5, "C": 1 / 5, "D": 0}
    assert report["no_letter"] == 1 / 5
    assert report["recall"] == {"A": 2 / 3, "B": None, "C": 1 / 2, "D": None}
    assert report["balanced_accuracy"] == pytest.approx(7 / 12)
    assert report["recall_spread"] == pytest.approx(1 / 6)
    assert report["flip_rate"] is report["calibration"] is report["letter_log_probs"] is None
    assert report["predicted"] == ["A", "A", "B", "C", "-"]


def test_accuracy_where_the_gold_option_is_longest_and_by_source():
    attack, cwe = "https://attack.mitre.org/techniques/T1566/", "https://cwe.mitre.org/data/definitions/79.html"
    items = items_of(
        Item("1", "Which?", ("a", "long"), 1, attack),
        Item("2", "Which?", ("long", "also"), 1, attack),
        Item("3", "Which?", ("a", "long"), 0, cwe),
        Item("4", "Which?", ("a", "long"), 0, "Manual"),
    )
    report = report_of(answered(items, lambda item, order: 1, "published"), items)
    found = {name: (each["n"], each["accuracy"]) for name, each in report["gold_longest"].items()}
    assert found == {"longest": (2, 1.0), "not longest": (2, 0.0)}
    found = {name: (each["n"], each["accuracy"]) for name, each in report["by_source"].items()}
    assert found == {"ATT&CK": (2, 1.0), "CWE": (1, 0.0), "documents": (1, 0.0)}
    assert report["by_source"]["ATT&CK"]["ci95"] == [0, 1]  # one page says nothing about others


@pytest.mark.parametrize(
    ("url", "source"),
    [
        ("https://attack.mitre.org/techniques/T1/", "ATT&CK"),
        ("http://CWE.mitre.org/data/1", "CWE"),
        ("https://capec.mitre.org/data/1", "CAPEC"),
        ("https://notattack.mitre.org.example.com/x", "documents"),
        ("https://[broken", "documents"),
        ("NIST CTI sharing_part3.txt", "documents"),
        ("", "documents"),
    ],
)
def test_the_source_is_who_published_the_page(url, source):
    assert source_of(Item("1", "Which?", ("a", "b"), 0, url)) == source


def test_items_with_different_numbers_of_options_count_alike():
    items = items_of(Item("1", "Which?", ("a", "b"), 0), Item("2", "Which?", ("a", "b", "c"), 2))
    scores = [np.log([[0.9, 0.1]] * 2), np.log([[0.2, 0.2, 0.6]] * 3)]
    report = report_of(Answers.from_log_probs(orders_of(items.items, "cyclic"), scores), items)
    assert report["headline"]["orders"] == ["AB", "BA", "ABC", "BCA", "CAB"]
    assert report["headline"]["accuracy"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert report["letter_share"] == {"A": 0.5, "B": 0, "C": 0.5}
    assert report["predicted"] == ["AA", "CCC"]
    assert sum(report["letter_log_probs"]["counts"]["C"]) == 3
    assert "over all orders" in printed(report)


# ---- How often two orders get different options ----


def flips_drawn(answers: Answers, rng) -> float:
    """The flip rate when each answer is drawn by its shares."""
    rates = []
    for shares in answers.options():
        shares = np.column_stack([shares, 1 - shares.sum(axis=1)]).clip(0)
        drawn = [rng.choice(len(row), p=row / row.sum()) for row in shares]
        none = shares.shape[1] - 1
        pairs = list(itertools.combinations(drawn, 2))
        rates.append(np.mean([first != second or first == none for first, second in pairs]))
    return float(np.mean(rates))


def test_the_flip_rate_is_what_drawing_the_answers_gives():
    rng = np.random.default_rng(0)
    orders = [cyclic_orders(4)] * 3
    scores = [rng.integers(0, 2, size=(4, 4)).astype(float) for _ in orders]
    answers = Answers.from_log_probs(orders, scores)
    assert flip_rate(answers) == pytest.approx(np.mean([flips_drawn(answers, rng) for _ in range(1000)]), abs=0.03)
    half = Answers.from_letters(orders, [[0, 1, 2, 3]] * 2 + [[0, 0, -1, -1]])
    assert flip_rate(half) == pytest.approx((0 + 0 + 1) / 3)


# ---- Calibration and the histogram ----


def test_calibration_by_hand():
    # Confidences 0.95, 0.95, 0.55 and 0.5, right, wrong, right and wrong. Bins: (14/15, 1], (8/15, 9/15], (7/15, 8/15].
    items = items_of(*(Item(str(row), "Which?", ("a", "b"), gold) for row, gold in enumerate([0, 1, 0, 1])))
    scores = [np.log([[p, 1 - p]]) + 7 for p in (0.95, 0.95, 0.55, 0.501)]
    report = report_of(Answers.from_log_probs(orders_of(items.items, "published"), scores), items)
    calibration = report["calibration"]
    assert calibration["ece"] == pytest.approx(0.5 * abs(0.5 - 0.95) + 0.25 * 0.45 + 0.25 * 0.501)
    filled = {round(each["high"] * 15): each for each in calibration["bins"] if each["n"]}
    assert {number: each["n"] for number, each in filled.items()} == {15: 2, 9: 1, 8: 1}
    assert (filled[15]["confidence"], filled[15]["accuracy"]) == (pytest.approx(0.95), 0.5)
    assert len(calibration["bins"]) == 15


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_a_report_of_any_scores_is_in_range_and_json(n, k, seed):
    rng = np.random.default_rng(seed)
    items = some(n, k)
    scores = [rng.choice([-np.inf, -1000.0, -1.0, 0.0, 3.0], size=(k, k)) for _ in items]
    for score in scores:
        score[:, 0] = np.where(np.isfinite(score).any(axis=1), score[:, 0], 0.0)
    report = report_of(Answers.from_log_probs(orders_of(items.items, "cyclic"), scores), items)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert sum(report["letter_share"].values()) == pytest.approx(1)
    low, high = report["headline"]["ci95"]
    assert 0 <= low <= report["headline"]["accuracy"] + 1e-12 <= high + 2e-12
    assert 0 <= report["calibration"]["ece"] <= 1 + 1e-12
    assert sum(each["n"] for each in report["calibration"]["bins"]) == n * k
    for counts in report["letter_log_probs"]["counts"].values():
        assert sum(counts) == n * k
    assert 0 <= report["flip_rate"] <= 1
    printed(report)


def test_a_collapse_shows_in_the_histogram_as_one_letter_right_of_the_others():
    items = some(40)
    noise = np.random.default_rng(0).normal(0, 0.02, size=(40, 4, 4))
    scores = list(noise + np.array([0, 0, 0.3, 0]))
    histogram = report_of(Answers.from_log_probs(orders_of(items.items, "cyclic"), scores), items)["letter_log_probs"]
    middles = np.convolve(histogram["edges"], [0.5, 0.5], "valid")
    means = {letter: middles @ counts / sum(counts) for letter, counts in histogram["counts"].items()}
    assert means.pop("C") - max(means.values()) == pytest.approx(0.3, abs=0.03)


def test_guessing_is_chance():
    rng = np.random.default_rng(0)
    items = some(300)
    assert report_of(answered(items, lambda item, order: rng.integers(4)), items)["verdict"] == "chance"


# ---- On screen ----


def test_the_screen_holds_what_the_report_says():
    options = tuple("abcd")
    rows = [Item(str(row), "Which?", options, row % 4, "https://cwe.mitre.org/1" * (row % 2)) for row in range(40)]
    items = items_of(*rows, quirks=("line 7: option A is [red]empty[/b]",), left_out=("line 9: two answers; left out",))
    scores = [np.log([[0.3, 0.4, 0.2, 0.1]] * 4)] * 40
    report = report_of(Answers.from_log_probs(orders_of(rows, "cyclic"), scores), items)
    report["controls"] = {"options only": {"accuracy": 0.2, "ci95": [0.1, 0.3]}}
    report["controls_missing"].remove("options only")
    said = printed(report)
    for part in (
        "test.jsonl, line 7: option A is [red]empty[/b]",
        "test.jsonl, line 9: two answers; left out",
        "the test: 40 questions",
        "over 4 orders",
        "letters answered: A 0.0%  B 100.0%  C 0.0%  D 0.0%",
        "another option is chosen: 100.0%",
        "by source: CWE 25.0% of 20  documents 25.0% of 20",
        "expected calibration error: 0.150",
        "verdict: COLLAPSED to one letter: 100.0% of the answers are B",
        "Controls missing: question swapped, trained options-only.",
    ):
        assert part in said
    line = next(line for line in said.splitlines() if "options only" in line)
    assert all(number in line for number in ("20.00", "10.00 to 30.00", "+5.00"))
    assert "one order alone" not in said
    assert "data:" not in said
    assert len(said.splitlines()) <= 35


def test_what_a_run_adds_is_shown_where_it_is_there():
    report = report_of(answered(some(8), oracle, "published"), some(8))
    report |= {"book": "closed", "layout": "letter_after"}
    report |= {"contamination": {"verdict": "clean", "not_searched": ["qa-1"]}}
    said = printed(report)
    assert "the test: 8 questions, closed book, asked as letter_after" in said
    assert "data not searched for the items, because it is not here: qa-1" in said
    assert "data: clean" in said
    assert "This is one order alone" in said
