"""The first parts of a report: who scores what on the benchmark, and what comparisons found."""

import dataclasses

import numpy as np
import pytest

from evals.analysis.comparison import compare, rows_of
from evals.analysis.recorded import read_report
from ghost_jax.reporting.records import Beside, read_beside, read_run
from ghost_jax.reporting.summary import HOW, glance_table, learned, story
from ghost_jax.reporting.tables import NONE
from tests.conftest import ROOT
from tests.test_compare import report, write_items, write_run

RECORDS = ROOT / "evals" / "records"


@pytest.fixture(scope="module")
def beside() -> Beside:
    """The reports in the repository: of the lexical reader, an audit of published answers, a comparison."""
    return read_beside(sorted(RECORDS.glob("*.json")))[0]


def run_with(name: str = "chat_v5-seed0", **evals):
    """A recorded run with further evaluations, each the run's score with changes."""
    run = read_run(RECORDS / name)
    added = {stem.replace("_", "-"): dataclasses.replace(run.evals["ctibench"], **how) for stem, how in evals.items()}
    return dataclasses.replace(run, evals=run.evals | added)


def test_open_and_closed_book_never_share_a_column(beside):
    gain = {"gain_over_lexical": 0.0123, "gain_over_lexical_ci95": (0.0045, 0.0201)}
    reads = {"book": "open", "reader": "model"}
    run = run_with(ctibench_open_model=reads, ctibench_open_both=reads | {"reader": "both"} | gain)
    rows = glance_table([run], beside)[1:]
    names = [row[0] for row in rows]
    assert "ours: chat_v5-seed0 reads" in names
    assert any(name.endswith("+1.23 points (+0.45 to +2.01) over the lexical reader alone") for name in names)
    for _, *closed, opened, _ in rows:
        assert set(closed) == {NONE} or opened == NONE


def test_without_a_score_on_the_whole_benchmark_there_is_no_table(beside):
    runs = [read_run(RECORDS / name) for name in ("pretrain_v05-nano", "chat_v5-36m")]
    assert glance_table(runs, beside) == story(runs, beside) == []


def test_three_figures_tell_the_story(beside):
    run = run_with()
    score = run.evals["ctibench"]
    (model, accuracy), (baseline, best), (_, reader) = story([run], beside)
    assert model.startswith("chat_v5-seed0")
    assert accuracy.startswith(f"{100 * score.headline.accuracy:.1f}")
    assert baseline.startswith("without reading")
    assert best == f"{100 * max(score.baselines_over_orders.values()):.1f}"
    assert reader.startswith("83.8")
    assert len(story([run], Beside())) == 2


# ---- Comparisons ----


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    return write_items(tmp_path_factory.mktemp("items") / "own.jsonl")


@pytest.fixture(scope="module")
def runs(items, tmp_path_factory) -> dict:
    """Directories of runs that answer a share of the items right, drawn by their names; "one" in one order."""
    folder = tmp_path_factory.mktemp("runs")
    shares = {"first": 0.8, "better": 0.97, "worse": 0.6, "alike": 0.8, "one": 0.5, "two": 0.5}
    for name, share in shares.items():
        knows = np.flatnonzero(np.random.default_rng(list(name.encode())).random(len(items)) < share)
        orders = "published" if name in ("one", "two") else "cyclic"
        write_run(folder / name, report(items, set(knows), orders), steps=len(name) + ord(name[0]))
    return {name: folder / name for name in shares}


def compared(runs, items, *names: str) -> dict:
    return compare(rows_of([read_report(runs[name], "ctibench") for name in names], items), items)


def test_every_comparison_is_counted_and_worded(items, runs):
    comparison = compared(runs, items, "first", "better", "worse", "alike")
    lead, *pairs, how = learned([], [comparison])
    assert "200 questions in all orders, closed book, against first" in lead
    assert "1 better, 1 worse, 1 not told apart" in lead
    assert pairs == [row["against_reference"]["text"] for row in comparison["rows"][1:]]
    assert how == HOW
    assert "none of 1 told apart" in learned([], [compared(runs, items, "first", "alike")])[0]
    assert "in one order" in learned([], [compared(runs, items, "one", "two")])[0]


def test_runs_without_a_comparison_are_named(items, runs):
    scored = [read_run(workdir) for workdir in list(runs.values())[:4]]
    last = learned(scored, [compared(runs, items, "first", "better")])[-1]
    assert "worse, alike:" in last
    assert "python -m evals.compare --runs=A,B" in last
    (only,) = learned(scored, [])
    assert "first, better, worse, alike:" in only
    assert learned(scored[:1], []) == learned([], []) != [only]
