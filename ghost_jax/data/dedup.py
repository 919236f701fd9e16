"""Duplicates among documents: the same id, the same text, or nearly the same text; the first to come is kept.

Each input file is fingerprinted on its own, on any machine; `judge` then compares the fingerprints of all files, in
the order of precedence, and never sees a text. Near duplicates are found by MinHash over runs of words (Broder 1997).
Of each value 16 bits are kept: more values in the same memory estimate better (Li and König 2010, b-bit minwise
hashing).

The numbers below were chosen by reading pairs of real documents. Vulnerability descriptions are written from
templates, so the texts of two products may differ in one word, and those must both stay; the same words published
under another number, or by another publisher under a heading of its own, should go. Long runs tell them apart: a
word in the middle is in `RUN` of them. The end is padded, because a version often stands there and must weigh as much
as any other word; the start is padded less, because a heading stands there as often as a product.
"""

import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence

import numpy as np
import rensa

from ghost_jax.data.storage.schema import Record

VERSION = 1  # raise it when other documents are dropped, or a fingerprint holds something else
TOOLS = ("rensa",)

RUN = 7  # words; also the shortest text that can be a near duplicate
NEAR = 0.9  # estimated Jaccard similarity of two sets of runs, from which on the later text is dropped
SEED = 1
# Texts are compared where one whole band agrees: at a similarity of 0.9 that misses one pair in 1,000, at 0.7 it
# spares three comparisons in four. A band is three 64-bit words, which makes its key cheap.
BANDS, BAND = 21, 12
VALUES = BANDS * BAND
FINGERPRINT = np.dtype([("id", np.uint64), ("text", np.uint64), ("signature", np.uint16, (VALUES,))])
REASONS = ("id", "text", "near")

_BATCH = 128  # texts whose runs are in memory at a time; from 256 on rensa starts threads, and one file has one core
_START, _END = [b""] * 2, [b""] * (RUN - 1)
# The numbers at the head of an advisory, "cve-2021-32677 " or "pysec-2021-100 (cve-2021-32677, ghsa-8h2j-cgx8-6xv7) ",
# tell nothing of what its text says.
_NUMBERS = re.compile(r"\A(?:\(?(?:[a-z]+-\d{4}-\d+|ghsa(?:-[a-z0-9]{4}){3})[,)]* )+")
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)  # odd; no meaning beyond that


def normalised(text: str) -> str:
    """Returns the words of a text in lower case with one space between them. Equal results are equal texts."""
    return " ".join(text.lower().split())


def signatures(texts: Sequence[str]) -> np.ndarray:
    """Returns the MinHash signatures of `normalised` texts, [N, VALUES] uint16; zeros for one of under `RUN` words.

    They depend on the text alone, and are the same in every process and on every machine. The share of values in
    which two signatures agree estimates the texts' similarity, with a standard error of 0.02 at 0.9.
    """
    result = np.zeros((len(texts), VALUES), np.uint16)
    runs = [_runs(text) for text in texts]
    long = [row for row, own in enumerate(runs) if own]
    if long:
        digests = rensa.RMinHash.digest_matrix_from_token_byte_sets([runs[row] for row in long], VALUES, SEED)
        result[long] = np.array(digests.to_rows(), np.uint32)  # the lower 16 bits
    return result


def _runs(text: str) -> list[bytes]:
    """Returns the runs of words of a text, or none where it is too short for a near duplicate."""
    words = _NUMBERS.sub("", text).encode("utf-8", "surrogatepass").split(b" ")
    if len(words) < RUN:
        return []
    padded = _START + words + _END
    return [b" ".join(padded[at : at + RUN]) for at in range(len(padded) - RUN + 1)]


def fingerprints(records: Iterable[Record]) -> np.ndarray:
    """Returns what `judge` needs of each record, [N] of `FINGERPRINT`, 520 bytes a record; np.save keeps it.

    The records are read once and in order, and not held: a generator may write them on their way.
    """
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

    Args:
      rows: [N] of `FINGERPRINT`, all parts one after another in their order of precedence. A row is compared only
        with kept rows before it, so judging the kept rows again drops none.
    """
    buckets = _buckets(rows["signature"])
    shares = (buckets >= 0).any(axis=1)  # a minority: nothing is near the other rows
    ids: set[int] = set()
    texts: set[int] = set()
    kept: dict[int, list[int]] = {}  # bucket -> the kept rows in it
    reasons = []
    for row, (id, text) in enumerate(zip(rows["id"].tolist(), rows["text"].tolist(), strict=True)):
        own = buckets[row][buckets[row] >= 0].tolist() if shares[row] else []
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
                kept.setdefault(bucket, []).append(row)
    return reasons


def _is_near(signature: np.ndarray, row: int, others: set[int]) -> bool:
    return bool(others) and (signature[list(others)] == signature[row]).mean(axis=1).max() >= NEAR


def _buckets(signature: np.ndarray) -> np.ndarray:
    """Returns the number of what each row shares with other rows in each band, -1 for nothing: [N, BANDS] int32."""
    result = np.full((len(signature), BANDS), -1, np.int32)
    signed = np.flatnonzero(signature.any(axis=1))
    for band in range(BANDS):
        values = np.ascontiguousarray(signature[signed, band * BAND : (band + 1) * BAND])
        # Rows of other values may get the same key, which costs a comparison and decides nothing.
        keys = (values.view(np.uint64) * _MIX).sum(axis=1, dtype=np.uint64)
        _, numbers, rows = np.unique(keys, return_inverse=True, return_counts=True)
        shared = rows[numbers] > 1
        result[signed[shared], band] = band * len(signature) + numbers[shared]
    return result


def tally(sources: Iterable[str], reasons: Iterable[str]) -> dict[str, dict[str, int]]:
    """Counts the dropped rows: source -> reason -> rows, for the sources that lost any.

    Args:
      sources, reasons: one a row, the latter as `judge` returns them.
    """
    counts: dict[str, dict[str, int]] = {}
    for source, reason in zip(sources, reasons, strict=True):
        if reason:
            counts.setdefault(source, dict.fromkeys(REASONS, 0))[reason] += 1
    return counts
