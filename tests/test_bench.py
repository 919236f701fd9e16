"""tests/bench: the short form of the benchmark runs, sides work in turn and alone, and its arithmetic is right."""

import dataclasses
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import ghost_jax
from ghost_jax.core.atomic_io import write_json
from ghost_jax.core.errors import UserError
from ghost_jax.data.packing import Example, fill
from tests.bench import ragged, table
from tests.bench.code import KEYS, in_words
from tests.bench.comparisons import COMPARISONS
from tests.bench.slices import taken_over
from tests.bench.speed import measured_before, run
from tests.bench.turns import Contender, Process, compare
from tests.bench.wanted import BEST, DEFAULT, Found, Row, ratio
from tests.bench.work import FLOAT32, PRECISIONS, PRODUCTS, SEED, TOLERANCE


class Counting:
    """A side that sleeps `slow` seconds a turn; it may have a thread that never rests, or end in the middle."""

    def __init__(self, units: float, figure: float, slow: float = 0.0, fails: bool = False, spins: bool = False):
        self._units, self._figure, self._slow, self._fails = units, figure, slow, fails
        if spins:
            threading.Thread(target=self._spin, daemon=True).start()

    def _spin(self) -> None:
        while True:
            pass

    def warm_up(self) -> list[float]:
        print("a library greets its user")  # which is no reply
        return [self._figure]

    def turn(self) -> float:
        if self._fails:
            os._exit(7)
        time.sleep(self._slow)
        return self._units

    def peak_bytes(self) -> int:
        return 1


def contender(name: str, needs: tuple[str, ...] = (), tolerance: float | None = None, **arguments) -> Contender:
    return Contender(name, "tests.test_bench:Counting", arguments, "words", needs, tolerance=tolerance)


# ---- Turns ----


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="how threads fare is read from /proc")
def test_a_side_that_waits_for_its_turn_is_stopped_with_all_its_threads():
    def states() -> set[str]:
        tasks = Path(f"/proc/{process.pid}/task").glob("*/stat")
        return {task.read_text().rpartition(")")[2].split()[0] for task in tasks}

    def comes_to_rest() -> bool:
        deadline = time.monotonic() + 10
        while states() != {"T"} and time.monotonic() < deadline:
            time.sleep(0.01)
        return states() == {"T"}

    process = Process(contender("spinning", units=3, figure=0, spins=True))
    try:
        process.warmed_up()
        assert len(list(Path(f"/proc/{process.pid}/task").iterdir())) > 1
        assert comes_to_rest()
        assert process.turn()["units"] == 3
        assert comes_to_rest()
    finally:
        process.end()
    assert not Path(f"/proc/{process.pid}").exists()


def test_both_sides_are_timed_and_their_first_figures_are_compared():
    said = []
    quick = contender("ours", units=100, figure=1.0, slow=0.05)
    slow = contender("theirs", units=100, figure=1.25, slow=0.2, tolerance=0.3)
    record = compare([quick, slow], 3, said.append)
    assert len(record["sides"]["ours"]["seconds"]) == 3
    assert record["sides"]["theirs"]["per_s"] == pytest.approx(100 / 0.2, rel=0.3)
    assert record["sides"]["ours"]["per_s"] > 1.5 * record["sides"]["theirs"]["per_s"]
    assert record["largest_difference"] == {"theirs": 0.25}


@pytest.mark.parametrize("figure", [10.3, float("nan")])
def test_sides_whose_first_figures_are_out_of_tolerance_are_not_timed(figure):
    said = []
    theirs = contender("theirs", units=1, figure=figure, tolerance=TOLERANCE["bfloat16"])
    with pytest.raises(UserError, match="theirs and ours"):
        compare([contender("ours", units=1, figure=10.0), theirs], 1, said.append)
    assert not [line for line in said if line.startswith("round")]


def test_a_side_whose_package_is_missing_is_left_out_by_name():
    said = []
    theirs = contender("theirs", needs=("no_such_package",), units=1, figure=1.0)
    record = compare([contender("ours", units=1, figure=1.0), theirs], 1, said.append)
    assert record["left_out"] == {"theirs": "no_such_package not installed"}
    assert "theirs: left out, no_such_package not installed" in said
    assert list(record["sides"]) == ["ours"]


def test_a_side_that_ends_in_the_middle_is_named():
    with pytest.raises(UserError, match=r"ours .*7"):
        compare([contender("ours", units=1, figure=1.0, fails=True)], 1, lambda line: None)


# ---- What the sides work on ----


def test_rows_of_different_lengths_return_from_their_file_and_are_padded_on_either_side(tmp_path):
    rows = [np.array([1, 2, 3]), np.array([4])]
    ragged.write(tmp_path / "rows.npz", ids=rows, other=rows[:1])
    found = ragged.read(tmp_path / "rows.npz", "ids")
    assert ragged.padded(found, 0).tolist() == [[1, 2, 3], [4, 0, 0]]
    assert ragged.padded(found, 9, left=True).tolist() == [[1, 2, 3], [9, 9, 4]]
    assert [row.tolist() for row in ragged.read(tmp_path / "rows.npz", "other")] == [[1, 2, 3]]


def test_the_padded_loop_gets_the_conversations_that_our_packed_rows_hold():
    conversations = [
        (np.array([5, 6, 7, 8], np.int32), np.array([False, False, True, True])),
        (np.array([9, 3], np.int32), np.array([False, True])),
    ]
    batch = fill([[Example(ids, learnt) for ids, learnt in conversations]], 8, "token_mean")
    from tests.bench.subject import records_of  # not above: the processes of `Counting` need none of JAX

    found = records_of(batch)
    for (ids, learnt), (own_ids, own_learnt) in zip(found, conversations, strict=True):
        assert ids.tolist() == own_ids.tolist()
        assert learnt.tolist() == own_learnt.tolist()


def test_links_take_over_where_they_bind_every_larger_slice():
    def report(topology: str, chips: int, bound_by: str) -> dict:
        return {"topology": topology, "chips": chips, "bound_by": bound_by}

    reports = [
        report("v5e:16x16", 256, "links"),
        report("v5e:4x4", 16, "memory"),
        report("v5e:8x8", 64, "links"),
        report("v5p:2x2x4", 16, "links"),
        report("v5p:4x4x4", 64, "memory"),
    ]
    assert taken_over(reports) == {"v5e": 64, "v5p": None}


# ---- The command ----

MACHINE = {"name": "2-core CPU", "platform": "cpu", "processor": "AMD EPYC, model 17", "flags": ["avx512_bf16"]}
MACHINE |= {"default": "bfloat16", "peak_flops": None}
WORK = {"size": "small36m", "batch_size": 8, "seq_len": 512, "questions": 2500, "rounds": 7, "devices": [1, 2]}
HEAD = {"date": "2026-11-26", "machine": MACHINE, "packages": {"jax": "1"}, "work": WORK}
SLICES = {"about": "What slices would allow.", "changes": {}, "left_out": "libtpu not installed"}


def test_a_record_is_found_under_its_day_and_processor_and_extended_under_the_same_head(tmp_path):
    record = HEAD | {"measured": {"slices": SLICES}}
    assert table.file_name(record) == "speed-2026-11-26-amd-epyc-model-17.json"
    write_json(tmp_path / table.file_name(record), record)
    assert table.read_all(tmp_path) == {table.file_name(record): record}
    assert measured_before({}, HEAD) == {}
    assert measured_before(record, HEAD) == {"slices": SLICES}
    assert measured_before(record, HEAD | {"packages": {"jax": "2"}}) == {}


def test_a_processor_is_told_by_its_numbers_and_what_it_multiplies(tmp_path):
    from tests.bench.subject import _processor

    core = "model name\t: AMD EPYC\ncpu family\t: 25\nmodel\t\t: 17\nflags\t\t: fpu avx2 avx512f avx512_bf16\n"
    (tmp_path / "cpuinfo").write_text(f"{core}\n{core}")
    assert _processor(tmp_path / "cpuinfo") == (
        "AMD EPYC, cpu family 25, model 17",
        ["avx512_bf16", "avx512f", "avx2"],
    )


def test_a_table_names_the_code_that_was_measured():
    code = {"ghost_jax": "0.4.0", "git_commit": "0123456789abcdef", "git_dirty": False}
    assert "0123456" in table.markdown({"speed-1.json": HEAD | {"measured": {"slices": SLICES | {"code": code}}}})
    kinds = [code, code | {"git_dirty": True}, code | {"git_commit": ""}, None]
    assert len(set(map(in_words, kinds))) == len(kinds)


@pytest.mark.parametrize("content", ['{"machine"', "[]", "{}", '{"machine": "a CPU", "packages": {}, "work": {}}'])
def test_a_damaged_record_is_refused_before_anything_is_prepared(tmp_path, content):
    damaged = tmp_path / "speed-2026-11-25-a-cpu.json"
    damaged.write_text(content)
    with pytest.raises(UserError, match=str(damaged)):
        run(["pretrain"], short=True, changes={}, out=tmp_path)
    assert damaged.read_text() == content


def test_a_comparison_that_there_is_not_is_bad_usage(ghost, tmp_path):
    assert "leters" in ghost.refused_here("tests.bench.speed", f"--out={tmp_path}", "--only=leters", code=2)


@pytest.mark.slow
def test_the_short_form_measures_both_precisions_and_says_who_was_left_out(ghost, tmp_path):
    said = ghost("tests.bench.speed", f"--out={tmp_path}", "--short", "--only=product").stdout
    (record,) = table.read_all(tmp_path).values()
    measured = record["measured"]["product"]
    assert set(measured["sides"]) == {f"XLA, {precision}" for precision in PRECISIONS}
    ours, flop = measured["sides"]["XLA, float32"], 2 * 256**3 * PRODUCTS
    assert ours["units"] == [flop, flop]
    assert ours["per_s"] == pytest.approx(np.median([flop / seconds for seconds in ours["seconds"]]))
    assert measured["left_out"]["PyTorch, bfloat16"] == "torch and transformers not installed"
    assert measured["code"]["ghost_jax"] == ghost_jax.__version__
    assert measured["code"].keys() == set(KEYS)
    assert "| XLA, float32 |" in (tmp_path / "speed.md").read_text()
    assert table.summary([record]) in said


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
    assert set(measured["devices"]["sides"]) == {"1 device(s)", "2 device(s)"}
    assert measured["devices"]["largest_difference"]["2 device(s)"] < 1e-4
    assert measured["decoding"]["largest_difference"]["ghost_jax streamed, float32"] == 0
    assert measured["loader"]["sides"]["ghost_jax"]["per_s"] > 0
    assert measured["start"]["median_s"] > 0
    assert table.LEFT_OUT in (tmp_path / "speed.md").read_text()


# ---- What is wanted ----


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
    assert ratio("another step", BEST, ("peer", BEST))(record) is None


def test_the_worst_of_all_records_counts_and_one_record_is_no_claim():
    row = Row("a step", ratio("step", FLOAT32, ("peer", FLOAT32)), least=1.0, goal=2.0)
    fast, slow = (record_of(ghost_jax=(rate, 1.0), peer=(100.0, 1.0)) for rate in (300.0, 150.0))
    worst, of = row.worst([fast, slow, record_of()])
    assert (worst.figure, of) == (1.5, [fast, slow])
    assert row.worst([record_of()]) is None
    verdicts = [row.verdict(figure, records) for figure, records in ((2.5, 1), (2.5, 2), (1.5, 2), (0.9, 1))]
    assert verdicts == ["reached, not claimed: 1 of 2 records", "goal reached", "held", "**MISSED**"]


def test_of_seconds_the_most_is_the_worst():
    row = Row("start", lambda record: record["found"], least=10, unit="s")
    worst, _ = row.worst([{"found": Found(seconds, "")} for seconds in (6.3, 11.0, 7.0)])
    assert (worst.figure, row.verdict(6.3, 2), row.verdict(11.0, 2)) == (11, "held", "**MISSED**")


def test_the_table_of_two_records_marks_what_is_missed():
    sides = {"torch.compile": (200.0, 800.0), "ghost_jax": (150.0, 300.0)}
    step = record_of(**sides)["measured"]["step"]
    records = [HEAD | {"date": date, "measured": {"pretrain": step}} for date in ("2026-11-26", "2026-11-27")]
    lines = [line for line in table.summary(records).splitlines() if line.startswith("| 36M step")]
    assert [line.split(" | ")[-1] for line in lines] == ["held |", "**MISSED** |", "held |", "**MISSED** |"]
    assert "| 0.75 x | ghost_jax, float32: 150.0 tokens/s; torch.compile, float32: 200.0 |" in lines[3]
    assert "| 2 on 1 processor |" in lines[0]


def test_the_tables_in_the_repository_are_those_of_its_records():
    records = table.read_all(table.RECORDS)
    assert records, "there is no record"
    assert [table.file_name(record) for record in records.values()] == list(records)
    assert (table.RECORDS / table.FILE).read_text(encoding="utf-8") == table.markdown(records)
    page = table.PAGE.read_text(encoding="utf-8")
    assert page == table.with_table(page, records), "docs/performance.md is not of the records: run make bench-table"


# ---- Peers ----


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
