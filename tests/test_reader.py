"""The open-book reader, its fitted weights, its controls, and the book that it reads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evals.items.answers import orders_of
from evals.items.formats import read_items
from evals.items.items import Item, Items, cyclic_orders, permute
from evals.items.splits import development_split
from evals.open_book import retrieval
from evals.open_book.lexical import APPEARANCE, EVIDENCE, NOTHING_FITTED, LexicalReader, answers_of
from evals.open_book.rescorer import ASKED, fit, generated, generated_weights
from ghost_jax.core.errors import UserError
from ghost_jax.data.corpus import PUBLISHED_BOOK, book_corpus, index_store
from ghost_jax.data.retrieval.bm25 import Index, Passage
from ghost_jax.data.storage import artifact_cache
from ghost_jax.data.storage.schema import Fact, Record, split_of

ROOT = Path(__file__).parents[1]
ATTACK = "https://attack.mitre.org/techniques"
LINES = (
    ("Phishing (T1566)", "", "Adversaries send messages with malicious links.", f"{ATTACK}/T1566"),
    ("Phishing (T1566)", "Mitigation M1031 Scanner", "Scan mail and block attachments.", f"{ATTACK}/T1566"),
    ("Pass the Hash (T1550.002)", "", "Adversaries steal hashes of passwords.", f"{ATTACK}/T1550/002"),
    ("Pass the Hash (T1550.002)", "Mitigation M1026", "Limit the rights of accounts.", f"{ATTACK}/T1550/002"),
    (
        "Divide By Zero (CWE-369)",
        "Consequence",
        "Crash, exit or restart.",
        "https://cwe.mitre.org/data/definitions/369.html",
    ),
    (
        "Divide By Zero (CWE-369)",
        "",
        "Examples are in C++ and in C#.",
        "https://cwe.mitre.org/data/definitions/369.html",
    ),
)
HASH = Item(
    "hash",
    "How is Pass the Hash mitigated?",
    ("Scan mail", "Limit the rights of accounts", "Restart", "Divide"),
    1,
    f"{ATTACK}/T1550.002/",
)


@pytest.fixture(scope="module")
def reader() -> LexicalReader:
    return LexicalReader(Index.build(Passage(url, "attack", *line[:3], url) for *line, url in LINES))


def asked(question: str, *options: str) -> Item:
    return Item("1", question, options, 0)


# ---- Reading ----


def test_the_option_that_the_best_line_holds_is_chosen_and_the_line_is_the_evidence(reader):
    read = reader.read(HASH)
    assert read.scores().argmax() == HASH.answer
    assert reader.evidence(read)[0].text == "Limit the rights of accounts."
    assert reader.evidence(read)[0].url == f"{ATTACK}/T1550/002"


@pytest.mark.parametrize(
    ("question", "best"),
    [
        ("Which does Divide By Zero lead to?", False),
        ("Which does Divide By Zero NOT lead to?", True),
        ("All of these follow from Divide By Zero EXCEPT", True),
    ],
)
def test_a_negated_question_is_answered_by_the_option_that_the_lines_speak_least_for(reader, question, best):
    scores = reader.read(asked(question, "Restart", "Crash", "Phishing mail", "Exit")).scores()
    assert scores[2] == (scores.max() if best else scores.min())


@pytest.mark.parametrize(
    ("question", "negated"),
    [
        ("Which of the following is NOT a mitigation?", True),
        ("Known for T1059. Which of these tools isn't used?", True),
        ("What is not a prerequisite of the attack?", True),
        ("For Valid Accounts, which of the following protocols does not apply?", True),
        ("Which of the following cannot be mitigated?", True),
        ("All of the following are mitigations, except:", True),
        ("Which of these is least likely to help?", True),
        ("Which weakness arises when input is not neutralized?", False),
        ("Which mitigation suggests a language that is not susceptible?", False),
        ("What is the impact of CWE-414 when a product does not check for a lock?", False),
        ("The product does not check which user asks. What is a consequence?", False),
        ("Which mitigation enforces least privilege?", False),
    ],
)
def test_only_the_negation_of_the_question_itself_turns_it_round(reader, question, negated):
    assert reader.read(asked(question, "Crash", "Exit")).negated is negated


def test_the_evidence_of_a_negated_question_is_what_does_hold(reader):
    read = reader.read(asked("Which is NOT a consequence of Divide By Zero?", "Crash", "Phishing mail"))
    assert [line.text for line in reader.evidence(read)] == ["Crash, exit or restart."]


def test_signs_that_terms_lose_still_tell_options_apart(reader):
    scores = reader.read(asked("Examples of Divide By Zero are in?", "C++", "C-", "C|")).scores()
    assert scores[0] > scores[1:].max()


def test_no_order_of_the_options_changes_what_is_read_to_the_last_bit(reader):
    items = [HASH, asked("Which is NOT a crash?", "Crash", "crash", "Crash", ""), asked("xyzzy", "a", "b", "c", "d")]
    weights = {name: 0.1 * (i + 1) for i, name in enumerate((*EVIDENCE, *APPEARANCE))}
    for item in items:
        scores = reader.read(item).scores(weights)
        for order in orders_of([item], "all")[0]:
            moved = reader.read(permute(item, order)).scores(weights)
            assert [moved[order[k]] for k in range(len(order))] == list(scores)


def test_answers_say_the_same_option_in_every_order_and_those_that_tie_share(reader):
    items = [HASH, asked("Crash by Divide By Zero?", "Crash", "Crash", "Mail", "Links")]
    orders = orders_of(items, "cyclic")
    answers = answers_of(reader.read_all(items), orders)
    assert answers.options()[0].tolist() == [[0, 1, 0, 0]] * 4
    assert answers.options()[1].tolist() == [[0.5, 0.5, 0, 0]] * 4
    assert [list(credit) for credit in answers.credits(items)] == [[1] * 4, [0.5] * 4]


@pytest.mark.parametrize("question", ["xyzzy plugh", "?!", "the of"])
def test_a_question_without_a_known_token_is_told_apart_and_answered_evenly(reader, question):
    item = asked(question, "Crash", "Mail", "Restart", "Links and more links")
    read = reader.read(item)
    assert not read.known
    assert not read.evidence.any()
    assert answers_of([read], [cyclic_orders(4)]).said[0].tolist() == [[0.25] * 4] * 4
    assert reader.evidence(read) == []


@pytest.mark.parametrize("question", ["What follows Divide By Zero?", "What does NOT follow Divide By Zero?", "xyzzy"])
def test_an_empty_option_is_never_chosen(reader, question):
    scores = reader.read(asked(question, "", "Crash", " ", "Mail")).scores()
    assert max(scores[0], scores[2]) < min(scores[1], scores[3])


def test_options_without_a_known_term_and_a_book_of_one_line_can_be_read():
    book = LexicalReader(Index.build([Passage("1", "test", "Title", "", "A line.", "")]))
    scores = book.read(asked("Which title?", "?", "…", "xyzzy", "line", "both")).scores()
    assert scores.argmax() == 3
    assert np.isfinite(scores).all()


def test_within_some_lines_nothing_else_is_read(reader):
    only = reader.index.rows_of(LINES[0][3])
    assert not reader.read(asked("Divide By Zero?", "Crash", "Links"), only).known
    read = reader.read(asked("Scan the mail of accounts?", "block attachments", "limit the rights"), only)
    assert read.known
    assert {line.title for line in reader.evidence(read)} == {"Phishing (T1566)"}


HASHED = """
import sys; sys.path.insert(0, "tests")
from test_reader import HASH, LINES, LexicalReader, Index, Passage
reader = LexicalReader(Index.build(Passage(url, "attack", *line[:3], url) for *line, url in LINES))
print(reader.read(HASH).evidence.tolist())
"""


def test_another_process_reads_the_same_to_the_last_bit():
    said = {
        subprocess.run(
            [sys.executable, "-c", HASHED],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert len(said) == 1
    assert said.pop().strip()


# ---- Fitted weights ----


def test_the_weights_of_the_logit_are_where_its_likelihood_is_highest(reader):
    twice = asked("Do messages of Phishing have links?", "Restart", "malicious links")
    items = [HASH, HASH, HASH, twice, twice]
    reads = [reader.read(item) for item in items]
    answers = [1, 1, 0, 1, 0]  # some against the lines, so that no weight is infinite
    names = ("line", "length")
    blocks = [read.features(names) for read in reads]

    def loss(weights: dict) -> float:
        total = 0.0
        for read, answer in zip(reads, answers, strict=True):
            scores = read.scores(weights)
            total += np.log(np.exp(scores).sum()) - scores[answer]
        return total

    best = fit(blocks, answers, names, ridge=1e-6)
    for name in names:
        for step in (-0.05, 0.05):
            assert loss(best) < loss(best | {name: best[name] + step * max(1, abs(best[name]))})
    strong = fit(blocks, answers, names, ridge=1e6)
    assert max(abs(weight) for weight in strong.values()) < 0.01


def test_nothing_can_be_fitted_to_no_question():
    with pytest.raises(ValueError, match="no questions"):
        fit([], [], EVIDENCE)


def pages(count: int) -> list[Record]:
    made = []
    for i in range(count):
        facts = tuple(
            Fact(
                f"Technique {i} (T{1000 + i})",
                relation,
                f"Answer {relation} {i}",
                f"Words number {i} tell of {relation}",
            )
            for relation in ASKED
        )
        made.append(Record(f"p/{i}", "attack", f"Technique {i}", "Text.", f"https://x.org/{i}", "", facts))
    return made


def test_generated_questions_ask_of_train_subjects_alone_and_are_the_same_again():
    items = generated(pages(80))
    assert items == generated(pages(80))
    assert len(items) > 100
    allowed = {f"https://x.org/{i}" for i in range(80) if split_of(f"Technique {i} (T{1000 + i})") == "train"}
    assert {item.url for item in items} <= allowed < {f"https://x.org/{i}" for i in range(80)}
    assert {item.answer for item in items} == {0, 1, 2, 3}


def corpus_of_facts() -> Path:
    """Builds the corpus store of pages with enough facts to generate questions from."""

    def write(folder: Path) -> dict:
        with (folder / "documents.jsonl").open("w") as file:
            for i, page in enumerate(pages(60)):
                text = "\n\n".join(f"{fact.object}: {fact.evidence}" for fact in page.facts)
                facts = [{k: getattr(f, k) for k in ("subject", "relation", "object", "evidence")} for f in page.facts]
                fields = {"id": f"p/{i}", "source": "attack", "title": page.title, "text": text, "url": page.url}
                file.write(json.dumps(fields | {"license": "", "facts": facts}) + "\n")
        return {}

    return artifact_cache.build("corpus", (), {"inputs": []}, write)


def test_the_weights_of_generated_questions_are_kept_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    corpus = corpus_of_facts()
    index = index_store(corpus, PUBLISHED_BOOK, print)
    said: list[str] = []
    weights = generated_weights(corpus, index, said.append)
    assert set(weights) == set(EVIDENCE)
    assert weights["line"] > 0
    assert generated_weights(corpus, index, said.append) == weights
    assert len(said) == 1


def test_only_ctibench_has_a_development_split():
    with pytest.raises(UserError, match="no named development split"):
        development_split(Items("mine", "", "0" * 64, (HASH,)))


# ---- Retrieval and controls ----


@pytest.mark.parametrize(
    "url",
    [
        f"{ATTACK}/T1566/001",
        f"{ATTACK}/T1566.001/",
        "http://www.attack.mitre.org/techniques/t1566/001#top",
    ],
)
def test_one_page_has_one_name(url):
    assert retrieval.page_of(url) == "attack.mitre.org/techniques/t1566.001"


def test_other_pages_keep_their_address_and_what_is_none_has_no_page():
    assert (
        retrieval.page_of("http://capec.mitre.org/data/definitions/1.html") == "capec.mitre.org/data/definitions/1.html"
    )
    assert [retrieval.page_of(url) for url in ("", "Manual", "NIST security_part5.txt")] == [""] * 3


def test_recall_counts_pages_and_leaves_out_those_that_the_book_lacks(reader):
    wrong = Item("2", "Do messages have links or passwords?", ("a", "b"), 0, f"{ATTACK}/T1550/002")
    found = retrieval.recall(reader.index, [HASH, wrong, Item("3", "Crash?", ("a", "b"), 0, "Manual")])
    assert found.rows.tolist() == [0, 1]
    assert found.absent == 1
    assert found.hits.tolist() == [[True, True, True], [False, True, True]]
    assert found.seconds > 0


def test_the_oracle_page_is_read_alone_and_a_blank_question_leaves_looks_alone(reader):
    items = [HASH, Item("4", "Crash?", ("Crash", "a longer option"), 0, "Manual")]
    oracle = retrieval.oracle_page(reader, items)
    assert [read.known for read in oracle] == [True, False]
    assert reader.evidence(oracle[0])[0].title == "Pass the Hash (T1550.002)"
    blank = retrieval.options_only(reader, items)
    assert not any(read.known for read in blank)
    assert blank[1].scores({"longest": 1.0}).argmax() == 1


def test_the_passages_of_another_question_are_read_in_place_of_the_own(reader):
    other = asked("Crash, exit, restart?", "Crash", "Links")
    first, second = retrieval.passages_of_another(reader, [HASH, other])
    assert reader.read(HASH).known
    assert not first.known  # what speaks of crashes does not speak of hashes
    assert not second.known


def test_random_passages_are_the_same_draw_again(reader):
    first, second = (retrieval.random_passages(reader, [HASH], seed=3) for _ in range(2))
    np.testing.assert_array_equal(first[0].evidence, second[0].evidence)


# ---- The book ----


def test_a_book_with_a_missing_source_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("GHOST_OFFLINE", "1")
    monkeypatch.delenv("GHOST_DATA", raising=False)
    with pytest.raises(UserError, match=r"The open book lacks enterprise-.*, cwec_v4.14.xml\..*ghost_jax.data.fetch"):
        book_corpus(None, print)


def test_the_embedded_book_is_built_once_and_its_manifest_tells_what_it_holds(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said: list[str] = []
    built = [index_store(book_corpus(None, said.append, ("embedded",)), ("embedded",), said.append) for _ in range(2)]
    assert built[0] == built[1]
    assert sum("indexing" in line for line in said) == 1
    told = artifact_cache.manifest(built[0])
    assert told.details["passages"] == len(Index.load(built[0])) > 0
    assert told.made_from["sources"] == ["embedded"]
    with pytest.raises(UserError, match="nothing to search in"):
        index_store(book_corpus(None, said.append, ("embedded",)), ("attack",), said.append)
    assert not list((tmp_path / "ghost_jax" / "stores").glob("*.partial"))


# ---- CTIBench ----


@pytest.mark.slow
def test_with_nothing_fitted_79_percent_of_ctibench_are_read_right(ghost_data, tmp_path_factory):
    items = read_items(ghost_data / "ctibench" / "cti-mcq.tsv")
    corpus = book_corpus(str(ghost_data), print)
    book = LexicalReader(Index.load(index_store(corpus, PUBLISHED_BOOK, print)))
    reads = book.read_all(items.items)
    credits = answers_of(reads, orders_of(items.items, "cyclic"), NOTHING_FITTED).credits(items.items)
    assert all((credit == credit[0]).all() for credit in credits)
    assert np.mean([credit[0] for credit in credits]) >= 0.79
    development, test = development_split(items)
    assert sorted([*development, *test]) == list(range(2500))
    found = retrieval.recall(book.index, items.items)
    assert found.hits.mean(axis=0)[1] > 0.9
