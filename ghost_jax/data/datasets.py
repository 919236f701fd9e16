"""The stores of a run's vocabulary and datasets: token ids and loss mask of each row, by split."""

import importlib
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from ghost_jax.data.beam import Beam
from ghost_jax.data.builders import DATASETS, OPTIONS, Dataset, pretrain
from ghost_jax.data.corpus import Say, documents_of
from ghost_jax.data.examples import BuildInputs
from ghost_jax.data.own import chats, questions, rows
from ghost_jax.data.storage import array_record, artifact_cache
from ghost_jax.data.storage.schema import Record
from ghost_jax.text import tokenizer
from ghost_jax.text.tokenizer import Tokenizer


def vocabulary_store(config: ConfigDict, corpus: Path, say: Say) -> Path:
    """Returns the store of the byte-level BPE of a config's base, trained on the corpus."""
    size = config.model.vocab_size
    made_from = {"corpus": corpus.name, "vocab_size": size}

    def write(folder: Path) -> dict:
        say(f"training a byte-level BPE of {size:,} ids")
        vocabulary = tokenizer.train(map(pretrain.text_of, documents_of(corpus)), size)
        vocabulary.save(folder / "tokenizer.json")
        return {"tokenizer": vocabulary.sha256, "vocab_size": vocabulary.vocab_size}

    return artifact_cache.build("vocabulary", {"pretrain": pretrain.VERSION}, made_from, write)


def row_of(name: str, config: ConfigDict) -> Dataset:
    """Returns the row of one of `DATASETS`, or of the file of `data.chats` or `data.questions` under this name."""
    if name in DATASETS:
        return DATASETS[name]
    if name in config.data.chats:
        return Dataset("chat", name, f"conversations of {{chats[{name}]}}")
    return Dataset("chat", name, f"questions of {{questions[{name}]}}", options=("question_group",), lettered=True)


def dataset_store(
    name: str, config: ConfigDict, corpus: Path, vocabulary: Tokenizer, say: Say, beam: Beam | None = None
) -> Path:
    """Returns the store of a dataset, see `row_of`, building it where it is missing; windows of documents by `beam`."""
    dataset = row_of(name, config)
    module, function = (dataset.builder or f"{name}.dataset").split(".")
    path = None
    if name in DATASETS:
        builder = importlib.import_module(f"ghost_jax.data.builders.{module}")
        made_from: dict = {"corpus": corpus.name}
    else:
        builder, group = (chats, "chats") if name in config.data.chats else (questions, "questions")
        path, function = rows.located(config.data[group][name]), "dataset"
        made_from = {"file": path.name, "sha256": artifact_cache.sha256_of(path), "bytes": path.stat().st_size}
    data = config.data.to_dict()
    made_from |= {key: data[key] for key in (*OPTIONS[dataset.stage], *dataset.options)}
    made_from["tokenizer"] = vocabulary.sha256

    def documents() -> Iterator[Record]:
        return (each for each in documents_of(corpus) if dataset.sources is None or each.source in dataset.sources)

    def write(folder: Path) -> dict:
        say(f"building {name}: {dataset.about.format_map(config.data)}")
        vocabulary.save(folder / "tokenizer.json")
        if beam and builder is pretrain:
            return {"datasets": {name: beam.write_windows(folder, name, corpus, config.data.seq_len)}}
        inputs = BuildInputs(corpus, documents, config.data, vocabulary, folder, say)
        rows = getattr(builder, function)(inputs, *([name, path] if path else []))
        counts = array_record.write_examples(folder, name, rows)
        return {"datasets": {name: counts}} | inputs.recorded

    return artifact_cache.build(name, {name: builder.VERSION}, made_from, write)
