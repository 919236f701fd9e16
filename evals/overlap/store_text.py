"""The text of prepared stores as models are trained on it: documents, and examples decoded from tokens."""

import dataclasses
import operator
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ghost_jax.data import corpus
from ghost_jax.data.builders import names_of
from ghost_jax.data.storage.array_record import open_examples
from ghost_jax.data.storage.artifact_cache import manifest
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
    """Yields the parts of a store. Raises UserError where the folder is no store."""
    name, documents = folder.resolve().name, folder / corpus.DOCUMENTS
    if documents.is_file():
        with documents.open("rb") as file:
            lines = sum(1 for _ in file)
        yield Part(name, "documents", lines, _documents(folder))
    for dataset, splits in (manifest(folder).datasets or {}).items():
        vocabulary = tokenizer_lib.load(folder / "tokenizer.json")
        for split in splits:
            bos = vocabulary.bos_id if dataset in names_of("pretrain") else None
            joined = join_windows(open_examples(folder, dataset, split), bos)
            texts = (Text(id, source, vocabulary.decode(np.concatenate(ids).tolist())) for id, source, ids in joined)
            yield Part(name, f"{dataset}/{split}", len(joined), texts)


def _documents(folder: Path) -> Iterator[Text]:
    for record in corpus.documents_of(folder):
        text = "\n".join((record.id, record.title, record.text))
        # Builders make questions of facts, so facts are trained on even where the text does not state them.
        stated = [part for fact in record.facts for part in (fact.subject, fact.object, fact.evidence)]
        yield Text(record.id, record.source, "\n".join([text, *(part for part in stated if part not in text)]))


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
