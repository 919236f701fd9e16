"""data/items/formats: published files row for row; a fault has its file and place, nothing is dropped silently."""

import csv
import gc
import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings

from ghost_jax.core.errors import UserError
from ghost_jax.data.items.formats import FORMATS, read_items
from ghost_jax.data.items.items import LETTERS, Item
from tests.test_fuzz import damaged

COLUMNS = FORMATS[0].parts  # of CTIBench
HEADER = [*COLUMNS[:-1], "Prompt", "GT"]
ROW = ["https://x.org/1", "Which?", "one", "two", "three", "four", "Pick: Which?", "B"]
SECQA_HEADER = ["Question", "A", "B", "C", "D", "Answer", "Explanation"]
SECQA = ["Which?", "one", "two", "three", "four", "B", "Because."]
SECQA_RECORD = dict(zip(SECQA_HEADER, SECQA, strict=True))
MMLU = ["Which?", "one", "two", "three", "four", "B"]
CYBERMETRIC = {"question": "Which?", "answers": {"A": "one", "B": "two", "C": "three", "D": "four"}, "solution": "B"}
CHOICES = ["A: one", "B: two", "C: three", "D: four"]
SECEVAL = {"id": "q1", "source": "a book", "question": "Which?", "choices": CHOICES, "answer": "B"}
RECORD = {"id": "q1", "question": "Which?", "options": {"A": "one", "B": "two"}, "answer": "B", "url": "https://x.org"}
PLAIN = {key: RECORD[key] for key in ("question", "options", "answer")}
FOUR = ("one", "two", "three", "four")


def changed_row(row: list[str], **cells: str) -> list[str]:
    """Returns a row with other cells, by the text that they replace."""
    return [cells.get(cell, cell) for cell in row]


def text_of(suffix: str, rows: object) -> str:
    """Returns a file's text: rows of cells, JSON values a line, or one JSON value; a text as it is."""
    if isinstance(rows, str):
        return rows
    if suffix in (".tsv", ".csv"):
        return "".join({".tsv": "\t", ".csv": ","}[suffix].join(row) + "\r\n" for row in rows)
    if suffix == ".jsonl":
        return "".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in rows)
    return json.dumps(rows, indent=2)


def written(folder: Path, suffix: str, rows: object) -> Path:
    path = folder / f"mine{suffix}"
    path.write_bytes(text_of(suffix, rows).encode())
    return path


def refusal(path, *parts: str) -> None:
    """Checks that a file is refused with one paragraph that holds its name and every one of `parts`."""
    with pytest.raises(UserError) as caught:
        read_items(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (path.name, *parts):
        assert part in message


def test_ctibench_is_read_complete_and_an_edited_copy_has_another_name(ghost_data, tmp_path):
    published = ghost_data / "ctibench" / "cti-mcq.tsv"
    items = read_items(published)
    assert (items.name, len(items), items.left_out) == ("CTIBench MCQ", 2500, ())
    assert Counter(LETTERS[item.answer] for item in items) == {"A": 374, "B": 813, "C": 928, "D": 385}
    assert all(item.url and len(item.options) == 4 for item in items)
    assert (items.items[0].id, items.items[-1].id) == ("line 2", "line 2501")
    quirks = [quirk.partition(":")[0] for quirk in items.quirks]
    assert quirks == [f"line {number}" for number in (58, 110, 832, 1032, 1311, 1409, 2237)]

    copy = tmp_path / "cti-mcq.tsv"
    with copy.open("w", encoding="utf-8", newline="") as file:
        lines = published.read_text(encoding="utf-8").splitlines()
        csv.writer(file, delimiter="\t").writerows(line.split("\t") for line in lines)
    again = read_items(copy)
    assert again.items == items.items, "exported by a spreadsheet"
    assert (again.name, again.sha256) == ("cti-mcq.tsv", hashlib.sha256(copy.read_bytes()).hexdigest())


def item(name: str, answer: int = 1, options=FOUR, url: str = "") -> Item:
    return Item(name, "Which?", options, answer, url)


YES = CYBERMETRIC | {"answers": {"B": "no", "A": "yes"}, "solution": "A"}
THREE = PLAIN | {"id": None, "url": None, "options": {"A": "1", "B": "2", "C": "3"}}
READ_AS = [
    (".tsv", [HEADER, ROW, [""]], [item("line 2", url="https://x.org/1")]),
    (".csv", [SECQA_HEADER, SECQA], [item("line 2")]),
    (".csv", [["", *SECQA_HEADER], ["0", *SECQA], ["0", *SECQA]], [item("line 2"), item("line 3")]),
    (".jsonl", [SECQA_RECORD, SECQA_RECORD | {"Answer": "D"}], [item("line 1"), item("line 2", 3)]),
    (".csv", [MMLU, [*MMLU[:-1], "A"]], [item("line 1"), item("line 2", 0)]),
    (".json", {"questions": [CYBERMETRIC, YES]}, [item("item 1"), item("item 2", 0, ("yes", "no"))]),
    (".json", [SECEVAL], [item("q1")]),
    (".jsonl", [RECORD, THREE], [item("q1", 1, FOUR[:2], "https://x.org"), item("line 2", 1, ("1", "2", "3"))]),
]
each_format = pytest.mark.parametrize(("suffix", "rows"), [(suffix, rows) for suffix, rows, _ in READ_AS])


@pytest.mark.parametrize(("suffix", "rows", "items"), READ_AS)
def test_each_format(tmp_path, suffix, rows, items):
    path = written(tmp_path, suffix, rows)
    read = read_items(path)
    assert list(read) == items
    assert (read.quirks, read.left_out, read.name) == ((), (), path.name)


def test_blemishes_are_kept_and_named_by_their_place(tmp_path):
    other = [["three", ""], ["B", " b "], ["four", "one"]]
    items = read_items(written(tmp_path, ".tsv", [HEADER, ROW, *(changed_row(ROW, **dict([pair])) for pair in other)]))
    assert [item.answer for item in items] == [1, 1, 1, 1]
    assert [quirk.partition(":")[0] for quirk in items.quirks] == ["line 3", "line 4", "line 5"]
    ten = {"question": "Ten?", "options": dict.fromkeys(LETTERS, "") | {"A": "first", "J": "last"}, "answer": "j"}
    items = read_items(written(tmp_path, ".jsonl", [ten | {"id": 7}]))
    assert (items.items[0].id, items.items[0].answer, len(items.items[0].options)) == ("7", 9, 10)
    assert len(items.quirks) == 8 + 1


def test_seceval_leaves_out_and_names_what_is_not_answered_with_one_letter(tmp_path):
    answers = ["B", "ABD", "AA", "", "d"]
    rows = [SECEVAL | {"id": f"q{number}", "answer": answer} for number, answer in enumerate(answers, 1)]
    items = read_items(written(tmp_path, ".json", rows))
    assert [(item.id, item.answer) for item in items] == [("q1", 1), ("q5", 3)]
    assert [left.partition(":")[0] for left in items.left_out] == ["item 2", "item 3", "item 4"]
    assert all(part in items.left_out[0] for part in ('"q2"', '"ABD"'))


QUOTED = ['Is "a", b\n\nor\tc?', 'one, "1"', "two", "three;", '"four"', "B"]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(("name", "separator"), [("a.tsv", "\t"), ("a.csv", ","), ("a.csv", ";"), ("a.csv", "\t")])
def test_a_spreadsheets_export_is_read(tmp_path, name, separator, quoting, end):
    header, row = (COLUMNS, ["", *QUOTED]) if name == "a.tsv" else (SECQA_HEADER[:-1], QUOTED)
    path = tmp_path / name
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, delimiter=separator, quoting=quoting, lineterminator=end)
        rows.writerows([header, row, row])
    first, second = read_items(path)
    assert (first.question, first.options, first.answer) == (QUOTED[0], tuple(QUOTED[1:5]), 1)
    assert (first.id, second.id) == ("line 2", "line 5"), "the place of a row is its first line"


@pytest.mark.parametrize(
    "cells",
    [
        *(['"Which', 'tw"o\u2028\x85', "three"], ['"Which"?', "two", "three"], ['"Which', "two", 'three"']),
        *(['"Which ""one', "two", "three"], ['5" disk', '"two"', "three"]),
    ],
)
def test_quotation_marks_that_no_spreadsheet_writes_are_characters(tmp_path, cells):
    row = [ROW[0], cells[0], ROW[2], *cells[1:], *ROW[5:]]
    for item in read_items(written(tmp_path, ".tsv", [HEADER, row, row])):
        assert (item.question, item.options[1:3]) == (cells[0], tuple(cells[1:]))


KNOWN = [form.shape for form in FORMATS]
# suffix, rows, parts of the message
REFUSED = [
    (".parquet", "PAR1", *KNOWN),
    (".tsv", "name\tvalue\n1\t2\n", *KNOWN),
    *((".tsv", [[name for name in HEADER if name != gone], ROW], "line 1", f'"{gone}"') for gone in COLUMNS),
    (".tsv", [HEADER, ROW, ROW[:-1]], "line 3", "8", "7"),
    (".tsv", [HEADER, ROW, [*ROW, "x"]], "line 3", "8", "9"),
    (".tsv", [HEADER, ROW, changed_row(ROW, **{"Which?": " "})], "line 3", "question"),
    *((".tsv", [HEADER, [*ROW[:-1], gold]], "line 2", f'"{gold}"', "A, B, C, D") for gold in ("E", "AB", "")),
    (".tsv", [HEADER, changed_row(ROW, one="", two=" ", three="")], "line 2", "options"),
    (".tsv", [HEADER, ['"u', *ROW[1:]], [*ROW[:-1], 'B"']], "line 3", "gold"),  # a quotation mark joins no rows
    (".csv", [MMLU, ['"a\nb"', *MMLU[1:-1], "E"]], "line 2", '"E"'),
    (".csv", 'Which?,a,b,c,d,B\n"Which?,a,b,c,d,B\nWhich?,a,b,c,d,B', "line 2"),
    (".csv", 'Which?,a,b,c,d,B\n"Which?"x,a,b,c,d,B', "line 2"),
    (".csv", "Which?,a,b,c,d,B\nWh\rich?,a,b,c,d,B", "line 2"),
    (".jsonl", '{"text": "…"}\n', *KNOWN),
    (".jsonl", "\n\n"),
    *((".jsonl", [RECORD, text], "line 2") for text in ('{"id": ', "[" * 100_000, "9" * 10_000)),
    (".jsonl", [RECORD, '{"question": "Which?", "options": {"A": "1", "B": "2", "B": "3"}, "answer": "B"}'], "line 2"),
    (".jsonl", [RECORD, {"question": "Which?", "answer": "A"}], "line 2", '"options"', "question, answer"),
    *((".jsonl", [RECORD | {"options": dict.fromkeys(of, "x")}], "line 1") for of in ("AC", "A", "ABCDEFGHIJK")),
    (".jsonl", [PLAIN, RECORD, RECORD], "line 3", '"q1"', "line 2"),
    (".json", {"text": "…"}, *KNOWN),
    (".json", {"questions": [CYBERMETRIC, {"question": "Which?"}]}, "item 2", '"answers"'),
    (".json", {"questions": [CYBERMETRIC | {"answers": {"A": "one", "B": None}}]}, "item 1", '"answers"'),
    (".json", [SECEVAL | {"answer": "AB"}, SECEVAL], "item 2", '"q1"', "item 1"),
    (".json", [SECEVAL | {"answer": "AE"}], "item 1", '"AE"'),
    (".json", [SECEVAL | {"answer": "AB"}], '"AB"'),
    (".json", [SECEVAL | {"choices": ["one", "two"]}], "item 1", '"choices"'),
]


@pytest.fixture
def without_collection():
    """No finalizer runs where the nesting of a file has used up the stack; it would fail there."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(("suffix", "rows", "parts"), [(suffix, rows, parts) for suffix, rows, *parts in REFUSED])
def test_a_file_that_cannot_be_scored_is_refused_with_its_place(without_collection, tmp_path, suffix, rows, parts):
    refusal(written(tmp_path, suffix, rows), *parts)


@pytest.mark.parametrize("name", ["absent", "absent.csv"])
def test_a_file_that_is_not_there_has_no_format_and_is_not_to_be_deleted(tmp_path, name):
    with pytest.raises(UserError, match=name) as caught:
        read_items(tmp_path / name)
    assert not re.search("SecQA|delete", str(caught.value))


@each_format
def test_bytes_that_are_no_text_are_refused_by_their_line(tmp_path, suffix, rows):
    path, data = tmp_path / f"a{suffix}", text_of(suffix, rows).encode()
    line = 1 + data[: data.index(b"Which?")].count(b"\n")
    for byte, named in ((b"\0", "NUL"), (b"\xff", "UTF-8")):
        path.write_bytes(data.replace(b"Which?", byte, 1))
        refusal(path, f"line {line}", named)


@each_format
def test_any_file_is_read_or_refused_in_one_paragraph(tmp_path, suffix, rows):
    path = tmp_path / f"any{suffix}"

    @settings(max_examples=50)
    @given(damaged(suffix, text_of(suffix, rows).encode()))
    def read(data):
        path.write_bytes(data)
        try:
            result = read_items(path)
        except UserError as fault:
            message = str(fault)
            assert "\n" not in message
            assert len(message) < len(str(path)) + 2_000
        else:
            assert len({item.id for item in result}) == len(result) > 0
            assert all(2 <= len(item.options) <= 10 and 0 <= item.answer < len(item.options) for item in result)
            assert all(kept.startswith(("line ", "item ")) and "\n" not in kept for kept in result.quirks)

    read()
