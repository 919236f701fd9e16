"""From publishers' files to stores, each built once and found again while its inputs are unchanged (docs/data.md).

`python -m ghost_jax.data.prepare --config=configs/chat_v5.py:nano` builds the stores of a config, as training does.
"""

import dataclasses
import importlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from ghost_jax.config import load as config_lib
from ghost_jax.config.keys import FILES
from ghost_jax.core.console import escape_controls
from ghost_jax.core.errors import UsageError, UserError, command, parser_of
from ghost_jax.core.object_store import path_of
from ghost_jax.data import beam, corpus
from ghost_jax.data.builders import DATASETS, OPTIONS, Dataset, names_of, pretrain
from ghost_jax.data.corpus import documents_of
from ghost_jax.data.examples import BuildInputs
from ghost_jax.data.mixture import Mix
from ghost_jax.data.own import chats, questions, rows
from ghost_jax.data.sources import embedded
from ghost_jax.data.storage import array_record, artifact_cache
from ghost_jax.data.storage.artifact_cache import counts_of
from ghost_jax.data.storage.schema import Record
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.text.mcq_format import LETTERS, letter_ids
from ghost_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """The stores of a config."""

    corpus: Path  # the store of the documents
    mix: Mix  # of the datasets; of a chat config its stores are also the ones on which all recipes validate
    tokenizer: Tokenizer  # the vocabulary of the datasets
    base_tokenizer: Tokenizer  # the vocabulary of the base; the same for a base
    notes: tuple[str, ...]  # sentences on missing sources, for the first lines of the run and its report


def prepare(config: ConfigDict, data_dir: Path | None, workers: beam.Beam | None = None) -> Prepared:
    """Returns the stores of a config, building those that are missing, on this machine or by `workers`.

    Raises UserError for a missing or damaged input, and for a dataset that is mixed in and has no training record.
    """
    groups = [key.removeprefix("data.") for key in FILES]
    own = {(group, name): path for group in groups for name, path in config.data.get(group, {}).items()}
    for (group, name), path in own.items():
        if not rows.located(path).is_file():
            raise UserError(f"data.{group}.{name} names {path}, which is no file. Name a file of {group}.")
    inputs, notes = _located(config, data_dir)
    judged = workers.judged_parts if workers else corpus.judged_parts
    documents = corpus.corpus_store(inputs, _say, judged)
    mixed = config_lib.mixed(config)
    if config.stage == "pretrain":
        base = vocabulary = _vocabulary(config, documents)
        needed = mixed
    else:
        base = _base_vocabulary(config.base, data_dir)
        vocabulary = base.with_chat_tokens(embedded.anchors())
        letter_ids(vocabulary)  # checks them
        # The questions of fact_mcq, also where it is not trained on.
        asked = {"fact_mcq"} if {"facts", "reading"} & set(config.evals) else set()
        needed = mixed | set(config_lib.SHARED) | asked
    stores = {
        name: dataset_store(name, config, documents, vocabulary, workers)
        for name in (*names_of(config.stage), *(name for _, name in own))
        if name in needed
    }
    empty = [name for name in stores if name in mixed and "train" not in counts_of(stores[name], name)]
    _refuse_empty(config, documents, empty)
    return Prepared(documents, _mix_of(config, stores), vocabulary, base, notes)


def letters_of(prepared: Prepared) -> int:
    """Returns how many letters may be gold: 4, or up to the last one that is."""
    splits = [each for name, store in prepared.mix.stores.items() for each in counts_of(store, name).values()]
    return max([4, *(1 + LETTERS.index(letter) for each in splits for letter in each.letters)])


def _mix_of(config: ConfigDict, stores: dict[str, Path]) -> Mix:
    return Mix(
        stores=stores,
        phases=config_lib.mixtures(config),
        seed=config.seed,
        batch_size=config.batch_size,
        seq_len=config.data.seq_len,
        packing=config.data.packing,
        truncation=config.data.truncation,
        loss_norm=config.loss_norm,
    )


def _located(config: ConfigDict, data_dir: Path | None) -> tuple[list[corpus.Input], tuple[str, ...]]:
    return corpus.locate(config.data.sources, data_dir, _say, stand_in="nano" in config.preset.split(","))


def _refuse_empty(config: ConfigDict, documents: Path, empty: list[str]) -> None:
    """Raises UserError where some dataset of the mixture has no training record."""
    if own := [name for name in empty if name in config.data.get("chats", {})]:
        raise UserError(
            f"Every conversation of data.chats.{own[0]} is for validation, which is drawn from the user's first turn, "
            "and none is left to train on. Add conversations with another first turn, or leave out the file."
        )
    if empty:
        wanted = "; ".join(f"{name}: {row_of(name, config).about.format_map(config.data)}" for name in empty)
        here = corpus.few(list(artifact_cache.manifest(documents).documents))
        scheduled = ", and 0 in data.mixture_schedule" if config.data.mixture_schedule else ""
        raise UserError(
            f"The mixture asks for {', '.join(empty)}, of which there is no training record ({wanted}). There are the "
            f"sources {', '.join(config.data.sources)}, with documents of {here}. Name other sources in "
            "--config.data.sources, or leave the dataset out: "
            f"{' '.join(f'--config.data.mixture.{name}=0' for name in empty)}{scheduled}."
        )


def _vocabulary(config: ConfigDict, documents: Path) -> Tokenizer:
    return tokenizer_lib.load(vocabulary_store(config, documents) / "tokenizer.json")


def _base_vocabulary(config: ConfigDict, data_dir: Path | None) -> Tokenizer:
    """Returns the vocabulary of a base: its run's own where that is named, else one trained on the base's corpus."""
    if "vocabulary" in config:
        return tokenizer_lib.load(path_of(config.vocabulary))
    return _vocabulary(config, corpus.corpus_store(_located(config, data_dir)[0], _say))


# ---- The stores of the vocabulary and of each dataset: token ids and loss mask of each row, by split ----


def vocabulary_store(config: ConfigDict, corpus: Path) -> Path:
    """Returns the store of the byte-level BPE of a config's base, trained on the corpus."""
    size = config.model.vocab_size
    made_from = {"corpus": corpus.name, "vocab_size": size}

    def write(folder: Path) -> dict:
        _say(f"training a byte-level BPE of {size:,} ids")
        vocabulary = tokenizer_lib.train(map(pretrain.text_of, documents_of(corpus)), size)
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
    name: str, config: ConfigDict, corpus: Path, vocabulary: Tokenizer, workers: beam.Beam | None = None
) -> Path:
    """Returns the store of a dataset, see `row_of`, built where it is missing; windows of documents by `workers`."""
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
    if name == "small_talk":  # of the package, whatever the corpus holds
        made_from["pack"] = embedded.sha256()

    def documents() -> Iterator[Record]:
        return (each for each in documents_of(corpus) if dataset.sources is None or each.source in dataset.sources)

    def write(folder: Path) -> dict:
        _say(f"building {name}: {dataset.about.format_map(config.data)}")
        vocabulary.save(folder / "tokenizer.json")
        if workers and builder is pretrain:
            return {"datasets": {name: workers.write_windows(folder, name, corpus, config.data.seq_len)}}
        inputs = BuildInputs(corpus, documents, config.data, vocabulary, folder, _say)
        found = getattr(builder, function)(inputs, *([name, path] if path else []))
        counts = array_record.write_examples(folder, name, found)
        return {"datasets": {name: counts}} | inputs.recorded

    return artifact_cache.build(name, {name: builder.VERSION}, made_from, write)


# ---- The command ----


def _say(line: str) -> None:
    print(f"[data] {escape_controls(line)}", flush=True)


def _summary(prepared: Prepared) -> Iterator[str]:
    yield from prepared.notes
    documents = artifact_cache.manifest(prepared.corpus).documents
    yield f"corpus      {prepared.corpus}: {sum(documents.values()):,} documents of {len(documents)} sources"
    yield f"vocabulary  {prepared.tokenizer.vocab_size:,} ids"
    for name, store in prepared.mix.stores.items():
        splits = counts_of(store, name).items()
        counts = ", ".join(f"{split} {each.records:,} records / {each.tokens:,} tokens" for split, each in splits)
        yield f"{name:11} {counts or 'no record'}"


@command
def main(argv: Sequence[str]) -> int:
    """Prepares the data of a config and prints the counts of each store."""
    parser = parser_of(main)
    runner_help = "prepare by Apache Beam; --beam.KEY=VALUE sets one of its pipeline options"
    parser.add_argument("--runner", choices=beam.RUNNERS, help=runner_help)
    options, words = config_lib.overrides_in(argv, "--beam.")
    config, flags = config_lib.parse(parser, words)
    if options and not flags.runner:
        raise UsageError(f"--beam.{options[0][0]} is an option of a runner. Add --runner={'|'.join(beam.RUNNERS)}.")
    started = time.monotonic()
    workers = beam.connect(flags.runner, options) if flags.runner else None
    made_here = [config.base] if "base" in config and "vocabulary" not in config.base else []
    stages = [prepare(stage, flags.data_dir, workers) for stage in [*made_here, config]]
    for line in dict.fromkeys(line for prepared in stages for line in _summary(prepared)):
        _say(line)
    _say(f"done in {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
