"""audit.py and predictions.py: published answers reach their known figures, and rows of other items are refused."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evals.analysis.predictions import read_predictions
from evals.analysis.report import report_of
from ghost_jax.core.errors import UserError
from ghost_jax.data.items.formats import read_items
from ghost_jax.data.items.items import LETTERS, cyclic_orders, order_name
from ghost_jax.runs.evaluation import from_json

GOLDS = "ABBCDA"


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """Six items with four options each and ids q0 to q5."""
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
        path = tmp_path / f"answers{suffix}"
        path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
        return {each.name: each for each in read_predictions(path, benchmark, **flags)}

    return read


def spelled(predictions) -> str:
    return "".join(predictions.answers.spelled())


def test_five_published_models_reach_their_published_accuracies(ghost, ghost_data, tmp_path):
    out, folder = tmp_path / "audit.json", ghost_data / "ctibench"
    flags = [f"--items={folder / 'cti-mcq.tsv'}", f"--predictions={folder / 'cti-mcq-responses.tsv'}", f"--out={out}"]
    screen = ghost.here("evals.audit", *flags).stdout
    reports = {name: from_json(each) for name, each in json.loads(out.read_text())["predictions"].items()}
    percent = {name: round(100 * report.headline.accuracy, 2) for name, report in reports.items()}
    published = {"ChatGPT-4": 71.0, "LLAMA3-70B": 65.76, "Gemini-1.5": 65.44, "LLAMA3-8B": 61.32, "ChatGPT-3.5": 54.12}
    assert percent == published
    for name, accuracy in published.items():
        assert f"{accuracy:.2f}" in next(line for line in screen.splitlines() if name in line)
    assert "always A 14.96, always B 32.52, always C 37.12" in screen
    assert {report.headline.orders for report in reports.values()} == {("ABCD",)}
    assert round(100 * reports["ChatGPT-4"].balanced_accuracy, 1) == 69.6
    gemini = reports["Gemini-1.5"]
    assert gemini.no_letter == sum(answer == "-" for answer in gemini.predicted) / 2500 > 0
    assert sum(gemini.letter_share.values()) == pytest.approx(1 - gemini.no_letter)


def test_one_column_is_reported_in_full(ghost, benchmark, tmp_path):
    file, out = tmp_path / "answers.tsv", tmp_path / "out" / "report.json"
    file.write_text("GT\tnotes\tmodel\n" + "".join(f"{gold}\tfine\t{gold.lower()}\n" for gold in GOLDS))
    screen = ghost.here("evals.audit", f"--items={benchmark.path}", f"--predictions={file}", f"--out={out}").stdout
    report = json.loads(out.read_text())
    assert report["headline"]["accuracy"] == report["single_order"] == 1
    assert (report["book"], report["reader"]) == ("closed", "predictions")
    assert report["predictions_file"] == {"file": "answers.tsv", "name": "model", "lower_case": 6}
    assert all(part in screen for part in ("one order alone", "6 lower-case letters", str(out)))
    file.write_text("model\nA\nB\n")
    out.unlink()
    message = ghost.refused_here("evals.audit", f"--items={benchmark.path}", f"--predictions={file}", f"--out={out}")
    assert "answers.tsv" in message
    assert not out.exists()


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
def test_letters_and_scores_are_read_from_every_container(reading, suffix):
    rows = [(gold, *(float(letter == gold) for letter in "ABCD")) for gold in GOLDS]
    if suffix == ".jsonl":
        lines = [json.dumps({"m": letter, "p": dict(zip("ABCD", scores, strict=True))}) for letter, *scores in rows]
    else:
        comma = "\t" if suffix == ".tsv" else ","
        lines = [comma.join(map(str, row)) for row in [("m", *(f"p_{letter}" for letter in "ABCD")), *rows]]
    found = reading(lines[0], lines[1:], suffix)
    assert {name: spelled(each) for name, each in found.items()} == {"m": GOLDS, "p": GOLDS}
    assert found["m"].answers.log_probs is None
    np.testing.assert_allclose(np.exp(found["p"].answers.log_probs[0]), [[1, 0, 0, 0]], atol=1e-9)


@pytest.mark.parametrize(
    ("suffix", "header", "row", "scores", "shares"),
    [
        (".jsonl", '{"m": [0, 1, 2, 3.5]}', None, [0, 1, 2, 3.5], [0, 0, 0, 1]),
        (".csv", "A,B,C,D", "-1,-2,0,5", [-1, -2, 0, 5], [0, 0, 0, 1]),
        (".csv", "A,B,C,D", "1,1,0,0", [1, 1, 0, 0], [0.5, 0.5, 0, 0]),
        (".csv", "m_A,m_B,m_C,m_D", "-3,-1e400,-2,-1", [-3, -np.inf, -2, -1], [0, 0, 0, 1]),
    ],
)
def test_scores_that_are_no_probabilities_stay_and_the_highest_is_the_answer(
    benchmark, reading, suffix, header, row, scores, shares
):
    (predictions,) = reading(header, [row or header] * (6 if row else 5), suffix).values()
    np.testing.assert_array_equal(predictions.answers.log_probs[0], [scores])
    np.testing.assert_array_equal(predictions.answers.said[0], [shares])
    report = report_of(predictions.answers, benchmark)
    assert sum(report.letter_log_probs.counts["B"]) == len(benchmark)


@pytest.mark.parametrize(("name", "letters"), [("{}", [""]), ("m@{}", [""]), ("m@{}_{}", "ABCD")])
def test_columns_named_after_orders_give_a_headline_over_them(benchmark, reading, name, letters):
    asked = [(order, letter) for order in reversed(cyclic_orders(4)) for letter in letters]
    header = ",".join(name.format(order_name(order), letter) for order, letter in asked)
    rows = []
    for item in benchmark:
        gold = [(LETTERS[order[item.answer]], letter) for order, letter in asked]
        rows.append(",".join(str(int(right == letter)) if letter else right for right, letter in gold))
    (predictions,) = reading(header, rows).values()
    report = report_of(predictions.answers, benchmark)
    assert (report.headline.accuracy, report.flip_rate) == (1, 0)
    assert report.headline.orders == ("ABCD", "DABC", "CDAB", "BCDA"), "the published one first"


@pytest.mark.parametrize(
    ("header", "rows", "flags", "named"),
    [
        ("GT,m", ["A,A", "C,B", *["B,B"] * 4], {}, ["line 3", '"C"', '"q1"', "--order"]),
        ("m", ["A"] * 5, {}, ["5 rows", "6 items"]),
        ("m", ["Agent"] * 6, {}, ["A to D", ": m"]),
        ("A,B,C,D", ["1,2,3,4", "1,nan,3,4", *["1,2,3,4"] * 4], {}, ["line 3", '"nan"', " B "]),
        ("m@ABCD,m", ["A,A"] * 6, {}, ['"m"', "m@BCDA"]),
        ("id,m", ["q0,A"] * 6, {}, ["line 3", '"q0"', "line 2"]),
        ("id,m", ["q0,A", "q9,A"], {}, ["line 3", '"q9"', '"q0"']),
        ("model", ["A"] * 6, {"column": "modle"}, ['"modle"', '"model"']),
        ("model", ["A"] * 6, {"order": "ABCC"}, ['"ABCC"']),
        ('{"m": "A"}', ['{"n": "A"}'] * 5, {"suffix": ".jsonl"}, ["line 2", "keys"]),
        ('{"m_A": 1, "m": {"A": 2}}', [], {"suffix": ".jsonl"}, ["line 1", "m_A"]),
    ],
)
def test_predictions_for_other_items_are_refused_by_row_and_column(reading, header, rows, flags, named):
    with pytest.raises(UserError) as refused:
        reading(header, rows, **flags)
    assert all(part in str(refused.value) for part in named), str(refused.value)


cell = st.sampled_from(["A", "b", "X", "", " C ", "0.5", "nan", "-1e400", "q0", "ſ", '"', "\t", ",", "\r", "\n", "{}"])
name = st.sampled_from(["id", "GT", "m", "A", "B", "C", "D", "m@BCDA", "@", "ABCD", "_A", "m_A", "m_B", "m_C", "m_D"])


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([".tsv", ".csv", ".jsonl"]),
    st.lists(name, max_size=6).flatmap(
        lambda names: st.tuples(
            st.just(names), st.lists(st.lists(cell, min_size=len(names), max_size=len(names)), min_size=5, max_size=7)
        )
    ),
    st.sampled_from([None, "m", "GT", "BCDA"]),
)
def test_any_file_is_read_or_refused_by_its_path(benchmark, tmp_path, suffix, drawn, column):
    header, rows = drawn
    path = tmp_path / f"answers{suffix}"
    if suffix == ".jsonl":
        lines = [json.dumps(dict(zip(header, row, strict=True))) for row in rows]
    else:
        comma = "\t" if suffix == ".tsv" else ","
        lines = [comma.join(row) for row in [header, *rows]]
    path.write_text("\n".join(lines), newline="")
    try:
        found = read_predictions(path, benchmark, column=column)
    except UserError as refused:
        found, message = [], str(refused)
    assert found or str(path) in message
    for predictions in found:
        assert len(predictions.answers.spelled()) == len(benchmark)
        assert all(np.isfinite(each).all() and each.sum() <= len(each) + 1e-9 for each in predictions.answers.said)
