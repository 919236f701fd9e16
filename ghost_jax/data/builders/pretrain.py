"""Plain language modelling: documents laid end to end and cut into windows of the context's length."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ghost_jax.data.examples import BuildInputs, Documents, Rows
from ghost_jax.data.storage.schema import Record
from ghost_jax.text.tokenizer import Tokenizer

VERSION = 2  # raise it, with rewrite and exposure, when the same documents give other texts or windows

SPLITS = ("train", "validation")
BATCH = 512  # documents tokenised at once, on all cores


def dataset(inputs: BuildInputs) -> Rows:
    """Returns the rows of `build` in both splits."""
    return {split: build(inputs.documents, inputs.vocabulary, split, inputs.options.seq_len) for split in SPLITS}


def text_of(record: Record) -> str:
    """Returns the document as it is pretrained on: id, title, text; the text alone where it has no title."""
    if not record.title:
        return record.text
    head = record.title if record.id in record.title or "/" in record.id else f"{record.id}: {record.title}"
    return f"{head}\n\n{record.text}"


def is_in(split: str, index: int) -> bool:
    """Returns whether document number `index` belongs to "train" or "validation": one in fifty is in the latter."""
    return (index % 50 == 49) == (split == "validation")


def build(documents: Documents, tokenizer: Tokenizer, split: str, window: int) -> Iterator[dict]:
    """Yields rows of `window + 1` tokens of the documents that are in `split`; see `windows`."""
    texts = (text_of(record) for index, record in enumerate(documents()) if is_in(split, index))
    return windows(texts, tokenizer, split, window, source="documents")


def windows(texts: Iterable[str], tokenizer: Tokenizer, split: str, window: int, source: str) -> Iterator[dict]:
    """Yields rows of `window + 1` tokens; each begins with the last token of the row before, so each is a target once.

    Texts are joined as BOS … EOS. The tail that fills no window is dropped unless it is all there is. At most `BATCH`
    texts are in memory.
    """
    buffer: list[int] = []
    rows = 0
    for tokens in tokens_of(texts, tokenizer):
        buffer += tokens
        start = 0
        while len(buffer) - start > window:
            yield row(split, rows, buffer[start : start + window + 1], source)
            rows += 1
            start += window
        buffer = buffer[start:]
    if rows == 0 and len(buffer) > 1:
        yield row(split, rows, buffer, source)


def tokens_of(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Yields the ids of the texts, each as BOS … EOS, of `BATCH` texts at a time."""
    remaining = iter(texts)
    while batch := list(itertools.islice(remaining, BATCH)):
        yield [id for ids in tokenizer.encode_batch(batch) for id in (tokenizer.bos_id, *ids, tokenizer.eos_id)]


def row(split: str, number: int, tokens: Sequence[int], source: str) -> dict:
    """Returns row `number` of a split."""
    ids = np.asarray(tokens, np.int32)
    named = {"id": f"{split}-{number:08d}", "source": source, "letter": ""}
    return named | {"tokens": ids, "mask": np.arange(len(ids)) > 0}


def pieces(tokens: np.ndarray, start: int, window: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the rows of `windows` that hold some of the tokens [n] int32, and which; `start` is before them."""
    for number in range(max(0, (start - 1) // window), (start + len(tokens) - 1) // window + 1):
        first = number * window - start  # of the row; the first token of the next row is its last
        yield number, tokens[max(0, first) : first + window + 1]
