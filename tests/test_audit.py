"""audit.py and predictions.py: published answers reach their known figures, and rows of other items are refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evals.analysis.predictions import read_predictions
from evals.analysis.report import report_of
from ghost_jax.core.atomic_io import write_text
from ghost_jax.core.errors import UserError
from ghost_jax.data.items.formats import read_items
from ghost_jax.data.items.items import LETTERS, cyclic_orders, order_name
from ghost_jax.runs.evaluation import from_json
from tests.conftest import ROOT

GOLDS = "ABBCDA"


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """Six items with four options each and ids q0 to q5."""
    path = tmp_path_factory.mktemp("items") / "own.jsonl"
    options = dict(zip("ABCD", "abcd", strict=True))
    rows = [{"id": f"q{row}", "question": "Which?", "options": options, "answer": x} for row, x in enumerate(GOLDS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_items(path)


@pytest.fixture
def reading(benchmark, tmp_path):
    """A function that writes lines and reads the predictions there."""

    def read(lines: list[str], suffix: str = ".csv", **flags):
        path = tmp_path / f"answers{suffix}"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return {each.name: each for each in read_predictions(path, benchmark, **flags)}

    return read


def lines_of(suffix: str, header: list[str], rows: list) -> list[str]:
    if suffix == ".jsonl":
        return [json.dumps(dict(zip(header, row, strict=True))) for row in rows]
    return [{".tsv": "\t", ".csv": ","}[suffix].join(map(str, row)) for row in [header, *rows]]


def test_five_published_models_reach_their_published_accuracies(ghost, ghost_data, tmp_path):
    out, folder = tmp_path / "audit.json", ghost_data / "ctibench"
    flags = [f"--items={folder / 'cti-mcq.tsv'}", f"--predictions={folder / 'cti-mcq-responses.tsv'}", f"--out={out}"]
    screen = ghost.here("evals.audit", *flags).stdout
    reports = {name: from_json(each) for name, each in json.loads(out.read_text())["predictions"].items()}
    percent = {name: round(100 * report.headline.accuracy, 2) for name, report in reports.items()}
    published = {"ChatGPT-4": 71.0, "LLAMA3-70B": 65.76, "Gemini-1.5": 65.44, "LLAMA3-8B": 61.32, "ChatGPT-3.5": 54.12}
    assert percent == published
    assert all(f"{accuracy:.2f}" in screen for accuracy in published.values())
    assert {report.headline.orders for report in reports.values()} == {("ABCD",)}
    assert round(100 * reports["ChatGPT-4"].balanced_accuracy, 1) == 69.6
    record = json.loads((ROOT / "evals" / "records" / "published_models.json").read_text())["predictions"]
    for name, report in reports.items():
        here, there = report.without_doubtful_gold, from_json(record[name]).without_doubtful_gold
        assert (here.n, here.accuracy) == (there.n, there.accuracy)
    gemini = reports["Gemini-1.5"]
    assert gemini.no_letter == sum(answer == "-" for answer in gemini.predicted) / 2500 > 0
    assert sum(gemini.letter_share.values()) == pytest.approx(1 - gemini.no_letter)


def test_one_column_is_reported_in_full(ghost, benchmark, tmp_path):
    file, out = tmp_path / "answers.tsv", tmp_path / "out" / "report.json"
    file.write_text("GT\tnotes\tmodel\n" + "".join(f"{gold}\tfine\t{gold.lower()}\n" for gold in GOLDS))
    flags = [f"--items={benchmark.path}", f"--predictions={file}", f"--out={out}"]
    ghost.here("evals.audit", *flags)
    report = json.loads(out.read_text())
    assert report["headline"]["accuracy"] == report["single_order"] == 1
    assert (report["book"], report["reader"]) == ("closed", "predictions")
    assert report["predictions_file"] == {"file": "answers.tsv", "name": "model", "lower_case": 6}
    file.write_text("model\nA\nB\n")
    out.unlink()
    assert "answers.tsv" in ghost.refused_here("evals.audit", *flags)
    assert not out.exists()


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
def test_letters_and_scores_are_read_from_every_container(reading, suffix):
    rows = [(gold, *(float(letter == gold) for letter in "ABCD")) for gold in GOLDS]
    found = reading(lines_of(suffix, ["m", "p_A", "p_B", "p_C", "p_D"], rows), suffix)
    assert {name: "".join(each.answers.spelled()) for name, each in found.items()} == {"m": GOLDS, "p": GOLDS}
    assert found["m"].answers.log_probs is None
    np.testing.assert_allclose(np.exp(found["p"].answers.log_probs[0]), [[1, 0, 0, 0]], atol=1e-9)


def test_a_model_that_refuses_most_questions_is_audited_and_a_comment_is_not(benchmark, reading):
    answers = ["A", "", "I cannot say", "", "", "None of these"]
    found = reading(lines_of(".csv", ["m", "notes"], [(answer, f"A note on {answer}") for answer in answers]))
    assert {name: "".join(each.answers.spelled()) for name, each in found.items()} == {"m": "A-----"}
    texts = [[text] * 4 for text in ("80", "ssh", "22", "a", "b", "c")]
    rows = [[*options, answer] for options, answer in zip(texts, answers, strict=True)]
    assert reading(lines_of(".csv", [*"ABCD", "m"], rows)).keys() == {"m"}, "the others are the options' texts"


def test_probabilities_among_all_tokens_are_calibrated_among_the_letters(benchmark, reading):
    rows = [[0.72 if letter == gold else 0.06 for letter in "ABCD"] for gold in GOLDS]
    (found,) = reading(lines_of(".csv", ["p_A", "p_B", "p_C", "p_D"], rows), ".csv").values()
    assert report_of(found.answers, benchmark).calibration.ece == pytest.approx(1 - 0.72 / 0.9)


@pytest.mark.parametrize(
    ("suffix", "lines", "scores", "shares"),
    [
        (".jsonl", ['{"m": [0, 1, 2, 3.5]}'] * 6, [0, 1, 2, 3.5], [0, 0, 0, 1]),
        (".jsonl", ['{"m": {"D": 2, "A": 0, "B": 1, "C": 1}}'] * 6, [0, 1, 1, 2], [0, 0, 0, 1]),
        (".csv", ["A,B,C,D", *["-1,-2,0,5"] * 6], [-1, -2, 0, 5], [0, 0, 0, 1]),
        (".csv", ["A,B,C,D", *["1,1,0,0"] * 6], [1, 1, 0, 0], [0.5, 0.5, 0, 0]),
        (".csv", ["m_A,m_B,m_C,m_D", *["-3,-1e400,-2,-1"] * 6], [-3, -np.inf, -2, -1], [0, 0, 0, 1]),
    ],
)
def test_scores_stay_and_the_highest_is_the_answer(benchmark, reading, suffix, lines, scores, shares):
    (predictions,) = reading(lines, suffix).values()
    np.testing.assert_array_equal(predictions.answers.log_probs[0], [scores])
    np.testing.assert_array_equal(predictions.answers.said[0], [shares])
    report = report_of(predictions.answers, benchmark)
    assert sum(report.letter_log_probs.counts["B"]) == len(benchmark)


@pytest.mark.parametrize(("name", "letters"), [("{}", [""]), ("m@{}", [""]), ("m@{}_{}", "ABCD")])
def test_columns_named_after_orders_give_a_headline_over_them(benchmark, reading, name, letters):
    asked = [(order, letter) for order in reversed(cyclic_orders(4)) for letter in letters]
    header = [name.format(order_name(order), letter) for order, letter in asked]
    rows = []
    for item in benchmark:
        gold = [(LETTERS[order[item.answer]], letter) for order, letter in asked]
        rows.append([int(right == letter) if letter else right for right, letter in gold])
    (predictions,) = reading(lines_of(".csv", header, rows)).values()
    report = report_of(predictions.answers, benchmark)
    assert (report.headline.accuracy, report.flip_rate) == (1, 0)
    assert report.headline.orders == ("ABCD", "DABC", "CDAB", "BCDA"), "the published one first"


@pytest.mark.parametrize(
    ("lines", "flags", "named"),
    [
        (["GT,m", "A,A", "C,B", *["B,B"] * 4], {}, ["line 3", '"C"', '"q1"', "published order"]),
        (["m", *["A"] * 5], {}, ["5 rows", "6 items"]),
        (["m", *["Agent"] * 6], {}, ["A to D", ": m"]),
        (["A,B,C,D", "1,2,3,4", "1,nan,3,4", *["1,2,3,4"] * 4], {}, ["line 3", '"nan"', " B "]),
        (["m@ABCD,m", *["A,A"] * 6], {}, ['"m"', "m@BCDA"]),
        (["id,m", *["q0,A"] * 6], {}, ["line 3", '"q0"', "line 2"]),
        (["id,m", "q0,A", "q9,A"], {}, ["line 3", '"q9"', '"q0"']),
        (["model", *["A"] * 6], {"column": "modle"}, ['"modle"', '"model"']),
        (['{"m": "A"}', *['{"n": "A"}'] * 5], {"suffix": ".jsonl"}, ["line 2", "keys"]),
        (['{"m_A": 1, "m": {"A": 2}}'], {"suffix": ".jsonl"}, ["line 1", "m_A"]),
    ],
)
def test_predictions_for_other_items_are_refused_by_row_and_column(reading, lines, flags, named):
    with pytest.raises(UserError) as refused:
        reading(lines, **flags)
    assert all(part in str(refused.value) for part in named), str(refused.value)


@pytest.mark.parametrize("form", [list, lambda scores: dict(zip(LETTERS, scores, strict=False))])
def test_scores_in_json_are_as_many_as_an_item_has_options(benchmark, tmp_path, form):
    first, *others = benchmark
    mixed = replace(benchmark, items=(replace(first, options=("a", "b", "c")), *others))
    rows = [{"m": form([float(place == item.answer) for place, _ in enumerate(item.options)])} for item in mixed]
    path = tmp_path / "answers.jsonl"
    write_text(path, "\n".join(map(json.dumps, rows)))
    (predictions,) = read_predictions(path, mixed)
    assert (predictions.name, predictions.answers.mean_credits(mixed.items).tolist()) == ("m", [1] * 6)
    write_text(path, "\n".join(json.dumps(row) for row in [*rows[:2], rows[0], *rows[3:]]))
    with pytest.raises(UserError, match=r"line 3.*m_D"):
        read_predictions(path, mixed)


def test_an_order_of_items_with_different_numbers_of_options_is_refused(benchmark, tmp_path):
    first, *others = benchmark
    mixed = replace(benchmark, items=(replace(first, options=("a", "b", "c")), *others))
    write_text(tmp_path / "answers.csv", "\n".join(["m@BCDA", *["B"] * 6]))
    with pytest.raises(UserError, match="number of options"):
        read_predictions(tmp_path / "answers.csv", mixed)


cell = st.sampled_from(["A", "b", "X", "", " C ", "0.5", "nan", "-1e400", "q0", "ſ", '"', "\t", ",", "\r", "\n", "{}"])
name = st.sampled_from(["id", "GT", "m", "A", "B", "C", "D", "m@BCDA", "@", "ABCD", "_A", "m_A", "m_B", "m_C", "m_D"])


@st.composite
def drawn_table(draw) -> tuple[list[str], list[list[str]]]:
    header = draw(st.lists(name, max_size=6))
    return header, draw(st.lists(st.tuples(*[cell] * len(header)), min_size=5, max_size=7))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([".tsv", ".csv", ".jsonl"]), drawn_table(), st.sampled_from([None, "m", "GT", "BCDA"]))
def test_any_file_is_read_or_refused_by_its_path(benchmark, tmp_path, suffix, drawn, column):
    path = tmp_path / f"answers{suffix}"
    path.write_text("\n".join(lines_of(suffix, *drawn)), newline="")
    try:
        found = read_predictions(path, benchmark, column=column)
    except UserError as refused:
        found, message = [], str(refused)
    assert found or str(path) in message
    for predictions in found:
        assert len(predictions.answers.spelled()) == len(benchmark)
        assert all(np.isfinite(each).all() and each.sum() <= len(each) + 1e-9 for each in predictions.answers.said)
