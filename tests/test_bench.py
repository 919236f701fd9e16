"""tests/bench: the short form of the benchmark runs, sides work in turn and alone, and its arithmetic is right."""

import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import ghost_jax
from ghost_jax.data.packing import Example, fill
from ghost_jax.errors import UserError
from ghost_jax.whole import write_json
from tests.bench import ragged, table
from tests.bench.code import KEYS, in_words
from tests.bench.comparisons import COMPARISONS
from tests.bench.slices import taken_over
from tests.bench.speed import measured_before, read_record, run
from tests.bench.turns import Contender, Process, compare


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


def contender(name: str, unit: str = "words", needs: tuple[str, ...] = (), **arguments) -> Contender:
    return Contender(name, "tests.test_bench:Counting", arguments, unit, needs)


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


def test_both_sides_are_timed_and_ours_is_set_against_the_others():
    said = []
    quick = contender("ours", units=100, figure=1.0, slow=0.05)
    slow = contender("theirs", units=100, figure=1.25, slow=0.2)
    other = contender("in another unit", unit="FLOP", units=1, figure=1.0)
    record = compare([quick, slow, other], 3, said.append)
    assert len(record["sides"]["ours"]["seconds"]) == 3
    assert record["sides"]["theirs"]["per_s"] == pytest.approx(100 / 0.2, rel=0.3)
    assert record["times"]["theirs"] > 1.5
    assert "in another unit" not in record["times"]
    assert record["largest_difference"]["theirs"] == 0.25


def test_a_side_whose_package_is_missing_is_left_out_by_name():
    said = []
    theirs = contender("theirs", needs=("no_such_package",), units=1, figure=1.0)
    record = compare([contender("ours", units=1, figure=1.0), theirs], 1, said.append)
    assert record["left_out"] == {"theirs": "no_such_package not installed"}
    assert "theirs: left out, no_such_package not installed" in said
    assert list(record["sides"]) == ["ours"]


def test_a_side_that_ends_in_the_middle_is_named():
    with pytest.raises(UserError, match="The side ours ended in the middle \\(exit code 7\\)"):
        compare([contender("ours", units=1, figure=1.0, fails=True)], 1, lambda line: None)


# ---- What the sides work on ----


def test_rows_of_different_lengths_come_back_from_their_file(tmp_path):
    rows = [np.array([1, 2, 3]), np.array([4]), np.array([5, 6])]
    ragged.write(tmp_path / "rows.npz", ids=rows, other=rows[:1])
    assert [row.tolist() for row in ragged.read(tmp_path / "rows.npz", "ids")] == [[1, 2, 3], [4], [5, 6]]
    assert [row.tolist() for row in ragged.read(tmp_path / "rows.npz", "other")] == [[1, 2, 3]]


def test_rows_are_filled_up_on_the_side_that_is_asked_for():
    rows = [np.array([1, 2, 3]), np.array([4])]
    assert ragged.padded(rows, 0).tolist() == [[1, 2, 3], [4, 0, 0]]
    assert ragged.padded(rows, 9, left=True).tolist() == [[1, 2, 3], [9, 9, 4]]


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

HEAD = {"machine": "2-core CPU", "packages": {"jax": "1"}, "work": {"devices": [1, 2]}}
SLICES = {"about": "What slices would allow.", "left_out": "libtpu not installed"}


def test_what_was_measured_under_the_same_head_is_kept(tmp_path):
    assert measured_before(read_record(tmp_path), HEAD) == {}
    write_json(tmp_path / "speed.json", HEAD | {"measured": {"slices": SLICES}})
    assert measured_before(read_record(tmp_path), HEAD) == {"slices": SLICES}
    assert measured_before(read_record(tmp_path), HEAD | {"packages": {"jax": "2"}}) == {}


def test_each_comparison_says_which_code_it_is_of():
    code = {"ghost_jax": "0.4.0", "git_commit": "0123456789abcdef", "git_dirty": False}
    measured = {
        "first": SLICES | {"code": code},
        "second": SLICES | {"code": code | {"git_dirty": True}},
        "third": SLICES | {"code": code | {"git_commit": ""}},
        "from before": SLICES,
    }
    made = table.markdown(HEAD | {"measured": {"slices": SLICES | {"code": code}}})
    assert "Measured with ghost_jax 0.4.0 at 0123456." in made.splitlines()
    words = [in_words(each.get("code")) for each in measured.values()]
    assert words == [
        "ghost_jax 0.4.0 at 0123456",
        "ghost_jax 0.4.0 at 0123456 with uncommitted changes",
        "ghost_jax 0.4.0, installed as a package",
        "code that the record does not name",
    ]


@pytest.mark.parametrize("content", ['{"machine"', "[]", "{}", '{"machine": "a CPU", "packages": {}, "work": {}}'])
def test_a_damaged_record_is_refused_before_anything_is_prepared(tmp_path, content):
    (tmp_path / "speed.json").write_text(content)
    with pytest.raises(UserError, match=f"{tmp_path}/speed.json is no record .* Delete it, or give another --out"):
        run(["pretrain"], short=True, changes={}, out=tmp_path)
    assert (tmp_path / "speed.json").read_text() == content


def test_a_comparison_that_there_is_not_is_bad_usage(ghost, tmp_path):
    said = ghost.refused("tests.bench.speed", f"--out={tmp_path}", "--only=leters", code=2)
    assert 'Did you mean "letters"?' in said


def test_the_short_form_measures_a_step_and_says_who_was_left_out(ghost, tmp_path):
    ghost("tests.bench.speed", f"--out={tmp_path}", "--short", "--only=pretrain")
    record = json.loads((tmp_path / "speed.json").read_text())
    measured = record["measured"]["pretrain"]
    ours = measured["sides"]["ghost_jax"]
    assert ours["units"] == [4 * 64, 4 * 64]
    assert ours["per_s"] == pytest.approx(np.median([4 * 64 / seconds for seconds in ours["seconds"]]))
    flops = ours["per_s"] * measured["flops_per_token"]
    assert measured["share_of_ceiling"]["ghost_jax"] == pytest.approx(flops / measured["ceiling_flops_per_s"])
    assert measured["left_out"]["torch.compile"] == "torch and transformers not installed"
    assert measured["code"]["ghost_jax"] == ghost_jax.__version__
    assert measured["code"].keys() == set(KEYS)
    assert "| ghost_jax |" in (tmp_path / "speed.md").read_text()


@pytest.mark.slow
def test_the_short_form_of_every_comparison_runs(ghost, tmp_path):
    for name in COMPARISONS:  # what was measured before is kept
        ghost("tests.bench.speed", f"--out={tmp_path}", "--short", f"--only={name}")
    measured = json.loads((tmp_path / "speed.json").read_text())["measured"]
    assert list(measured) == ["pretrain", "sft", "letters", "decoding", "start", "devices", "slices"]
    assert set(measured["devices"]["sides"]) == {"1 device(s)", "2 device(s)"}
    assert measured["devices"]["largest_difference"]["2 device(s)"] < 1e-4
    assert measured["decoding"]["largest_difference"]["ghost_jax, streamed"] == 0
    assert measured["start"]["median_s"] > 0
    assert table.LEFT_OUT in (tmp_path / "speed.md").read_text()


def test_the_table_in_the_repository_is_that_of_its_record():
    records = Path(__file__).parent / "bench" / "records"
    record = json.loads((records / "speed.json").read_text(encoding="utf-8"))
    assert (records / "speed.md").read_text(encoding="utf-8") == table.markdown(record)
