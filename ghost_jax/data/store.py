"""Prepared data on disk: folders named by what they were made from, whole or absent.

A store is built in a folder beside its place and renamed when its manifest is written, so a folder with the final name
is always complete. Its name carries a fingerprint of its inputs, so a changed input gives another store and an
unchanged one is found again. Examples are written by a TFDS builder as ArrayRecord, which gives random access.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core.example_serializer import ExampleSerializer

import ghost_jax
from ghost_jax.errors import UserError
from ghost_jax.paths import cache_dir


def fingerprint(facts: Any) -> str:
    """Returns the SHA-256 of `facts` as canonical JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# kind -> the code that makes it, below the package: an edit of a builder must not find the store from before it
MADE_BY = {
    "corpus": ("data/sources", "data/prose.py", "data/records.py", "data/store.py", "data/prepare.py"),
    "pretrain": ("data/builders/pretrain.py", "text/tokenizer.py", "data/store.py", "data/prepare.py"),
    "chat": ("data/builders", "data/sources/pack", "data/prose.py", "text", "data/store.py", "data/prepare.py"),
}


def code_fingerprint(kind: str) -> str:
    """Returns the SHA-256 of the code, and of the embedded pack, that a kind of store is made with."""
    package = Path(ghost_jax.__file__).parent
    files: list[Path] = []
    for part in MADE_BY[kind]:
        path = package / part
        files += [path] if path.is_file() else [p for p in path.rglob("*") if p.suffix != ".pyc" and p.is_file()]
    return fingerprint([(path.relative_to(package).as_posix(), sha256_of(path)) for path in sorted(files)])


def build(kind: str, made_from: dict, write: Callable[[Path], dict]) -> Path:
    """Returns the store of this kind and inputs, building it with `write` where it is not there yet.

    Args:
      kind: one of `MADE_BY`; the first part of the folder's name.
      made_from: everything that decides the content; goes into the fingerprint and the manifest.
      write: fills an empty folder and returns what the manifest shall say of it.
    """
    identity = {"kind": kind, "code": code_fingerprint(kind), "made_from": made_from}
    home = cache_dir() / "stores"
    place = home / f"{kind}-{fingerprint(identity)[:16]}"
    if (place / "manifest.json").is_file():
        return place
    home.mkdir(parents=True, exist_ok=True)
    for left in home.glob(f"{kind}-*.partial-*"):
        pid = int(left.name.rpartition("-")[2])
        if pid == os.getpid() or not _alive(pid):  # in a container, a command has the same number each time
            shutil.rmtree(left, ignore_errors=True)
    aside = place.with_name(f"{place.name}.partial-{os.getpid()}")
    aside.mkdir()
    try:
        content = write(aside)
        manifest = {**identity, "fingerprint": fingerprint(identity), **content}
        (aside / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
        with contextlib.suppress(OSError):  # another process finished the same store first: use that one
            os.rename(aside, place)
        return place
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def manifest(store: Path) -> dict:
    """Reads a store's manifest. Raises UserError where the store is absent or damaged."""
    try:
        return json.loads((store / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise UserError(f"{store} is no whole store ({fault}). Delete the folder and repeat the command.") from None


class Examples(tfds.core.GeneratorBasedBuilder):
    """Writes tokenised examples as ArrayRecord; one builder config a dataset."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, name: str, splits: dict[str, Callable[[], Iterator[dict]]], data_dir: Path):
        self._splits = splits
        config = tfds.core.BuilderConfig(name=name, version="1.0.0", description=f"tokenised {name} examples")
        super().__init__(config=config, data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "id": tfds.features.Text(),
            "source": tfds.features.Text(),
            "letter": tfds.features.Text(doc="gold letter, empty where there is none"),
            "tokens": tfds.features.Tensor(shape=(None,), dtype=np.int32),
            "mask": tfds.features.Tensor(shape=(None,), dtype=np.bool_, doc="the tokens that are learnt"),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {split: self._generate_examples(rows) for split, rows in self._splits.items()}

    def _generate_examples(self, rows: Callable[[], Iterator[dict]]) -> Iterator[tuple[str, dict]]:
        for row in rows():
            yield row["id"], row


def write_examples(folder: Path, name: str, splits: dict[str, Iterable[dict]]) -> dict[str, dict]:
    """Writes the dataset `name` under `folder`; returns the counts of each split and the hash of its rows.

    Args:
      splits: split name -> rows with the features of `Examples`; ids are unique within a split. Empty splits are
        left out. Raises ValueError for a row without a supervised token, which would train nothing.
    """
    counts: dict[str, dict] = {}

    hashes = {split: hashlib.sha256() for split in splits}

    def counted(split: str, rows: Iterable[dict]) -> Iterator[dict]:
        count = counts.setdefault(split, {"records": 0, "tokens": 0, "supervised": 0, "letters": {}, "lengths": {}})
        for row in rows:
            supervised = int(row["mask"].sum())
            if supervised == 0:
                raise ValueError(f"{name}/{split}: record {row['id']} has no supervised token")
            hashes[split].update(f"{row['id']}\0".encode() + row["tokens"].tobytes() + row["mask"].tobytes())
            count["records"] += 1
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


def open_examples(store: Path, name: str, split: str) -> Any:
    """Returns the random-access source of one split: `len(source)` rows, `source[i]` a dict of the features."""
    logging.set_verbosity(logging.FATAL)
    return tfds.builder_from_directory(store / "examples" / name / "1.0.0").as_data_source(split)
