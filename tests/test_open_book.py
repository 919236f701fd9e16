"""`python -m evals.ctibench --book=open` over a small book of all three publishers, written by hand."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import pytest

from evals.items.answers import Answers
from evals.items.formats import read_items
from evals.items.splits import part_of
from evals.open_book.lexical import EVIDENCE
from evals.open_book.scoring import Book, both_report
from ghost_jax.core.errors import UserError
from ghost_jax.data.corpus import PUBLISHED_BOOK
from ghost_jax.runs.evaluation import to_json
from tests.conftest import paragraph_of
from tests.test_ctibench import write_items
from tests.test_reader import corpus_of_facts
from tests.test_sources_stix import bundle, link, thing

ASKED = {  # weakness or technique -> what its page alone says
    "Glass Kite": "Glass Kite writes its beacon into the printer spooler.",
    "Amber Mole": "Amber Mole reads cookies out of the browser profile.",
    "Iron Crane": "Iron Crane encrypts the backups of a hypervisor.",
    "Paper Fox": "Paper Fox hides tunnels in the names of DNS requests.",
    "Silent Moth": "Silent Moth records keystrokes by hooking the window procedure.",
    "Velvet Worm": "Velvet Worm copies itself over removable drives.",
}
TOLD = [sentence.partition(" ")[2].partition(" ")[2] for sentence in ASKED.values()]
ITEMS = [
    {
        "id": name,
        "question": f"What does {name} do?",
        "options": {letter: TOLD[(number + place) % 6] for place, letter in enumerate("ABCD")},
        "answer": "A",
        "url": f"https://attack.mitre.org/techniques/T90{number:02}/",
    }
    for number, name in enumerate(ASKED)
]
CWE = """<?xml version="1.0"?><Weakness_Catalog xmlns="http://cwe.mitre.org/cwe-7"><Weaknesses>
<Weakness ID="79" Name="Cross-site Scripting" Status="Stable"><Description>It does not neutralize input.</Description>
</Weakness></Weaknesses></Weakness_Catalog>"""


def page(number: int, name: str, text: str) -> dict:
    made = thing("attack-pattern", f"T90{number:02}", name, description=text)
    made["external_references"][0]["url"] = f"https://attack.mitre.org/techniques/T90{number:02}"
    return made


def tactic_of(domain: str) -> dict:
    tactic = thing("x-mitre-tactic", "TA0005", "Defense Evasion")
    return tactic | {"x_mitre_shortname": "defense-evasion", "x_mitre_domains": [domain]}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data folder with all of the book's sources."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "raw").mkdir()
    pages = [page(number, name, text) for number, (name, text) in enumerate(ASKED.items())]
    guard = thing("course-of-action", "M9001", "Guard the Spooler")
    (folder / "raw" / "enterprise-attack-15.1.json").write_bytes(
        bundle(
            tactic_of("enterprise-attack"),
            *pages,
            guard,
            link("mitigates", guard, pages[0], "Restrict who may write into the spooler."),
        )
    )
    for domain in ("mobile-attack", "ics-attack"):
        alone = page(50, f"Only {domain}", "It is told apart.")
        (folder / "raw" / f"{domain}-15.1.json").write_bytes(bundle(tactic_of(domain), alone))
    pattern = thing("attack-pattern", "CAPEC-1", "Lifting Locks", description="Locks are lifted with a lever.")
    pattern["external_references"][0]["source_name"] = "capec"
    (folder / "raw" / "stix-capec-3.9.json").write_bytes(bundle(pattern))
    (folder / "raw" / "cwec_v4.14.xml").write_text(CWE)
    write_items(folder / "items.jsonl", ITEMS)
    return folder


@pytest.fixture(scope="module")
def ranking_run(tiny_run, tmp_path_factory) -> Path:
    """A run whose config says that it was trained to rank options: it has the layout without letters."""
    folder = tmp_path_factory.mktemp("ranking") / "run"
    shutil.copytree(tiny_run.workdir, folder)
    config = json.loads((folder / "config.json").read_text())
    config["data"]["layout"] = "cloze"
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def commands(ghost, tiny_run, ranking_run, data, with_libtpu, tmp_path_factory):
    """What each command said: `name -> (process, report or None)`."""
    folder = tmp_path_factory.mktemp("reports")
    less = shutil.copytree(data, folder / "less")
    (less / "raw" / "mobile-attack-15.1.json").unlink()
    unknown = folder / "unknown.jsonl"
    write_items(unknown, [ITEMS[0] | {"question": "zzzqqq?"}])
    own, run = [f"--items={data / 'items.jsonl'}", f"--data_dir={data}"], [f"--workdir={tiny_run.workdir}"]
    asked = {
        "lexical": [*own, "--book=open", "--reader=lexical", "--evidence", "--controls"],
        "model": [*own, *run, "--book=open"],
        "ranking": [*own, f"--workdir={ranking_run}", "--book=open"],
        "incomplete": [f"--items={data / 'items.jsonl'}", f"--data_dir={less}", "--book=open", "--reader=lexical"],
        "unknown": [f"--items={unknown}", f"--data_dir={data}", "--book=open", "--reader=lexical", "--evidence"],
        "no book": [f"--items={data / 'items.jsonl'}", f"--data_dir={folder}", "--book=open", "--reader=lexical"],
        "closed lexical": [*own, *run, "--reader=lexical"],
        "no run": [*own, "--book=open"],
        "no split": [*own, "--book=open", "--reader=lexical", "--split=dev"],
        "too few facts": [*own, *run, "--book=open", "--reader=both"],
    }

    def call(name: str, flags: list[str]):
        out = folder / f"{name}.json"
        env = with_libtpu if name == "unknown" else None
        result = ghost("evals.ctibench", *flags, f"--out={out}", env=env, check=False)
        return result, json.loads(out.read_text()) if out.exists() else None

    return ghost.together({name: functools.partial(call, name, flags) for name, flags in asked.items()})


def test_the_lexical_reader_finds_what_the_book_tells(commands):
    result, report = commands["lexical"]
    assert result.returncode == 0, result.stderr
    assert (report["book"], report["reader"], report["fallbacks"]) == ("open", "lexical", 0)
    assert report["headline"]["accuracy"] == report["single_order"] == 1
    assert report["letter_share"] == dict.fromkeys("ABCD", 0.25)
    assert report["retrieval"]["recall_at"]["1"] == 1
    assert report["controls"]["options only"]["accuracy"] == 0.25
    assert report["controls_missing"] == []
    assert "missing" not in report["verdict_text"]
    assert [read["file"] for read in report["book_index"]["inputs"]] == [
        *("enterprise-attack-15.1.json", "mobile-attack-15.1.json", "ics-attack-15.1.json"),
        *("stix-capec-3.9.json", "cwec_v4.14.xml"),
    ]
    assert f"{report['book_index']['lines']} lines of enterprise-attack-15.1.json" in result.stdout
    assert report["headline"]["ci95"][0] < 0.6, "six questions, all right, may still be luck"
    assert "the lexical reader" in result.stdout
    assert "6 questions, open book" in result.stdout


def test_its_controls_read_other_lines(commands):
    _, report = commands["lexical"]
    read = {name: control["accuracy"] for name, control in report["book_controls"].items()}
    assert set(read) == {
        *("random passages", "passages of another question", "oracle page", "options only"),
        *("without ATT&CK", "without CAPEC", "without CWE"),
    }
    assert read["oracle page"] == read["without CAPEC"] == read["without CWE"] == 1
    assert max(read["options only"], read["without ATT&CK"], read["passages of another question"]) < 0.5


def test_each_answer_shows_its_lines_with_their_addresses(commands):
    said = commands["lexical"][0].stdout
    for number, (name, text) in enumerate(ASKED.items()):
        about = said[said.index(f"{name}: What does {name} do?") :]
        answer, line, url = about.splitlines()[1:4]
        assert answer == f"  answer: {TOLD[number]}"
        assert text in line
        assert url == f"    https://attack.mitre.org/techniques/T90{number:02}"


def test_a_question_of_which_the_book_has_no_word_is_counted_and_not_answered(commands):
    result, report = commands["unknown"]
    assert report["fallbacks"] == 1
    assert "questions of which the book has no word: 1" in result.stdout
    assert "no answer: the book has no word of this question" in result.stdout
    assert "answer: " not in result.stdout.replace("no answer: ", "")
    assert "libtpu is loaded" not in result.stderr, "it was installed, and the record names the machine"


def test_too_few_facts_to_fit_are_named_and_the_unfitted_reader_stands(commands):
    result, report = commands["lexical"]
    assert [row["fitted_on"] for row in report["fits"]] == ["nothing"]
    assert "too few facts" in result.stdout
    assert "too few facts" in paragraph_of(commands["too few facts"][0], 1)


def test_a_model_reads_the_lines_in_its_prompts(commands):
    result, report = commands["model"]
    assert result.returncode == 0, result.stderr
    assert (report["book"], report["reader"], report["n"]) == ("open", "model", 6)
    assert set(report["controls"]) == {"options only", "question swapped"}
    assert "6 questions, open book" in result.stdout


def test_a_run_that_was_trained_to_rank_options_is_asked_to_rank_them(commands):
    result, report = commands["ranking"]
    assert result.returncode == 0, result.stderr
    assert report["layout"] == "cloze"
    assert report["headline"]["accuracy"] == report["single_order"]
    assert report["letter_share"] == pytest.approx(dict.fromkeys("ABCD", 0.25))
    assert report["flip_rate"] == 0
    assert set(report["controls"]) == {"options only", "question swapped"}
    assert not {"cloze", "contextual_calibration"} & report.keys(), "closed-book figures stand in no open-book report"


@pytest.mark.parametrize(
    ("name", "code", "part"),
    [
        ("no book", 1, "The open book lacks enterprise-attack-15.1.json, mobile-attack-15.1.json,"),
        ("incomplete", 1, "The open book lacks mobile-attack-15.1.json."),
        ("closed lexical", 2, "add --book=open"),
        ("no run", 2, "--book=open --reader=lexical"),
        ("no split", 1, "has no named development split"),
    ],
)
def test_what_cannot_be_read_is_refused(commands, name, code, part):
    result, report = commands[name]
    assert part in paragraph_of(result, code)
    assert report is None


@pytest.fixture(scope="module")
def book(data, tmp_path_factory) -> Book:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield Book.open(str(data), lambda line: None)


def test_a_prompt_shows_what_a_search_finds_and_nothing_for_a_blank_question(book):
    found, blank = book.passages(["What does Paper Fox do?", ""])
    assert ASKED["Paper Fox"] in found[0]
    assert blank == []


@pytest.fixture(scope="module")
def facts_book(tmp_path_factory) -> Book:
    """A book of enough facts to generate questions from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield Book.of(corpus_of_facts(), PUBLISHED_BOOK, lambda line: None)


def knows(asked, orders, passages, doing) -> tuple[Answers, int]:
    """A model that has the answer wherever there is a question."""
    scores = [[0.0 if k == item.answer and item.question else -3.0 for k in range(len(item.options))] for item in asked]
    return Answers.from_options(orders, scores), 1


def test_a_model_that_knows_is_a_gain_over_lines_that_do_not_tell(data, facts_book):
    items = read_items(data / "items.jsonl")
    unsaid = tuple(dataclasses.replace(item, question="Which of these?") for item in items)
    part = dataclasses.replace(items, items=unsaid)
    report = to_json(both_report(knows, "cyclic", part, facts_book, lambda line: None))
    assert report["reader"] == "both"
    assert list(report["weights"]) == [*EVIDENCE, "model"]
    assert report["weights"]["model"] > 0
    assert report["headline"]["accuracy"] == report["model_alone"]["accuracy"] == 1
    assert report["gain_over_lexical"] == pytest.approx(0.75)
    assert report["controls"]["options only"]["accuracy"] == 0.25
    assert set(report["controls"]) == {"options only", "question swapped"}
    assert report["prompts_cropped"] == 1, "of the items, and of nothing that was asked beside"
    assert report["fallbacks"] == 6, "nothing but words that tell nothing is asked"
    assert report["book_index"]["lines"] == len(facts_book.reader.index)


def test_with_a_model_too_an_option_without_text_is_never_chosen_and_one_order_stays_one(data, facts_book):
    items = read_items(data / "items.jsonl")
    item = dataclasses.replace(items.items[0], question="Which of these is NOT one?", options=("a", "", "c", "d"))
    part = dataclasses.replace(items, items=(dataclasses.replace(item, answer=1),))
    report = to_json(both_report(knows, "published", part, facts_book, lambda line: None))
    assert report["model_alone"]["accuracy"] == 1
    assert report["headline"]["accuracy"] == 0
    assert report["headline"]["orders_per_item"] == 1
    assert not report["controls"]


def test_the_splits_of_ctibench_are_500_and_the_2000_others(ghost_data, data):
    items = read_items(ghost_data / "ctibench" / "cti-mcq.tsv")
    dev, test = part_of(items, "dev"), part_of(items, "test")
    assert (len(dev), len(test)) == (500, 2000)
    assert not {item.id for item in dev} & {item.id for item in test}
    assert part_of(items, "all") is items
    with pytest.raises(UserError, match="no named development split"):
        part_of(read_items(data / "items.jsonl"), "test")
