"""audit.py and predictions.py: published answers come to their known figures, and no other row is read."""

import csv
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evals.analysis.predictions import read_predictions
from evals.audit import audit
from evals.items.formats import read_items
from evals.items.items import LETTERS, cyclic_orders, order_name
from ghost_jax.core.errors import UserError

GOLDS = "ABBCDA"


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """Six items with four options each and ids q0 to q5, and the file they stand in."""
    path = tmp_path_factory.mktemp("items") / "own.jsonl"
    rows = [
        {"id": f"q{row}", "question": f"Question {row}?", "options": dict(zip("ABCD", "abcd", strict=True))}
        for row in range(len(GOLDS))
    ]
    path.write_text("".join(json.dumps(row | {"answer": gold}) + "\n" for row, gold in zip(rows, GOLDS, strict=True)))
    return read_items(path)


@pytest.fixture
def reading(benchmark, tmp_path):
    """A function that writes rows of cells under a header and reads the predictions there."""

    def read(header: str, rows: list[str], suffix: str = ".csv", **flags):
        path = tmp_path / f"said{suffix}"
        path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
        return {each.name: each for each in read_predictions(path, benchmark, **flags)}

    return read


def refusal(reading, *args, **flags) -> str:
    with pytest.raises(UserError) as fault:
        reading(*args, **flags)
    return str(fault.value)


# ---- The published answers of five models ----

PUBLISHED = {"ChatGPT-4": 71.00, "LLAMA3-70B": 65.76, "Gemini-1.5": 65.44, "LLAMA3-8B": 61.32, "ChatGPT-3.5": 54.12}


@pytest.fixture(scope="module")
def published(ghost, ghost_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("audit") / "audit.json"
    folder = ghost_data / "ctibench"
    flags = [f"--items={folder / 'cti-mcq.tsv'}", f"--predictions={folder / 'cti-mcq-responses.tsv'}", f"--out={out}"]
    return ghost("evals.audit", *flags).stdout, json.loads(out.read_text())["predictions"]


def test_five_published_models_come_to_their_published_accuracies(published):
    said, reports = published
    percent = {name: round(100 * report["headline"]["accuracy"], 2) for name, report in reports.items()}
    assert percent == PUBLISHED
    for name, value in PUBLISHED.items():
        assert any(name in line and f"{value:.2f}" in line for line in said.splitlines())
    assert round(100 * reports["ChatGPT-4"]["balanced_accuracy"], 1) == 69.6


def test_a_cell_that_is_no_letter_is_wrong_and_counted(published):
    report = published[1]["Gemini-1.5"]
    assert report["no_letter"] == sum(answer == "-" for answer in report["predicted"]) / 2500 > 0
    assert sum(report["letter_share"].values()) == pytest.approx(1 - report["no_letter"])


def test_the_baselines_stand_below_the_models(published):
    said, reports = published
    for report in reports.values():
        assert report["baselines"]["always_C"] == 0.3712
        assert report["headline"]["orders"] == ["ABCD"]
    assert "without the question, published order, %: always A 14.96, always B 32.52, always C 37.12" in said


# ---- The command ----


def test_one_column_is_reported_in_full(ghost, benchmark, tmp_path):
    file, out = tmp_path / "said.tsv", tmp_path / "out" / "report.json"
    file.write_text("GT\tnotes\tmodel\n" + "".join(f"{gold}\tfine\t{gold.lower()}\n" for gold in GOLDS))
    said = ghost("evals.audit", f"--items={benchmark.path}", f"--predictions={file}", f"--out={out}").stdout
    report = json.loads(out.read_text())
    assert report["headline"]["accuracy"] == report["single_order"] == 1
    assert report["predictions_file"] == {"file": "said.tsv", "name": "model", "lower_case": 6}
    assert "This is one order alone" in said
    assert "model: 6 lower-case letters read" in said
    assert f"written to {out}" in said


def test_what_is_wrong_is_said_in_a_paragraph_and_nothing_is_written(ghost, benchmark, tmp_path):
    file, out = tmp_path / "said.csv", tmp_path / "report.json"
    file.write_text("model\nA\nB\n")
    said = ghost.refused("evals.audit", f"--items={benchmark.path}", f"--predictions={file}", f"--out={out}")
    assert "said.csv: it has 2 rows, but" in said
    assert "has 6 items" in said
    assert not out.exists()


# ---- What a file may hold ----


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
def test_letters_and_scores_are_read_from_every_container(reading, suffix):
    rows = [(gold, *(float(letter == gold) for letter in "ABCD")) for gold in GOLDS]
    if suffix == ".jsonl":
        lines = [json.dumps({"said": said, "p": dict(zip("ABCD", scores, strict=True))}) for said, *scores in rows]
        header, lines = lines[0], lines[1:]
    else:
        comma = "\t" if suffix == ".tsv" else ","
        header, lines = comma.join(["said", *(f"p_{x}" for x in "ABCD")]), [comma.join(map(str, row)) for row in rows]
    found = reading(header, lines, suffix)
    assert list(found) == ["said", "p"]
    for predictions in found.values():
        assert predictions.answers.spelled() == list(GOLDS)
    assert found["said"].answers.log_probs is None
    np.testing.assert_allclose(np.exp(found["p"].answers.log_probs[0]), [[1, 0, 0, 0]], atol=1e-9)  # probabilities


def test_a_list_of_scores_is_in_the_order_of_the_letters(reading):
    first, *lines = [json.dumps({"logits": [0, 1, 2, 3.5]})] * 6
    assert reading(first, lines, ".jsonl")["logits"].answers.spelled() == ["D"] * 6


def test_scores_that_are_no_probabilities_are_taken_as_they_are(reading):
    answers = reading("A,B,C,D", ["-1,-2,0,5"] * 6)["said"].answers
    np.testing.assert_array_equal(answers.log_probs[0], [[-1, -2, 0, 5]])
    assert answers.spelled() == ["D"] * 6
    tied = reading("A,B,C,D", ["1,1,0,0"] * 6)["said"].answers
    np.testing.assert_array_equal(tied.said[0], [[0.5, 0.5, 0, 0]])


@pytest.mark.parametrize(
    ("suffix", "least"), [(".tsv", "-inf"), (".csv", "-Infinity"), (".csv", "-1e400"), (".jsonl", "-Infinity")]
)
def test_a_score_of_minus_infinity_ranks_last_and_leaves_every_figure_finite(benchmark, reading, suffix, least):
    rows = [["-3", least, "-2", "-1"], [least] * 4, [least] * 3 + ["-9"], *[["0", "-1", "-2", "-3"]] * 3]
    if suffix == ".jsonl":
        lines = [f'{{"p": [{", ".join(row)}]}}' for row in rows]
    else:
        lines = list(map(("\t" if suffix == ".tsv" else ",").join, [["p_A", "p_B", "p_C", "p_D"], *rows]))
    predictions = reading(lines[0], lines[1:], suffix)["p"]
    assert [row[0].tolist() for row in predictions.answers.said[:3]] == [[0, 0, 0, 1], [0.25] * 4, [0, 0, 0, 1]]
    report = audit(predictions, benchmark, "")
    json.dumps(report, allow_nan=False)
    assert sum(report["letter_log_probs"]["counts"]["B"]) == len(benchmark)


def test_letters_and_scores_of_one_name_are_two(reading):
    found = reading("m,m_A,m_B,m_C,m_D", ["A,0,0,0,1"] * 6)
    assert {name: each.answers.spelled()[0] for name, each in found.items()} == {"m": "A", "m (scores)": "D"}


def test_only_columns_of_answers_are_read(reading):
    found = reading("id,GT,prompt,model,run", [f"q{row},{gold},Which?,A,2" for row, gold in enumerate(GOLDS)])
    assert list(found) == ["model"]


def test_rows_are_matched_by_their_id(reading):
    rows = [f"q{row},{gold}" for row, gold in enumerate(GOLDS)]
    assert reading("id,model", rows[::-1])["model"].answers.spelled() == list(GOLDS)


@pytest.mark.parametrize("order", [(1, 2, 3, 0), (2, 1, 3, 0)])
def test_an_order_is_of_the_letters_that_were_shown(benchmark, reading, order):
    letters = [LETTERS[order[item.answer]] for item in benchmark]
    assert audit(reading("m", letters, order=order_name(order))["m"], benchmark, "")["headline"] == {
        "accuracy": 1,
        "ci95": [pytest.approx(0.025 ** (1 / 6)), 1],
        "orders": [order_name(order)],
        "orders_per_item": 1,
    }
    assert audit(reading("m", letters)["m"], benchmark, "")["headline"]["accuracy"] < 1


@pytest.mark.parametrize("name", ["{}", "m@{}"])
def test_columns_named_after_orders_come_to_a_headline_over_them(benchmark, reading, name):
    orders = cyclic_orders(4)
    header = ",".join(name.format(order_name(order)) for order in reversed(orders))
    rows = [",".join(LETTERS[order[item.answer]] for order in reversed(orders)) for item in benchmark]
    (predictions,) = reading(header, rows).values()
    report = audit(predictions, benchmark, "")
    assert report["headline"]["accuracy"] == 1
    assert report["headline"]["orders"] == ["ABCD", "DABC", "CDAB", "BCDA"]  # the published one first
    assert report["flip_rate"] == 0
    (collapsed,) = reading(header, ["C,C,C,C"] * 6).values()
    report = audit(collapsed, benchmark, "")
    assert (report["headline"]["accuracy"], report["verdict"]) == (0.25, "collapsed")


def test_scores_over_orders_are_read_too(benchmark, reading):
    orders = cyclic_orders(4)[:2]
    header = ",".join(f"m@{order_name(order)}_{letter}" for order in orders for letter in "ABCD")
    rows = [",".join(str(int(order[item.answer] == at)) for order in orders for at in range(4)) for item in benchmark]
    assert audit(reading(header, rows)["m"], benchmark, "")["headline"]["accuracy"] == 1


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_sheet_that_a_spreadsheet_exports_is_read(benchmark, tmp_path, separator):
    path = tmp_path / ("said.tsv" if separator == "\t" else "said.csv")
    with path.open("w", encoding="utf-8", newline="") as file:
        sheet = csv.writer(file, delimiter=separator)
        sheet.writerow([" GT", "why", "model ", ""])
        sheet.writerows([gold, f'It "is",\n{separator}so.' * 20_000, gold, ""] for gold in GOLDS)
    assert [each.answers.spelled() for each in read_predictions(path, benchmark)] == [list(GOLDS)]


def test_items_with_fewer_options_leave_scores_empty(tmp_path):
    items, said = tmp_path / "items.jsonl", tmp_path / "said.csv"
    rows = [({"A": "a", "B": "b"}, "B"), ({"A": "a", "B": "b", "C": "c"}, "C")]
    items.write_text("".join(json.dumps({"question": "?", "options": o, "answer": a}) + "\n" for o, a in rows))
    said.write_text("m,A,B,C\nC,1,2,\nC,1,2,3\n")
    letters, scores = read_predictions(said, read_items(items))
    assert letters.answers.spelled() == ["-", "C"]  # C is no letter of the first item
    assert scores.answers.spelled() == ["B", "C"]
    with pytest.raises(UserError, match="differ in their number of options"):
        read_predictions(said, read_items(items), order="ABC")


# ---- What is refused ----


@pytest.mark.parametrize(
    ("header", "rows", "parts"),
    [
        ("GT,m", ["A,A", "C,B", *["B,B"] * 4], ['said.csv, line 3: GT is "C"', 'the item "q1" is B', "--order"]),
        ("m", ["A"] * 5, ["it has 5 rows", "has 6 items"]),
        ("m", ["A"] * 7, ["it has 7 rows", "has 6 items"]),
        ("m", [], ["a header but no predictions"]),
        ("m,m", ["A,B"] * 6, ['line 1: the column "m" stands there more than once']),
        ("m,n", ["A,B", "A", *["A,B"] * 4], ["line 3: the header has 2 fields, this row 1"]),
        ("m", ["Agent"] * 6, ["no column holds a letter from A to D"]),
        ("A,B,C,D", ["1,2,3,4", "1,nan,3,4", *["1,2,3,4"] * 4], ['line 3: "nan" under B is no finite number']),
        ("A,B,C,D", ["1,2,3,4", "1,2,inf,4", *["1,2,3,4"] * 4], ['line 3: "inf" under C is no finite number']),
        ("A,B,C,D", ["nan,2,3,4"] * 6, ['line 2: "nan" under A is no finite number']),
        ("A;B;C;D", ["1;2;3;4", "1;2;+inf;4", *["1;2;3;4"] * 4], ['line 3: "+inf" under C is no finite number']),
        ("m@ABCD,m", ["A,A"] * 6, ['"m" holds answers in an order that another column of that name holds too']),
        ("id,m", ["q0,A"] * 6, ['line 3: the id "q0" already stands on line 2']),
        ("id,m", ["q0,A", "q9,A"], ['line 3: "q9" is the id of no item; the first item is "q0"']),
        ("id,m", ["q0,A", "q2,A"], ['4 of 6 items have no row, the first of them "q1"']),
    ],
)
def test_other_rows_than_the_items_are_refused_by_number(reading, header, rows, parts):
    said = refusal(reading, header, rows)
    assert all(part in said for part in parts), said


def test_a_column_or_an_order_that_is_none_is_refused(reading):
    assert 'no column "modle". Did you mean "model"?' in refusal(reading, "model", ["A"] * 6, column="modle")
    assert '"ABCC" is no order of 4 options' in refusal(reading, "model", ["A"] * 6, order="ABCC")
    assert 'the column "n" does not hold a letter' in refusal(reading, "model,n", ["A,1"] * 6, column="n")
    assert "its keys are not those of the first line" in refusal(reading, '{"m": "A"}', ['{"n": "A"}'] * 5, ".jsonl")
    assert "this is no JSON object" in refusal(reading, "3", ["3"] * 5, ".jsonl")
    assert "is no suffix of predictions" in refusal(reading, "m", ["A"] * 6, ".xlsx")


def test_the_gold_column_is_read_as_predictions_where_that_is_asked(reading):
    assert reading("answer", ["A"] * 6, column="answer")["answer"].answers.spelled() == ["A"] * 6
    assert "answer is" in refusal(reading, "answer,m", ["A,A"] * 6)


def test_a_file_that_is_absent_or_no_text_is_refused(benchmark, tmp_path):
    with pytest.raises(UserError, match=r"no such file of predictions\. Check the path given to --predictions"):
        read_predictions(tmp_path / "nowhere.csv", benchmark)
    (tmp_path / "said.tsv").write_bytes(b"m\nA\n\xff\n")
    with pytest.raises(UserError, match=r"line 3: .* is not UTF-8"):
        read_predictions(tmp_path / "said.tsv", benchmark)


cell = st.sampled_from(["A", "b", "X", "", " C ", "0.5", "nan", "-1e400", "q0", "ſ", '"', "\t", ",", "\r", "\n", "{}"])
name = st.sampled_from(["id", "GT", "m", "A", "B", "C", "D", "m@BCDA", "@", "ABCD", "_A", "m_A", "m_B", "m_C", "m_D"])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([".tsv", ".csv", ".jsonl"]),
    st.lists(name, max_size=6).flatmap(
        lambda names: st.tuples(
            st.just(names), st.lists(st.lists(cell, min_size=len(names), max_size=len(names)), min_size=5, max_size=7)
        )
    ),
    st.sampled_from([None, "m", "GT", "BCDA"]),
)
def test_any_file_is_read_or_refused_in_a_paragraph(benchmark, tmp_path, suffix, drawn, column):
    header, rows = drawn
    path = tmp_path / f"said{suffix}"
    if suffix == ".jsonl":
        lines = [json.dumps(dict(zip(header, row, strict=True))) for row in rows]
    else:
        comma = "\t" if suffix == ".tsv" else ","
        lines = [comma.join(row) for row in [header, *rows]]
    path.write_text("\n".join(lines), newline="")
    try:
        found = read_predictions(path, benchmark, column=column)
    except UserError as refused:
        found, said = [], str(refused)
    assert found or str(path) in said
    for predictions in found:
        assert len(predictions.answers.spelled()) == len(benchmark)
        assert all(np.isfinite(said).all() and said.sum() <= len(said) + 1e-9 for said in predictions.answers.said)
