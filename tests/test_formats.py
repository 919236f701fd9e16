"""formats: published files row for row, every fault with its file and place, nothing left out in silence."""

import csv
import hashlib
import io
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.items.formats import FORMATS, raw, read_items
from evals.items.formats.ctibench import COLUMNS
from evals.items.items import LETTERS, Item, Items
from ghost_jax.core.errors import UserError

HEADER = "\t".join((*COLUMNS[:-1], "Prompt", "GT"))
ROW = "https://x.org/1\tWhich?\tone\ttwo\tthree\tfour\tPick: Which?\tB"
SECQA_HEADER = ["Question", "A", "B", "C", "D", "Answer", "Explanation"]
SECQA = ["Which?", "one", "two", "three", "four", "B", "Because."]
MMLU = ["Which?", "one", "two", "three", "four", "B"]
CYBERMETRIC = {
    "question": "Which?",
    "answers": {"A": "one", "B": "two", "C": "three", "D": "four"},
    "solution": "B",
}
SECEVAL = {
    "id": "q1",
    "source": "cs161_textbook",
    "question": "Which?",
    "choices": ["A: one", "B: two", "C: three", "D: four"],
    "answer": "B",
    "topics": ["Cryptography"],
    "keyword": "Which",
}
RECORD = {"id": "q1", "question": "Which?", "options": {"A": "one", "B": "two"}, "answer": "B", "url": "https://x.org"}


@pytest.fixture
def tsv(tmp_path):
    def write(*rows: str, header: str = HEADER, end: str = "\r\n"):
        path = tmp_path / "mine.tsv"
        path.write_bytes(end.join((header, *rows)).encode())
        return path

    return write


@pytest.fixture
def jsonl(tmp_path):
    def write(*records):
        path = tmp_path / "mine.jsonl"
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture
def comma_separated(tmp_path):
    def write(*rows):
        path = tmp_path / "mine.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
        return path

    return write


@pytest.fixture
def whole(tmp_path):
    def write(value):
        path = tmp_path / "mine.json"
        path.write_text(json.dumps(value, indent=2), encoding="utf-8")
        return path

    return write


def refusal(path, *parts: str) -> str:
    """The message with which the file is refused: one paragraph that holds every one of `parts`."""
    with pytest.raises(UserError) as caught:
        read_items(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (path.name, *parts):
        assert part in message
    return message


# ---- The benchmark itself ----


@pytest.fixture(scope="module")
def ctibench(ghost_data):
    return read_items(ghost_data / "ctibench" / "cti-mcq.tsv")


def test_ctibench_is_read_whole(ctibench):
    assert ctibench.name == "CTIBench MCQ"
    assert len(ctibench) == len(ctibench.items) == 2500
    assert Counter(LETTERS[item.answer] for item in ctibench) == {"A": 374, "B": 813, "C": 928, "D": 385}
    assert {len(item.options) for item in ctibench} == {4}
    assert all(item.url for item in ctibench)
    assert ctibench.items[0].id == "line 2"
    assert ctibench.items[-1].id == "line 2501"


def test_ctibench_quirks_are_named_line_by_line(ctibench):
    empty = "is empty; kept as published, the prompt shows it blank"
    assert ctibench.quirks == (
        f"line 58: option D {empty}",
        'line 110: the gold letter is written "b"; read as B',
        "line 832: options A and D are equal; kept as published, only the gold letter counts as right",
        f"line 1032: option D {empty}",
        f"line 1311: option D {empty}",
        f"line 1409: option D {empty}",
        "line 2237: option C is empty, and it is the gold one; kept as published, the prompt shows it blank",
    )


def test_a_copy_that_was_edited_is_not_called_ctibench(ghost_data, tmp_path):
    published = (ghost_data / "ctibench" / "cti-mcq.tsv").read_bytes()
    part = tmp_path / "cti-mcq.tsv"
    part.write_bytes(b"\n".join(published.split(b"\n")[:100]))
    items = read_items(part)
    assert (items.name, len(items)) == ("cti-mcq.tsv", 99)
    assert items.sha256 == hashlib.sha256(part.read_bytes()).hexdigest()


# ---- What is read ----


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tsv_row(tsv, end):
    items = read_items(tsv(ROW, "", header="\ufeff" + HEADER, end=end))
    assert items.items == (Item("line 2", "Which?", ("one", "two", "three", "four"), 1, "https://x.org/1"),)
    assert items.quirks == ()
    assert items.name == "mine.tsv"


def test_tsv_quotes_and_odd_line_separators_are_characters(tsv):
    row = ROW.replace("Which?", '"Which').replace("two", 'tw"o\u2028\x85')
    (item,) = read_items(tsv(row))
    assert item.question == '"Which'
    assert item.options[1] == 'tw"o\u2028\x85'


def test_tsv_blemishes_are_kept_and_named(tsv):
    items = read_items(tsv(ROW, ROW.replace("three", ""), ROW[:-1] + " b ", ROW.replace("four", "one")))
    assert len(items) == 4
    assert [item.answer for item in items] == [1, 1, 1, 1]
    assert [quirk.split(":")[0] for quirk in items.quirks] == ["line 3", "line 4", "line 5"]


def test_jsonl_rows(jsonl):
    ten = {"question": "Ten?", "options": dict.fromkeys(LETTERS, ""), "answer": "j", "id": 7}
    ten["options"] |= {"A": "first", "J": "last"}
    items = read_items(jsonl(RECORD, ten, {key: RECORD[key] for key in ("question", "options", "answer")}))
    assert items.items[0] == Item("q1", "Which?", ("one", "two"), 1, "https://x.org")
    assert (items.items[1].id, items.items[1].answer, len(items.items[1].options)) == ("7", 9, 10)
    assert (items.items[2].id, items.items[2].url) == ("line 3", "")
    assert len(items.quirks) == 8 + 1
    assert items.quirks[-1] == 'line 2: the gold letter is written "j"; read as J'


def test_null_in_an_optional_field_is_absence(jsonl):
    absent = {key: RECORD[key] for key in ("question", "options", "answer")}
    assert read_items(jsonl(absent | {"id": None, "url": None})).items == read_items(jsonl(absent)).items


def test_items_of_different_numbers_of_options_stand_in_one_file(jsonl):
    three = RECORD | {"id": "q2", "options": RECORD["options"] | {"C": "three"}}
    assert [len(item.options) for item in read_items(jsonl(RECORD, three))] == [2, 3]


def asked(path) -> tuple[Item, ...]:
    items = read_items(path)
    assert (items.quirks, items.left_out, items.name) == ((), (), path.name)
    return items.items


FOUR = ("one", "two", "three", "four")


def test_secqa_is_read_as_csv_and_as_json_lines(comma_separated, jsonl):
    record = dict(zip(SECQA_HEADER, SECQA, strict=True))
    assert asked(comma_separated(SECQA_HEADER, SECQA)) == (Item("line 2", "Which?", FOUR, 1),)
    assert asked(jsonl(record, record | {"Answer": "D"})) == (
        Item("line 1", "Which?", FOUR, 1),
        Item("line 2", "Which?", FOUR, 3),
    )


def test_mmlu_has_no_header(comma_separated):
    assert asked(comma_separated(MMLU, [*MMLU[:-1], "A"])) == (
        Item("line 1", "Which?", FOUR, 1),
        Item("line 2", "Which?", FOUR, 0),
    )


def test_a_csv_row_with_line_breaks_stands_at_its_first_line(comma_separated):
    long = ['Is "a\n\nb", here?', "one,\n1", *MMLU[2:]]
    path = comma_separated(MMLU, long, [*MMLU[:-1], "b"])
    items = read_items(path)
    assert [item.id for item in items] == ["line 1", "line 2", "line 6"]
    assert items.items[1].question == 'Is "a\n\nb", here?'
    assert items.items[1].options[0] == "one,\n1"
    assert items.quirks == ('line 6: the gold letter is written "b"; read as B',)


# ---- Dialects of tables ----

QUOTED = ['Is "a", b\n\nor\tc?', 'one, "1"', "two", "three;", '"four"', "B"]
PUBLISHED = [["URL", "Question", *(f"Option {letter}" for letter in "ABCD"), "GT"], ["https://x.org/1", *QUOTED]]


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
        ("a.csv", ",", [SECQA_HEADER[:-1], QUOTED]),
        ("a.csv", ";", [SECQA_HEADER[:-1], QUOTED]),
        ("a.csv", "\t", [SECQA_HEADER[:-1], QUOTED]),
        ("a.csv", ",", [MMLU, QUOTED]),
        ("a.csv", ";", [MMLU, QUOTED]),
    ],
)
def test_what_a_spreadsheet_exports_is_read(tmp_path, name, separator, rows, quoting, end):
    path = export(tmp_path / name, [*rows, rows[-1]], delimiter=separator, quoting=quoting, lineterminator=end)
    second, third = (item for item in read_items(path) if item.question != "Which?")
    assert (second.question, second.options, second.answer) == (QUOTED[0], tuple(QUOTED[1:5]), 1)
    assert (second.id, third.id) == ("line 2", "line 5")  # a row stands at its first line


@pytest.mark.parametrize(
    "cells",
    [
        ['"Which', 'tw"o', "three"],
        ['"Which"?', "two", "three"],
        ['"Which', "two", 'three"'],
        ['"Which ""one', "two", "three"],
        ['5" disk', '"two"', "three"],
    ],
)
def test_quotation_marks_that_no_spreadsheet_writes_are_characters(tsv, cells):
    question, second, third = cells
    row = ROW.replace("Which?", question, 1).replace("two", second).replace("three", third)
    for item in read_items(tsv(row, row)):
        assert (item.question, item.options[1:3]) == (question, (second, third))


def test_a_quotation_mark_that_a_later_row_closes_joins_no_rows(tsv):
    first, last = ROW.replace("https", '"https'), ROW.removesuffix("B") + 'B"'
    assert "the gold answer" in refusal(tsv(first, last), "line 3")


@pytest.mark.parametrize("suffix", [".tsv", ".csv"])
def test_a_field_may_be_longer_than_the_limit_of_the_csv_module(tmp_path, suffix):
    limit, long = csv.field_size_limit(), 'x"' * 100_000
    rows = PUBLISHED if suffix == ".tsv" else [SECQA_HEADER[:-1], QUOTED]
    rows = [rows[0], [long if cell == QUOTED[0] else cell for cell in rows[1]]]
    (item,) = read_items(export(tmp_path / f"a{suffix}", rows, delimiter="\t" if suffix == ".tsv" else ","))
    assert item.question == long
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("suffix", [".tsv", ".csv"])
def test_empty_columns_at_the_end_and_blanks_around_names_do_not_matter(tmp_path, suffix):
    rows = PUBLISHED if suffix == ".tsv" else [SECQA_HEADER[:-1], QUOTED]
    header = [f" {name} " for name in rows[0]]
    path = tmp_path / f"a{suffix}"
    separator = "\t" if suffix == ".tsv" else ","
    (item,) = read_items(export(path, [[*header, "", ""], [*rows[1], "", " "]], delimiter=separator))
    assert (item.question, item.answer) == (QUOTED[0], 1)
    export(path, [[*header, "", ""], [*rows[1], "", "note"]], delimiter=separator)
    assert read_items(path).items == (item,)
    (plain,) = read_items(export(path, [MMLU + [""] * 3], delimiter=",")) if suffix == ".csv" else (item,)
    assert plain.answer == 1


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".json"])
def test_a_nul_is_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b'{"question":\n"W\0hich?"}\n')
    refusal(path, "line 2", "byte 3", "NUL")


def test_ctibench_exported_by_a_spreadsheet_holds_the_same_items(ctibench, ghost_data, tmp_path):
    lines = (ghost_data / "ctibench" / "cti-mcq.tsv").read_text(encoding="utf-8").splitlines()
    path = export(tmp_path / "cti-mcq.tsv", [line.split("\t") for line in lines], delimiter="\t")
    assert read_items(path).items == ctibench.items


def test_cybermetric(whole):
    two = CYBERMETRIC | {"answers": {"B": "no", "A": "yes"}, "solution": "A"}
    assert asked(whole({"questions": [CYBERMETRIC, two]})) == (
        Item("item 1", "Which?", FOUR, 1),
        Item("item 2", "Which?", ("yes", "no"), 0),
    )


def test_seceval_leaves_out_and_names_what_is_not_answered_with_one_letter(whole):
    answers = ["B", "ABD", "AA", "", "d"]
    items = read_items(whole([SECEVAL | {"id": f"q{n}", "answer": answer} for n, answer in enumerate(answers, 1)]))
    assert items.items == (Item("q1", "Which?", FOUR, 1), Item("q5", "Which?", FOUR, 3))
    assert items.left_out == (
        'item 2: the answer of "q2" is "ABD", not one letter; left out',
        'item 3: the answer of "q3" is "AA", not one letter; left out',
        'item 4: the answer of "q4" is "", not one letter; left out',
    )
    assert items.quirks == ('item 5: the gold letter is written "d"; read as D',)


def test_blemishes_of_a_json_list_are_named_by_item(whole):
    choices = ["A: one", "B: ", "C: one", "D: four"]
    items = read_items(whole([SECEVAL, SECEVAL | {"id": "q2", "choices": choices}]))
    assert items.items[1].options == ("one", "", "one", "four")
    assert items.quirks == (
        "item 2: option B is empty, and it is the gold one; kept as published, the prompt shows it blank",
        "item 2: options A and C are equal; kept as published, only the gold letter counts as right",
    )


def test_every_format_says_its_shape_where_none_is_recognised(tmp_path):
    unknown = {
        "a.tsv": "name\tvalue\n1\t2\n",
        "a.csv": "name,value\n1,2\n",
        "header.csv": "question,A,B,C,D,answer\nWhich?,one,two,three,four,B\n",
        "a.jsonl": '{"text": "…"}\n',
        "list.jsonl": "[1, 2]\n",
        "a.json": '{"text": "…"}',
        "list.json": "[[1]]",
        "empty.json": "[]",
        "a.parquet": "PAR1",
    }
    for name, text in unknown.items():
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        refusal(path, *(f"{known.name} ({known.suffix}): {known.shape}" for known in FORMATS))


# ---- What is refused ----


def test_absent_empty_or_unknown_file(tmp_path, tsv):
    refusal(tmp_path / "nowhere.tsv", "no such file")
    refusal(tmp_path / "items.parquet", '".parquet"', ".tsv", ".jsonl")
    (tmp_path / "empty.jsonl").write_bytes(b"\n\n")
    refusal(tmp_path / "empty.jsonl", "empty")
    refusal(tsv(), "no questions")


def test_bytes_that_are_not_utf8(tsv):
    path = tsv(ROW, ROW)
    path.write_bytes(path.read_bytes().replace(b"two", b"tw\xff", 2))
    refusal(path, "line 2", "0xff", "UTF-8")


@pytest.mark.parametrize("column", COLUMNS)
def test_missing_column(tsv, column):
    others = [name for name in HEADER.split("\t") if name != column]
    refusal(tsv(ROW, header="\t".join(others)), "line 1", f'"{column}" is missing', ", ".join(others))


def test_column_that_stands_twice(tsv):
    refusal(tsv(ROW, header=HEADER.replace("Prompt", "GT")), "line 1", '"GT" stands there more than once')


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        (ROW.replace("\tfour", ""), ["header has 8 fields, this row 7"]),
        (ROW + "\t", ["header has 8 fields, this row 9"]),
        ("", ["this row 1"]),
        (ROW.replace("\tWhich?\t", "\t \t"), ["question is empty"]),
        (ROW[:-1] + "E", ['"E"', "A, B, C, D"]),
        (ROW[:-1] + "AB", ['"AB"']),
        (ROW[:-1], ['""']),
        (ROW.replace("one\ttwo\tthree", "\t \t"), ["fewer than 2 options"]),
    ],
)
def test_tsv_row_that_cannot_be_scored(tsv, row, parts):
    refusal(tsv(ROW, ROW, row, ROW), "line 4", *parts)


@pytest.mark.parametrize(
    ("record", "parts"),
    [
        ('{"id": "q2", "question": ', ["no JSON object"]),
        ("", ["no JSON object"]),
        ("[" * 100_000, ["no JSON object"]),
        ('{"question": "\\ud800"}', ["no JSON object"]),
        ('{"question": "Which?", "options": {"A": "one", "B": "two", "B": "three"}, "answer": "B"}', ["repeated"]),
        ([1, 2], ["no JSON object"]),
        ({"question": "Which?", "answer": "A"}, ['"options" is missing', "question, answer"]),
        (RECORD | {"options": ["one", "two"]}, ["letters from A on"]),
        (RECORD | {"options": {"A": "one", "C": "three"}}, ["letters from A on"]),
        (RECORD | {"options": dict.fromkeys("ABCDEFGHIJK", "x")}, ["letters from A on"]),
        (RECORD | {"options": {"A": "one", "B": 2}}, ["option must be text"]),
        (RECORD | {"id": "q2", "options": {"A": "one"}, "answer": "A"}, ["fewer than 2 options"]),
        (RECORD | {"answer": 1}, ["must be text"]),
        (RECORD | {"id": "q2", "answer": "C"}, ['"C"', "A, B"]),
        (RECORD | {"id": "q2", "question": " "}, ["question is empty"]),
        (RECORD, ['id "q1"', "in line 1"]),
    ],
)
def test_jsonl_line_that_cannot_be_scored(jsonl, record, parts):
    refusal(jsonl(RECORD, record, RECORD), "line 2", *parts)


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([SECQA_HEADER, SECQA, SECQA[:-1]], ["line 3", "header has 7 fields, this row 6"]),
        ([SECQA_HEADER[:-2], SECQA[:-2]], ["line 1", '"Answer" is missing', "Question, A, B, C, D"]),
        ([SECQA_HEADER[1:], SECQA[1:]], ["line 1", '"Question" is missing']),
        ([SECQA_HEADER, [*SECQA[:5], "BC", ""]], ["line 2", '"BC"', "A, B, C, D"]),
        ([MMLU, ["a\nb", *MMLU[1:-1], "E"]], ["line 2", '"E"']),
        ([["a\nb", *MMLU[1:]], MMLU[1:]], ["line 3", "5 fields"]),
        ([MMLU, [], MMLU], ["line 2", "0 fields"]),
        ([MMLU, ["", *MMLU[1:]]], ["line 2", "question is empty"]),
    ],
)
def test_csv_that_cannot_be_scored(comma_separated, rows, parts):
    refusal(comma_separated(*rows), *parts)


@pytest.mark.parametrize(
    "row", ['"Which?,one,two,three,four,B', '"Which?"x,one,two,three,four,B', "Wh\rich?,a,b,c,d,B"]
)
def test_csv_quoted_wrongly(tmp_path, row):
    path = tmp_path / "mine.csv"
    path.write_text(f"{','.join(MMLU)}\n{row}\n{','.join(MMLU)}\n", encoding="utf-8", newline="")
    refusal(path, "line 2", "no CSV")


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ({"questions": {}}, ['"questions" must be a list']),
        ({"questions": []}, ["no questions"]),
        ({"questions": [CYBERMETRIC, 3]}, ["item 2", "no JSON object"]),
        ({"questions": [CYBERMETRIC, {"question": "Which?"}]}, ["item 2", '"answers" is missing']),
        ({"questions": [CYBERMETRIC | {"answers": ["one", "two"]}]}, ["item 1", "letters from A on"]),
        ({"questions": [CYBERMETRIC | {"answers": {"A": "one", "B": None}}]}, ["item 1", "option must be text"]),
        ({"questions": [CYBERMETRIC | {"solution": "E"}]}, ["item 1", '"E"', "A, B, C, D"]),
        ([SECEVAL, SECEVAL], ["item 2", 'id "q1"', "in item 1"]),
        ([SECEVAL | {"answer": "AB"}, SECEVAL], ["item 2", 'id "q1"', "in item 1"]),
        ([SECEVAL | {"answer": "AE"}], ["item 1", '"AE"', "letter of no option"]),
        ([SECEVAL | {"answer": ["A", "B"]}], ["item 1", '"answer" must be text']),
        ([SECEVAL | {"id": 1}], ["item 1", '"id" must be text']),
        ([SECEVAL | {"choices": "A: one"}], ["item 1", '"choices" must be a list of texts']),
        ([SECEVAL | {"choices": ["one", "two"]}], ["item 1", "begin with their letters"]),
        ([SECEVAL | {"choices": ["A: one", "C: two"]}], ["item 1", "begin with their letters"]),
        ([SECEVAL | {"choices": [f"{letter}: x" for letter in "ABCDEFGHIJK"]}], ["item 1", "at most 10"]),
        ([SECEVAL, {"id": "q2", "question": "Which?"}], ["item 2", '"choices" is missing', "id, question"]),
        ([SECEVAL | {"answer": "AB"}], ["no questions that can be scored", '"AB", not one letter']),
    ],
)
def test_json_that_cannot_be_scored(whole, value, parts):
    refusal(whole(value), *parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('{"questions": [\n{"question": "Which?",}]}', ["line 2", "no JSON object"]),
        ('{"questions": [{"question": "Which?", "question": "What?"}]}', ['"question" is repeated']),
        ('{"questions": ["\\ud800"]}', ["surrogates not allowed"]),
        ('{"questions": ' + "[" * 100_000, ["recursion"]),
        ('{"questions": [' + "9" * 10_000 + "]}", ["digits"]),
        ("\n\n", ["empty"]),
    ],
)
def test_json_that_cannot_be_read(tmp_path, text, parts):
    path = tmp_path / "mine.json"
    path.write_text(text, encoding="utf-8")
    refusal(path, *parts)


def test_a_huge_file_is_not_read_into_memory(tmp_path):
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(raw.MAX_FILE + 1)  # sparse: it takes no room on the disk
    refusal(path, "over 64 MiB")


# ---- Whatever the file holds ----

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
    """Good rows with rows of any cells, and good ones with a cell replaced, behind them."""
    one_replaced = st.tuples(st.integers(0, len(rows[-1]) - 1), TEXT).map(
        lambda at: [*rows[-1][: at[0]], at[1], *rows[-1][at[0] + 1 :]]
    )
    return st.lists(one_replaced | st.lists(TEXT, max_size=8), max_size=3).map(lambda more: [*rows, *more])


def as_csv(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def as_lines(records: list) -> str:
    return "\n".join(map(json.dumps, records))


FILES = {
    ".tsv": cells(HEADER.split("\t"), ROW.split("\t")).map(lambda rows: "\n".join(map("\t".join, rows))),
    ".csv": (cells(MMLU) | cells(SECQA_HEADER, SECQA)).map(as_csv),
    ".jsonl": st.lists(changed(RECORD) | changed(dict(zip(SECQA_HEADER, SECQA, strict=True))) | ANYTHING).map(as_lines),
    ".json": (
        st.lists(changed(CYBERMETRIC) | ANYTHING).map(lambda records: {"questions": records})
        | st.lists(changed(SECEVAL) | ANYTHING)
        | ANYTHING
    ).map(json.dumps),
}


def items_or_message(path) -> Items | str:
    try:
        return read_items(path)
    except UserError as fault:
        return str(fault)


@pytest.mark.parametrize("suffix", FILES)
def test_any_file_is_read_or_refused_in_one_paragraph(tmp_path, suffix):
    path = tmp_path / f"any{suffix}"
    outcomes = Counter()

    @settings(max_examples=150, deadline=None)
    @given(FILES[suffix].map(str.encode) | st.binary(max_size=60))
    def read(data):
        path.write_bytes(data)
        result = items_or_message(path)
        outcomes[type(result)] += 1
        if isinstance(result, str):
            assert "\n" not in result
            assert len(result) < len(str(path)) + 2_000
        else:
            assert len({item.id for item in result}) == len(result) > 0
            assert all(2 <= len(item.options) <= 10 and 0 <= item.answer < len(item.options) for item in result)
            assert all(kept.startswith(("line ", "item ")) and "\n" not in kept for kept in result.quirks)

    read()
    assert outcomes[Items] > 0 < outcomes[str]
