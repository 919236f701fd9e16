"""ghost_jax/data/storage/array_record.py: rows are read as they were written, and counted."""

import tempfile

import numpy as np
import pytest
from tensorflow_datasets.core import shuffle

from ghost_jax.core.errors import UserError
from ghost_jax.data.storage.array_record import lengths_of, open_examples, write_examples
from ghost_jax.data.storage.artifact_cache import SplitCounts


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
    (folder / "tmp").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder / "tmp"))
        splits = {"train": iter(TRAIN), "validation": iter(TRAIN[:1]), "test": iter([])}
        counts = write_examples(folder, "mcq", splits)
        assert not list((folder / "tmp").iterdir())
    return folder, counts


def test_the_counts_are_those_of_the_rows(written):
    _, counts = written
    assert set(counts) == {"train", "validation"}, "an empty split is left out"
    lengths, sha256 = {3: 1, 2: 1, 4: 2, 300: 1}, counts["train"].sha256
    assert counts["train"] == SplitCounts(5, 1, 313, 308, {"A": 1, "B": 3}, lengths, sha256)


def test_rows_are_read_as_they_were_written(written):
    folder, _ = written
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


def test_a_split_that_is_sorted_on_disk_has_the_same_bytes(written, tmp_path, monkeypatch):
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 100)
    assert write_examples(tmp_path, "mcq", {"train": TRAIN})["train"] == written[1]["train"]
    name = "examples/mcq/1.0.0/examples-train.array_record-00000-of-00001"
    assert (tmp_path / name).read_bytes() == (written[0] / name).read_bytes()
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_row_without_a_supervised_token_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"record mute of mcq \(train\)"):
        write_examples(tmp_path, "mcq", {"train": [TRAIN[0], example("mute", [1, 2], 0)]})
