"""What a base is trained on: the vocabulary of a corpus, and rows of its tokens without a turn or a mask.

To add a dataset, write a builder that yields rows, and give it a row in `DATASETS`; a pretraining recipe then mixes it
by that name.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from ghost_jax.data.builders import Documents, exposure, fact_mcq, pretrain, rewrite
from ghost_jax.data.corpus import BOOK, documents_of
from ghost_jax.data.storage import array_record, artifact_cache
from ghost_jax.data.storage.schema import Record
from ghost_jax.data.wordings import question_forms
from ghost_jax.text import tokenizer
from ghost_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A row of `DATASETS`.

    Attributes:
      about: what it is, for the screen.
      made_of: what its records come from, for the message where there are none.
      rows: `(documents, vocabulary, split, window, **options)` to the rows of one split.
      made_by: the modules that decide its rows, beside those that decide the documents.
      sources: the documents it takes, as they call their source; None for all.
      options: the keys of `config.data` that it depends on.
      describe: writes beside the rows what else is known of them, and returns it for the manifest in short.
    """

    about: str
    made_of: str
    rows: Callable[..., Iterator[dict]]
    made_by: tuple[ModuleType, ...]
    sources: tuple[str, ...] | None = None
    options: tuple[str, ...] = ()
    describe: Callable[..., dict] = lambda documents, folder, **options: {}


def _exposures(documents: Documents, folder: Path) -> dict:
    """Writes `facts.jsonl`, with how many forms of each fact a pass shows, and returns the counts."""
    with (folder / "facts.jsonl").open("w", encoding="utf-8") as file:
        for fact in rewrite.facts_of(documents):
            file.write(json.dumps(fact) + "\n")
    return {"facts": rewrite.summary(documents)}


def _asked(documents: Documents, folder: Path, seed: int) -> dict:
    """Writes `exposure.jsonl`, the items that recall is measured on, and returns how many there are by exposures."""
    by_count: dict[str, int] = {}
    with (folder / "exposure.jsonl").open("w", encoding="utf-8") as file:
        for item in exposure.items(documents, seed):
            file.write(json.dumps(item) + "\n")
            by_count[str(item["exposures"])] = by_count.get(str(item["exposures"]), 0) + 1
    return {"exposures": by_count}


DATASETS = {
    "pretrain": Dataset("the corpus in windows of tokens", "documents with text", pretrain.build, (pretrain,)),
    # Of vulnerabilities the facts are about descriptions, which are no entities: reference pages alone.
    "facts": Dataset(
        "typed facts in many surface forms and both directions",
        f"typed facts, as {', '.join(BOOK)} state them",
        rewrite.build,
        (rewrite, pretrain),
        BOOK,
        describe=_exposures,
    ),
    "exposure": Dataset(
        "a thousand typed facts stated 10 to 1,000 times each, and documents that do not state them",
        f"typed facts in sets of four, as {', '.join(BOOK)} state them",
        exposure.build,
        (exposure, rewrite, pretrain, fact_mcq, question_forms),
        BOOK,
        options=("seed",),
        describe=_asked,
    ),
}


def vocabulary_store(config: ConfigDict, corpus: Path, say: Callable[[str], None]) -> Path:
    """Returns the store of the byte-level BPE that a config's base uses, trained on the corpus."""
    size = config.model.vocab_size

    def write(folder: Path) -> dict:
        say(f"training a byte-level BPE of {size:,} ids")
        vocabulary = tokenizer.train(map(pretrain.text_of, documents_of(corpus)()), size)
        vocabulary.save(folder / "tokenizer.json")
        return {"tokenizer": vocabulary.sha256, "vocab_size": vocabulary.vocab_size}

    return artifact_cache.build("vocabulary", (tokenizer, pretrain), {"corpus": corpus.name, "vocab_size": size}, write)


def dataset_store(name: str, config: ConfigDict, corpus: Path, vocabulary: Tokenizer, say: Callable) -> Path:
    """Returns the store of one of `DATASETS`: its rows of `config.data.seq_len + 1` tokens."""
    window, dataset = config.data.seq_len, DATASETS[name]
    options = {key: config.data[key] for key in dataset.options}

    def documents() -> Iterator[Record]:
        return (r for r in documents_of(corpus)() if dataset.sources is None or r.source in dataset.sources)

    def write(folder: Path) -> dict:
        say(f"building {name}: {dataset.about}, {window} tokens each")
        vocabulary.save(folder / "tokenizer.json")
        splits = {
            split: dataset.rows(documents, vocabulary, split, window, **options) for split in ("train", "validation")
        }
        counts = array_record.write_examples(folder, name, splits)
        return {"datasets": {name: counts}} | dataset.describe(documents, folder, **options)

    made_from = {"corpus": corpus.name, "tokenizer": vocabulary.sha256, "window": window, **options}
    return artifact_cache.build(name, (*dataset.made_by, tokenizer, array_record), made_from, write)
