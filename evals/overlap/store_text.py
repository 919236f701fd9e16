"""The text of prepared stores as models are trained on it: documents, and examples decoded from tokens."""

import dataclasses
import operator
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ghost_jax.core.console import Progress
from ghost_jax.core.errors import UserError
from ghost_jax.data.builders import names_of
from ghost_jax.data.storage import artifact_cache as store
from ghost_jax.data.storage.array_record import open_examples
from ghost_jax.data.storage.files import parse_json
from ghost_jax.text import tokenizer as tokenizer_lib


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """One record of a store: its id, its source and its text."""

    id: str
    source: str
    text: str


@dataclasses.dataclass(frozen=True)
class Part:
    """The documents of a corpus store, or one split of a dataset."""

    store: str  # the store's name
    name: str  # "documents" or "<dataset>/<split>"
    size: int  # the number of records
    texts: Iterable[Text]  # the records; can be iterated once

    @property
    def split(self) -> str:
        """The split of a dataset, "" for documents."""
        return self.name.partition("/")[2]


def parts_of(folder: Path) -> Iterator[Part]:
    """Yields the parts of a store. Raises UserError where the folder is not a store with text."""
    name = folder.resolve().name
    documents, datasets = folder / "documents.jsonl", manifest(folder).datasets or {}
    if documents.is_file():
        with documents.open("rb") as file:
            lines = sum(1 for _ in file)
        yield Part(name, "documents", lines, _documents(documents))
    elif not datasets:
        raise UserError(f"{folder} holds neither documents nor examples. Give the store of a corpus or dataset.")
    for dataset, splits in datasets.items():
        vocabulary = tokenizer_lib.load(folder / "tokenizer.json")
        for split in splits:
            rows = open_examples(folder, dataset, split)
            with Progress(f"reading {name} {dataset}/{split}", len(rows), unit="records", brief=True) as progress:
                bos = vocabulary.bos_id if dataset in names_of("pretrain") else None
                joined = join_windows(_counted(rows, progress), bos)
            texts = (Text(id, source, vocabulary.decode(np.concatenate(ids).tolist())) for id, source, ids in joined)
            yield Part(name, f"{dataset}/{split}", len(joined), texts)


def manifest(folder: Path) -> store.Manifest:
    """Reads a store's manifest. Raises UserError where the folder is not a store."""
    if not (folder / "manifest.json").is_file():
        raise UserError(
            f"{folder} is not a prepared store: it has no manifest.json. Give a folder that "
            "`python -m ghost_jax.data.prepare` names."
        )
    return store.manifest(folder)


def _documents(path: Path) -> Iterator[Text]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            record = parse_json(line, path, number)
            text = "\n".join((record["id"], record["title"], record["text"]))
            # Builders make questions of facts, so facts are trained on even where the text does not state them.
            stated = [fact[key] for fact in record["facts"] for key in ("subject", "object", "evidence")]
            text = "\n".join([text, *(part for part in stated if part not in text)])
            yield Text(record["id"], record["source"], text)


def _counted(rows: Sequence[dict], progress: Progress) -> Iterator[dict]:
    for i in range(len(rows)):
        yield rows[i]
        progress.advance(1)


def join_windows(rows: Iterable[dict], bos: int | None) -> list[tuple[str, str, list[np.ndarray]]]:
    """Returns `(id, source, pieces of ids)` of each text in the rows of a split, in the order of their ids.

    A pretraining row is a window cut anywhere that begins with the last token of the row before. Such rows are joined
    and split again at BOS, so that a question across a cut is found. A text has the id of the row that it begins in.
    Conversations, whose turns may begin with such a token, are not joined or split: for them `bos` is None.
    """
    kept = [(row["id"].decode(), row["source"].decode(), row["tokens"]) for row in rows]
    texts: list[tuple[str, str, list[np.ndarray]]] = []
    last = None
    for row_id, source, tokens in sorted(kept, key=operator.itemgetter(0)):
        continued = bos is not None and bool(tokens[0] == last)
        ids, last = tokens[continued:], tokens[-1]
        first, *others = np.split(ids, [] if bos is None else np.flatnonzero(ids == bos))
        if continued:
            texts[-1][2].append(first)
        elif len(first):
            texts.append((row_id, source, [first]))
        texts += [(row_id, source, [piece]) for piece in others]
    return texts
