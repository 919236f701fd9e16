"""What a report says was learnt: what a comparison on the same items found, and where nothing can be told."""

import numpy as np
import pytest

from evals.analysis.comparison import compare, rows_of
from evals.analysis.recorded import Report
from evals.analysis.report import report_of
from evals.items.answers import Answers, orders_of
from evals.items.formats import read_items
from ghost_jax.reporting.findings import HOW, learned
from ghost_jax.runs.evaluation import to_json
from tests.test_compare import write_items


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    return read_items(write_items(tmp_path_factory.mktemp("items") / "own.jsonl").path)


def scored(items, tmp_path, name: str, knows: float, orders: str = "cyclic") -> Report:
    """A run's report: right on a share of the items, drawn by the run's name, and the first letter on the others."""
    asked = orders_of(items.items, orders)
    right = np.random.default_rng(list(name.encode())).random(len(items)) < knows
    letters = [
        [order[item.answer] if knows_it else 0 for order in of_item]
        for item, of_item, knows_it in zip(items, asked, right, strict=True)
    ]
    report = report_of(Answers.from_letters(asked, letters), items)
    return Report(name, tmp_path / name / "evals" / "ctibench.json", report, None, {})


def run_of(report: Report) -> dict:
    return {"name": report.name, "evals": {"ctibench": to_json(report.evaluation)}}


@pytest.fixture(scope="module")
def reports(items, tmp_path_factory) -> list[Report]:
    place = tmp_path_factory.mktemp("runs")
    shares = {"first": 0.8, "better": 0.97, "worse": 0.6, "alike": 0.8}  # a run that knows less is collapsed
    return [scored(items, place, name, share) for name, share in shares.items()]


def test_every_comparison_is_counted_and_worded(items, reports):
    comparison = compare(rows_of(reports, items), items)
    lead, better, worse, alike, how = learned(list(map(run_of, reports)), [comparison])
    assert "200 questions in all orders, closed book, against first: 1 better, 1 worse, 1 not told apart." in lead
    assert better.startswith("better is better than first by ")
    assert worse.startswith("worse is worse than first by ")
    assert alike.startswith("alike is not told apart from first: ")
    assert "only differences above" in alike
    assert [better, worse, alike] == [row["against_reference"]["text"] for row in comparison["rows"][1:]]
    assert how == HOW


def test_a_comparison_that_tells_nothing_apart_says_so_first(items, reports):
    comparison = compare(rows_of([reports[0], reports[3]], items), items)
    assert learned([], [comparison])[0].endswith("against first: none of 1 told apart from it.")


def test_one_order_is_warned_of(items, tmp_path):
    in_one = [scored(items, tmp_path, name, 0.5, "published") for name in ("first", "second")]
    assert (
        "in one order, where a constant letter can look like knowledge"
        in learned([], [compare(rows_of(in_one, items), items)])[0]
    )


def test_runs_that_no_comparison_holds_are_named(items, reports):
    comparison = compare(rows_of(reports[:2], items), items)
    last = learned(list(map(run_of, reports)), [{"book": "open", "fits": []}, comparison])[-1]
    assert last.startswith("Nothing can be told of worse, alike: ")
    assert "python -m evals.compare --runs=A,B --out=FILE.json" in last


def test_rows_of_a_table_are_no_comparison(reports):
    (said,) = learned(list(map(run_of, reports)), [])
    assert said.startswith("Nothing can be told of first, better, worse, alike: ")


def test_of_one_run_nothing_can_be_told(reports):
    only = "Nothing can be told: it takes two scored runs and a recorded comparison of them."
    assert learned([run_of(reports[0])], []) == learned([], []) == [only]
