"""`python -m evals.compare` on reports and runs as the evaluator writes them, with answers that are known."""

import json
import shutil
from pathlib import Path

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
from evals.items.formats import read_items
from ghost_jax.core.errors import UsageError, UserError
from tests.conftest import ROOT, paragraph_of

N = 200
CONFIG = json.loads((ROOT / "evals" / "records" / "chat_v5-seed0" / "config.json").read_text())


def write_items(path, n: int = N, sizes=(4,), golds: str = "ABCD"):
    """Writes n items, each from a page of its own; how many options they have and which is gold goes round."""
    rows = []
    for number in range(n):
        letters = "ABCD"[: sizes[number % len(sizes)]]
        rows.append(
            {
                "question": f"What is {number}?",
                "options": {letter: f"weakness {number} {letter}" for letter in letters},
                "answer": golds[number % len(golds)] if golds[number % len(golds)] in letters else "A",
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
    return report_of(Answers.from_letters(asked, letters), items) | {"book": "closed", "reader": "model"} | more


def write_run(workdir, content: dict, items=None, stem: str = "ctibench", **changed):
    """Writes the records of a run: its config, what it was scored, and the held-out items it was scored on."""
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


def test_a_comparison_says_whose_prompts_were_cropped(items, tmp_path):
    whole = write_run(tmp_path / "whole", report(items, range(9), prompts_cropped=0))
    some = write_run(tmp_path / "some", report(items, range(9), prompts_cropped=5), seed=5)
    notes = compared([whole, some], items.path)["notes"]
    assert [note.partition(" prompts")[0] for note in notes if "beginning" in note] == [f"some: 5 of {4 * N}"]


# ---- The command ----


@pytest.fixture(scope="module")
def commands(ghost, items, tmp_path_factory):
    """What each command said: `name -> process`, and the folder."""
    folder = tmp_path_factory.mktemp("compare")
    weak = write_run(folder / "weak", report(items, range(50)), items)
    strong = write_run(folder / "strong", report(items, range(20, 120)), steps=41)
    near = write_run(folder / "near", report(items, range(5, 53)), steps=42)
    one_order = write_run(folder / "one_order", report(items, range(50), "published"), steps=43)
    out = f"--out={folder / 'out' / 'compared.json'}"
    asked = {
        "three runs": [f"--runs={weak},{strong},{near}", out],
        "other orders": [f"--runs={weak},{one_order}"],
        "one run": [f"--runs={weak},"],
    }
    tasks = {name: lambda flags=flags: ghost("evals.compare", *flags, check=False) for name, flags in asked.items()}
    return ghost.together(tasks) | {"folder": folder}


def test_a_table_a_picture_and_a_sentence_a_run(commands, items):
    process = commands["three runs"]
    assert process.returncode == 0, process.stderr
    assert "own.jsonl: 200 questions in 4 orders, closed book" in process.stdout
    strong = "strong COLLAPSED is better than weak COLLAPSED by 18.8 points (12.2 to 25.3), Holm's p <0.001."
    near = "near COLLAPSED is not told apart from weak COLLAPSED: -0.8 points (-2.8 to +1.3); only differences above"
    assert strong in process.stdout
    assert f"{near} 3.0" in process.stdout
    picture = matplotlib.image.imread(commands["folder"] / "out" / "compared.png")
    assert picture.shape[0] > 200
    assert np.ptp(picture) > 0


def test_the_numbers_are_those_of_textbook_tests(commands, items):
    comparison = json.loads((commands["folder"] / "out" / "compared.json").read_text())
    assert comparison["ghost_jax"] == ghost_jax.__version__
    reference, strong, near = comparison["rows"]
    assert reference["against_reference"] is None
    assert comparison["reference"] == "weak"
    assert comparison["items"]["sha256"] == items.sha256

    def credit(knows):  # the other answers are all A: right in one order of four
        return np.array([1.0 if number in knows else 0.25 for number in range(N)])

    def published(knows):
        return np.array([number in knows or number % 4 == 0 for number in range(N)])

    p_values = []
    for row, knows in ((strong, range(20, 120)), (near, range(5, 53))):
        against = row["against_reference"]
        plain = ttest_rel(credit(knows), credit(range(50)))
        interval = plain.confidence_interval(0.95)
        assert row["accuracy"] == pytest.approx(credit(knows).mean())
        assert against["mean"] == pytest.approx(credit(knows).mean() - credit(range(50)).mean())
        assert against["ci95"] == pytest.approx([interval.low, interval.high])
        assert against["p"] == pytest.approx(plain.pvalue)
        ours, theirs = published(knows), published(range(50))
        gained, lost = int(np.sum(ours & ~theirs)), int(np.sum(theirs & ~ours))
        exact = binomtest(gained, gained + lost).pvalue
        assert against["mcnemar"] == {"gained": gained, "lost": lost, "p": pytest.approx(exact)}
        p_values.append(plain.pvalue)
    assert p_values[0] < p_values[1]
    assert strong["against_reference"]["p_holm"] == pytest.approx(2 * p_values[0])
    assert near["against_reference"]["p_holm"] == pytest.approx(p_values[1])


def test_what_was_asked_otherwise_is_refused_with_both_named(commands):
    said = paragraph_of(commands["other orders"], 1)
    assert "one_order/evals/ctibench.json (own.jsonl) cannot be compared with" in said
    assert "weak/evals/ctibench.json (own.jsonl)" in said
    assert "ABCD here and ABCD BCDA CDAB DABC there" in said


def test_one_run_is_nothing_to_compare(commands):
    assert "Name at least two runs" in paragraph_of(commands["one run"], 2)


# ---- A collapse, and seeds ----


def test_two_collapses_are_equal_whatever_their_letter(tmp_path):
    items = write_items(tmp_path / "own.jsonl", 90, golds="AAB")
    often = write_run(tmp_path / "often", report(items, (), letter=0), items)
    never = write_run(tmp_path / "never", report(items, (), letter=3), steps=41)
    reference, row = compared([often, never])["rows"]
    assert reference["accuracy"] == row["accuracy"] == 0.25
    assert reference["collapsed"] == row["collapsed"] == "COLLAPSED"
    assert row["against_reference"]["p"] == 1.0
    assert row["against_reference"]["text"] == "never COLLAPSED earns the same as often COLLAPSED, page by page."
    assert row["against_reference"]["mcnemar"]["p"] < 1e-9, "the mistake that one order makes"


def test_items_of_one_page_count_as_one(tmp_path):
    own = write_items(tmp_path / "own.jsonl", 40)
    rows = [json.loads(line) | {"url": "https://example.org"} for line in Path(own.path).read_text().splitlines()]
    (tmp_path / "page.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = read_items(tmp_path / "page.jsonl")
    places = [write_run(tmp_path / f"{n}", report(items, range(n)), items, steps=n) for n in (10, 30)]
    assert "all items come from one page" in compared(places)["rows"][1]["against_reference"]["text"]


def test_seeds_of_a_recipe_are_one_row(items, tmp_path):
    knows = (range(60), range(70), range(95))
    seeds = [
        write_run(tmp_path / f"low-seed{seed}", report(items, knows[seed]), items, seed=seed, log_every=seed + 1)
        for seed in range(3)
    ]
    single = write_run(tmp_path / "high", report(items, range(150)), optim={"peak_lr": 1.0})
    comparison = compared([*seeds, single])
    reference, row = comparison["rows"]
    by_seed = [(n + (N - n) / 4) / N for n in (60, 70, 95)]
    assert reference["name"] == "low, 3 seeds"
    assert [run["accuracy"] for run in reference["runs"]] == pytest.approx(by_seed)
    assert reference["accuracy"] == pytest.approx(np.mean(by_seed))
    assert reference["seeds"]["sd"] == pytest.approx(np.std(by_seed, ddof=1))
    assert (reference["seeds"]["min"], reference["seeds"]["max"]) == pytest.approx((by_seed[0], by_seed[2]))
    mean_credit = np.mean([[1.0 if number in known else 0.25 for number in range(N)] for known in knows], axis=0)
    credit = [1.0 if number < 150 else 0.25 for number in range(N)]
    assert row["against_reference"]["p"] == pytest.approx(ttest_rel(credit, mean_credit).pvalue)
    assert row["against_reference"]["mcnemar"] is None, "three seeds are three answers an item"
    assert any("What the seed does to a run is not in them" in note for note in comparison["notes"])


def test_a_seed_made_again_is_another_row(items, tmp_path):
    old = [write_run(tmp_path / f"old-seed{seed}", report(items, range(60)), items, seed=seed) for seed in range(2)]
    new = [write_run(tmp_path / f"new-seed{seed}", report(items, range(80)), seed=seed) for seed in range(2)]
    uncollapsed = json.loads(Path(new[1], "evals", "ctibench.json").read_text()) | {"verdict": "shortcut"}
    Path(new[1], "evals", "ctibench.json").write_text(json.dumps(uncollapsed))
    rows = compared([*old, *new])["rows"]
    assert [row["collapsed"] for row in rows] == ["COLLAPSED", "COLLAPSED (1 of 2)"]
    names = [row["name"] for row in rows]
    assert names == ["old, 2 seeds", "new, 2 seeds"]


@pytest.mark.parametrize(
    ("changed", "more"),
    [
        ({"optim": CONFIG["optim"] | {"peak_lr": 0.5}}, {}),
        ({"base": CONFIG["base"] | {"steps": 7}}, {}),
        ({}, {"step": 7}),
        ({}, {"reader": "lexical"}),
    ],
)
def test_what_decides_a_score_makes_another_row(changed, more, items, tmp_path):
    one = write_run(tmp_path / "one", report(items, range(60)), items, seed=1)
    other = write_run(tmp_path / "other", report(items, range(60), **more), seed=2, **changed)
    assert len(compared([one, other])["rows"]) == 2


def test_seeds_alone_are_shown_with_nothing_beside(items, tmp_path):
    base = CONFIG["base"] | {"seed": 1, "mesh": {"data": 8}}
    one = write_run(tmp_path / "one", report(items, range(60)), items)
    other = write_run(tmp_path / "other", report(items, range(70)), seed=1, base=base, mesh={"data": 8})
    comparison = compared([one, other])
    assert len(comparison["rows"]) == 1
    assert "All runs are seeds of one recipe: there is no other to compare it with." in comparison["notes"]


# ---- Where reports and items are found ----


def test_reports_of_no_run_are_rows_of_their_own(items, tmp_path):
    places = [tmp_path / "gpt.json", tmp_path / "llama.json"]
    for place, known in zip(places, (60, 70), strict=True):
        place.write_text(json.dumps(report(items, range(known))))
    names = [row["name"] for row in compared(places, path=items.path)["rows"]]
    assert names == ["gpt", "llama"]
    with pytest.raises(UserError, match=r"Name their file with --items"):
        compared(places)


def test_items_name_the_report_of_each_run(items, tmp_path):
    one = write_run(tmp_path / "one", report(items, range(60)), stem="own")
    other = write_run(tmp_path / "other", report(items, range(70)), stem="own", steps=41)
    assert len(compared([one, other], path=items.path, stem="own")["rows"]) == 2
    with pytest.raises(UserError, match=r"evals/ctibench\.json: there is no such report"):
        compared([one, other])


def test_what_the_items_are_called_is_no_difference(items, tmp_path):
    one = write_run(tmp_path / "one", report(items, range(60)), items)
    renamed = report(items, range(70))
    renamed["items"]["name"] = "held-out questions"
    assert len(compared([one, write_run(tmp_path / "other", renamed, steps=41)])["rows"]) == 2


def test_runs_of_one_name_go_by_their_places(items, tmp_path):
    one = write_run(tmp_path / "a" / "run", report(items, range(60)), items)
    other = write_run(tmp_path / "b" / "run", report(items, range(70)), steps=41)
    assert [row["name"] for row in compared([one, other])["rows"]] == [one, other]
    with pytest.raises(UsageError, match="twice"):
        compared([one, other, f"{one}/evals/ctibench.json"])


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (
            lambda own, folder: report(write_items(folder / "others.jsonl", sizes=(3,)), range(60)),
            r"others.jsonl\) cannot be compared with .*one.json \(own.jsonl\): their items differ",
        ),
        (lambda own, folder: report(own, range(60), "all"), "their orders differ"),
        (
            lambda own, folder: report(own, range(60)) | {"book": "open"},
            "their books differ, open here and closed there",
        ),
        (lambda own, folder: report(own, ()) | {"n": 9, "predicted": ["AAAA"] * 9}, "9 here and 200 there"),
        (lambda own, folder: {"n": 9}, "is no whole report"),
        (lambda own, folder: [], "is no whole report"),
        (lambda own, folder: {**report(own, ()), "predicted": ["A"]}, "is no whole report"),
    ],
)
def test_what_cannot_be_compared_is_refused(other, what, items, tmp_path):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text(json.dumps(report(items, range(60))))
    two.write_text(json.dumps(other(items, tmp_path)))
    with pytest.raises(UserError, match=what) as refused:
        compared([one, two], path=items.path)
    assert str(two) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_other_items_than_those_scored_are_refused(items, tmp_path):
    reports = [tmp_path / name for name in ("one.json", "two.json")]
    for place in reports:
        place.write_text(json.dumps(report(items, range(60))))
    others = write_items(tmp_path / "others.jsonl", sizes=(3,))
    with pytest.raises(UserError, match="does not hold the items of"):
        compared(reports, path=others.path)


@pytest.mark.parametrize("letters", ["AAA", "AAAAA", "AAAE", "AAAa"])
def test_letters_that_fit_no_item_are_refused(letters, items, tmp_path):
    content = report(items, ())
    content["predicted"][7] = letters
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text(json.dumps(report(items, ())))
    two.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f'"{letters}" are no answers to line 8') as refused:
        compared([one, two], path=items.path)
    assert str(two) in str(refused.value)


# ---- Credits ----


def test_items_of_different_size_earn_what_their_report_says(tmp_path):
    items = write_items(tmp_path / "mixed.jsonl", 24, sizes=(4, 2))
    content = report(items, range(5, 15))
    content["predicted"][0] = "----"
    place = tmp_path / "mixed.json"
    place.write_text(json.dumps(content))
    earned = credits_of(read_report(place, ""), items)
    assert [len(credit) for credit in earned] == [4, 2] * 12
    collapsed = [1 / len(item.options) for item in items]
    expected = [0.0, *collapsed[1:5], *[1.0] * 10, *collapsed[15:]]
    assert [credit.mean() for credit in earned] == expected


def test_shared_credit_of_ties_is_said(items, tmp_path):
    scores = [
        np.zeros((4, 4)),
        *[np.eye(4)] * (N - 1),
    ]  # of the first item all letters tie, in the first order A is gold
    answers = Answers.from_log_probs(orders_of(items.items, "published"), [each[:1] for each in scores])
    tied = report_of(answers, items)
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text(json.dumps(report(items, range(60), "published")))
    two.write_text(json.dumps(tied | {"book": "closed"}))
    notes = compared([one, two], path=items.path)["notes"]
    assert [note.partition(":")[0] for note in notes if "letters earn" in note] == ["two"]


# ---- In words ----


def difference_of(ours, pages=None):
    return paired_difference(ours, [0.5] * len(ours), pages or [""] * len(ours))


def test_what_is_worse_is_said_to_be():
    worse = difference_of([0.0, 0.25, 0.0, 0.25] * 9)
    assert sentence("B", "A", worse, 0.004, 3) == "B is worse than A by 37.5 points (33.2 to 41.8), Holm's p 0.004."


def test_what_does_not_outlast_the_correction_is_not_told_apart():
    luck = difference_of([1.0, 0.75, 0.5, 0.5, 0.25] * 9)
    assert luck.p < 0.05
    said = sentence("B", "A", luck, 0.12, 3)
    assert said.startswith("B is not told apart from A: +10.0 points (+")
    assert ", no more than the luck of 3 comparisons; only differences above" in said


def test_one_page_is_said_to_say_nothing():
    said = sentence("B", "A", difference_of([1.0, 0.75], ["page", "page"]), 1.0, 1)
    assert said == "B is not told apart from A: all items come from one page, and say nothing of others."


# ---- The records that are kept ----


def test_the_records_of_two_runs_are_not_compared_over_different_orders():
    records = [str(ROOT / "evals" / "records" / name) for name in ("chat_v5-36m", "chat_v5-seed0")]
    with pytest.raises(UserError, match="their orders differ, ABCD BCDA CDAB DABC here and ABCD there"):
        check_alike(read_reports(records, "ctibench"))


def test_recorded_letters_earn_the_recorded_accuracy(ghost_data):
    places = [str(ROOT / "evals" / "records" / name) for name in ("chat_v5-36m", "chat_v5-seed0")]
    reports = read_reports(places, "ctibench")
    items = read_items(ghost_data / "ctibench" / "cti-mcq.tsv")
    for recorded in reports:
        earned = np.mean([credit.mean() for credit in credits_of(recorded, items)])
        assert earned == pytest.approx(recorded.content["headline"]["accuracy"], abs=1e-12)
