"""tests/bench: the short form of the benchmark runs, sides work in turn and alone, and its arithmetic is right."""

import json

import pytest

from ghost_jax.core.atomic_io import read_json
from ghost_jax.core.errors import UserError
from tests.bench import mutations, table
from tests.bench.comparisons import COMPARISONS
from tests.bench.speed import run
from tests.bench.wanted import BEST, DEFAULT, Row, ratio
from tests.bench.work import FLOAT32, PRECISIONS, precisions_of
from tests.conftest import ROOT, TINY


@pytest.mark.parametrize("content", ['{"machine"', "[]", '{"machine": "a CPU", "packages": {}, "work": {}}'])
def test_a_damaged_record_is_refused_before_anything_is_prepared(tmp_path, content):
    damaged = tmp_path / "speed-2026-11-25-a-cpu.json"
    damaged.write_text(content)
    with pytest.raises(UserError, match=str(damaged)):
        run(["pretrain"], short=True, items="", out=tmp_path)
    assert damaged.read_text() == content


def test_a_comparison_that_there_is_not_is_bad_usage(ghost, tmp_path):
    assert "leters" in ghost.refused_here("tests.bench.speed", f"--out={tmp_path}", "--only=leters", code=2)


@pytest.mark.slow
def test_the_short_form_of_every_comparison_runs(ghost, tmp_path):
    for name in COMPARISONS:  # what was measured before is kept
        ghost("tests.bench.speed", f"--out={tmp_path}", "--short", f"--only={name}")
    (record,) = table.read_all(tmp_path).values()
    measured = record["measured"]
    assert list(measured) == list(COMPARISONS)
    precisions = precisions_of(record["machine"])
    for name in ("pretrain", "pretrain-mini", "pretrain-nano"):
        assert measured[name]["sides"].keys() >= {f"ghost_jax, {precision}" for precision in precisions}
        differences = {f"ghost_jax, {precision}" for precision in precisions[1:]}
        assert measured[name]["largest_difference"].keys() >= differences, "and those of peers, where installed"
    assert measured["decoding"]["largest_difference"]["ghost_jax streamed, float32"] == 0
    assert measured["loader"]["sides"]["ghost_jax"]["per_s"] > 0
    assert measured["start"]["median_s"] > 0


@pytest.mark.slow
def test_an_interrupted_run_is_resumed_and_each_save_is_timed(ghost, tmp_path):
    keys = [f"--config.model.{key}={TINY[f'model.{key}']}" for key in ("layers", "width", "heads", "mlp_dim")]
    recipe = "--config=configs/pretrain_v05.py:nano"
    ghost("tests.bench.interrupt", recipe, "--rounds=2", f"--out={tmp_path / 'record.json'}", *keys)
    record = json.loads((tmp_path / "record.json").read_text())
    first, second = record["interruptions"]
    assert (first["read_back"], second["read_back"]) == (True, False)
    assert 0 < second["saved_s"] <= second["ended_s"]
    assert record["computed"]["bytes"] == 12 * 341_099_520


def record_of(default: str = "bfloat16", **rates: tuple[float, ...]) -> dict:
    """Returns a record of one comparison, "step": side -> its rates in float32 and, where given, bfloat16."""
    sides = {
        f"{name}, {precision}": {"unit": "tokens", "per_s": per_s}
        for name, both in rates.items()
        for precision, per_s in zip(PRECISIONS, both, strict=False)
    }
    return {"machine": {"default": default, "flags": ["avx2"]}, "measured": {"step": {"sides": sides}}}


def test_the_best_precision_of_each_side_is_compared_and_the_default_is_the_machines():
    record = record_of(ghost_jax=(100.0, 300.0), peer=(200.0, 50.0))
    assert ratio("step", BEST, ("peer", BEST))(record).figure == 1.5
    own = ratio("step", DEFAULT, ("ghost_jax", FLOAT32))
    assert own(record).figure == 3
    assert own(record_of("float32", ghost_jax=(100.0, 300.0))) is None
    assert ratio("step", BEST, ("absent", BEST))(record) is None
    one = record_of("float32", ghost_jax=(100.0,), peer=(50.0,))
    assert ratio("step", BEST, ("peer", BEST))(one).figure == 2, "a processor without units for bfloat16"
    one["machine"] |= {"default": "bfloat16"}
    assert ratio("step", BEST, ("peer", BEST))(one) is None, "one precision was not measured"


def test_the_worst_of_all_records_counts_and_one_record_is_no_claim():
    row = Row("a step", ratio("step", FLOAT32, ("peer", FLOAT32)), least=1.0, goal=2.0)
    fast, slow = (record_of(ghost_jax=(rate, 1.0), peer=(100.0, 1.0)) for rate in (300.0, 150.0))
    worst, of = row.worst([fast, slow, record_of()])
    assert (worst.figure, of) == (1.5, [fast, slow])
    verdicts = [row.verdict(figure, records) for figure, records in ((2.5, 1), (2.5, 2), (1.5, 2), (0.9, 1))]
    assert verdicts == ["reached, not claimed: 1 of 2 records", "goal reached", "held", "**MISSED**"]


def test_the_tables_in_the_repository_are_those_of_its_records():
    records = table.read_all(table.RECORDS)
    assert records, "there is no record"
    assert [table.file_name(record) for record in records.values()] == list(records)
    page = table.PAGE.read_text(encoding="utf-8")
    assert page == table.with_table(page, records), "docs/performance.md is not of the records: run make bench-table"


def test_every_mutation_changes_one_place_of_the_code():
    for mutation in read_json(mutations.LIST):
        assert (ROOT / mutation["file"]).read_text().count(mutation["before"]) == 1, mutation
