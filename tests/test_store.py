"""data/storage: a store is complete or absent, and found again while nothing it is made from changed; its rows."""

import os
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from tensorflow_datasets.core import shuffle

from ghost_jax.core.atomic_io import PARTIAL, is_free, new_folder, write_text
from ghost_jax.core.errors import UserError
from ghost_jax.core.paths import cache_dir
from ghost_jax.data.storage import artifact_cache, schema
from ghost_jax.data.storage.array_record import lengths_of, open_examples, write_examples
from ghost_jax.data.storage.artifact_cache import SplitCounts


@pytest.fixture(autouse=True)
def stores(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_dir() / "stores"


def write_rows(folder):
    (folder / "data.txt").write_text("content")
    return {"rows": 3}


def build(made_from: dict, kind: str = "corpus", write=write_rows, versions=None):
    return artifact_cache.build(kind, versions or {}, made_from, write)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_store_is_written_once_and_found_again(stores):
    built = build({"inputs": [1]})
    assert build({"inputs": [1]}, write=None) == built
    assert artifact_cache.find(built.name) == built
    assert artifact_cache.find("corpus-0123456789abcdef") is None
    assert names(built) == ["data.txt", "manifest.json"]
    assert names(stores) == [".locks", built.name]
    assert built not in (build({"inputs": [2]}), build({"inputs": [1]}, "chat"))


def test_a_manifest_is_read_as_it_was_written():
    counts = SplitCounts(2, 1, 7, 3, {"A": 1}, {3: 1, 4: 1}, "0" * 64)
    content = {"datasets": {"mcq": {"train": counts}}, "documents": {"b": 1}, "teacher": {"label": "x", "none": None}}
    built = build({"seed": 0}, "qa", lambda folder: content, versions={"qa": 3})
    manifest = artifact_cache.manifest(built)
    assert built.name == f"qa-{manifest.fingerprint[:16]}"
    assert (manifest.kind, manifest.made_from) == ("qa", {"seed": 0})
    assert manifest.versions == {"shared": schema.VERSION, "qa": 3}
    assert (manifest.datasets, manifest.documents) == (content["datasets"], {"b": 1})
    assert manifest.model_extra == {"teacher": content["teacher"]}


@pytest.mark.parametrize("fault", [ValueError("half way"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing_and_what_a_killed_process_left_is_removed(stores, fault):
    def write(folder):
        write_rows(folder)
        raise fault

    with pytest.raises(type(fault)):
        build({}, write=write)
    assert names(stores) == [".locks"]
    built = build({})
    built.rename(built.with_name(f"{built.name}.partial"))
    assert build({}) == built
    assert names(stores) == [".locks", built.name]


@pytest.mark.parametrize("name", ["data.txt", "manifest.json"])
def test_a_damaged_store_is_rebuilt(name):
    built = build({})
    before = {path.name: path.read_bytes() for path in built.iterdir()}
    (built / name).write_text(before[name].decode().replace("content", "contend").replace('"rows": 3', '"rows": 4'))
    artifact_cache._verified.cache_clear()  # as in another process
    assert artifact_cache.find(built.name) is None
    assert build({}) == built
    assert {path.name: path.read_bytes() for path in built.iterdir()} == before


BUILDER = """
import sys, time
from ghost_jax.data.storage import artifact_cache

write = lambda folder: {"built": print("built", file=sys.stderr), "slow": time.sleep(0.5)}
print(artifact_cache.build("corpus", {}, {}, write).name)
"""


def test_of_several_processes_one_builds_and_the_others_wait(stores):
    words = [sys.executable, "-c", BUILDER]
    started = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    printed = [process.communicate(timeout=60) for process in started]
    (name,) = {out.split()[-1] for out, _ in printed}
    assert artifact_cache.find(name)
    assert [err for _, err in printed].count("built\n") == 1


@pytest.mark.parametrize("content", ["", "\x00", "[]", '{"datasets": {"mcq": {"train": {}}}}'])
def test_an_absent_or_invalid_manifest_is_named(tmp_path, content):
    if content:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=str(tmp_path)):
        artifact_cache.manifest(tmp_path)


def example(name: str, tokens: list[int], supervised: int, letter: str = "", **more) -> dict:
    texts = {"id": name, "source": "test", "letter": letter}
    mask = np.arange(len(tokens)) >= len(tokens) - supervised
    return texts | {"tokens": np.asarray(tokens, np.int32), "mask": mask} | more


TRAIN = [
    example("a", [1, 2, 3], 1, "A"),
    example("b", [4, 5], 2, "B"),
    example("é", [31_999, 0, 7, 8], 3, "B"),
    example("d", list(range(300)), 300),
    example("e", [1, 2, 3, 4], 2, "B", branches=np.array([0, 1, 1, 2], np.uint8)),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    splits = {"train": iter(TRAIN), "validation": iter(TRAIN[:1]), "test": iter([])}
    return folder, write_examples(folder, "mcq", splits)


def test_rows_are_counted_and_read_as_they_were_written(written):
    folder, counts = written
    assert set(counts) == {"train", "validation"}, "an empty split is left out"
    lengths, sha256 = {3: 1, 2: 1, 4: 2, 300: 1}, counts["train"].sha256
    assert counts["train"] == SplitCounts(5, 1, 313, 308, {"A": 1, "B": 3}, lengths, sha256)
    source = open_examples(folder, "mcq", "train")
    assert len(source) == len(TRAIN)
    found = {row["id"].decode(): row for row in source}
    for row in TRAIN:
        again = found[row["id"]]
        assert (again["letter"].decode(), again["source"].decode()) == (row["letter"], "test")
        for name in ("tokens", "mask", "branches"):
            array = row.get(name, np.zeros(0, np.uint8))
            assert (again[name].tolist(), again[name].dtype) == (array.tolist(), array.dtype)
    lengths = lengths_of(folder, "mcq", "train")
    assert lengths.dtype == np.int32
    assert lengths.tolist() == [len(source[i]["tokens"]) for i in range(len(source))]


def test_the_hash_depends_on_the_rows_alone(written, tmp_path):
    sha256 = written[1]["train"].sha256
    assert write_examples(tmp_path / "same", "other_name", {"train": TRAIN})["train"].sha256 == sha256
    for i, change in enumerate([example("b", [4, 5], 1, "B"), example("b", [4, 5], 2, "A")]):
        other = write_examples(tmp_path / f"other{i}", "mcq", {"train": [TRAIN[0], change, *TRAIN[2:]]})
        assert other["train"].sha256 != sha256


def test_a_split_that_is_sorted_on_disk_has_the_same_bytes_and_leaves_no_file(written, tmp_path, monkeypatch):
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 100)
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    assert write_examples(tmp_path, "mcq", {"train": TRAIN})["train"] == written[1]["train"]
    name = "examples/mcq/1.0.0/examples-train.array_record-00000-of-00001"
    assert (tmp_path / name).read_bytes() == (written[0] / name).read_bytes()
    assert not [*temporary.iterdir(), *tmp_path.rglob("*.tmp")]


MUTE = example("mute", [1, 2], 0)


@pytest.mark.parametrize(("row", "named"), [(MUTE, r"record mute of mcq \(train\)"), (TRAIN[1], "mcq have the id b")])
def test_a_row_without_a_supervised_token_and_an_id_that_comes_twice_are_refused(tmp_path, row, named):
    with pytest.raises(UserError, match=named):
        write_examples(tmp_path, "mcq", {"train": [*TRAIN, row]})


def test_an_empty_folder_is_filled_and_not_replaced_as_it_may_be_a_mount_point(tmp_path):
    place = tmp_path / "mounted"
    (place / PARTIAL / "of a killed process").mkdir(parents=True)
    assert is_free(place)
    before = place.stat().st_ino
    with new_folder(place) as folder:
        (folder / "config.json").write_text("{}")
    assert place.stat().st_ino == before
    assert names(place) == ["config.json"]
    assert not is_free(place)


def test_a_write_keeps_a_link_and_goes_into_a_pipe(tmp_path):
    (tmp_path / "link").symlink_to("file")
    write_text(tmp_path / "link", "content")
    assert ((tmp_path / "link").is_symlink(), names(tmp_path)) == (True, ["file", "link"])
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text(tmp_path / "pipe", "content")
    assert os.read(reader, 99) == b"content"
    os.close(reader)
