"""Tokenised examples on disk: written by a TFDS builder as ArrayRecord, which gives random access."""

import contextlib
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from ghost_jax.errors import UserError


class LocalInfo(tfds.core.DatasetInfo):
    """What is known of a dataset of ours: nothing of it lies in the public bucket of TFDS."""

    def initialize_from_bucket(self) -> None:
        """Asks nobody: TFDS would ask that bucket, and leave an empty folder in /tmp each time."""


class Examples(tfds.core.GeneratorBasedBuilder):
    """Writes tokenised examples as ArrayRecord; one builder config a dataset."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, name: str, splits: dict[str, Callable[[], Iterator[dict]]], data_dir: Path):
        self._splits = splits
        config = tfds.core.BuilderConfig(name=name, version="1.0.0", description=f"tokenised {name} examples")
        super().__init__(config=config, data_dir=data_dir, file_format="array_record")

    def _info(self) -> LocalInfo:
        features = {
            "id": tfds.features.Text(),
            "source": tfds.features.Text(),
            "letter": tfds.features.Text(doc="gold letter, empty where there is none"),
            "tokens": tfds.features.Tensor(shape=(None,), dtype=np.int32),
            "mask": tfds.features.Tensor(shape=(None,), dtype=np.bool_, doc="the tokens that are learnt"),
            "branches": tfds.features.Tensor(
                shape=(None,), dtype=np.uint8, doc="of a ranked question: 0 the prompt, 1 + index an option; else empty"
            ),
        }
        return LocalInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {split: self._generate_examples(rows) for split, rows in self._splits.items()}

    def _generate_examples(self, rows: Callable[[], Iterator[dict]]) -> Iterator[tuple[str, dict]]:
        for row in rows():
            yield row["id"], row


def write_examples(folder: Path, name: str, splits: dict[str, Iterable[dict]]) -> dict[str, dict]:
    """Writes the dataset `name` under `folder`; returns the counts of each split and the hash of its rows.

    Args:
      splits: split name -> rows with the features of `Examples`, of which a conversation need not have `branches`;
        ids are unique within a split. Empty splits are left out.

    Raises:
      UserError: a row has no supervised token, so that it would train nothing; names it.
    """
    counts: dict[str, dict] = {}

    hashes = {split: hashlib.sha256() for split in splits}

    def counted(split: str, rows: Iterable[dict]) -> Iterator[dict]:
        none = {"records": 0, "ranked": 0, "tokens": 0, "supervised": 0, "letters": {}, "lengths": {}}
        count = counts.setdefault(split, none)
        for row in rows:
            row = {"branches": np.zeros(0, np.uint8)} | row
            supervised = int(row["mask"].sum())
            if supervised == 0:
                raise UserError(
                    f"The record {row['id']} of {name} ({split}) has no supervised token: nothing of it would be "
                    "learnt. Mend or remove the document that it comes from."
                )
            hashes[split].update(f"{row['id']}\0{row['letter']}\0".encode())
            hashes[split].update(row["tokens"].tobytes() + row["mask"].tobytes() + row["branches"].tobytes())
            count["records"] += 1
            count["ranked"] += len(row["branches"]) > 0
            count["tokens"] += len(row["tokens"])
            count["supervised"] += supervised
            _add_one(count["lengths"], len(row["tokens"]))
            if row["letter"]:
                _add_one(count["letters"], row["letter"])
            yield row

    wanted = {}
    for split, rows in splits.items():
        rest = iter(rows)
        first = next(rest, None)
        if first is not None:
            wanted[split] = functools.partial(counted, split, itertools.chain([first], rest))
    tfds.display_progress_bar(False)
    logging.set_verbosity(logging.FATAL)
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet), _same_bytes_in_every_process():
        Examples(name, wanted, folder).download_and_prepare()
    for split in counts:
        rows = open_examples(folder, name, split)
        lengths = np.array([len(rows[i]["tokens"]) for i in range(len(rows))], np.int32)
        np.save(_lengths_file(folder, name, split), lengths)
    return {split: count | {"sha256": hashes[split].hexdigest()} for split, count in counts.items()}


@contextlib.contextmanager
def _same_bytes_in_every_process() -> Iterator[None]:
    """Has TFDS write the fields of an example in one order: protobuf's default order differs between processes."""
    default = ExampleSerializer.serialize_example
    ExampleSerializer.serialize_example = lambda self, example: self.get_tf_example(example).SerializeToString(
        deterministic=True
    )
    try:
        yield
    finally:
        ExampleSerializer.serialize_example = default


def _add_one(histogram: dict, key: object) -> None:
    histogram[key] = histogram.get(key, 0) + 1


def _lengths_file(store: Path, name: str, split: str) -> Path:
    return store / "examples" / name / f"lengths-{split}.npy"


def lengths_of(store: Path, name: str, split: str) -> np.ndarray:
    """Returns the number of tokens [n] int32 of each row, in the order of `open_examples`, without reading the rows."""
    return np.load(_lengths_file(store, name, split), allow_pickle=False)


def open_examples(store: Path, name: str, split: str) -> Any:
    """Returns the random-access source of one split: `len(source)` rows, `source[i]` a dict of the features."""
    logging.set_verbosity(logging.FATAL)
    return tfds.builder_from_directory(store / "examples" / name / "1.0.0").as_data_source(split)
