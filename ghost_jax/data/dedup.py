"""Duplicates among documents: the same id, the same text, or nearly the same text. The first one is kept.

Each input file is fingerprinted alone, on any machine; `judge` compares the fingerprints of all files in their order.
Near duplicates are found by MinHash over runs of words (Broder 1997), 16 bits a value: more values in the same memory
estimate better (b-bit minwise hashing, Li and König 2010).

The constants come from reading pairs of real documents. Vulnerability descriptions are written from templates: texts
of two products may differ in one word and must both stay, while the same words under another number or another
publisher's heading must go. Long runs tell them apart, since a word in the middle is in `RUN` of them. The end is
padded so that a version there weighs as much as any other word; the start less, as a heading is there as often as a
product.
"""

import hashlib
import itertools
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import rensa

from ghost_jax.data.storage.schema import Record

RUN = 7  # words; also the length of the shortest text that can be a near duplicate
NEAR = 0.9  # estimated Jaccard similarity of two sets of runs at which the later text is dropped
SEED = 1
# Texts are compared where one band agrees: at a similarity of 0.9 that misses one pair in 1,000, at 0.7 it saves three
# comparisons in four. A band is three 64-bit words.
BANDS, BAND = 21, 12
VALUES = BANDS * BAND
FINGERPRINT = np.dtype([("id", np.uint64), ("text", np.uint64), ("signature", np.uint16, (VALUES,))])
REASONS = ("id", "text", "near")
MOST = 500  # kept texts of a band that one is compared with, the last ones; 224,000 real documents have at most 125

_BATCH = 128  # texts whose runs are in memory at a time; from 256 on rensa starts threads, and one file has one core
_START, _END = [b""] * 2, [b""] * (RUN - 1)
# The numbers at the head of an advisory, such as "pysec-2021-100 (cve-2021-32677, ghsa-8h2j-cgx8-6xv7) "
_NUMBERS = re.compile(r"\A(?:\(?(?:[a-z]+-\d{4}-\d+|ghsa(?:-[a-z0-9]{4}){3})[,)]* )+")
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)  # any odd numbers


def normalised(text: str) -> str:
    """Returns the words of a text in lower case with one space between them. Equal results are equal texts."""
    return " ".join(text.lower().split())


def signatures(texts: Sequence[str]) -> np.ndarray:
    """Returns the MinHash signatures of `normalised` texts, [N, VALUES] uint16; zeros for one of under `RUN` words.

    They are the same in every process and on every machine. The share of equal values estimates the similarity of two
    texts, with a standard error of 0.02 at 0.9.
    """
    result = np.zeros((len(texts), VALUES), np.uint16)
    runs = {row: found for row, text in enumerate(texts) if (found := _runs(text))}
    if runs:
        digests = rensa.RMinHash.digest_matrix_from_token_byte_sets(list(runs.values()), VALUES, SEED)
        result[list(runs)] = np.array(digests.to_rows(), np.uint32)  # the lower 16 bits
    return result


def _runs(text: str) -> list[bytes]:
    """Returns the runs of words of a text, or none where it is too short for a near duplicate."""
    words = _NUMBERS.sub("", text).encode("utf-8", "surrogatepass").split(b" ")
    if len(words) < RUN:
        return []
    padded = _START + words + _END
    return [b" ".join(padded[at : at + RUN]) for at in range(len(padded) - RUN + 1)]


def fingerprints(records: Iterable[Record]) -> np.ndarray:
    """Returns what `judge` compares, [N] of `FINGERPRINT`, 520 bytes a record. Reads the records once and in order."""
    records = iter(records)
    blocks = [np.zeros(0, FINGERPRINT)]
    while batch := list(itertools.islice(records, _BATCH)):
        texts = [normalised(record.text) for record in batch]
        block = np.zeros(len(batch), FINGERPRINT)
        block["id"] = [_digest(f"{record.source}\0{record.id}") for record in batch]
        block["text"] = [_digest(text) for text in texts]
        block["signature"] = signatures(texts)
        blocks.append(block)
    return np.concatenate(blocks)


def _digest(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def judge(rows: np.ndarray) -> list[str]:
    """Returns for each row why it is dropped, one of `REASONS`, or "" where it is kept.

    A row is compared only with kept rows before it, the last `MOST` in each band. One that has no key with another in
    common (`keys`) is kept and drops no other, so the reasons of the others are the same without it.

    Args:
      rows: [N] of `FINGERPRINT`, all parts in their order.
    """
    buckets = _buckets(rows["signature"])
    ids: set[int] = set()
    texts: set[int] = set()
    kept: dict[int, deque[int]] = {}  # bucket -> the last kept rows in it
    reasons = []
    for row, (id, text) in enumerate(zip(rows["id"].tolist(), rows["text"].tolist(), strict=True)):
        own = buckets[row][buckets[row] >= 0].tolist()
        if id in ids:
            reasons.append("id")
        elif text in texts:
            reasons.append("text")
        elif _is_near(rows["signature"], row, {other for bucket in own for other in kept.get(bucket, ())}):
            reasons.append("near")
        else:
            reasons.append("")
            ids.add(id)
            texts.add(text)
            for bucket in own:
                kept.setdefault(bucket, deque(maxlen=MOST)).append(row)
    return reasons


def keys(rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the numbers of the rows that have a key, and their keys [M] uint64: of the id, the text and each band."""
    numbers = np.arange(len(rows))
    yield numbers, rows["id"]
    yield numbers, rows["text"]
    yield from _band_keys(rows["signature"])


def repeated(keys: np.ndarray) -> np.ndarray:
    """Returns which keys [M] come more than once."""
    _, numbers, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return counts[numbers] > 1


def _is_near(signature: np.ndarray, row: int, others: set[int]) -> bool:
    return bool(others) and (signature[list(others)] == signature[row]).mean(axis=1).max() >= NEAR


def _buckets(signature: np.ndarray) -> np.ndarray:
    """Returns the bucket that each row shares with other rows in each band, -1 for none: [N, BANDS] int32."""
    result = np.full((len(signature), BANDS), -1, np.int32)
    for band, (signed, keys) in enumerate(_band_keys(signature)):
        _, numbers, rows = np.unique(keys, return_inverse=True, return_counts=True)
        shared = rows[numbers] > 1
        result[signed[shared], band] = band * len(signature) + numbers[shared]
    return result


def _band_keys(signature: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields for each band the numbers of the rows that have a signature, and their keys."""
    signed = np.flatnonzero(signature.any(axis=1))
    for band in range(BANDS):
        values = np.ascontiguousarray(signature[signed, band * BAND : (band + 1) * BAND])
        # A collision of keys costs a comparison and decides nothing.
        yield signed, (values.view(np.uint64) * _MIX).sum(axis=1, dtype=np.uint64)
