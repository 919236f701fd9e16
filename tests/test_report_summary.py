"""The first parts of a report: who scores what on the benchmark, and what comparisons found."""

import dataclasses

import pytest

from ghost_jax.reporting.records import Beside, read_beside
from ghost_jax.reporting.summary import glance_table
from ghost_jax.reporting.tables import NONE
from ghost_jax.runs import run_record
from tests.conftest import ROOT
from tests.test_compare import write_items

RECORDS = ROOT / "evals" / "records"


@pytest.fixture(scope="module")
def beside() -> Beside:
    """The reports in the repository: of the lexical reader, an audit of published answers, a comparison."""
    return read_beside(sorted(RECORDS.glob("*.json")))[0]


def run_with(name: str = "chat_v5-seed0", **evals):
    """A recorded run with further evaluations, each the run's score with changes."""
    run = run_record.read(RECORDS / name)
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


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    return write_items(tmp_path_factory.mktemp("items") / "own.jsonl")
