"""ghost_jax/data/mixture.py: batch t is a function of the mix and t alone, and the table says what the run sees."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ghost_jax.core.errors import UserError
from ghost_jax.data import mixture, mixture_table
from ghost_jax.data.mixture import (
    Mix,
    Packing,
    Phase,
    cropped,
    read_from,
    train_batches,
    validation_batches,
)
from ghost_jax.data.packing import fill
from ghost_jax.data.storage.array_record import write_examples
from ghost_jax.data.storage.artifact_cache import Manifest

RECORDS = {"big": 20, "middle": 14, "small": 6}
WEIGHTS = {"big": 1.0, "middle": 3.0, "small": 0.5}
FIRST = {"big": 1000, "middle": 2000, "small": 3000}  # the first token of a record says which one it is


def example(name: str, i: int) -> dict:
    length = 4 + i % 5  # 4 to 8 tokens; a row of 6 has room for 7
    tokens = np.arange(length, dtype=np.int32) + 10
    # The last tokens always survive cropping; the one before the last carries the record's number.
    tokens[-2] = FIRST[name] + i
    letter = "ABCD"[i % 4] if name == "middle" else ""
    return {"id": f"{name}{i}", "source": name, "letter": letter, "tokens": tokens, "mask": np.arange(length) >= 2}


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[str, Path]:
    """One store a dataset, as they are prepared."""
    made = {}
    for name, count in RECORDS.items():
        made[name] = tmp_path_factory.mktemp(name)
        splits = {"train": [example(name, i) for i in range(count)]}
        if name == "big":
            splits["validation"] = [example(name, i) for i in range(100, 105)]
        write_manifest(made[name], {name: write_examples(made[name], name, splits)})
    return made


def write_manifest(folder: Path, datasets: dict) -> None:
    Manifest(datasets=datasets).write(folder)


@pytest.fixture(scope="module")
def mix(stores) -> Mix:
    return Mix(stores, (Phase(0, WEIGHTS),), 3, 4, 6, packing=False, truncation="crop", loss_norm="token_mean")


@pytest.fixture(scope="module", params=["one a row", "packed", "in two phases", "long ones dropped"])
def any_mix(request, mix) -> Mix:
    """A mix of every kind of which batch t must be a pure function."""
    return {
        "one a row": mix,
        "packed": packed(mix),
        "in two phases": packed(mix, phases=(Phase(0, WEIGHTS), Phase(9, WEIGHTS | {"middle": 0.0, "small": 4.0}))),
        "long ones dropped": packed(mix, truncation="drop"),
    }[request.param]


def packed(mix: Mix, **changes) -> Mix:
    return dataclasses.replace(mix, packing=True, **({"seq_len": 16} | changes))


def weighted(mix: Mix, **multipliers: float) -> Mix:
    return dataclasses.replace(mix, phases=(Phase(0, WEIGHTS | multipliers),))


def drawn(batch: dict) -> list[int]:
    """The numbers of the records of a batch, in order."""
    return [int(token) for token in batch["tokens"].flat if token >= 1000]


def draws(stream, count: int) -> list[int]:
    return [number for t in range(count) for number in drawn(stream[t])]


def own(numbers: list[int], name: str) -> list[int]:
    return [number for number in numbers if FIRST[name] <= number < FIRST[name] + 1000]


@pytest.fixture(scope="module")
def numbers(mix) -> list[int]:
    """The records of the first 80 batches of the mix; each is read once here for several tests."""
    return draws(train_batches(mix), 80)


def assert_batches_equal(batch: dict, other: dict) -> None:
    assert batch.keys() == other.keys() >= {"tokens", "targets", "weights"}
    for key in batch:
        assert batch[key].tobytes() == other[key].tobytes(), key


# ---- Batch t ----


def test_a_resume_reads_what_a_run_from_the_start_reads(any_mix):
    stream = train_batches(any_mix)
    from_start = read_from(stream, 0)
    read = [next(from_start) for _ in range(40)]  # 160 rows: every source passes its end several times
    for t in (0, 1, 5, 12, 25, 39):  # random access, in any order, from a stream made anew
        assert_batches_equal(train_batches(any_mix)[39 - t], read[39 - t])
    for t in (1, 3, 8, 9, 17, 39):
        resumed = read_from(train_batches(any_mix), t)
        for batch in read[t : t + 3]:
            assert_batches_equal(next(resumed), batch)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_parts_of_all_hosts_are_the_global_batch(any_mix, processes):
    whole = train_batches(any_mix)
    parts = [train_batches(any_mix, p, processes) for p in range(processes)]
    for t in (0, 1, 8, 9, 30):
        pieces = [part[t] for part in parts]
        assert_batches_equal({key: np.concatenate([piece[key] for piece in pieces]) for key in pieces[0]}, whole[t])


def test_the_batch_size_moves_no_row(mix, numbers):
    assert draws(train_batches(dataclasses.replace(mix, batch_size=16)), 3) == numbers[:48]


def test_another_seed_is_another_order(mix, numbers):
    assert draws(train_batches(dataclasses.replace(mix, seed=4)), 10) != numbers[:40]


# ---- What is drawn ----


def test_proportions_follow_records_times_multiplier(numbers):
    weights = {name: WEIGHTS[name] * count for name, count in RECORDS.items()}  # 20, 42 and 3
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
def test_the_other_sources_multipliers_move_no_record_of_ones_own(mix, numbers, others):
    reference = own(numbers, "big")
    changed = draws(train_batches(weighted(mix, **others)), 40)
    mine = own(changed, "big")
    shared = min(len(mine), len(reference))
    assert shared > 20  # into the second pass
    assert mine[:shared] == reference[:shared]
    for name, multiplier in others.items():
        assert bool(own(changed, name)) == (multiplier > 0)


# The fewest passes in which each multiplier is a whole number, eight times: over 1,024 draws are packed together.
PASSES = {"big": 2 * 8, "middle": 6 * 8, "small": 1 * 8}
EPOCH = Counter({FIRST[name] + i: PASSES[name] for name, count in RECORDS.items() for i in range(count)})


def test_an_epoch_of_packed_rows_holds_each_record_as_often_as_its_multiplier_says(mix):
    one = dataclasses.replace(packed(mix), batch_size=1)
    rows = round(EPOCH.total() / mixture.packing_of(one).records_per_row)
    stream = train_batches(one)
    epochs = [[tuple(drawn(stream[t])) for t in range(e * rows, (e + 1) * rows)] for e in range(3)]
    for epoch in epochs:
        assert Counter(number for row in epoch for number in row) == EPOCH
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_row_far_along_is_found_without_those_before_it(mix):
    stream = train_batches(packed(mix))
    for t in (10**6, 10**9):
        assert_batches_equal(stream[t], train_batches(packed(mix))[t])


@pytest.mark.parametrize(
    ("multipliers", "copies"),
    [
        ({"a": 1.0, "b": 5.0, "c": 0.0}, {"a": 1, "b": 5}),
        ({"a": 1.0, "b": 0.25}, {"a": 4, "b": 1}),
        ({"a": 1 / 3, "b": 2.0}, {"a": 1, "b": 6}),
        ({"a": 0.01, "b": 30.0}, {"a": 1, "b": 3000}),
        ({"a": 0.5}, {"a": 1}),
    ],
)
def test_an_epoch_has_the_fewest_passes_that_give_each_multiplier(multipliers, copies):
    assert mixture.copies_of(multipliers) == copies


def test_packed_rows_hold_whole_records_with_positions_of_their_own(mix):
    stream = train_batches(packed(mix))
    for t in range(10):
        batch = stream[t]
        for tokens, targets, positions, segments, weights in zip(
            *(batch[key] for key in ("tokens", "targets", "positions", "segments", "weights")), strict=True
        ):
            assert (np.diff(np.flatnonzero(segments)) == 1).all(), "padding stands on the right alone"
            for segment in range(1, segments.max() + 1):
                here = segments == segment
                number = int(tokens[here][tokens[here] >= 1000][0])
                name = next(name for name, first in FIRST.items() if first <= number < first + 1000)
                alone = row(example(name, number - FIRST[name]), int(here.sum()))
                np.testing.assert_array_equal(tokens[here], alone["tokens"])
                np.testing.assert_array_equal(targets[here], alone["targets"])
                np.testing.assert_array_equal(weights[here], alone["weights"])
                np.testing.assert_array_equal(positions[here], np.arange(here.sum()))
            assert not weights[segments == 0].any()


def test_rows_of_an_epoch_come_in_no_order_of_length(mix):
    # Packing goes from the longest record to the shortest; the rows it fills first must not come first.
    stream = train_batches(packed(mix, seq_len=8))
    first_lengths = [int((stream[t]["segments"][0] == 1).sum()) for t in range(60)]
    assert sorted(first_lengths, reverse=True) != first_lengths
    assert len(set(first_lengths[:30])) > 1


def test_dropped_records_are_never_drawn_and_cropped_ones_are(mix):
    long = {FIRST[name] + i for name in RECORDS for i in range(RECORDS[name]) if 4 + i % 5 > 7}
    assert long & set(draws(train_batches(packed(mix, seq_len=6)), 60))
    assert not long & set(draws(train_batches(packed(mix, seq_len=6, truncation="drop")), 60))
    with pytest.raises(UserError, match="Every record of big is longer than a row of 2 tokens"):
        train_batches(packed(mix, seq_len=2, truncation="drop"))


def test_the_weights_change_with_the_phase(mix):
    phases = (Phase(0, WEIGHTS | {"small": 0.0}), Phase(5, WEIGHTS | {"big": 0.0, "middle": 0.0}))
    stream = train_batches(dataclasses.replace(mix, phases=phases))
    before, after = draws(stream, 5), [number for t in range(5, 12) for number in drawn(stream[t])]
    assert own(before, "big")
    assert own(before, "middle")
    assert not own(before, "small")
    assert own(after, "small") == after


# ---- Rows ----


def row(example: dict, seq_len: int) -> dict:
    on_disk = example | {"letter": b"", "branches": np.zeros(0, np.uint8)}
    return {key: values[0] for key, values in fill([[cropped(on_disk, seq_len)]], seq_len, "token_mean").items()}


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


def test_the_table_says_what_the_run_sees(mix):
    lines = {line.name: line for line in mixture.shares(weighted(mix, small=0.0), steps=77, records_per_row=1.0)}
    assert list(lines) == ["big", "middle"]
    big, middle = lines["big"], lines["middle"]
    assert (big.records, middle.records) == (20, 14)
    lengths = {name: [4 + i % 5 for i in range(count)] for name, count in RECORDS.items()}
    assert (big.tokens, big.supervised) == (sum(lengths["big"]), sum(length - 2 for length in lengths["big"]))
    assert (big.record_share, middle.record_share) == pytest.approx((10 / 31, 21 / 31))
    assert big.supervised_share + middle.supervised_share == pytest.approx(1)
    assert big.supervised_share / middle.supervised_share == pytest.approx(big.supervised / (3 * middle.supervised))
    assert (big.epochs, middle.epochs) == pytest.approx((308 / 62, 3 * 308 / 62))
    assert (big.truncated, middle.truncated) == (lengths["big"].count(8), lengths["middle"].count(8)) == (4, 2)
    assert (big.letters, middle.letters) == ((), (4, 4, 3, 3))


def test_the_table_agrees_with_the_draws(mix, numbers):
    counted = Counter(numbers)
    for line in mixture.shares(mix, steps=80, records_per_row=1.0):
        seen = [counted[FIRST[line.name] + i] for i in range(line.records)]
        assert np.mean(seen) == pytest.approx(line.epochs, abs=0.5)
        assert max(seen) - min(seen) <= 1


def test_the_table_agrees_with_the_draws_of_packed_phases(mix):
    weights = [WEIGHTS, WEIGHTS | {"big": 0.0}]
    one = dataclasses.replace(packed(mix), batch_size=1)
    packings = [mixture.packing_of(dataclasses.replace(one, phases=(Phase(0, each),))) for each in weights]
    draws_of = [8 * (40 + 84 + 6), 12 * (84 + 6)]  # an epoch of each: the fewest passes with 1,024 draws
    epochs = [round(count / filled.records_per_row) for count, filled in zip(draws_of, packings, strict=True)]
    changing = dataclasses.replace(one, phases=(Phase(0, weights[0]), Phase(epochs[0], weights[1])))
    counted = Counter(draws(train_batches(changing), sum(epochs)))
    lines = mixture.shares(changing, sum(epochs), mixture.packing_of(changing).records_per_row)
    for line in lines:
        seen = sum(counted[FIRST[line.name] + i] for i in range(line.records))
        assert seen == pytest.approx(line.epochs * line.records, rel=0.1)
    assert {line.name: line.multiplier for line in lines}["big"] == (1.0, 0.0)


def test_rows_are_filled_as_it_is_said(mix):
    filled = mixture.packing_of(packed(mix, seq_len=64))
    stream = train_batches(packed(mix, seq_len=64))
    rows = np.concatenate([stream[t]["segments"] for t in range(20)])
    assert filled.share > 0.95
    assert (rows > 0).mean() == pytest.approx(filled.share, abs=0.02)
    assert rows.max(axis=1).mean() == pytest.approx(filled.records_per_row, rel=0.05)
    alone = mixture.packing_of(mix)
    assert alone.records_per_row == 1
    assert alone.share < filled.share


def shown(mix: Mix) -> str:
    console = Console(width=200)
    lines = mixture.shares(mix, 100, 2.0)
    with console.capture() as text:
        console.print(mixture_table.table(lines))
        for remark in mixture_table.remarks(mix, lines, Packing(0.97, 2.0)):
            console.print(remark)
    return text.get()


def test_the_drawn_table_has_a_line_a_source_and_says_how_rows_are_filled(mix):
    text = shown(packed(mix, seq_len=6))
    for line in ("big", "x3 ", "4/4/3/3", "97.0% of a row's 6 places", "2.00 records a row, about 8 an update"):
        assert line in text
    assert "7 records are longer than a row and lose their beginning" in text
    assert "are left out" in shown(packed(mix, seq_len=6, truncation="drop"))
    assert "task share" not in text, "there is no small talk to drown it"


@pytest.mark.parametrize(("multiplier", "warned"), [(1.0, False), (100.0, True)])
def test_a_task_that_small_talk_drowns_is_warned_of(mix, stores, tmp_path, multiplier, warned):
    write_manifest(
        tmp_path, {"small_talk": json.loads((stores["big"] / "manifest.json").read_text())["datasets"]["big"]}
    )
    chatty = dataclasses.replace(
        mix,
        stores=stores | {"small_talk": tmp_path},
        phases=(Phase(0, {"middle": 2.0, "small_talk": multiplier}),),
    )
    lines = mixture.shares(chatty, 100, 1.0)
    share = 28 / (28 + 20 * multiplier)
    assert mixture_table.task_share(lines)[0] == pytest.approx(share)
    (remark,) = [text for text in mixture_table.remarks(chatty, lines, Packing(1, 1)) if "task share" in text]
    assert f"{share:.1%} of the records" in remark
    assert remark.startswith("WARNING") == warned


# ---- The fingerprint ----


def test_the_fingerprint_changes_with_everything_that_decides_a_batch(mix):
    changes = [{}, {"seed": 4}, {"batch_size": 8}, {"seq_len": 5}, {"packing": True}, {"truncation": "drop"}]
    changes += [{"loss_norm": "record_mean"}]
    changes += [{"phases": (Phase(0, WEIGHTS | change),)} for change in ({"big": 2.0}, {"small": 0.0}, {"middle": 3.5})]
    changes += [{"phases": (Phase(0, WEIGHTS), Phase(start, WEIGHTS | {"big": 2.0}))} for start in (5, 6)]
    found = [mixture.fingerprint(dataclasses.replace(mix, **change)) for change in changes]
    assert len(set(found)) == len(changes)


def test_the_fingerprint_sees_the_rows_it_mixes_and_no_others(mix, stores, tmp_path):
    datasets = json.loads((stores["big"] / "manifest.json").read_text())["datasets"]
    alone = weighted(mix, middle=0.0, small=0.0)

    def with_another(name: str) -> str:
        other = {"train": datasets["big"]["train"] | {"sha256": "0" * 64}}
        write_manifest(tmp_path, {name: other})
        return mixture.fingerprint(dataclasses.replace(alone, stores=stores | {name: tmp_path}))

    here = mixture.fingerprint(alone)
    assert with_another("small") == with_another("new") == here
    assert with_another("big") != here


# ---- Validation ----


def validation(mix, name="big", records=100, batch_size=4):
    return validation_batches(mix, name, batch_size=batch_size, records=records)


def test_validation_batches_have_one_shape_and_are_filled_up_with_nothing(mix):
    batches = validation(mix)
    assert [batch["tokens"].shape for batch in batches] == [(4, 6), (4, 6)]
    assert {number for batch in batches for number in drawn(batch)} == set(range(1100, 1105))
    for key in ("tokens", "targets", "weights"):
        assert not batches[1][key][1:].any()
    expected = sum(row(example("big", i), 6)["weights"].sum() for i in range(100, 105))
    assert sum(batch["weights"].sum() for batch in batches) == expected


def test_packed_validation_holds_the_same_tokens(mix):
    alone, together = validation(dataclasses.replace(mix, seq_len=16)), validation(packed(mix))
    assert len(together) < len(alone)
    for key in ("weights", "targets"):
        assert sum(batch[key].sum() for batch in together) == sum(batch[key].sum() for batch in alone)


@pytest.mark.parametrize(("records", "batches"), [(5, 2), (4, 1), (1, 1), (0, 0)])
def test_no_more_validation_records_are_read_than_asked_for(mix, records, batches):
    found = validation(mix, records=records)
    assert len(found) == batches
    assert sum((batch["weights"].sum(axis=1) > 0).sum() for batch in found) == records


def test_validation_reads_the_same_each_time(mix):
    for batch, again in zip(validation(mix), validation(mix), strict=True):
        assert_batches_equal(batch, again)


def test_a_dataset_without_a_validation_split_has_no_batches(mix):
    assert validation(mix, "middle") == []


def test_a_dataset_without_records_is_refused_by_name(mix, stores, tmp_path):
    write_manifest(tmp_path, {"none": {}})
    asking = dataclasses.replace(weighted(mix, none=1.0), stores=stores | {"none": tmp_path})
    with pytest.raises(UserError, match="asks for none, but"):
        mixture.shares(asking, 100, 1.0)
