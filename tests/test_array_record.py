"""ghost_jax/data/storage/array_record.py: rows come back as they were written, and are counted right."""

import tempfile

import numpy as np
import pytest

from ghost_jax.core.errors import UserError
from ghost_jax.data.storage.array_record import lengths_of, open_examples, write_examples
from ghost_jax.data.storage.artifact_cache import SplitCounts


def example(name: str, tokens: list[int], learnt: int, letter: str = "", **more) -> dict:
    return {
        "id": name,
        "source": "test",
        "letter": letter,
        "tokens": np.asarray(tokens, np.int32),
        "mask": np.arange(len(tokens)) >= len(tokens) - learnt,
        **more,
    }


TRAIN = [
    example("a", [1, 2, 3], 1, "A"),
    example("b", [4, 5], 2, "B"),
    example("é", [31_999, 0, 7, 8], 3, "B"),
    example("d", list(range(300)), 300),
]
RANKED = example("e", [1, 2, 3, 4], 2, "B", branches=np.array([0, 1, 1, 2], np.uint8))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    # A generator, as the builders give; the test split has nothing in it.
    splits = {"train": iter(TRAIN), "validation": iter(TRAIN[:1]), "test": iter([])}
    return folder, write_examples(folder, "mcq", splits)


def test_counts_and_letters_are_those_of_the_rows(written):
    _, counts = written
    train, validation = counts["train"], counts["validation"]
    assert train == SplitCounts(
        4, 0, 309, 306, letters={"A": 1, "B": 2}, lengths={3: 1, 2: 1, 4: 1, 300: 1}, sha256=train.sha256
    )
    assert validation.records == 1
    assert train.sha256 != validation.sha256


def test_an_empty_split_is_left_out(written):
    folder, counts = written
    assert set(counts) == {"train", "validation"}
    assert len(open_examples(folder, "mcq", "validation")) == 1


def test_rows_come_back_as_they_were_written(written):
    folder, _ = written
    source = open_examples(folder, "mcq", "train")
    assert len(source) == len(TRAIN)
    found = {source[i]["id"].decode(): source[i] for i in range(len(source))}
    for row in TRAIN:
        again = found[row["id"]]
        np.testing.assert_array_equal(again["tokens"], row["tokens"])
        np.testing.assert_array_equal(again["mask"], row["mask"])
        assert (again["tokens"].dtype, again["mask"].dtype) == (np.int32, bool)
        assert (again["letter"].decode(), again["source"].decode()) == (row["letter"], "test")
        assert (again["branches"].dtype, len(again["branches"])) == (np.uint8, 0)


def test_the_hash_of_the_rows_is_theirs_alone(written, tmp_path):
    _, counts = written
    again = write_examples(tmp_path / "same", "other_name", {"train": TRAIN})
    assert again["train"].sha256 == counts["train"].sha256
    for i, change in enumerate([example("d", list(range(300)), 299), example("d", list(range(300)), 300, "A")]):
        other = write_examples(tmp_path / f"other{i}", "mcq", {"train": [*TRAIN[:3], change]})
        assert other["train"].sha256 != counts["train"].sha256


def test_a_ranked_question_comes_back_with_its_branches_and_is_counted(tmp_path):
    counts = write_examples(tmp_path, "rank", {"train": [RANKED, TRAIN[0]]})
    assert counts["train"].ranked == 1
    source = open_examples(tmp_path, "rank", "train")
    found = {source[i]["id"].decode(): source[i]["branches"] for i in range(2)}
    np.testing.assert_array_equal(found["e"], RANKED["branches"])
    assert found["e"].dtype == np.uint8
    assert len(found["a"]) == 0


def test_a_dataset_without_any_row_has_no_split(tmp_path):
    assert write_examples(tmp_path, "mcq", {"train": [], "validation": iter(())}) == {}


def test_a_row_that_teaches_nothing_is_an_error(tmp_path):
    rows = [TRAIN[0], example("mute", [1, 2], 0)]
    with pytest.raises(UserError, match=r"The record mute of mcq \(train\) has no supervised token"):
        write_examples(tmp_path, "mcq", {"train": rows})


def test_lengths_are_known_without_reading_the_rows(written):
    folder, _ = written
    source = open_examples(folder, "mcq", "train")
    lengths = lengths_of(folder, "mcq", "train")
    assert lengths.dtype == np.int32
    assert lengths.tolist() == [len(source[i]["tokens"]) for i in range(len(source))]


def test_nothing_is_left_in_the_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    write_examples(tmp_path, "tidy", {"train": TRAIN})
    assert len(open_examples(tmp_path, "tidy", "train")) == len(TRAIN)
    assert not list((tmp_path / "tmp").iterdir())
