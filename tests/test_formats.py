"""data/items/formats: published files row for row; a fault has its file and place, nothing is dropped silently."""

import csv
import gc
import hashlib
import io
import json
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ghost_jax.core.errors import UserError
from ghost_jax.data.items.formats import FORMATS, read_items
from ghost_jax.data.items.items import LETTERS, Item

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
    if suffix == ".tsv":
        return "".join("\t".join(row) + "\r\n" for row in rows)
    if suffix == ".csv":
        text = io.StringIO()
        csv.writer(text).writerows(rows)
        return text.getvalue()
    if suffix == ".jsonl":
        return "".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in rows)
    return json.dumps(rows, indent=2)


@pytest.fixture
def file(tmp_path):
    def write(suffix: str, rows: object):
        path = tmp_path / f"mine{suffix}"
        path.write_bytes(text_of(suffix, rows).encode())
        return path

    return write


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
    assert "option C" in items.quirks[-1]
    assert "gold" in items.quirks[-1]

    copy = tmp_path / "cti-mcq.tsv"
    with copy.open("w", encoding="utf-8", newline="") as exported:
        lines = published.read_text(encoding="utf-8").splitlines()
        csv.writer(exported, delimiter="\t").writerows(line.split("\t") for line in lines)
    again = read_items(copy)
    assert again.items == items.items, "exported by a spreadsheet"
    assert (again.name, again.sha256) == ("cti-mcq.tsv", hashlib.sha256(copy.read_bytes()).hexdigest())


def item(name: str, answer: int = 1, options=FOUR, url: str = "") -> Item:
    return Item(name, "Which?", options, answer, url)


YES = CYBERMETRIC | {"answers": {"B": "no", "A": "yes"}, "solution": "A"}
THREE = PLAIN | {"id": None, "url": None, "options": {"A": "1", "B": "2", "C": "3"}}


@pytest.mark.parametrize(
    ("suffix", "rows", "items"),
    [
        (".tsv", [HEADER, ROW, [""]], [item("line 2", url="https://x.org/1")]),
        (".csv", [SECQA_HEADER, SECQA], [item("line 2")]),
        (".jsonl", [SECQA_RECORD, SECQA_RECORD | {"Answer": "D"}], [item("line 1"), item("line 2", 3)]),
        (".csv", [MMLU, [*MMLU[:-1], "A"]], [item("line 1"), item("line 2", 0)]),
        (".json", {"questions": [CYBERMETRIC, YES]}, [item("item 1"), item("item 2", 0, ("yes", "no"))]),
        (".json", [SECEVAL], [item("q1")]),
        (
            ".jsonl",
            [RECORD, PLAIN],
            [item("q1", 1, ("one", "two"), "https://x.org"), item("line 2", 1, ("one", "two"))],
        ),
        (".jsonl", [THREE], [item("line 1", 1, ("1", "2", "3"))]),
    ],
)
def test_each_format(file, suffix, rows, items):
    path = file(suffix, rows)
    read = read_items(path)
    assert list(read) == items
    assert (read.quirks, read.left_out, read.name) == ((), (), path.name)


def test_blemishes_are_kept_and_named_by_their_place(file):
    other = [["three", ""], ["B", " b "], ["four", "one"]]
    items = read_items(file(".tsv", [HEADER, ROW, *(changed_row(ROW, **dict([pair])) for pair in other)]))
    assert [item.answer for item in items] == [1, 1, 1, 1]
    assert [quirk.partition(":")[0] for quirk in items.quirks] == ["line 3", "line 4", "line 5"]
    ten = {"question": "Ten?", "options": dict.fromkeys(LETTERS, "") | {"A": "first", "J": "last"}, "answer": "j"}
    items = read_items(file(".jsonl", [ten | {"id": 7}]))
    assert (items.items[0].id, items.items[0].answer, len(items.items[0].options)) == ("7", 9, 10)
    assert len(items.quirks) == 8 + 1


def test_seceval_leaves_out_and_names_what_is_not_answered_with_one_letter(file):
    answers = ["B", "ABD", "AA", "", "d"]
    rows = [SECEVAL | {"id": f"q{number}", "answer": answer} for number, answer in enumerate(answers, 1)]
    items = read_items(file(".json", rows))
    assert [(item.id, item.answer) for item in items] == [("q1", 1), ("q5", 3)]
    assert [left.partition(":")[0] for left in items.left_out] == ["item 2", "item 3", "item 4"]
    assert '"q2"' in items.left_out[0]
    assert '"ABD"' in items.left_out[0]


QUOTED = ['Is "a", b\n\nor\tc?', 'one, "1"', "two", "three;", '"four"', "B"]
PUBLISHED = [list(COLUMNS), ["https://x.org/1", *QUOTED]]


def export(path, rows, **dialect):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, **dialect).writerows(rows)
    return path


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("name", "separator", "rows"),
    [
        ("a.tsv", "\t", PUBLISHED),
        *(("a.csv", separator, [SECQA_HEADER[:-1], QUOTED]) for separator in ",;\t"),
        *(("a.csv", separator, [MMLU, QUOTED]) for separator in ",;"),
    ],
)
def test_a_spreadsheets_export_is_read(tmp_path, name, separator, rows, quoting, end):
    path = export(tmp_path / name, [*rows, rows[-1]], delimiter=separator, quoting=quoting, lineterminator=end)
    second, third = (item for item in read_items(path) if item.question != "Which?")
    assert (second.question, second.options, second.answer) == (QUOTED[0], tuple(QUOTED[1:5]), 1)
    assert (second.id, third.id) == ("line 2", "line 5"), "the place of a row is its first line"


@pytest.mark.parametrize(
    "cells",
    [
        ['"Which', 'tw"o\u2028\x85', "three"],
        ['"Which"?', "two", "three"],
        ['"Which', "two", 'three"'],
        ['"Which ""one', "two", "three"],
        ['5" disk', '"two"', "three"],
    ],
)
def test_quotation_marks_that_no_spreadsheet_writes_are_characters(file, cells):
    row = [ROW[0], cells[0], ROW[2], *cells[1:], *ROW[5:]]
    for item in read_items(file(".tsv", [HEADER, row, row])):
        assert (item.question, item.options[1:3]) == (cells[0], tuple(cells[1:]))


REFUSED = {
    ".tsv": [
        ([HEADER], "no questions"),
        *(([[name for name in HEADER if name != gone], ROW], "line 1", f'"{gone}"') for gone in COLUMNS),
        ([HEADER, ROW, ROW[:-1]], "line 3", "8", "7"),
        ([HEADER, ROW, [*ROW, "x"]], "line 3", "8", "9"),
        ([HEADER, ROW, changed_row(ROW, **{"Which?": " "})], "line 3", "question"),
        *(([HEADER, [*ROW[:-1], gold]], "line 2", f'"{gold}"', "A, B, C, D") for gold in ("E", "AB", "")),
        ([HEADER, changed_row(ROW, one="", two=" ", three="")], "line 2", "2 options"),
        ([HEADER, ['"u', *ROW[1:]], [*ROW[:-1], 'B"']], "line 3", "gold"),  # a quotation mark joins no rows
    ],
    ".csv": [
        ([SECQA_HEADER, SECQA, SECQA[:-1]], "line 3", "7", "6"),
        ([SECQA_HEADER[:-2], SECQA[:-2]], "line 1", '"Answer"', "Question, A, B, C, D"),
        ([MMLU, ["a\nb", *MMLU[1:-1], "E"]], "line 2", '"E"'),
        *(
            (f"{','.join(MMLU)}\n{row}\n{','.join(MMLU)}\n", "line 2", "CSV")
            for row in ('"Which?,one,two,three,four,B', '"Which?"x,one,two,three,four,B', "Wh\rich?,a,b,c,d,B")
        ),
    ],
    ".jsonl": [
        ("\n\n",),
        *(([RECORD, text, RECORD], "line 2") for text in ('{"id": "q2", "a": ', "[" * 100_000, '["\\ud800"]')),
        ([PLAIN, '{"question": "Which?", "options": {"A": "1", "B": "2", "B": "3"}, "answer": "B"}'], "repeated"),
        ([RECORD, {"question": "Which?", "answer": "A"}], "line 2", '"options"', "question, answer"),
        ([RECORD | {"options": {"A": "one", "C": "three"}}], "line 1", "from A"),
        ([RECORD | {"options": dict.fromkeys("ABCDEFGHIJK", "x")}], "line 1", "10"),
        ([RECORD | {"options": {"A": "one"}, "answer": "A"}], "line 1", "2 options"),
        ([RECORD | {"answer": "C"}], "line 1", '"C"', "A, B"),
        ([PLAIN, RECORD, RECORD], "line 3", '"q1"', "line 2"),
    ],
    ".json": [
        ({"questions": []}, "no questions"),
        ({"questions": [CYBERMETRIC, {"question": "Which?"}]}, "item 2", '"answers"'),
        ({"questions": [CYBERMETRIC | {"answers": {"A": "one", "B": None}}]}, "item 1", "from A"),
        ([SECEVAL | {"answer": "AB"}, SECEVAL], "item 2", '"q1"', "item 1"),
        ([SECEVAL | {"answer": "AE"}], "item 1", '"AE"'),
        *(
            ([SECEVAL | {"choices": choices}], "item 1", '"choices"')
            for choices in ("A: one", ["one", "two"], ["A: one", "C: 2"], [f"{letter}: x" for letter in "ABCDEFGHIJK"])
        ),
        ([SECEVAL, {"id": "q2", "question": "Which?"}], "item 2", '"choices"', "id, question"),
        ([SECEVAL | {"answer": "AB"}], "no questions", '"AB"'),
        ('{"questions": [\n{"question": "Which?",}]}', "line 2"),
        ('{"questions": [{"question": "Which?", "question": "What?"}]}', "repeated"),
        ('{"questions": ' + "[" * 100_000, "recursion"),
        ('{"questions": [' + "9" * 10_000 + "]}", "digits"),
    ],
}


@pytest.fixture
def without_collection():
    """No finalizer runs where the nesting of a file has used up the stack; it would fail there."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(
    ("suffix", "rows", "parts"), [(suffix, rows, parts) for suffix, cases in REFUSED.items() for rows, *parts in cases]
)
def test_a_file_that_cannot_be_scored_is_refused_with_its_place(without_collection, file, suffix, rows, parts):
    refusal(file(suffix, rows), *parts)


@pytest.mark.parametrize("suffix", REFUSED)
def test_bytes_that_are_no_text_are_refused_by_their_line(tmp_path, suffix):
    path, data = tmp_path / f"a{suffix}", text_of(suffix, GOOD[suffix]).encode()
    line = 1 + data[: data.index(b"Which?")].count(b"\n")
    for byte, named in ((b"\0", "NUL"), (b"\xff", "UTF-8")):
        path.write_bytes(data.replace(b"Which?", byte))
        refusal(path, f"line {line}", named)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "name\tvalue\n1\t2\n"),
        ("a.jsonl", '{"text": "…"}\n'),
        ("a.json", '{"text": "…"}'),
        ("a.parquet", "PAR1"),
    ],
)
def test_an_unknown_format_is_refused_with_the_shape_of_every_known_one(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    refusal(tmp_path / name, *(f"{known.name}: {known.shape}" for known in FORMATS))


def test_an_absent_file_is_refused_by_its_name(tmp_path):
    refusal(tmp_path / "nowhere.tsv")


TEXT = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(
    ["", "A", "b", "AB", "E", "A: x", "B: y", '"']
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=8
)


def changed(record: dict) -> st.SearchStrategy[dict]:
    """A good record with up to two of its values replaced by anything."""
    return st.dictionaries(st.sampled_from(sorted(record)), ANYTHING, max_size=2).map(lambda other: record | other)


def cells(*rows: list[str]) -> st.SearchStrategy[list[list[str]]]:
    """Good rows, and behind them rows of any cells and good ones with a cell replaced."""
    one_replaced = st.tuples(st.integers(0, len(rows[-1]) - 1), TEXT).map(
        lambda at: [*rows[-1][: at[0]], at[1], *rows[-1][at[0] + 1 :]]
    )
    return st.lists(one_replaced | st.lists(TEXT, max_size=8), max_size=3).map(lambda more: [*rows, *more])


FILES = {
    ".tsv": cells(HEADER, ROW),
    ".csv": cells(MMLU) | cells(SECQA_HEADER, SECQA),
    ".jsonl": st.lists(changed(RECORD) | changed(SECQA_RECORD) | ANYTHING.map(json.dumps)),
    ".json": (
        st.lists(changed(CYBERMETRIC) | ANYTHING).map(lambda records: {"questions": records})
        | st.lists(changed(SECEVAL) | ANYTHING)
        | ANYTHING.filter(lambda value: not isinstance(value, str))
    ),
}


GOOD = {".tsv": [HEADER, ROW], ".csv": [MMLU], ".jsonl": [RECORD], ".json": [SECEVAL]}


@pytest.mark.parametrize("suffix", FILES)
def test_any_file_is_read_or_refused_in_one_paragraph(tmp_path, suffix):
    path = tmp_path / f"any{suffix}"

    @settings(max_examples=50)
    @given(FILES[suffix].map(lambda rows: text_of(suffix, rows).encode()) | st.binary(max_size=60))
    @example(text_of(suffix, GOOD[suffix]).encode())
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
