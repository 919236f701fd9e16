"""tests/bench: the short form of the benchmark runs, sides work in turn and alone, and its arithmetic is right."""

import dataclasses
import json

import numpy as np
import pytest

from ghost_jax.core.errors import UserError
from tests.bench import ragged, table
from tests.bench.comparisons import COMPARISONS
from tests.bench.speed import run
from tests.bench.wanted import BEST, DEFAULT, Row, ratio
from tests.bench.work import FLOAT32, PRECISIONS, SEED, TOLERANCE
from tests.conftest import TINY

MACHINE = {"name": "2-core CPU", "platform": "cpu", "processor": "AMD EPYC, model 17", "flags": ["avx512_bf16"]}
MACHINE |= {"default": "bfloat16", "peak_flops": None}
WORK = {"size": "small36m", "batch_size": 8, "seq_len": 512, "questions": 2500, "rounds": 7}
HEAD = {"date": "2026-11-26", "machine": MACHINE, "packages": {"jax": "1"}, "work": WORK}


@pytest.mark.parametrize("content", ['{"machine"', "[]", '{"machine": "a CPU", "packages": {}, "work": {}}'])
def test_a_damaged_record_is_refused_before_anything_is_prepared(tmp_path, content):
    damaged = tmp_path / "speed-2026-11-25-a-cpu.json"
    damaged.write_text(content)
    with pytest.raises(UserError, match=str(damaged)):
        run(["pretrain"], short=True, changes={}, out=tmp_path)
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
    for name in ("pretrain", "pretrain-mini", "pretrain-nano"):
        assert set(measured[name]["sides"]) == {f"ghost_jax, {precision}" for precision in PRECISIONS}
        assert measured[name]["largest_difference"].keys() == {"ghost_jax, bfloat16"}
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


def record_of(default: str = "bfloat16", **rates: tuple[float, float]) -> dict:
    """Returns a record of one comparison, "step": side -> its rates in float32 and bfloat16."""
    sides = {
        f"{name}, {precision}": {"unit": "tokens", "per_s": per_s}
        for name, both in rates.items()
        for precision, per_s in zip(PRECISIONS, both, strict=True)
    }
    return HEAD | {"machine": MACHINE | {"default": default}, "measured": {"step": {"sides": sides}}}


def test_the_best_precision_of_each_side_is_compared_and_the_default_is_the_machines():
    record = record_of(ghost_jax=(100.0, 300.0), peer=(200.0, 50.0))
    found = ratio("step", BEST, ("peer", BEST))(record)
    assert found.figure == 1.5
    assert found.words == "ghost_jax, bfloat16: 300.0 tokens/s; peer, float32: 200.0"
    own = ratio("step", DEFAULT, ("ghost_jax", FLOAT32))
    assert own(record).figure == 3
    assert own(record_of("float32", ghost_jax=(100.0, 300.0))) is None
    assert ratio("step", BEST, ("absent", BEST))(record) is None


def test_the_worst_of_all_records_counts_and_one_record_is_no_claim():
    row = Row("a step", ratio("step", FLOAT32, ("peer", FLOAT32)), least=1.0, goal=2.0)
    fast, slow = (record_of(ghost_jax=(rate, 1.0), peer=(100.0, 1.0)) for rate in (300.0, 150.0))
    worst, of = row.worst([fast, slow, record_of()])
    assert (worst.figure, of) == (1.5, [fast, slow])
    assert row.worst([record_of()]) is None
    verdicts = [row.verdict(figure, records) for figure, records in ((2.5, 1), (2.5, 2), (1.5, 2), (0.9, 1))]
    assert verdicts == ["reached, not claimed: 1 of 2 records", "goal reached", "held", "**MISSED**"]


def test_the_tables_in_the_repository_are_those_of_its_records():
    records = table.read_all(table.RECORDS)
    assert records, "there is no record"
    assert [table.file_name(record) for record in records.values()] == list(records)
    page = table.PAGE.read_text(encoding="utf-8")
    assert page == table.with_table(page, records), "docs/performance.md is not of the records: run make bench-table"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_pytorch_starts_from_our_loss_in_each_precision(tmp_path, dtype):
    for package in ("torch", "transformers"):
        pytest.importorskip(package, reason=f"{package} is not installed: it is a peer of the benchmark alone")
    import jax
    import optax

    from ghost_jax.model import transformer
    from tests.bench import on_torch, subject
    from tests.bench.speed import SHORT

    base = subject.write_base(SHORT, str(tmp_path))
    peer = {"shape": base["shape"], "parameters": base["parameters"], "compiled": False}
    (theirs,) = on_torch.Pretrain(dataclasses.asdict(SHORT), str(tmp_path), dtype, **peer).warm_up()

    model = subject.base_model(SHORT)
    tokens = np.stack(ragged.read(tmp_path / "rows.npz", "tokens"))
    logits = transformer.Transformer(model).apply(
        {"params": transformer.init(model, jax.random.key(SEED))}, tokens[:, :-1]
    )
    ours = optax.softmax_cross_entropy_with_integer_labels(logits[..., : model.vocab_size], tokens[:, 1:]).mean()
    assert theirs == pytest.approx(float(ours), rel=TOLERANCE[dtype])
