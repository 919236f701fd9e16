"""`python -m evals.compare` on reports and runs as the evaluator writes them, with answers that are known."""

import json
import shutil

import numpy as np
import pytest
from scipy.stats import ttest_rel

import ghost_jax
from evals.analysis.comparison import compare, rows_of
from evals.analysis.recorded import answers_of, check_alike, items_of, read_reports
from evals.analysis.report import report_of
from evals.analysis.stats import paired_difference, pool
from evals.items.answers import Answers, orders_of
from ghost_jax.core.atomic_io import write_json
from ghost_jax.core.errors import UserError
from ghost_jax.data.items.formats import read_items
from ghost_jax.runs.evaluation import to_json
from tests.conftest import ROOT

N = 200
RECORDS = ROOT / "evals" / "records"
CONFIG = json.loads((RECORDS / "chat_v5-seed0" / "config.json").read_text())


def write_items(path, n: int = N, golds: str = "ABCD"):
    """Writes n items, each from a page of its own; which option is gold goes round."""
    rows = [
        {
            "question": f"What is {number}?",
            "options": {letter: f"weakness {number} {letter}" for letter in "ABCD"},
            "answer": golds[number % len(golds)],
            "url": f"https://example.org/{number}",
        }
        for number in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_items(path)


def report(items, knows, orders: str = "cyclic", letter: int = 0, **more) -> dict:
    """A report of answers that are right on the items of `knows`, in every order, and one letter on the others."""
    asked = orders_of(items.items, orders)
    letters = [
        [order[item.answer] if number in knows else letter for order in of_item]
        for number, (item, of_item) in enumerate(zip(items, asked, strict=True))
    ]
    return to_json(report_of(Answers.from_letters(asked, letters), items)) | more


def write_run(workdir, content: dict, items=None, **changed):
    """Writes the records of a run: its config, its report, and the held-out items of the report."""
    write_json(workdir / "config.json", CONFIG | changed)
    write_json(workdir / "evals" / "ctibench.json", content)
    if items:
        shutil.copy(items.path, workdir / "heldout.jsonl")
    return str(workdir)


def compared(places, path=None) -> dict:
    reports = read_reports([str(place) for place in places], "ctibench")
    check_alike(reports)
    items = items_of(reports, path)
    return compare(rows_of(reports, items), items)


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    return write_items(tmp_path_factory.mktemp("items") / "own.jsonl")


def credit(knows):
    """The credits of `report`: the other answers are all A, right in one order of four."""
    return np.array([1.0 if number in knows else 0.25 for number in range(N)])


def test_every_run_is_paired_with_the_first(ghost, items, tmp_path):
    known = {"weak": range(50), "strong": range(20, 120), "near": range(5, 53)}
    places = [write_run(tmp_path / name, report(items, known[name]), items, steps=len(known[name])) for name in known]
    out = tmp_path / "out" / "compared.json"
    ghost.here("evals.compare", f"--runs={','.join(places)}", f"--out={out}")
    comparison = json.loads(out.read_text())
    assert comparison["ghost_jax"] == ghost_jax.__version__
    assert (comparison["reference"], comparison["items"]["sha256"]) == ("weak", items.sha256)
    _, *others = comparison["rows"]
    differences = [paired_difference(credit(known[row["name"]]), credit(range(50)), [""] * N, of=2) for row in others]
    for row, difference in zip(others, differences, strict=True):
        against, knows = row["against_reference"], known[row["name"]]
        assert row["accuracy"] == pytest.approx(credit(knows).mean())
        found = (against["mean"], *against["ci95"], against["p"], against["detectable"])
        assert found == (difference.mean, *difference.ci95, difference.p, difference.detectable)
    strong, near = (row["against_reference"] for row in others)
    assert (strong["p_holm"], near["p_holm"]) == pytest.approx((2 * differences[0].p, differences[1].p))
    assert "strong is better than weak COLLAPSED by 18.8 points (12.2 to 25.3)" in strong["text"]
    assert "-0.8 points (-2.8 to +1.3)" in near["text"]
    ghost.refused_here("evals.compare", f"--runs={places[0]},", code=2)


def test_two_collapses_are_equal_whatever_their_letter(tmp_path):
    items = write_items(tmp_path / "own.jsonl", 90, golds="AAB")
    for name, letter in (("often", 0), ("never", 3)):  # reports of no run
        write_json(tmp_path / f"{name}.json", report(items, (), letter=letter))
    reference, row = compared([tmp_path / "often.json", tmp_path / "never.json"], items.path)["rows"]
    assert reference["accuracy"] == row["accuracy"] == 0.25
    assert reference["collapsed"] == row["collapsed"] == "COLLAPSED"
    assert row["against_reference"]["p"] == 1.0
    assert row["against_reference"]["text"].startswith("never COLLAPSED earns the same as often COLLAPSED")


def test_seeds_of_a_recipe_are_one_row(items, tmp_path):
    knows = (range(60), range(70), range(95))
    seeds = [
        write_run(tmp_path / f"low-seed{seed}", report(items, knows[seed]), items, seed=seed, log_every=seed + 1)
        for seed in range(3)
    ]
    single = write_run(tmp_path / "high", report(items, range(150)), optim={"peak_lr": 1.0})
    comparison = compared([*seeds, single])
    reference, row = comparison["rows"]
    by_seed = [credit(known).mean() for known in knows]
    assert reference["name"] == "low, 3 seeds"
    assert [run["accuracy"] for run in reference["runs"]] == pytest.approx(by_seed)
    assert reference["accuracy"] == pytest.approx(np.mean(by_seed))
    assert reference["seeds"] == pool(by_seed)
    expected = ttest_rel(credit(range(150)), np.mean([credit(known) for known in knows], axis=0))
    assert row["against_reference"]["p"] == pytest.approx(expected.pvalue)
    assert len(compared(seeds)["rows"]) == 1
    write_json(tmp_path / "high" / "environment.json", {"git_commit": "abc", "git_dirty": True})
    notes = "\n".join(compared([seeds[0], single])["notes"])
    assert "leave out the effect of the seed" in notes
    assert "code: not recorded (low-seed0); abc with changes (high)" in notes


@pytest.mark.parametrize(
    ("changed", "more", "rows"),
    [
        ({"optim": CONFIG["optim"] | {"peak_lr": 0.5}}, {}, 2),
        ({"base": CONFIG["base"] | {"steps": 7}}, {}, 2),
        ({}, {"step": 7}, 2),
        ({}, {"reader": "lexical"}, 2),
        ({"base": CONFIG["base"] | {"seed": 1, "mesh": {"data": 8}}, "mesh": {"data": 8}}, {}, 1),
    ],
)
def test_only_the_seed_and_the_machine_make_no_other_row(changed, more, rows, items, tmp_path):
    one = write_run(tmp_path / "one", report(items, range(60)), items, seed=1)
    other = write_run(tmp_path / "other", report(items, range(60), **more), seed=2, **changed)
    assert len(compared([one, other])["rows"]) == rows


def test_two_books_are_not_compared(items, tmp_path):
    for name in ("one", "two"):
        index = {"lines": 9, "inputs": [{"source": "notes", "sha256": name * 20}]}
        write_json(tmp_path / f"{name}.json", report(items, range(60), book="own", book_index=index))
    with pytest.raises(UserError, match="books"):
        compared([tmp_path / "one.json", tmp_path / "two.json"], items.path)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (lambda own, folder: report(write_items(folder / "others.jsonl", golds="A"), ()), "others.jsonl"),
        (lambda own, folder: report(own, range(60), "all"), "orders"),
        (lambda own, folder: report(own, range(60), book="open"), "open and closed"),
        (lambda own, folder: report(own, (), n=9, predicted=["AAAA"] * 9), "9 and 200"),
        (lambda own, folder: {"n": 9}, "Field required"),
        (lambda own, folder: report(own, (), predicted=["A"]), "predicted"),
        (lambda own, folder: report(own, (), predicted=["AAAA"] * 7 + ["AAAX"] + ["AAAA"] * 192), '"AAAX"'),
    ],
)
def test_what_cannot_be_compared_is_refused(other, named, items, tmp_path):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    write_json(one, report(items, range(60)))
    write_json(two, other(items, tmp_path))
    with pytest.raises(UserError, match=str(two)) as refused:
        compared([one, two], items.path)
    assert named in str(refused.value)


def test_recorded_letters_earn_the_recorded_accuracy_and_need_the_same_orders(ghost_data):
    reports = read_reports([str(RECORDS / name) for name in ("chat_v5-36m", "chat_v5-seed0")], "ctibench")
    with pytest.raises(UserError, match="orders"):
        check_alike(reports)
    items = read_items(ghost_data / "ctibench" / "cti-mcq.tsv")
    for recorded in reports:
        earned = answers_of(recorded, items).mean_credits(items.items).mean()
        assert earned == pytest.approx(recorded.evaluation.headline.accuracy, abs=1e-12)
