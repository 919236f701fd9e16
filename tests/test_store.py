"""ghost_jax/data/store.py: a store is whole or absent, found again, and counted right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ghost_jax
from ghost_jax.data import store
from ghost_jax.errors import UserError
from ghost_jax.paths import cache_dir


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_dir()


def write_nothing(folder):
    (folder / "data.txt").write_text("content")
    return {"rows": 3}


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- Whole or absent ----


def test_a_store_is_written_once_and_found_again():
    calls = []

    def write(folder):
        calls.append(folder)
        return write_nothing(folder)

    first = store.build("corpus", {"inputs": [1]}, write)
    assert store.build("corpus", {"inputs": [1]}, write) == first
    assert len(calls) == 1
    manifest = store.manifest(first)
    assert (manifest["kind"], manifest["made_from"], manifest["rows"]) == ("corpus", {"inputs": [1]}, 3)
    assert first.name == f"corpus-{manifest['fingerprint'][:16]}"
    assert names(first) == ["data.txt", "manifest.json"]
    assert names(first.parent) == [first.name]


@pytest.mark.parametrize(
    ("kind", "made_from"), [("corpus", {"inputs": [2]}), ("chat", {"inputs": [1]}), ("corpus", {})]
)
def test_other_inputs_give_another_store(kind, made_from):
    assert store.build(kind, made_from, write_nothing) != store.build("corpus", {"inputs": [1]}, write_nothing)


@pytest.mark.parametrize("fault", [ValueError("half way"), KeyboardInterrupt()])
def test_a_writer_that_fails_leaves_nothing(cache, fault):
    def write(folder):
        write_nothing(folder)
        raise fault

    with pytest.raises(type(fault)):
        store.build("corpus", {}, write)
    assert names(cache / "stores") == []
    assert store.build("corpus", {}, write_nothing).is_dir()


def test_leftovers_of_dead_processes_are_removed_and_others_left_alone(cache):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    home = cache / "stores"
    living = os.getppid()
    for name in (f"corpus-1.partial-{dead.pid}", f"corpus-2.partial-{living}", f"chat-1.partial-{dead.pid}"):
        (home / name).mkdir(parents=True)
    built = store.build("corpus", {}, write_nothing)
    assert names(home) == sorted([built.name, f"corpus-2.partial-{living}", f"chat-1.partial-{dead.pid}"])


def test_a_leftover_of_an_earlier_process_with_this_number_is_removed():
    # In a container the same command has the same process number each time.
    built = store.build("corpus", {}, write_nothing)
    built.rename(built.with_name(f"{built.name}.partial-{os.getpid()}"))
    assert store.build("corpus", {}, write_nothing) == built
    assert names(built.parent) == [built.name]


def test_the_first_of_two_writers_wins():
    def write(folder):
        other = folder.with_name(folder.name.partition(".")[0])  # another process is done with the same store
        other.mkdir()
        (other / "manifest.json").write_text('{"rows": "of the other"}')
        return write_nothing(folder)

    built = store.build("corpus", {}, write)
    assert store.manifest(built) == {"rows": "of the other"}
    assert names(built.parent) == [built.name]


@pytest.mark.parametrize("content", [None, "", '{"rows": ', "\x00"])
def test_a_damaged_manifest_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=rf"{tmp_path} is no whole store"):
        store.manifest(tmp_path)


def test_fingerprints_see_content_and_not_the_order_of_keys():
    assert store.fingerprint({"a": 1, "b": [2]}) == store.fingerprint({"b": [2], "a": 1})
    assert store.fingerprint({"a": [1, 2]}) != store.fingerprint({"a": [2, 1]})


def test_the_code_is_part_of_a_stores_identity():
    fingerprints = {kind: store.code_fingerprint(kind) for kind in store.MADE_BY}
    assert len(set(fingerprints.values())) == len(fingerprints)
    identity = {"kind": "corpus", "code": fingerprints["corpus"], "made_from": {}}
    assert store.manifest(store.build("corpus", {}, write_nothing))["fingerprint"] == store.fingerprint(identity)


def test_the_code_that_makes_a_store_is_where_it_is_said_to_be():
    # A file that was renamed would silently drop out of the fingerprint.
    package = Path(ghost_jax.__file__).parent
    absent = [part for parts in store.MADE_BY.values() for part in parts if not (package / part).exists()]
    assert not absent


# ---- Examples ----


def example(name: str, tokens: list[int], learnt: int, letter: str = "") -> dict:
    return {
        "id": name,
        "source": "test",
        "letter": letter,
        "tokens": np.asarray(tokens, np.int32),
        "mask": np.arange(len(tokens)) >= len(tokens) - learnt,
    }


TRAIN = [
    example("a", [1, 2, 3], 1, "A"),
    example("b", [4, 5], 2, "B"),
    example("é", [31_999, 0, 7, 8], 3, "B"),
    example("d", list(range(300)), 300),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    # A generator, as the builders give; the test split has nothing in it.
    splits = {"train": iter(TRAIN), "validation": iter(TRAIN[:1]), "test": iter([])}
    return folder, store.write_examples(folder, "mcq", splits)


def test_counts_and_letters_are_those_of_the_rows(written):
    _, counts = written
    hashes = {split: count.pop("sha256") for split, count in json.loads(json.dumps(counts)).items()}
    assert {key: value for key, value in counts["train"].items() if key != "sha256"} == {
        "records": 4,
        "tokens": 309,
        "supervised": 306,
        "letters": {"A": 1, "B": 2},
        "lengths": {3: 1, 2: 1, 4: 1, 300: 1},
    }
    assert counts["validation"]["records"] == 1
    assert hashes["train"] != hashes["validation"]


def test_an_empty_split_is_left_out(written):
    folder, counts = written
    assert set(counts) == {"train", "validation"}
    assert len(store.open_examples(folder, "mcq", "validation")) == 1


def test_rows_come_back_as_they_were_written(written):
    folder, _ = written
    source = store.open_examples(folder, "mcq", "train")
    assert len(source) == len(TRAIN)
    found = {source[i]["id"].decode(): source[i] for i in range(len(source))}
    for row in TRAIN:
        again = found[row["id"]]
        np.testing.assert_array_equal(again["tokens"], row["tokens"])
        np.testing.assert_array_equal(again["mask"], row["mask"])
        assert (again["tokens"].dtype, again["mask"].dtype) == (np.int32, bool)
        assert (again["letter"].decode(), again["source"].decode()) == (row["letter"], "test")


def test_the_hash_of_the_rows_is_theirs_alone(written, tmp_path):
    _, counts = written
    again = store.write_examples(tmp_path / "same", "other_name", {"train": TRAIN})
    assert again["train"]["sha256"] == counts["train"]["sha256"]
    changed = [*TRAIN[:3], example("d", list(range(300)), 299)]
    other = store.write_examples(tmp_path / "other", "mcq", {"train": changed})
    assert other["train"]["sha256"] != counts["train"]["sha256"]


def test_a_dataset_without_any_row_has_no_split(tmp_path):
    assert store.write_examples(tmp_path, "mcq", {"train": [], "validation": iter(())}) == {}


def test_a_row_that_teaches_nothing_is_an_error(tmp_path):
    rows = [TRAIN[0], example("mute", [1, 2], 0)]
    with pytest.raises(ValueError, match="mcq/train: record mute has no supervised token"):
        store.write_examples(tmp_path, "mcq", {"train": rows})
