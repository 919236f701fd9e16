"""ghost_jax/data/dedup.py: which documents are dropped and why, and the same ones on every machine."""

import hashlib
import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghost_jax.data import dedup
from ghost_jax.data.sources.data_files import locate, read
from ghost_jax.data.storage.schema import Record

WORDS = [f"{stem}{number}" for stem in ("alpha", "beta", "gamma", "delta") for number in range(500)]
# The hash of the signatures of 300 texts. Parts with others must not be compared: raise `schema.VERSION` then.
SIGNED = "d4f987a332905c35419c8c18c821fa6f122bdcf62c08ca60eb5da15cafb40b65"


def record(id: str, text: str, source: str = "made") -> Record:
    return Record(id, source, "title", text, "", "none")


def judged(*documents: str | Record) -> list[str]:
    records = [record(str(i), each) if isinstance(each, str) else each for i, each in enumerate(documents)]
    return dedup.judge(dedup.fingerprints(records))


def prose(seed: int, words: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def changed(text: str, *places: int) -> str:
    words = text.split()
    for place in places:
        words[place] = f"other{place}"
    return " ".join(words)


seeds = st.integers(0, 2**32)
# Texts that are near, far, short, equal, and ids that come twice
families = st.lists(
    st.builds(
        lambda id, family, words, edits: record(str(id), changed(prose(family, words), *(edits if words > 40 else ()))),
        id=st.integers(0, 30),
        family=st.integers(0, 4),
        words=st.sampled_from([0, 1, 5, 40, 200, 200, 200]),
        edits=st.sets(st.integers(0, 199), max_size=4),
    ),
    max_size=30,
)
restyled = st.sampled_from([str, str.upper, str.title, lambda text: text.replace(" ", " \n\t")])


@given(seeds, st.integers(20, 300), restyled)
def test_equal_texts_are_dropped_whatever_their_case_and_spaces_and_others_are_kept(seed, words, restyle):
    text, other = prose(seed, words), prose(seed + 1, words)
    longer = f"{text} {other[: len(other) // 2]}"
    assert judged(text, other, longer, f"\n{restyle(text)} ") == ["", "", "", "text"]


FIRST, SECOND, BODY, ADVISORY = prose(1, 50), prose(2, 50), prose(1, 30), prose(1, 120)
CHAIN = [prose(3, 200), changed(prose(3, 200), 9), changed(prose(3, 200), 9, 150)]  # each is near the one before
VERSION = "Missing Authorization vulnerability in Reader allows Access. This issue affects Reader from n/a through {}."
SHORT = ["", "word", "CVE-2020-1111 one two three four five six", "CVE-2020-2222 one two three four five six"]


@pytest.mark.parametrize(
    ("texts", "reasons"),
    [
        ([f"CVE-2020-1111 {BODY}", f"CVE-2020-2222\n\n {BODY}"], ["", "near"]),
        ([f"CVE-2020-1111 {BODY}", f"PYSEC-2021-22 (CVE-2020-1111, GHSA-8h2j-cgx8-6xv7)\n {BODY}"], ["", "near"]),
        ([ADVISORY, f"CVE-2020-1111 Product: parser. Weakness: CWE-79. {ADVISORY}"], ["", "near"]),
        ([f"CVE-2020-1111 Mail {BODY}", f"CVE-2020-2222 Reader {BODY}"], ["", ""]),
        ([VERSION.format("3.1.0"), VERSION.format("3.1.3")], ["", ""]),
        ([*SHORT, "  ", "Word"], ["", "", "", "", "text", "text"]),
        ([f"{ADVISORY} \ud800 {BODY}"] * 2, ["", "text"]),
        ([record("1", FIRST), record("1", SECOND), record("1", SECOND, "another")], ["", "id", ""]),
        ([record("1", FIRST), record("1", SECOND), record("2", SECOND), record("2", FIRST)], ["", "id", "", "id"]),
        ([record("1", CHAIN[0]), *[record("2", CHAIN[1])] * 2, record("2", FIRST)], ["", "near", "near", ""]),
        (CHAIN, ["", "near", ""]),
        (CHAIN[1:], ["", "near"]),
        ([], []),
    ],
)
def test_a_document_is_dropped_for_its_first_reason_and_drops_no_other_then(texts, reasons):
    assert judged(*texts) == reasons


@given(seeds, st.integers(20, 60), st.data())
def test_a_template_with_one_other_word_is_kept(seed, words, data):
    text, place = prose(seed, words), data.draw(st.integers(6, words - 1), label="the place of the other word")
    assert judged(f"CVE-2020-1111 {text}", f"CVE-2020-2222 {changed(text, place)}") == ["", ""]


@settings(max_examples=40)
@given(families, st.integers(0, 30))
def test_reasons_depend_on_earlier_rows_alone(rows, cut):
    reasons = judged(*rows)
    parts = [dedup.fingerprints(rows[:cut]), dedup.fingerprints(rows[cut:])]
    assert dedup.judge(np.concatenate(parts)) == reasons
    assert dedup.judge(parts[0]) == reasons[:cut]
    kept = [row for row, reason in zip(rows, reasons, strict=True) if not reason]
    assert judged(*kept) == [""] * len(kept)


def test_signatures_are_those_of_every_process_and_version():
    texts = [prose(seed, seed) for seed in range(300)]
    signed = dedup.signatures(texts)
    assert hashlib.sha256(signed.tobytes()).hexdigest() == SIGNED
    alone = np.concatenate([dedup.signatures([text]) for text in texts])
    np.testing.assert_array_equal(alone, signed)


def test_real_vulnerabilities_are_distinguished_by_their_products_and_not_by_their_numbers(ghost_data):
    path = locate("cve", [ghost_data])[0]
    records = {record.id: record for record in itertools.islice(read("cve", path), 9000)}
    reasons = dict(zip(records, judged(*records.values()), strict=True))
    # The same vulnerability of an archive scanner in 26 products; of a cookie store in four browsers.
    assert not any(reasons.get(f"cve/CVE-2005-{number}") for number in range(3210, 3236))
    assert not any(reasons[f"cve/CVE-2004-{number}"] for number in ("0869", "0870", "0871", "0872"))
    # The same words under the next number.
    assert [reasons[f"cve/CVE-2006-{number}"] for number in ("1529", "1530", "1531")] == ["", "near", "near"]
    assert 1 < sum(reason == "near" for reason in reasons.values()) < 100


def test_texts_that_share_a_band_are_compared_with_the_last_ones_alone(monkeypatch):
    monkeypatch.setattr(dedup, "MOST", 5)
    rows = np.zeros(7, dedup.FINGERPRINT)
    rows["id"] = rows["text"] = np.arange(7)
    rows["signature"] = np.random.default_rng(0).integers(1, 1 << 16, rows["signature"].shape)
    rows["signature"][:, : dedup.BAND] = 7
    rows["signature"][-1] = rows["signature"][0]
    rows["signature"][-1, dedup.BAND :: dedup.BAND] += 1  # of all bands, the first alone is the same
    assert dedup.judge(rows) == [""] * 7
    assert dedup.judge(rows[[0, 2, 3, 4, 5, 6]])[-1] == "near"
