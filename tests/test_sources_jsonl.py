"""Corpora as JSON lines: what a line becomes, and how a faulty one is named."""

import json
import tracemalloc

import pytest

from ghost_jax.core.errors import UserError
from ghost_jax.data.sources import jsonl
from ghost_jax.data.storage import files
from ghost_jax.data.storage.schema import Record
from tests.test_sources import COMPRESSIONS, write


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_jsonl_reads(tmp_path, suffix):
    plain = {"id": "a", "source": "s", "text": "Text é."}
    flaw = plain | {"id": "b", "title": "CVE-2024-1", "url": "u", "license": "l"}
    flaw["text"] = "CVE-2024-1\nProduct: A. B. Weakness: CWE-416: Use After Free.\nIt frees. Twice.\nEs gibt frei."
    lines = "\n".join(json.dumps(document, ensure_ascii=False) for document in (plain, flaw))
    first, second = jsonl.read(write(tmp_path / f"c.jsonl{suffix}", f"{lines}\n\n".encode()))
    assert first == Record(id="a", source="s", title="", text="Text é.", url="", license="")
    (fact,) = second.facts
    assert (fact.subject, fact.relation, fact.object) == ("It frees. Twice.", "weakness_class", "Use After Free")
    assert fact.evidence == "CVE-2024-1 is classified as CWE-416 Use After Free."


@pytest.mark.parametrize(
    "weakness", ["CWE-416.", "CWE-416 .", "Use After Free.", "CWE-121: Overflow; CWE-400: Consumption."]
)
def test_an_unnamed_or_ambiguous_weakness_is_no_fact(tmp_path, weakness):
    document = {"id": "a", "source": "s", "text": f"CVE\nProduct: A. Weakness: {weakness}\nIt fails."}
    (record,) = jsonl.read(write(tmp_path / "c.jsonl", json.dumps(document).encode()))
    assert record.facts == ()


def test_null_in_an_optional_field_is_absence(tmp_path):
    document = {"id": "a", "source": "s", "text": "Weakness: CWE-416 Use After Free.\nIt frees."}
    lines = (json.dumps(each) for each in (document, document | {"title": None, "url": None, "license": None}))
    first, second = jsonl.read(write(tmp_path / "c.jsonl", "\n".join(lines).encode()))
    assert first == second
    assert [fact.evidence for fact in first.facts] == ["a is classified as CWE-416 Use After Free."]


@pytest.mark.parametrize("text", ["CVE-2024-1\n\n** REJECT ** Do not use.", "Rejected reason: a duplicate."])
def test_a_rejected_vulnerability_is_left_out(tmp_path, text):
    kept = {"id": "a", "source": "s", "text": "The log said ** REJECT ** and nothing else."}
    lines = (json.dumps(each) for each in (kept | {"id": "b", "text": text}, kept))
    assert [record.id for record in jsonl.read(write(tmp_path / "c.jsonl", "\n".join(lines).encode()))] == ["a"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": "a" 7}', "line 3, column 12: not valid JSON"),
        (b'{"id": "\xc3"}', "line 3, byte 9: not valid UTF-8"),
        (b"[1]", "line 3: a list instead of an object"),
        (b'{"id": "a", "source": "s"}', 'line 3: "text" is missing or empty'),
        (b'{"id": 7, "source": "s", "text": "t"}', 'line 3: "id" must be a string'),
        (b'{"id": "a", "source": "s", "text": null}', 'line 3: "text" is missing or empty'),
        (b'{"id": "a", "source": "s", "text": "t", "url": 0}', 'line 3: "url" must be a string'),
        (b'{"id": "a", "source": "s", "text": "\\ud800"}', "line 3: .*half of a surrogate pair"),
        (b'{"id": ' + b"9" * 5000 + b"}", "from line 3: JSON beyond what can be read"),
        (b'"' + b"x" * files.MAX_LINE, "line 3: longer than 32 MiB"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "line",
)
def test_a_faulty_line_is_named(tmp_path, line, message):
    good = b'{"id": "a", "source": "s", "text": "t"}\n'
    path = write(tmp_path / "c.jsonl", good * 2 + line + b"\n" + good)
    with pytest.raises(UserError, match=rf"c\.jsonl, {message}"):
        list(jsonl.read(path))


def test_a_line_of_100_mb_is_named_and_never_held_whole(tmp_path):
    path = write(tmp_path / "c.jsonl", b'{"id": "a", "source": "s", "text": "t"}\n{"id": "')
    with path.open("r+b") as file:
        file.truncate(100 << 20)  # zero bytes to the end, which take no room on the disk
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"c\.jsonl, line 2: longer than 32 MiB"):
            list(jsonl.read(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * files.MAX_LINE  # the line's pieces, and the line that they are joined to
