"""`python -m evals.ctibench --book=open` over a small book of all three publishers."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from evals.items.answers import Answers
from evals.open_book import scoring
from evals.open_book.scoring import ALL_OF_THEM, Book, both_report
from ghost_jax.data.items.formats import read_items
from tests.bench.place import write_book
from tests.test_ctibench import write_items
from tests.test_sources_formats import thing

ASKED = {  # weakness or technique -> what its page alone states
    "Glass Kite": "Glass Kite writes its beacon into the printer spooler.",
    "Amber Mole": "Amber Mole reads cookies out of the browser profile.",
    "Iron Crane": "Iron Crane encrypts the backups of a hypervisor.",
    "Paper Fox": "Paper Fox hides tunnels in the names of DNS requests.",
    "Silent Moth": "Silent Moth records keystrokes by hooking the window procedure.",
    "Velvet Worm": "Velvet Worm copies itself over removable drives.",
}
ANSWERS = [sentence.partition(" ")[2].partition(" ")[2] for sentence in ASKED.values()]
ITEMS = [
    {
        "id": name,
        "question": f"What does {name} do?",
        "options": {letter: ANSWERS[(number + place) % 6] for place, letter in enumerate("ABCD")},
        "answer": "A",
        "url": f"https://attack.mitre.org/techniques/T90{number:02}/",
    }
    for number, name in enumerate(ASKED)
]


def page(number: int, name: str, text: str) -> dict:
    made = thing("attack-pattern", f"T90{number:02}", name, description=text)
    made["external_references"][0]["url"] = f"https://attack.mitre.org/techniques/T90{number:02}"
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data folder with all of the book's sources."""
    folder = tmp_path_factory.mktemp("data")
    write_book(folder / "raw", [page(number, name, text) for number, (name, text) in enumerate(ASKED.items())])
    write_items(folder / "items.jsonl", ITEMS)
    write_items(folder / "unknown.jsonl", [ITEMS[0] | {"question": "zzzqqq?"}])
    return folder


@pytest.fixture
def score(ghost, data, tmp_path):
    """Scores the items, or others, with an open book; returns the process and the report."""

    def call(*flags: str, items: str = "items", folder: Path = data, run=ghost.here, **how):
        out = tmp_path / "report.json"
        own = [f"--items={data / items}.jsonl", f"--data_dir={folder}", "--book=open", f"--out={out}"]
        result = run("evals.ctibench", *own, *flags, **how)
        return result, json.loads(out.read_text()) if out.exists() else None

    return call


def test_the_lexical_reader_finds_the_answers_in_the_book_and_not_in_other_lines(score):
    result, report = score("--reader=lexical", "--evidence", "--controls")
    assert (report["book"], report["reader"], report["fallbacks"]) == ("open", "lexical", 0)
    assert report["headline"]["accuracy"] == report["single_order"] == 1
    assert report["letter_share"] == dict.fromkeys("ABCD", 0.25)
    assert report["retrieval"]["recall_at"]["1"] == 1
    assert report["controls"]["options only"]["accuracy"] == 0.25
    assert report["controls_missing"] == []
    assert [Path(read["file"]).name for read in report["book_index"]["inputs"]] == [
        *("enterprise-attack-15.1.json", "mobile-attack-15.1.json", "ics-attack-15.1.json"),
        *("stix-capec-3.9.json", "cwec_v4.14.xml"),
    ]
    read = {name: control["accuracy"] for name, control in report["book_controls"].items()}
    assert read["oracle page"] == read["without CAPEC"] == read["without CWE"] == 1
    assert max(read["without ATT&CK"], read["passages of another question"]) < 0.5
    assert "random passages" in read
    assert [row["fitted_on"] for row in report["fits"]] == ["nothing", ALL_OF_THEM]
    for number, text in enumerate(ASKED.values()):
        assert text in result.stdout
        assert f"https://attack.mitre.org/techniques/T90{number:02}" in result.stdout


def test_a_book_may_be_ones_own_files(score, tmp_path):
    (tmp_path / "notes").mkdir()
    for name, text in ASKED.items():
        (tmp_path / "notes" / f"{name}.md").write_text(f"# {name}\n\nOverview\n\n{text}")
    (tmp_path / "notes" / "scan.pdf").write_bytes(b"%PDF-")
    result, report = score("--reader=lexical", f"--book={tmp_path / 'notes'},capec")
    assert ".pdf" in result.stdout, "what is not read is named"
    assert (report["book"], report["headline"]["accuracy"]) == ("own", 1)
    assert report["book_index"]["lines"] > len(ASKED), "those of CAPEC too"


def test_a_question_without_a_word_of_the_book_is_counted_and_not_answered(score, ghost, with_libtpu):
    result, report = score("--reader=lexical", "--evidence", items="unknown", run=ghost, env=with_libtpu)
    assert report["fallbacks"] == 1
    assert report["headline"]["accuracy"] == 0.25
    assert "  no answer" in result.stdout
    assert "libtpu is loaded" not in result.stderr, "it was installed, and the record names the machine"


def test_an_unknown_or_incomplete_book_is_refused_with_what_is_missing(score, ghost, data, tmp_path):
    assert "attack" in score("--reader=lexical", "--book=atack", run=ghost.refused_here, code=2)[0]
    part = tmp_path / "part"
    shutil.copytree(data / "raw", part / "raw", ignore=shutil.ignore_patterns("mobile-attack-15.1.json"))
    paragraph, report = score("--reader=lexical", folder=part, run=ghost.refused_here)
    assert "mobile-attack-15.1.json" in paragraph
    assert report is None


@pytest.mark.parametrize("layout", ["classic", "cloze"])
def test_a_model_reads_the_lines_in_its_prompts_in_the_layout_that_it_was_trained_on(score, tiny_run, tmp_path, layout):
    run = shutil.copytree(tiny_run.workdir, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"]["layout"] = layout
    (run / "config.json").write_text(json.dumps(config))
    _, report = score(f"--workdir={run}")
    assert (report["book"], report["reader"], report["n"], report["layout"]) == ("open", "model", 6, layout)
    assert set(report["controls"]) == {"options only", "question swapped"}
    assert "cloze" not in report, "a closed-book figure"
    if layout == "cloze":  # options are ranked, without letters
        assert report["headline"]["accuracy"] == report["single_order"]
        assert report["letter_share"] == pytest.approx(dict.fromkeys("ABCD", 0.25))
        assert report["flip_rate"] == 0
        assert "contextual_calibration" not in report


@pytest.fixture(scope="module")
def book(data, tmp_path_factory) -> Book:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield Book.open("open", data)


def test_weights_are_fitted_on_the_development_split_and_scored_on_the_rest(data, book, monkeypatch):
    items, fitted_on = read_items(data / "items.jsonl"), []
    shared = tuple(
        dataclasses.replace(each, url=items.items[0].url) if row == 2 else each for row, each in enumerate(items)
    )
    items = dataclasses.replace(items, items=shared)
    monkeypatch.setattr(scoring, "CTIBENCH_MCQ_SHA256", items.sha256)
    monkeypatch.setattr(scoring, "development_split", lambda _: (np.array([0, 1]), np.array([2, 3, 4, 5])))
    monkeypatch.setattr(scoring, "fitted", lambda reads, _: fitted_on.extend(reads) or scoring.NOTHING_FITTED)
    reads = book.reader.read_all(items.items)
    found = [(fit.fitted_on, fit.n) for fit in scoring.fits_of(items, reads)]
    split = ("development split", 4), ("development split", 3)  # one question shares a page with the split
    assert found == [("nothing", 6), (ALL_OF_THEM, 6), ("nothing", 4), (ALL_OF_THEM, 4), *split]
    assert fitted_on == reads[:2]


def test_a_book_that_holds_a_question_with_its_answer_is_refused(score, ghost, tmp_path):
    quoted = f"{ITEMS[0]['question']} The answer is that it {ITEMS[0]['options']['A']}"
    (tmp_path / "quiz.md").write_text(f"# A quiz\n\n{quoted} " + "And more words that stand in no question. " * 5)
    paragraph, report = score("--reader=lexical", f"--book={tmp_path / 'quiz.md'}", run=ghost.refused_here)
    assert ITEMS[0]["id"] in paragraph
    assert report is None


def knows(asked, orders, passages, doing) -> tuple[Answers, int]:
    """A model that has the answer to every question that is not blank."""
    scores = [[0.0 if k == item.answer and item.question else -3.0 for k in range(len(item.options))] for item in asked]
    return Answers.from_options(orders, scores), 1


def test_a_model_that_knows_is_a_gain_over_lines_that_do_not_help(data, book):
    items = read_items(data / "items.jsonl")
    unknown = tuple(dataclasses.replace(item, question="Which of these?") for item in items)
    report = both_report(knows, "cyclic", dataclasses.replace(items, items=unknown), book)
    assert report.reader == "both"
    assert report.headline.accuracy == report.model_alone.accuracy == 1
    assert report.gain_over_lexical == pytest.approx(0.75)
    assert {name: control.accuracy for name, control in report.controls.items()}["options only"] == 0.25
    assert report.prompts_cropped == 1, "of the items alone"
    assert report.fallbacks == 6
    assert report.book_index.lines == len(book.reader.index)


def test_with_a_model_an_empty_option_is_never_chosen_and_one_order_has_no_controls(data, book):
    items = read_items(data / "items.jsonl")
    item = dataclasses.replace(items.items[0], question="Which of these is NOT one?", options=("a", "", "c", "d"))
    part = dataclasses.replace(items, items=(dataclasses.replace(item, answer=1),))
    report = both_report(knows, "published", part, book)
    assert report.model_alone.accuracy == 1
    assert report.headline.accuracy == 0
    assert report.orders_per_item == 1
    assert not report.controls


def test_reader_and_model_are_scored_together_and_a_prompt_of_a_blank_question_has_no_lines(score, tiny_run, book):
    _, report = score(f"--workdir={tiny_run.workdir}", "--reader=both")
    assert (report["book"], report["reader"], report["n"]) == ("open", "both", 6)
    assert report["gain_over_lexical"] == pytest.approx(report["headline"]["accuracy"] - 1)
    found, blank = book.passages(["What does Glass Kite do?", ""])
    assert any("Glass Kite" in line for line in found)
    assert blank == []
