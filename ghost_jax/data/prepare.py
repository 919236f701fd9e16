"""From publishers' files to stores, each found again where nothing it is made from has changed.

    parts       the clean documents of one input file, with their facts; all cores, or several hosts
    corpus      the parts together, duplicates dropped
    vocabulary  the base's byte-level BPE
    datasets    token ids and masks, one store each: windows of text for a base, conversations for a chat model

`python -m ghost_jax.data.prepare --config=configs/chat_v5.py` makes what a config needs; training calls the same.
"""

import argparse
import dataclasses
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from ghost_jax.config import load as config_lib
from ghost_jax.core.errors import UsageError, UserError, command
from ghost_jax.data import conversations, corpus, windows
from ghost_jax.data.mixture import Mix, Phase
from ghost_jax.data.storage import artifact_cache
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """Where the stores of a config are.

    Attributes:
      corpus: the store of the documents.
      stores: dataset -> its store; of a chat config also the ones whose validation all recipes share.
      tokenizer: the vocabulary of the datasets.
      base_tokenizer: the vocabulary of the base; the same for a base.
      notes: sentences for the first lines of the run and its report (what stood in for what).
    """

    corpus: Path
    stores: dict[str, Path]
    tokenizer: Tokenizer
    base_tokenizer: Tokenizer
    notes: tuple[str, ...]


def prepare(config: ConfigDict, data_dir: Path | None) -> Prepared:
    """Returns the stores of a config, building what is missing.

    Raises UserError for a missing or damaged input, and for a dataset that is mixed in and has nothing to train on.
    """
    inputs = _located(config, config.data.sources, data_dir)
    documents = corpus.corpus_store(inputs, _say)
    mixed = {name for multipliers in config_lib.mixtures(config).values() for name in multipliers if multipliers[name]}
    if config.stage == "pretrain":
        base = vocabulary = _vocabulary(config, documents)
        made = {name: windows.dataset_store(name, config, documents, base, _say) for name in _known(mixed, windows)}
    else:
        base = _base_vocabulary(config.base, data_dir)
        vocabulary = conversations.vocabulary_of(base)
        asked = {"fact_mcq"} if "facts" in config.evals else set()  # its questions, also where it is not trained on
        names = _known(mixed | set(config_lib.SHARED) | asked, conversations)
        made = {name: conversations.dataset_store(name, config, documents, vocabulary, _say) for name in names}
    _refuse_empty(config, documents, {name: made[name] for name in made if name in mixed})
    return Prepared(documents, made, vocabulary, base, inputs.notes)


def mix_of(config: ConfigDict, prepared: Prepared) -> Mix:
    """Returns the mixture of a run."""
    return Mix(
        stores=prepared.stores,
        phases=tuple(Phase(start, multipliers) for start, multipliers in config_lib.mixtures(config).items()),
        seed=config.seed,
        batch_size=config.batch_size,
        seq_len=config.data.seq_len,
        packing=config.data.packing,
        truncation=config.data.truncation,
        loss_norm=config.loss_norm,
    )


def _located(config: ConfigDict, names: Sequence[str], data_dir: Path | None) -> corpus.Inputs:
    return corpus.locate(names, data_dir, _say, stand_in="nano" in config.preset.split(","))


def _refuse_empty(config: ConfigDict, documents: Path, mixed: dict[str, Path]) -> None:
    """Raises UserError where the store of a dataset that is mixed in has no training record."""
    table = windows.DATASETS if config.stage == "pretrain" else conversations.DATASETS
    empty: dict[str, list[str]] = {}  # what they are made of -> datasets
    for name, place in mixed.items():
        if "train" not in artifact_cache.manifest(place).datasets[name]:
            empty.setdefault(table[name].made_of.format_map(config.data), []).append(name)
    if empty:
        why = "; ".join(f"{made_of} (needed for {', '.join(names)})" for made_of, names in empty.items())
        here = corpus.few(list(artifact_cache.manifest(documents).documents))
        names = [name for names in empty.values() for name in names]
        raise UserError(
            f"The mixture asks for {', '.join(names)}, of which there is no training record. The sources "
            f"{', '.join(config.data.sources)}, with documents of {here}, do not give {why}. Name other sources in "
            "--config.data.sources, or leave the dataset out: "
            f"{' '.join(f'--config.data.mixture.{name}=0' for name in names)}."
        )


def _vocabulary(config: ConfigDict, documents: Path) -> Tokenizer:
    return tokenizer_lib.load(windows.vocabulary_store(config, documents, _say) / "tokenizer.json")


def _base_vocabulary(config: ConfigDict, data_dir: Path | None) -> Tokenizer:
    """Returns the vocabulary of a base: its run's own where that is named, else one trained on the base's corpus."""
    if "vocabulary" in config:
        return tokenizer_lib.load(Path(config.vocabulary))
    # Whatever the chat stage is asked about.
    return _vocabulary(config, corpus.corpus_store(_located(config, config.data.sources, data_dir), _say))


def _known(names: set[str], stage) -> list[str]:
    """Returns the names in the order of the stage's table."""
    return [name for name in stage.DATASETS if name in names]


def _say(line: str) -> None:
    print(f"[data] {line}", flush=True)


def _shard(text: str) -> tuple[int, int]:
    """Returns (index from 0, count) of "2/4"."""
    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
    if not found or int(found[1]) > int(found[2]):
        raise UsageError(f'--shard={text} is no share of the work. Write the host and the number of hosts: "2/4".')
    return int(found[1]) - 1, int(found[2])


def _summary(prepared: Prepared) -> Iterator[str]:
    yield from prepared.notes
    documents = artifact_cache.manifest(prepared.corpus).documents
    yield f"corpus      {prepared.corpus}: {sum(documents.values()):,} documents of {len(documents)} sources"
    yield f"vocabulary  {prepared.tokenizer.vocab_size:,} ids"
    for name, place in prepared.stores.items():
        splits = artifact_cache.manifest(place).datasets[name]
        counts = ", ".join(f"{split} {c.records:,} records / {c.tokens:,} tokens" for split, c in splits.items())
        yield f"{name:11} {counts or 'no record'}"


@command
def main(argv: Sequence[str]) -> int:
    """Prepares the data of a config and prints what was made."""
    parser = argparse.ArgumentParser(prog="python -m ghost_jax.data.prepare", description=main.__doc__)
    parser.add_argument(
        "--shard", metavar="I/N", help="prepare only this host's share of the input files, into the cache all share"
    )
    config, flags = config_lib.parse(parser, argv)
    started = time.monotonic()
    if flags.shard:
        index, count = _shard(flags.shard)
        of_base = config.base.data.sources if config.stage == "chat" and "vocabulary" not in config.base else ()
        sources = config.data.sources + of_base
        inputs = _located(config, tuple(dict.fromkeys(sources)), flags.data_dir)
        parts = corpus.part_stores(inputs.files[index::count], _say)
        _say(f"{len(parts)} of {len(inputs.files)} parts in {time.monotonic() - started:.1f} s")
        return 0
    made_here = [config.base] if "base" in config and "vocabulary" not in config.base else []
    stages = [prepare(stage, flags.data_dir) for stage in [*made_here, config]]
    for line in dict.fromkeys(line for prepared in stages for line in _summary(prepared)):
        _say(line)
    _say(f"done in {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
