"""ghost_jax/data/mixture.py: batch t is a function of the seed and t alone, and the table says what the run sees."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ghost_jax.data import mixture, store
from ghost_jax.data.mixture import read_from, row, train_batches, validation_batches
from ghost_jax.errors import UserError

RECORDS = {"big": 20, "middle": 14, "small": 6}  # Grain shuffles a smaller source ever more slowly
MIX = {"big": 1.0, "middle": 3.0, "small": 0.5}
STREAM = {"seed": 3, "batch_size": 4, "seq_len": 6}
FIRST = {"big": 1000, "middle": 2000, "small": 3000}  # the first token of a record says which one it is


def example(name: str, i: int) -> dict:
    length = 4 + i % 5  # 4 to 8 tokens; a row of 6 has room for 7
    tokens = np.arange(length, dtype=np.int32) + 10
    # The last tokens always survive cropping; the one before the last carries the record's number.
    tokens[-2] = FIRST[name] + i
    letter = "ABCD"[i % 4] if name == "middle" else ""
    return {"id": f"{name}{i}", "source": name, "letter": letter, "tokens": tokens, "mask": np.arange(length) >= 2}


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    datasets = {}
    for name, count in RECORDS.items():
        splits = {"train": [example(name, i) for i in range(count)]}
        if name == "big":
            splits["validation"] = [example(name, i) for i in range(100, 105)]
        datasets[name] = store.write_examples(folder, name, splits)
    (folder / "manifest.json").write_text(json.dumps({"datasets": datasets}))
    return folder


def drawn(batch: dict) -> list[int]:
    """The numbers of the records of a batch, in order."""
    return [int(tokens[tokens >= 1000][0]) for tokens in batch["tokens"]]


def draws(stream, count: int) -> list[int]:
    return [number for t in range(count) for number in drawn(stream[t])]


def own(numbers: list[int], name: str) -> list[int]:
    return [number for number in numbers if FIRST[name] <= number < FIRST[name] + 1000]


@pytest.fixture(scope="module")
def numbers(examples) -> list[int]:
    """The records of the first 80 batches of the mix; each is read once here for several tests."""
    return draws(train_batches(examples, MIX, **STREAM), 80)


def assert_batches_equal(batch: dict, other: dict) -> None:
    assert batch.keys() == other.keys() == {"tokens", "targets", "weights"}
    for key in batch:
        np.testing.assert_array_equal(batch[key], other[key])


# ---- Batch t ----


@pytest.mark.parametrize("mix", [MIX, {"big": 1.0}], ids=["mixed", "one source"])
def test_a_resume_reads_what_a_run_from_the_start_reads(examples, mix):
    stream = train_batches(examples, mix, **STREAM)
    from_start = read_from(stream, 0)
    read = [next(from_start) for _ in range(40)]  # 160 rows: every source passes its end several times
    for t in (0, 1, 5, 12, 25, 39):  # random access, in any order, from a stream made anew
        assert_batches_equal(train_batches(examples, mix, **STREAM)[39 - t], read[39 - t])
    for t in (1, 3, 17, 39):
        resumed = read_from(train_batches(examples, mix, **STREAM), t)
        for batch in read[t : t + 3]:
            assert_batches_equal(next(resumed), batch)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_parts_of_all_hosts_are_the_global_batch(examples, processes):
    whole = train_batches(examples, MIX, **STREAM)
    parts = [train_batches(examples, MIX, **STREAM, process=p, processes=processes) for p in range(processes)]
    for t in (0, 1, 9, 30):
        pieces = [part[t] for part in parts]
        assert_batches_equal({key: np.concatenate([piece[key] for piece in pieces]) for key in pieces[0]}, whole[t])


def test_the_batch_size_moves_no_row(examples, numbers):
    assert draws(train_batches(examples, MIX, **(STREAM | {"batch_size": 16})), 3) == numbers[:48]


def test_another_seed_is_another_order(examples, numbers):
    assert draws(train_batches(examples, MIX, **(STREAM | {"seed": 4})), 10) != numbers[:40]


# ---- What is drawn ----


def test_proportions_follow_records_times_multiplier(numbers):
    weights = {name: MIX[name] * count for name, count in RECORDS.items()}  # 20, 42 and 3
    for name, weight in weights.items():
        assert len(own(numbers, name)) == pytest.approx(len(numbers) * weight / sum(weights.values()), abs=2)
    # Interleaved, not one after another: every stretch has about its part.
    for start in range(0, 260, 65):
        assert len(own(numbers[start : start + 65], "big")) == pytest.approx(20, abs=2)


@pytest.mark.parametrize("name", ["big", "middle"])
def test_each_record_comes_once_a_pass(numbers, name):
    mine, size = own(numbers, name), RECORDS[name]
    passes = [tuple(mine[start : start + size]) for start in range(0, len(mine) - size + 1, size)]
    assert len(passes) >= 4
    assert {frozenset(each) for each in passes} == {frozenset(range(FIRST[name], FIRST[name] + size))}
    assert len(set(passes)) >= len(passes) - 1  # each pass is shuffled anew


@pytest.mark.parametrize("others", [{"middle": 0.0}, {"middle": 9.0}, {"middle": 0.0, "small": 0.0}])
def test_the_other_sources_multipliers_move_no_record_of_ones_own(examples, numbers, others):
    reference = own(numbers, "big")
    changed = draws(train_batches(examples, MIX | others, **STREAM), 40)
    mine = own(changed, "big")
    shared = min(len(mine), len(reference))
    assert shared > 20  # into the second pass
    assert mine[:shared] == reference[:shared]
    for name, multiplier in others.items():
        assert bool(own(changed, name)) == (multiplier > 0)


# ---- Rows ----


def test_a_row_shifts_targets_and_weights():
    made = row({"tokens": np.array([5, 6, 7, 8], np.int32), "mask": np.array([False, False, True, True])}, 6)
    np.testing.assert_array_equal(made["tokens"], [5, 6, 7, 0, 0, 0])
    np.testing.assert_array_equal(made["targets"], [6, 7, 8, 0, 0, 0])
    np.testing.assert_array_equal(made["weights"], [0, 1, 1, 0, 0, 0])
    assert [made[key].dtype for key in ("tokens", "targets", "weights")] == [np.int32, np.int32, np.float32]


def test_a_long_record_loses_its_beginning():
    made = row({"tokens": np.arange(10, dtype=np.int32), "mask": np.arange(10) % 2 == 1}, 4)
    np.testing.assert_array_equal(made["tokens"], [5, 6, 7, 8])
    np.testing.assert_array_equal(made["targets"], [6, 7, 8, 9])
    np.testing.assert_array_equal(made["weights"], [0, 1, 0, 1])


@pytest.mark.parametrize("length", [1, 2, 6, 7, 8])
def test_every_length_has_one_target_less_than_tokens(length):
    made = row({"tokens": np.full(length, 9, np.int32), "mask": np.ones(length, bool)}, 6)
    assert made["weights"].sum() == min(length, 7) - 1
    assert (made["targets"] == 9).sum() == min(length, 7) - 1


# ---- The table ----


def test_the_table_says_what_the_run_sees(examples):
    lines = {line.name: line for line in mixture.shares(examples, MIX | {"small": 0.0}, draws=310, seq_len=6)}
    assert list(lines) == ["big", "middle"]
    big, middle = lines["big"], lines["middle"]
    assert (big.records, middle.records) == (20, 14)
    lengths = {name: [4 + i % 5 for i in range(count)] for name, count in RECORDS.items()}
    assert (big.tokens, big.supervised) == (sum(lengths["big"]), sum(length - 2 for length in lengths["big"]))
    assert (big.record_share, middle.record_share) == pytest.approx((10 / 31, 21 / 31))
    assert big.supervised_share + middle.supervised_share == pytest.approx(1)
    assert big.supervised_share / middle.supervised_share == pytest.approx(big.supervised / (3 * middle.supervised))
    assert (big.epochs, middle.epochs) == pytest.approx((5, 15))
    assert (big.cropped, middle.cropped) == (lengths["big"].count(8), lengths["middle"].count(8)) == (4, 2)
    assert (big.letters, middle.letters) == ((0, 0, 0, 0), (4, 4, 3, 3))


def test_the_table_agrees_with_the_draws(examples, numbers):
    counted = Counter(numbers)
    for line in mixture.shares(examples, MIX, draws=len(numbers), seq_len=6):
        seen = [counted[FIRST[line.name] + i] for i in range(line.records)]
        assert np.mean(seen) == pytest.approx(line.epochs, abs=0.5)
        assert max(seen) - min(seen) <= 1


def test_the_drawn_table_has_a_line_a_source(examples):
    assert mixture.table(mixture.shares(examples, MIX, draws=100, seq_len=6)).row_count == 3


# ---- The fingerprint ----


def test_the_fingerprint_changes_with_every_argument(examples):
    stream = {"multipliers": MIX, **STREAM}
    changes = [{}, {"seed": 4}, {"batch_size": 8}, {"seq_len": 5}]
    changes += [{"multipliers": MIX | change} for change in ({"big": 2.0}, {"small": 0.0}, {"middle": 3.5})]
    found = [mixture.fingerprint(examples, **(stream | change)) for change in changes]
    assert len(set(found)) == len(changes)


def test_the_fingerprint_sees_the_rows_it_mixes_and_no_others(examples, tmp_path):
    datasets = store.manifest(examples)["datasets"]
    mix = {"big": 1.0, "small": 0.0}

    def fingerprint(changed: dict) -> str:
        (tmp_path / "manifest.json").write_text(json.dumps({"datasets": datasets | changed}))
        return mixture.fingerprint(tmp_path, mix, **STREAM)

    here = mixture.fingerprint(examples, mix, **STREAM)
    other = {"train": datasets["big"]["train"] | {"sha256": "0" * 64}}
    assert fingerprint({}) == fingerprint({"small": other, "middle": other, "new": other}) == here
    assert mixture.fingerprint(examples, {"big": 1.0}, **STREAM) == here
    assert fingerprint({"big": other}) != here


# ---- Validation ----


def validation(examples, name="big", records=100, batch_size=4):
    return validation_batches(examples, name, batch_size=batch_size, seq_len=6, records=records)


def test_validation_batches_have_one_shape_and_are_filled_up_with_nothing(examples):
    batches = validation(examples)
    assert [batch["tokens"].shape for batch in batches] == [(4, 6), (4, 6)]
    numbers = {int(t[t >= 1000][0]) for batch in batches for t in batch["tokens"] if (t >= 1000).any()}
    assert numbers == set(range(1100, 1105))
    for key in ("tokens", "targets", "weights"):
        assert not batches[1][key][1:].any()
    expected = sum(row(example("big", i), 6)["weights"].sum() for i in range(100, 105))
    assert sum(batch["weights"].sum() for batch in batches) == expected


@pytest.mark.parametrize(("records", "batches"), [(5, 2), (4, 1), (1, 1), (0, 0)])
def test_no_more_validation_records_are_read_than_asked_for(examples, records, batches):
    found = validation(examples, records=records)
    assert len(found) == batches
    assert sum((batch["weights"].sum(axis=1) > 0).sum() for batch in found) == records


def test_validation_reads_the_same_each_time(examples):
    for batch, again in zip(validation(examples), validation(examples), strict=True):
        assert_batches_equal(batch, again)


def test_a_dataset_without_a_validation_split_has_no_batches(examples):
    assert validation(examples, "middle") == []


def test_a_dataset_without_records_is_refused_by_name(examples, tmp_path):
    shutil.copytree(examples, tmp_path / "store")
    manifest = json.loads((examples / "manifest.json").read_text())
    manifest["datasets"]["none"] = {}
    (tmp_path / "store" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="asks for none, but"):
        mixture.shares(tmp_path / "store", {**MIX, "none": 1.0}, draws=100, seq_len=6)
