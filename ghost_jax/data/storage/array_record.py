"""Tokenised examples on disk: ArrayRecord, written by a TFDS builder and read by random access."""

import contextlib
import hashlib
import itertools
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from array_record.python.array_record_data_source import ArrayRecordDataSource
from tensorflow_datasets.core import shuffle
from tensorflow_datasets.core.example_serializer import ExampleSerializer
from tensorflow_datasets.proto import tf_example_pb2

from ghost_jax.core.errors import UserError, chain_of
from ghost_jax.data.storage.artifact_cache import SplitCounts

# Arrays are stored as bytes: decoding lists of integers would dominate the time of a batch.
ARRAYS = {"tokens": np.dtype(np.int32), "mask": np.dtype(np.bool_), "branches": np.dtype(np.uint8)}
TEXTS = ("id", "source", "letter")
NO_BRANCHES = {"branches": np.zeros(0, np.uint8)}

# TFDS sorts a split in memory, from this size on in files. It opens them by TensorFlow, which is not installed.
shuffle.MAX_MEM_BUFFER_SIZE = 256 << 20
shuffle.BUCKETS_NUMBER = 128  # all are open at a time
_FILES = SimpleNamespace(GFile=open, exists=os.path.exists, remove=os.remove)
shuffle.tf = SimpleNamespace(io=SimpleNamespace(gfile=_FILES), errors=SimpleNamespace(ResourceExhaustedError=()))


class LocalInfo(tfds.core.DatasetInfo):
    """Dataset info without the look-up in the public bucket of TFDS, which leaves an empty folder in /tmp."""

    def initialize_from_bucket(self) -> None:
        """Does nothing."""


class Examples(tfds.core.GeneratorBasedBuilder):
    """Writes tokenised examples as ArrayRecord; one builder config a dataset."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, name: str, splits: Mapping[str, Any], data_dir: Path):
        self._splits = splits  # split -> ids and rows, an iterator or a transform of Apache Beam
        config = tfds.core.BuilderConfig(name=name, version="1.0.0", description=f"tokenised {name} examples")
        super().__init__(config=config, data_dir=data_dir, file_format="array_record")

    def _info(self) -> LocalInfo:
        # letter: the gold letter or empty; mask: the supervised tokens; branches, of a ranked question: 0 the prompt,
        # 1 + index an option; else empty.
        features = {name: tfds.features.Text() for name in TEXTS}
        for name, dtype in ARRAYS.items():
            features[name] = tfds.features.Tensor(shape=(None,), dtype=dtype, encoding="bytes")
        return LocalInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in self._splits}

    def _generate_examples(self, split: str) -> Any:
        return self._splits[split]


def write_examples(folder: Path, name: str, splits: dict[str, Iterable[dict]]) -> dict[str, SplitCounts]:
    """Writes the dataset `name` under `folder`; returns the counts of each split that is not empty.

    `splits` are split -> rows with the features of `Examples`, `branches` only where ranked; ids are unique in a split.
    Raises UserError, which names it, for a row without a supervised token.
    """
    counts: dict[str, SplitCounts] = {}
    generators = {}
    for split, rows in splits.items():
        rest = iter(rows)
        first = next(rest, None)
        if first is not None:
            generators[split] = _counted(name, split, itertools.chain([first], rest), counts)
    _write(folder, name, generators)
    for split in generators:
        lengths = np.array([len(row["tokens"]) for row in open_examples(folder, name, split)], np.int32)
        np.save(_lengths_file(folder, name, split), lengths)
    return counts


def write_transforms(folder: Path, name: str, splits: Mapping[str, Any], options: Any) -> dict[str, SplitCounts]:
    """Does the same by a pipeline of Apache Beam with these options.

    `splits` are split -> transform of its rows and their ids, at least one. The rows are counted in the order of ids.
    """
    _write(folder, name, splits, tfds.download.DownloadConfig(beam_options=options))
    counts: dict[str, SplitCounts] = {}
    for split in splits:
        records = open_examples(folder, name, split)
        found = [(len(row["tokens"]), row["id"].decode()) for row in records]
        np.save(_lengths_file(folder, name, split), np.array([length for length, _ in found], np.int32))
        order = sorted(range(len(found)), key=lambda number: (len(found[number][1]), found[number][1]))
        batches = (records.read(order[start : start + 1024]) for start in range(0, len(order), 1024))
        rows = (row | {text: row[text].decode() for text in TEXTS} for batch in batches for row in batch)
        deque(_counted(name, split, rows, counts), maxlen=0)
    return counts


def _write(folder: Path, name: str, splits: Mapping[str, Any], config: tfds.download.DownloadConfig | None = None):
    tfds.display_progress_bar(False)
    logging.set_verbosity(logging.FATAL)
    try:
        with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
            Examples(name, splits, folder).download_and_prepare(download_config=config)
    except Exception as fault:  # TFDS needs TensorFlow to say which
        twice = next((each for each in chain_of(fault) if isinstance(each, shuffle.DuplicatedKeysError)), None)
        if twice is None:
            raise
        raise UserError(
            f"Two records of {name} have the id {_parsed(twice.item1)['id'].decode()}. Give the documents that they "
            "come from different ids, or correct the builder."
        ) from fault


def _counted(name: str, split: str, rows: Iterable[dict], counts: dict[str, SplitCounts]) -> Iterator[tuple[str, dict]]:
    """Yields the ids and rows of a split; sets its counts after the last one."""
    ranked = supervised = 0
    letters: Counter[str] = Counter()
    lengths: Counter[int] = Counter()
    digest = hashlib.sha256()
    for row in rows:
        row = NO_BRANCHES | row
        if not row["mask"].any():
            raise UserError(
                f"The record {row['id']} of {name} ({split}) has no supervised token. Correct or remove the document "
                "that it comes from."
            )
        digest.update(f"{row['id']}\0{row['letter']}\0".encode())
        digest.update(row["tokens"].tobytes() + row["mask"].tobytes() + row["branches"].tobytes())
        ranked += len(row["branches"]) > 0
        supervised += int(row["mask"].sum())
        lengths[len(row["tokens"])] += 1
        if row["letter"]:
            letters[row["letter"]] += 1
        yield row["id"], row
    tokens = sum(length * number for length, number in lengths.items())
    counts[split] = SplitCounts(
        lengths.total(), ranked, tokens, supervised, dict(letters), dict(lengths), digest.hexdigest()
    )


def _serialized(self: ExampleSerializer, example: dict) -> bytes:
    """Returns an example with its fields in one order: protobuf's default differs between processes."""
    return self.get_tf_example(example).SerializeToString(deterministic=True)


ExampleSerializer.serialize_example = _serialized  # for good: workers of Beam import this module and write


def _lengths_file(store: Path, name: str, split: str) -> Path:
    return store / "examples" / name / f"lengths-{split}.npy"


def lengths_of(store: Path, name: str, split: str) -> np.ndarray:
    """Returns the number of tokens [n] int32 of each row, in the order of `open_examples`."""
    return np.load(_lengths_file(store, name, split), allow_pickle=False)


class Records(Sequence[dict]):
    """The rows of one split by number, each a dict of `TEXTS` as bytes and `ARRAYS` [n]."""

    def __init__(self, source: Sequence[bytes]):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, number: int) -> dict:
        return self.read([number])[0]

    def __iter__(self) -> Iterator[dict]:
        for start in range(0, len(self), 1024):
            yield from self.read(range(start, min(start + 1024, len(self))))

    def read(self, numbers: Sequence[int]) -> list[dict]:
        """Returns the rows of these numbers in one read, ten times as fast as one read each."""
        if not len(numbers):
            return []
        return [_parsed(record) for record in self._source.__getitems__(list(map(int, numbers)))]


def _parsed(record: bytes) -> dict:
    # Reads the message that TFDS wrote without its checks of each feature: 5 and not 120 microseconds.
    features = tf_example_pb2.Example.FromString(record).features.feature
    row = {name: features[name].bytes_list.value[0] for name in (*TEXTS, *ARRAYS)}
    return row | {name: np.frombuffer(row[name], dtype) for name, dtype in ARRAYS.items()}


def open_examples(store: Path, name: str, split: str) -> Records:
    """Returns the random-access rows of one split."""
    files = (store / "examples" / name / "1.0.0").glob(f"examples-{split}.array_record-*")
    return Records(ArrayRecordDataSource(sorted(map(str, files))))
