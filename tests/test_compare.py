"""`python -m evals.compare` on reports and runs as the evaluator writes them, with answers that are known."""

import json
import shutil

import matplotlib.image
import numpy as np
import pytest
from scipy.stats import binomtest, ttest_rel

import ghost_jax
from evals.analysis.comparison import compare, rows_of, sentence
from evals.analysis.recorded import check_alike, credits_of, items_of, read_report, read_reports
from evals.analysis.report import report_of
from evals.analysis.stats import paired_difference
from evals.items.answers import Answers, orders_of
from ghost_jax.core.errors import UsageError, UserError
from ghost_jax.data.items.formats import read_items
from ghost_jax.runs.evaluation import to_json
from tests.conftest import ROOT

N = 200
RECORDS = ROOT / "evals" / "records"
CONFIG = json.loads((RECORDS / "chat_v5-seed0" / "config.json").read_text())


def write_items(path, n: int = N, sizes=(4,), golds: str = "ABCD"):
    """Writes n items, each from a page of its own; how many options they have and which is gold goes round."""
    rows = []
    for number in range(n):
        letters = "ABCD"[: sizes[number % len(sizes)]]
        gold = golds[number % len(golds)]
        rows.append(
            {
                "question": f"What is {number}?",
                "options": {letter: f"weakness {number} {letter}" for letter in letters},
                "answer": gold if gold in letters else "A",
                "url": f"https://example.org/{number}",
            }
        )
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


def write_run(workdir, content: dict, items=None, stem: str = "ctibench", **changed):
    """Writes the records of a run: its config, its report, and the held-out items of the report."""
    (workdir / "evals").mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps(CONFIG | changed))
    (workdir / "evals" / f"{stem}.json").write_text(json.dumps(content))
    if items:
        shutil.copy(items.path, workdir / "heldout.jsonl")
    return str(workdir)


def compared(places, path=None, stem="ctibench") -> dict:
    reports = read_reports([str(place) for place in places], stem)
    check_alike(reports)
    items = items_of(reports, path)
    return compare(rows_of(reports, items), items)


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    return write_items(tmp_path_factory.mktemp("items") / "own.jsonl")


def credit(knows):
    """The credits of `report`: the other answers are all A, right in one order of four."""
    return np.array([1.0 if number in knows else 0.25 for number in range(N)])


# ---- The command ----


def test_every_run_is_paired_with_the_first(ghost, items, tmp_path):
    known = {"weak": range(50), "strong": range(20, 120), "near": range(5, 53)}
    places = [write_run(tmp_path / name, report(items, known[name]), items, steps=len(known[name])) for name in known]
    out = tmp_path / "out" / "compared.json"
    screen = ghost.here("evals.compare", f"--runs={','.join(places)}", f"--out={out}").stdout
    comparison = json.loads(out.read_text())
    assert comparison["ghost_jax"] == ghost_jax.__version__
    assert (comparison["reference"], comparison["items"]["sha256"]) == ("weak", items.sha256)
    reference, *others = comparison["rows"]
    assert reference["against_reference"] is None
    differences = [paired_difference(credit(known[row["name"]]), credit(range(50)), [""] * N) for row in others]
    for row, difference in zip(others, differences, strict=True):
        against, knows = row["against_reference"], known[row["name"]]
        assert row["accuracy"] == pytest.approx(credit(knows).mean())
        found = (against["mean"], *against["ci95"], against["p"], against["detectable"])
        assert found == (difference.mean, *difference.ci95, difference.p, difference.detectable)
        ours, theirs = (np.isin(range(N), known) | (np.arange(N) % 4 == 0) for known in (knows, range(50)))
        gained, lost = int(np.sum(ours & ~theirs)), int(np.sum(theirs & ~ours))
        exact = binomtest(gained, gained + lost).pvalue
        assert against["mcnemar"] == {"gained": gained, "lost": lost, "p": pytest.approx(exact)}
        assert against["text"] in screen
    strong, near = (row["against_reference"] for row in others)
    assert (strong["p_holm"], near["p_holm"]) == pytest.approx((2 * differences[0].p, differences[1].p))
    assert "strong COLLAPSED is better than weak COLLAPSED by 18.8 points (12.2 to 25.3)" in strong["text"]
    assert "-0.8 points (-2.8 to +1.3)" in near["text"]
    picture = matplotlib.image.imread(out.with_suffix(".png"))
    assert picture.shape[0] > 200
    assert np.ptp(picture) > 0


def test_the_command_refuses_one_run_and_other_orders(ghost, items, tmp_path):
    weak = write_run(tmp_path / "weak", report(items, range(50)), items)
    one_order = write_run(tmp_path / "one_order", report(items, range(50), "published"), steps=43)
    ghost.refused_here("evals.compare", f"--runs={weak},", code=2)
    message = ghost.refused_here("evals.compare", f"--runs={weak},{one_order}")
    assert all(f"{place}/evals/ctibench.json (own.jsonl)" in message for place in (weak, one_order))
    assert "orders" in message


# ---- A collapse, and seeds ----


def test_two_collapses_are_equal_whatever_their_letter(tmp_path):
    items = write_items(tmp_path / "own.jsonl", 90, golds="AAB")
    often = write_run(tmp_path / "often", report(items, (), letter=0), items)
    never = write_run(tmp_path / "never", report(items, (), letter=3), steps=41)
    reference, row = compared([often, never])["rows"]
    assert reference["accuracy"] == row["accuracy"] == 0.25
    assert reference["collapsed"] == row["collapsed"] == "COLLAPSED"
    assert row["against_reference"]["p"] == 1.0
    assert row["against_reference"]["text"].startswith("never COLLAPSED earns the same as often COLLAPSED")
    assert row["against_reference"]["mcnemar"]["p"] < 1e-9, "the mistake that one order makes"


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
    assert reference["seeds"]["sd"] == pytest.approx(np.std(by_seed, ddof=1))
    assert (reference["seeds"]["min"], reference["seeds"]["max"]) == pytest.approx((by_seed[0], by_seed[2]))
    expected = ttest_rel(credit(range(150)), np.mean([credit(known) for known in knows], axis=0))
    assert row["against_reference"]["p"] == pytest.approx(expected.pvalue)
    assert row["against_reference"]["mcnemar"] is None, "three seeds are three answers an item"
    alone = compared(seeds)
    assert len(alone["rows"]) == 1
    assert any("seeds of one recipe" in note for note in alone["notes"])


def test_a_seed_that_was_trained_again_is_another_row(items, tmp_path):
    old = [write_run(tmp_path / f"old-seed{seed}", report(items, range(60)), items, seed=seed) for seed in range(2)]
    verdicts = ({}, {"verdict": "shortcut"})
    new = [
        write_run(tmp_path / f"new-seed{seed}", report(items, range(80), **verdicts[seed]), seed=seed)
        for seed in range(2)
    ]
    rows = compared([*old, *new])["rows"]
    assert [row["name"] for row in rows] == ["old, 2 seeds", "new, 2 seeds"]
    assert [row["collapsed"] for row in rows] == ["COLLAPSED", "COLLAPSED (1 of 2)"]


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


# ---- Where reports and items are found ----


def test_reports_of_no_run_are_rows_of_their_own(items, tmp_path):
    places = [tmp_path / "gpt.json", tmp_path / "llama.json"]
    for place, known in zip(places, (60, 70), strict=True):
        place.write_text(json.dumps(report(items, range(known))))
    assert [row["name"] for row in compared(places, path=items.path)["rows"]] == ["gpt", "llama"]
    with pytest.raises(UserError, match="--items"):
        compared(places)
    with pytest.raises(UserError, match=r"others\.jsonl.*one\.json|others\.jsonl.*gpt\.json"):
        compared(places, path=write_items(tmp_path / "others.jsonl", sizes=(3,)).path)


def test_items_name_the_report_of_each_run(items, tmp_path):
    renamed = report(items, range(70))
    renamed["items"]["name"] = "another name of the same file"
    one = write_run(tmp_path / "a" / "run", report(items, range(60)), stem="own")
    other = write_run(tmp_path / "b" / "run", renamed, stem="own", steps=41)
    rows = compared([one, other], path=items.path, stem="own")["rows"]
    assert [row["name"] for row in rows] == [one, other], "runs of one name are told apart by their places"
    with pytest.raises(UserError, match=r"evals/ctibench\.json"):
        compared([one, other])
    with pytest.raises(UsageError, match=one):
        compared([one, other, f"{one}/evals/own.json"], stem="own")


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (lambda own, folder: report(write_items(folder / "others.jsonl", sizes=(3,)), range(60)), "others.jsonl"),
        (lambda own, folder: report(own, range(60), "all"), "orders"),
        (lambda own, folder: report(own, range(60), book="open"), "open and closed"),
        (lambda own, folder: report(own, range(60), split="dev"), "dev and all"),
        (lambda own, folder: report(own, (), n=9, predicted=["AAAA"] * 9), "9 and 200"),
        (lambda own, folder: {"n": 9}, "Field required"),
        (lambda own, folder: [], "evaluation"),
        (lambda own, folder: report(own, (), predicted=["A"]), "predicted"),
        (lambda own, folder: report(own, (), predicted=["A"] * 200), '"A"'),
        (lambda own, folder: report(own, (), predicted=["AAAA"] * 7 + ["AAAX"] + ["AAAA"] * 192), '"AAAX"'),
    ],
)
def test_what_cannot_be_compared_is_refused(other, named, items, tmp_path):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text(json.dumps(report(items, range(60))))
    two.write_text(json.dumps(other(items, tmp_path)))
    with pytest.raises(UserError) as refused:
        compared([one, two], path=items.path)
    assert str(two) in str(refused.value)
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


# ---- Credits and notes ----


def test_items_of_different_size_earn_the_credit_of_their_report(tmp_path):
    items = write_items(tmp_path / "mixed.jsonl", 24, sizes=(4, 2))
    content = report(items, range(5, 15))
    content["predicted"][0] = "----"
    place = tmp_path / "mixed.json"
    place.write_text(json.dumps(content))
    earned = credits_of(read_report(place, ""), items)
    assert [len(credit) for credit in earned] == [4, 2] * 12
    collapsed = [1 / len(item.options) for item in items]
    assert [credit.mean() for credit in earned] == [0.0, *collapsed[1:5], *[1.0] * 10, *collapsed[15:]]


def test_notes_name_cropped_prompts_and_shared_credit_of_ties(items, tmp_path):
    scores = [np.zeros((1, 4)), *[np.eye(4)[:1]] * (N - 1)]  # all letters of the first item tie
    tied = to_json(report_of(Answers.from_log_probs(orders_of(items.items, "published"), scores), items))
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text(json.dumps(report(items, range(60), "published", prompts_cropped=5)))
    two.write_text(json.dumps(tied | {"prompts_cropped": 0}))
    notes = compared([one, two], path=items.path)["notes"]
    assert [note.partition(":")[0] for note in notes if "letters earn" in note] == ["two"]
    assert [note.partition(" prompts")[0] for note in notes if "beginning" in note] == [f"one: 5 of {N}"]


@pytest.mark.parametrize(
    ("credits", "pages", "p_holm", "parts"),
    [
        ([0.0, 0.25, 0.0, 0.25] * 9, None, 0.004, ["worse", "37.5 points (33.2 to 41.8)", "0.004"]),
        ([1.0, 0.75, 0.5, 0.5, 0.25] * 9, None, 0.12, ["not told apart", "+10.0 points", "3 comparisons"]),
        ([1.0, 0.75], ["page", "page"], 1.0, ["not told apart", "one page"]),
    ],
)
def test_the_sentence_on_a_difference(credits, pages, p_holm, parts):
    difference = paired_difference(credits, [0.5] * len(credits), pages or [""] * len(credits))
    text = sentence("B", "A", difference, p_holm, 3)
    assert all(part in text for part in ["B is ", " A", *parts])


# ---- The records that are kept ----


def test_recorded_letters_earn_the_recorded_accuracy_and_need_the_same_orders(ghost_data):
    reports = read_reports([str(RECORDS / name) for name in ("chat_v5-36m", "chat_v5-seed0")], "ctibench")
    with pytest.raises(UserError, match="orders"):
        check_alike(reports)
    items = read_items(ghost_data / "ctibench" / "cti-mcq.tsv")
    for recorded in reports:
        earned = np.mean([credit.mean() for credit in credits_of(recorded, items)])
        assert earned == pytest.approx(recorded.evaluation.headline.accuracy, abs=1e-12)
