"""Plain language modelling: documents laid end to end and cut into windows of the context's length."""

from collections.abc import Iterator

import numpy as np

from ghost_jax.data.builders import Documents
from ghost_jax.data.records import Record
from ghost_jax.text.tokenizer import BOS, EOS, Tokenizer

BATCH = 512  # documents tokenised at once, on all cores


def text_of(record: Record) -> str:
    """Returns the document as it is pretrained on: id, title, text."""
    head = record.title if record.id in record.title or "/" in record.id else f"{record.id}: {record.title}"
    return f"{head}\n\n{record.text}"


def build(documents: Documents, tokenizer: Tokenizer, split: str, window: int) -> Iterator[dict]:
    """Yields rows of `window + 1` tokens; a row starts with the last token of the row before, so each is a target once.

    One document in fifty is in the validation split. Documents are joined as BOS … EOS; the tail that fills no window
    is dropped unless it is all there is.
    """
    bos, eos = tokenizer.id(BOS), tokenizer.id(EOS)
    buffer: list[int] = []
    rows = 0

    def row(tokens: list[int]) -> dict:
        ids = np.asarray(tokens, np.int32)
        return {
            "id": f"{split}-{rows:08d}",
            "source": "documents",
            "letter": "",
            "tokens": ids,
            "mask": np.arange(len(ids)) > 0,
        }

    def flush(texts: list[str]) -> Iterator[dict]:
        nonlocal buffer, rows
        for ids in tokenizer.encode_batch(texts):
            buffer += [bos, *ids, eos]
        start = 0
        while len(buffer) - start > window:
            yield row(buffer[start : start + window + 1])
            rows += 1
            start += window
        buffer = buffer[start:]

    texts: list[str] = []
    for index, record in enumerate(documents()):
        if (index % 50 == 49) != (split == "validation"):
            continue
        texts.append(text_of(record))
        if len(texts) == BATCH:
            yield from flush(texts)
            texts = []
    yield from flush(texts)
    if rows == 0 and len(buffer) > 1:
        yield row(buffer)
