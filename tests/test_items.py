"""evals/items.py: the real benchmark row for row, every fault with its file and line, and option orders."""

import hashlib
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.items import (
    LETTERS,
    TSV_COLUMNS,
    Item,
    cyclic_orders,
    order_name,
    parse_order,
    permute,
    read_items,
)
from ghost_jax.errors import UserError

HEADER = "\t".join((*TSV_COLUMNS[:-1], "Prompt", "GT"))
ROW = "https://x.org/1\tWhich?\tone\ttwo\tthree\tfour\tPick: Which?\tB"
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


# ---- What is refused ----


def test_absent_empty_or_unknown_file(tmp_path, tsv):
    refusal(tmp_path / "nowhere.tsv", "no such file")
    refusal(tmp_path / "items.csv", '".csv"', ".tsv", ".jsonl")
    (tmp_path / "empty.jsonl").write_bytes(b"\n\n")
    refusal(tmp_path / "empty.jsonl", "empty")
    refusal(tsv(), "no questions")


def test_bytes_that_are_not_utf8(tsv):
    path = tsv(ROW, ROW)
    path.write_bytes(path.read_bytes().replace(b"two", b"tw\xff", 2))
    refusal(path, "line 2", "0xff", "UTF-8")


@pytest.mark.parametrize("column", TSV_COLUMNS)
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
        (RECORD, ['id "q1"', "on line 1"]),
    ],
)
def test_jsonl_line_that_cannot_be_scored(jsonl, record, parts):
    refusal(jsonl(RECORD, record, RECORD), "line 2", *parts)


# ---- Orders ----


def test_order_names():
    assert [order_name(order) for order in cyclic_orders(4)] == ["ABCD", "BCDA", "CDAB", "DABC"]
    assert parse_order("CBDA", k=4) == (2, 1, 3, 0)
    assert order_name(parse_order("CBDA", k=4)) == "CBDA"


@pytest.mark.parametrize("name", ["", "ABC", "ABCC", "ABCE", "ABCDE", "abcd"])
def test_a_name_that_is_no_order(name):
    with pytest.raises(UserError, match="no order of 4 options"):
        parse_order(name, k=4)


def test_an_order_names_the_new_letter_of_each_original_option():
    item = Item("1", "Which?", ("a", "b", "c", "d"), answer=0)
    moved = permute(item, parse_order("CBDA", k=4))
    assert moved.options == ("d", "b", "a", "c")
    assert LETTERS[moved.answer] == "C"
    with pytest.raises(ValueError, match="no order of the 4 options"):
        permute(item, (0, 1, 2))


@st.composite
def items_and_orders(draw):
    options = draw(st.lists(st.text("abc", max_size=3), min_size=2, max_size=10))
    answer = draw(st.integers(0, len(options) - 1))
    return Item("1", "Which?", tuple(options), answer, "u"), tuple(draw(st.permutations(range(len(options)))))


@given(items_and_orders())
def test_permuting_preserves_the_gold_text_and_the_options(pair):
    item, order = pair
    moved = permute(item, order)
    assert moved.options[moved.answer] == item.options[item.answer]
    assert sorted(moved.options) == sorted(item.options)
    assert (moved.id, moved.question, moved.url) == (item.id, item.question, item.url)
    assert permute(moved, tuple(order.index(position) for position in range(len(order)))) == item


@given(st.integers(2, 10))
def test_over_the_cyclic_orders_every_option_stands_once_at_every_position(k):
    orders = cyclic_orders(k)
    assert len(set(orders)) == k
    assert orders[0] == tuple(range(k))
    for original in range(k):
        assert {order[original] for order in orders} == set(range(k))
