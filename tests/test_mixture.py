"""ghost_jax/data/mixture.py: batch t is a function of the mix and t alone, and the table agrees with what is drawn."""

import dataclasses
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ghost_jax.core.errors import UserError
from ghost_jax.data import mixture
from ghost_jax.data.mixture import Mix, cropped, read_from, train_batches, validation_batches
from ghost_jax.data.storage import artifact_cache
from ghost_jax.data.storage.array_record import write_examples
from ghost_jax.data.storage.artifact_cache import Manifest
from ghost_jax.runs import plan

RECORDS = {"big": 20, "middle": 14, "small": 6}
WEIGHTS = {"big": 1.0, "middle": 3.0, "small": 0.5}
FIRST = {"big": 1000, "middle": 2000, "small": 3000}  # the token before the last says which record it is
NUMBERS = [FIRST[name] + i for name, count in RECORDS.items() for i in range(count)]


def example(number: int) -> dict:
    name, i = list(FIRST)[number // 1000 - 1], number % 1000
    length = 4 + i % 5  # 4 to 8 tokens; a row of 6 has places for 7
    tokens = np.arange(length, dtype=np.int32) + 10
    tokens[-2] = number
    letter = "ABCD"[i % 4] if name == "middle" else ""
    return {"id": f"{name}{i}", "source": name, "letter": letter, "tokens": tokens, "mask": np.arange(length) >= 2}


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[str, Path]:
    made = {}
    for name in RECORDS:
        made[name] = tmp_path_factory.mktemp(name)
        splits = {"train": [example(number) for number in own(NUMBERS, name)]}
        if name == "big":
            splits["validation"] = [example(number) for number in range(1100, 1105)]
        Manifest(datasets={name: write_examples(made[name], name, splits)}).write(made[name])
    return made


@pytest.fixture(scope="module")
def mix(stores) -> Mix:
    return Mix(stores, {0: WEIGHTS}, 3, 4, 6, packing=False, truncation="crop", loss_norm="token_mean")


def packed(mix: Mix, **changes) -> Mix:
    return dataclasses.replace(mix, **({"packing": True, "seq_len": 16} | changes))


def weighted(mix: Mix, **multipliers: float) -> Mix:
    return dataclasses.replace(mix, phases={0: WEIGHTS | multipliers})


def drawn(batch: dict) -> list[int]:
    return [int(token) for token in batch["tokens"].flat if token >= 1000]


def draws(stream, count: int) -> list[int]:
    return [number for t in range(count) for number in drawn(stream[t])]


def own(numbers: list[int], name: str) -> list[int]:
    return [number for number in numbers if FIRST[name] <= number < FIRST[name] + 1000]


@pytest.fixture(scope="module")
def numbers(mix) -> list[int]:
    """The records of the first 80 batches of the mix."""
    return draws(train_batches(mix), 80)


def assert_batches_equal(batch: dict, other: dict) -> None:
    assert batch.keys() == other.keys() >= {"tokens", "targets", "weights"}
    for key in batch:
        assert batch[key].tobytes() == other[key].tobytes(), key


TWO_PHASES = {0: WEIGHTS, 9: WEIGHTS | {"middle": 0.0, "small": 4.0}}
KINDS = {
    "one a row": {"packing": False, "seq_len": 6},
    "packed": {},
    "in two phases": {"phases": TWO_PHASES},
    "long ones dropped": {"truncation": "drop"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_batch_t_is_the_same_after_a_resume_on_any_number_of_hosts(mix, kind):
    mix = packed(mix, **KINDS[kind])
    from_start = read_from(train_batches(mix), 0)
    read = [next(from_start) for _ in range(40)]  # 160 rows: every source passes its end several times
    again = train_batches(mix)
    for t in (39, 25, 1, 0, 8, 12):
        assert_batches_equal(again[t], read[t])
        assert_batches_equal(next(read_from(train_batches(mix), t)), read[t])
    parts = [train_batches(mix, process, processes=4) for process in range(4)]
    for t in (0, 1, 8, 9, 30):
        assert_batches_equal({key: np.concatenate([part[t][key] for part in parts]) for key in read[t]}, read[t])
    assert_batches_equal(again[10**9], train_batches(mix)[10**9])


def test_the_order_depends_on_the_seed_and_not_on_the_batch_size(mix, numbers):
    assert draws(train_batches(dataclasses.replace(mix, batch_size=16)), 3) == numbers[:48]
    assert draws(train_batches(dataclasses.replace(mix, seed=4)), 10) != numbers[:40]


def test_the_first_examples_are_the_first_draws_uncropped(mix, numbers):
    later = dataclasses.replace(mix, phases={0: WEIGHTS, 5: {"small": 1.0}})
    found = list(mixture.first_examples(later, 40))
    assert [example["tokens"][-2] for _, example in found] == numbers[:40]
    assert all(example["source"].decode() == name for name, example in found)
    assert max(len(example["tokens"]) for _, example in found) == 8


def test_each_record_is_drawn_once_a_pass_and_datasets_are_interleaved_by_records_times_multiplier(numbers):
    for name, draws_of_65 in (("big", 20), ("middle", 42), ("small", 3)):  # records times multiplier
        mine, size = own(numbers, name), RECORDS[name]
        for start in range(0, 260, 65):
            assert len(own(numbers[start : start + 65], name)) == pytest.approx(draws_of_65, abs=2)
        passes = [tuple(mine[start : start + size]) for start in range(0, len(mine) - size + 1, size)]
        assert {frozenset(each) for each in passes} == {frozenset(own(NUMBERS, name))}
        assert len(set(passes)) >= len(passes) - 1, "each pass is shuffled"


@pytest.mark.parametrize("others", [{"middle": 9.0}, {"middle": 0.0, "small": 0.0}])
def test_multipliers_of_other_datasets_do_not_change_the_order_of_one(mix, numbers, others):
    changed = draws(train_batches(weighted(mix, **others)), 40)
    mine, reference = own(changed, "big"), own(numbers, "big")
    shared = min(len(mine), len(reference))
    assert shared > 20  # into the second pass
    assert mine[:shared] == reference[:shared]
    assert all(bool(own(changed, name)) == (multiplier > 0) for name, multiplier in others.items())


# The fewest passes in which each multiplier is an integer, eight times: over 1,024 draws are packed together.
PASSES = {"big": 2 * 8, "middle": 6 * 8, "small": 1 * 8}
EPOCH = Counter({number: PASSES[name] for name in RECORDS for number in own(NUMBERS, name)})


def test_an_epoch_of_packed_rows_holds_each_record_complete_and_as_often_as_its_multiplier_says(mix):
    one = packed(mix, batch_size=1, phases={0: WEIGHTS, 10**6: {"small": 1.0}})
    packing, stream = mixture.packing_of(one), train_batches(one)
    rows = round(EPOCH.total() / packing.records_per_row)
    epochs = [[], []]  # of the numbers in each row
    for t in range(2 * rows):
        (tokens,) = stream[t]["tokens"]
        numbers = drawn({"tokens": tokens})
        complete = np.concatenate([example(number)["tokens"][:-1] for number in numbers])
        np.testing.assert_array_equal(tokens, np.pad(complete, (0, 16 - len(complete))))
        epochs[t // rows].append(numbers)
    for epoch in epochs:
        assert Counter(itertools.chain(*epoch)) == EPOCH
        lengths = [len(example(row[0])["tokens"]) for row in epoch]
        assert sorted(lengths, reverse=True) != lengths, "no batch holds the long ones alone"
    assert epochs[0] != epochs[1]
    places = sum(len(example(number)["tokens"]) - 1 for number in EPOCH.elements())
    assert packing.share == pytest.approx(places / (16 * rows))
    assert packing.share > 0.9


@pytest.mark.parametrize(
    ("multipliers", "copies"),
    [
        ({"a": 1.0, "b": 0.25, "c": 0.0}, {"a": 4, "b": 1}),
        ({"a": 1 / 3, "b": 2.0}, {"a": 1, "b": 6}),
        ({"a": 0.01, "b": 30.0}, {"a": 1, "b": 3000}),
        ({"a": 1000.0, "b": 3000.0}, {"a": 1, "b": 3}),
    ],
)
def test_an_epoch_has_the_fewest_passes_that_give_each_multiplier(multipliers, copies):
    assert mixture.copies_of(multipliers) == copies


def test_a_multiplier_that_is_too_small_for_an_epoch_is_named(mix):
    phases = {0: {"big": 1 / 3, "middle": 1.0}, 5: {"big": 0.001}, 9: {"big": 1.0, "small": 0.004}}
    few = dataclasses.replace(mix, phases=phases)
    (found,) = (line for line in plan.remarks(few, [], [mixture.packing_of(few)]) if "mixed in" in line)
    assert "small is mixed in x0.01" in found


def test_dropped_records_are_never_drawn_and_cropped_ones_are(mix):
    long = {number for number in NUMBERS if len(example(number)["tokens"]) > 7}
    assert long & set(draws(train_batches(packed(mix, seq_len=6)), 60))
    assert not long & set(draws(train_batches(packed(mix, seq_len=6, truncation="drop")), 60))
    with pytest.raises(UserError, match=r"big.* 2 tokens"):
        train_batches(packed(mix, seq_len=2, truncation="drop"))


@pytest.mark.parametrize(("seq_len", "kept"), [(12, 10), (9, 10), (4, 5), (5, 6)])
def test_a_long_record_loses_its_beginning(seq_len, kept):
    ids = np.arange(10, 20)
    made = cropped({"tokens": ids, "mask": ids % 2 == 1, "letter": b"B", "branches": -ids}, seq_len)
    assert made.ids.tolist() == ids[-kept:].tolist() == (-made.branches).tolist()
    assert (made.mask == made.ids % 2).all()
    assert made.gold == 2


def test_the_table_agrees_with_the_draws_of_two_phases(mix):
    phases = {0: {"big": 1.0, "middle": 3.0}, 50: {"middle": 0.5, "small": 0.0}}
    changing = dataclasses.replace(mix, phases=phases)
    seen = draws(train_batches(changing), 80)
    big, middle = lines = mixture.shares(changing, steps=80)
    for line in lines:
        assert line.epochs * line.records == pytest.approx(len(own(seen, line.name)), abs=3)
        assert line.record_share == pytest.approx(len(own(seen, line.name)) / len(seen), abs=0.01)
    assert (big.multiplier, middle.multiplier) == ((1.0, 0.0), (3.0, 0.5))
    assert (big.records, big.tokens, big.supervised) == (20, 120, 120 - 2 * 20)
    assert (middle.records, middle.tokens, middle.supervised) == (14, 82, 82 - 2 * 14)
    assert (big.truncated, middle.truncated) == (4, 2)
    assert (big.letters, middle.letters) == ((), (4, 4, 3, 3))
    supervised = [line.record_share * line.supervised / line.records for line in lines]
    assert big.supervised_share == pytest.approx(supervised[0] / sum(supervised))


def test_a_phase_is_counted_by_its_own_rows_and_records_as_they_are_cropped(mix, stores, tmp_path):
    ids = np.arange(20, dtype=np.int32)  # two answers; a row of 16 has places for the second
    long = [{"id": f"{i}", "source": "", "letter": "", "tokens": ids, "mask": ids % 10 < 4} for i in range(5)]
    Manifest(datasets={"long": write_examples(tmp_path, "long", {"train": long})}).write(tmp_path)
    phases = {0: {"small": 0.0, "long": 1.0}, 40: {"small": 1.0, "long": 0.0}}
    changing = packed(mix, stores=stores | {"long": tmp_path}, phases=phases)
    batches = [train_batches(changing)[t] for t in range(80)]
    found, _ = mixture.shares(changing, steps=80)
    for share, numbers in (
        (found.record_share, [batch["segments"].max(axis=1).sum() for batch in batches]),
        (found.supervised_share, [batch["weights"].sum() for batch in batches]),
    ):
        assert share == pytest.approx(sum(numbers[:40]) / sum(numbers), rel=0.02)
    late = {0: phases[40], 40: phases[0]}
    with pytest.raises(UserError, match="long"):
        mixture.shares(dataclasses.replace(changing, truncation="drop", phases=late), steps=80)


def test_the_fingerprint_changes_with_everything_that_decides_a_batch(mix, stores, tmp_path):
    changes = [{}, {"seed": 4}, {"batch_size": 8}, {"seq_len": 5}, {"packing": True}, {"truncation": "drop"}]
    changes += [{"loss_norm": "record_mean"}]
    changes += [{"phases": {0: WEIGHTS | change}} for change in ({"big": 2.0}, {"small": 0.0}, {"middle": 3.5})]
    changes += [{"phases": {0: WEIGHTS, start: WEIGHTS | {"big": 2.0}}} for start in (5, 6)]
    found = [mixture.fingerprint(dataclasses.replace(mix, **change)) for change in changes]
    assert len(set(found)) == len(changes)
    for name, store in mix.stores.items():
        splits = artifact_cache.manifest(store).datasets[name]
        for split, counts in splits.items():
            Manifest(datasets={name: splits | {split: dataclasses.replace(counts, sha256="0" * 64)}}).write(tmp_path)
            other = mixture.fingerprint(dataclasses.replace(mix, stores=mix.stores | {name: tmp_path}))
            assert other != found[0], (name, split)
    assert mixture.fingerprint(dataclasses.replace(mix, stores=mix.stores | {"fact_mcq": tmp_path})) == found[0]


def test_validation_batches_have_one_shape_and_are_padded_with_rows_of_no_weight(mix):
    def validation(mix: Mix) -> list[dict]:
        return validation_batches(mix, "big", batch_size=4, records=100)

    batches = validation(mix)
    assert [batch["tokens"].shape for batch in batches] == [(4, 6), (4, 6)]
    assert {number for batch in batches for number in drawn(batch)} == set(range(1100, 1105))
    for key in ("tokens", "targets", "weights"):
        assert not batches[1][key][1:].any()
    alone, together = validation(dataclasses.replace(mix, seq_len=16)), validation(packed(mix))
    assert len(together) < len(alone)
    for key in ("weights", "targets"):
        assert sum(batch[key].sum() for batch in together) == sum(batch[key].sum() for batch in alone)


def test_what_is_dropped_is_in_no_share_and_not_validated_on(mix):
    dropping = weighted(dataclasses.replace(mix, truncation="drop"), small=0.0)
    seen = draws(train_batches(dropping), 80)
    for line in mixture.shares(dropping, steps=80):
        mine = own(seen, line.name)
        assert line.record_share == pytest.approx(len(mine) / len(seen), abs=0.01)
        assert line.epochs == pytest.approx(len(mine) / len(set(mine)), rel=0.05)
        supervised = sum(4 + (number - FIRST[line.name]) % 5 - 2 for number in mine)
        total = sum(2 + (number % 1000) % 5 for number in seen)
        assert line.supervised_share == pytest.approx(supervised / total, abs=0.01)
    kept = {number for batch in validation_batches(dropping, "big", batch_size=4, records=9) for number in drawn(batch)}
    assert kept == {1100, 1101, 1102, 1103}
    assert mixture.validation_size(dropping, "big") == 4


def test_a_phase_is_packed_once_for_the_plan_the_record_and_the_batches(mix, monkeypatch):
    packings, pack = [], mixture.pack
    monkeypatch.setattr(mixture, "pack", lambda *given: packings.append(1) or pack(*given))
    fresh = packed(mix, seed=11, phases=TWO_PHASES)
    for _ in range(2):
        mixture.packing_of(fresh)
        mixture.shares(fresh, steps=80)
    train_batches(fresh)
    assert len(packings) == len(TWO_PHASES)
