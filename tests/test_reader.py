"""evals/open_book: the lexical reader, its fitted weights, retrieval and controls, and the book that it reads."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evals.items.answers import orders_of
from evals.open_book import retrieval
from evals.open_book.lexical import EVIDENCE, FEATURES, LexicalReader, answers_of
from evals.open_book.rescorer import ASKED, fit, generated, generated_weights
from evals.open_book.scoring import Book
from ghost_jax.core.errors import UserError
from ghost_jax.data.corpus import book_corpus, index_store
from ghost_jax.data.items.formats import read_items
from ghost_jax.data.items.items import Item, cyclic_orders, permute
from ghost_jax.data.retrieval.bm25 import Index, Passage
from ghost_jax.data.storage import artifact_cache
from ghost_jax.data.storage.schema import Fact, Record, split_of
from tests.conftest import ROOT

ATTACK = "https://attack.mitre.org/techniques"
CWE = "https://cwe.mitre.org/data/definitions/369.html"
LINES = (
    ("Phishing (T1566)", "", "Adversaries send messages with malicious links.", f"{ATTACK}/T1566"),
    ("Phishing (T1566)", "Mitigation M1031 Scanner", "Scan mail and block attachments.", f"{ATTACK}/T1566"),
    ("Pass the Hash (T1550.002)", "", "Adversaries steal hashes of passwords.", f"{ATTACK}/T1550/002"),
    ("Pass the Hash (T1550.002)", "Mitigation M1026", "Limit the rights of accounts.", f"{ATTACK}/T1550/002"),
    ("Divide By Zero (CWE-369)", "Consequence", "Crash, exit or restart.", CWE),
    ("Divide By Zero (CWE-369)", "", "Examples are in C++ and in C#.", CWE),
)
HASH = Item(
    "hash",
    "How is Pass the Hash mitigated?",
    ("Scan mail", "Limit the rights of accounts", "Restart", "Divide"),
    1,
    f"{ATTACK}/T1550.002/",
)


def small_reader() -> LexicalReader:
    lines = [Passage(url, "attack", *line, url) for *line, url in LINES]
    pairs = zip(lines[::2], lines[1::2], strict=True)
    whole = [replace(first, section="", text=f"{first.text} {second.text}") for first, second in pairs]
    return LexicalReader(Index.build(lines), Index.build(whole))


@pytest.fixture(scope="module")
def reader() -> LexicalReader:
    return small_reader()


def asked(question: str, *options: str) -> Item:
    return Item("1", question, options, 0)


# ---- Reading ----


@pytest.mark.parametrize(
    ("item", "chosen", "evidence"),
    [
        (HASH, 1, "Limit the rights of accounts."),
        (asked("Which does Divide By Zero lead to?", "Phishing mail", "Crash"), 1, "Crash, exit or restart."),
        (asked("Which does Divide By Zero NOT lead to?", "Crash", "Phishing mail"), 1, "Crash, exit or restart."),
        (asked("All of these follow from Divide By Zero EXCEPT", "Crash", "Mail"), 1, "Crash, exit or restart."),
        (asked("Examples of Divide By Zero are in?", "C-", "C++", "C|"), 1, "Examples are in C++ and in C#."),
    ],
)
def test_the_option_of_the_best_line_is_chosen_or_the_least_supported_one_of_a_negated_question(
    reader, item, chosen, evidence
):
    read = reader.read(item)
    scores = read.scores()
    assert scores.argmax() == chosen
    assert (scores == scores.max()).sum() == 1
    assert reader.evidence(read)[0].text == evidence


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
def test_only_the_negation_of_the_question_itself_reverses_the_order(reader, question, negated):
    assert reader.read(asked(question, "Crash", "Exit")).negated is negated


def test_no_order_of_the_options_changes_a_score_and_equal_options_share(reader):
    items = [HASH, asked("Which is NOT a crash?", "Crash", "crash", "Crash", ""), asked("xyzzy", "a", "b", "c", "d")]
    weights = {name: 0.1 * (i + 1) for i, name in enumerate(FEATURES)}
    for item in items:
        scores = reader.read(item).scores(weights)
        for order in orders_of([item], "all")[0]:
            moved = reader.read(permute(item, order)).scores(weights)
            assert [moved[order[k]] for k in range(len(order))] == list(scores), "to the last bit"
    tied = asked("Crash by Divide By Zero?", "Crash", "Crash", "Mail", "Links")
    answers = answers_of(reader.read_all([HASH, tied]), orders_of([HASH, tied], "cyclic"))
    assert answers.options()[0].tolist() == [[0, 1, 0, 0]] * 4
    assert answers.options()[1].tolist() == [[0.5, 0.5, 0, 0]] * 4


@pytest.mark.parametrize("question", ["xyzzy plugh", "?!", "the of"])
def test_a_question_without_a_known_term_is_marked_and_answered_evenly(reader, question):
    read = reader.read(asked(question, "Crash", "Mail", "Restart", "Links and more links"))
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


def test_another_hash_seed_gives_the_same_evidence_to_the_last_bit(reader):
    code = "from tests.test_reader import HASH, small_reader; print(small_reader().read(HASH).evidence.tolist())"
    env = os.environ | {"PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == reader.read(HASH).evidence.tolist()


# ---- Fitted weights ----


def test_the_weights_of_the_logit_maximise_its_likelihood(reader):
    twice = asked("Do messages of Phishing have links?", "Restart", "malicious links")
    reads = [reader.read(item) for item in (HASH, HASH, HASH, twice, twice)]
    answers = [1, 1, 0, 1, 0]  # some against the lines, so that no weight is infinite
    names = ("line", "length")
    blocks = [read.features(names) for read in reads]

    def loss(weights: dict) -> float:
        scores = [read.scores(weights) for read in reads]
        return sum(np.log(np.exp(each).sum()) - each[answer] for each, answer in zip(scores, answers, strict=True))

    best = fit(blocks, answers, names, ridge=1e-6)
    for name in names:
        for step in (-0.05, 0.05):
            assert loss(best) < loss(best | {name: best[name] + step * max(1, abs(best[name]))})
    assert max(map(abs, fit(blocks, answers, names, ridge=1e6).values())) < 0.01


def pages(count: int) -> list[Record]:
    """Returns pages with a fact of each relation that questions are generated from."""
    made = []
    for i in range(count):
        name = f"Technique {i} (T{1000 + i})"
        facts = [Fact(name, asks, f"Answer {asks} {i}", f"Words number {i} tell of {asks}") for asks in ASKED]
        made.append(Record(f"p/{i}", "attack", f"Technique {i}", "Text.", f"https://x.org/{i}", "", tuple(facts)))
    return made


def corpus_of_facts() -> Path:
    """Builds the corpus store of pages with enough facts to generate questions from."""

    def write(folder: Path) -> dict:
        with (folder / "documents.jsonl").open("w") as file:
            for page in pages(60):
                facts = [{k: getattr(f, k) for k in ("subject", "relation", "object", "evidence")} for f in page.facts]
                text = "\n\n".join(f"{fact.object}: {fact.evidence}" for fact in page.facts)
                fields = {"id": page.id, "source": "attack", "title": page.title, "text": text, "url": page.url}
                file.write(json.dumps(fields | {"license": "", "facts": facts}) + "\n")
        return {"documents": {"attack": 60}}

    return artifact_cache.build("corpus", {}, {"inputs": []}, write)


def test_generated_questions_are_a_fixed_draw_from_train_subjects():
    items = generated(pages(80))
    assert items == generated(pages(80))
    assert len(items) > 100
    allowed = {f"https://x.org/{i}" for i in range(80) if split_of(f"Technique {i} (T{1000 + i})") == "train"}
    assert {item.url for item in items} <= allowed < {f"https://x.org/{i}" for i in range(80)}
    assert {item.answer for item in items} == {0, 1, 2, 3}


def test_the_weights_of_generated_questions_are_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    corpus = corpus_of_facts()
    indexes = [index_store(corpus, ["attack"], print, words) for words in (40, 200)]
    messages: list[str] = []
    weights = generated_weights(corpus, indexes, messages.append)
    assert set(weights) == set(EVIDENCE)
    assert weights["line"] > 0
    assert generated_weights(corpus, indexes, messages.append) == weights
    assert len(messages) == 1


# ---- Retrieval and controls ----


@pytest.mark.parametrize(
    ("url", "page"),
    [
        *(
            (url, "attack.mitre.org/techniques/t1566.001")
            for url in (
                f"{ATTACK}/T1566/001",
                f"{ATTACK}/T1566.001/",
                "http://www.attack.mitre.org/techniques/t1566/001#a",
            )
        ),
        ("http://capec.mitre.org/data/definitions/1.html", "capec.mitre.org/data/definitions/1.html"),
        *((url, "") for url in ("", "Manual", "NIST security_part5.txt")),
    ],
)
def test_a_page_has_one_name(url, page):
    assert retrieval.page_of(url) == page


def test_recall_counts_pages_and_leaves_out_those_that_the_book_lacks(reader):
    wrong = Item("2", "Do messages have links or passwords?", ("a", "b"), 0, f"{ATTACK}/T1550/002")
    found = retrieval.recall(reader.index, [HASH, wrong, Item("3", "Crash?", ("a", "b"), 0, "Manual")])
    assert (found.n, found.absent) == (2, 1)
    assert found.recall_at == {"1": 0.5, "5": 1, "10": 1}
    assert found.seconds_per_query > 0


def test_controls_read_other_lines(reader):
    other = Item("4", "Crash, exit, restart?", ("Crash", "a longer option"), 0, "Manual")
    oracle = retrieval.oracle_page(reader, [HASH, other])
    assert [read.known for read in oracle] == [True, False]
    assert {line.title for line in reader.evidence(oracle[0])} == {"Pass the Hash (T1550.002)"}
    blank = retrieval.options_only(reader, [HASH, other])
    assert not any(read.known for read in blank)
    assert blank[1].scores({"longest": 1.0}).argmax() == 1
    assert not any(read.known for read in retrieval.passages_of_another(reader, [HASH, other]))
    first, second = (retrieval.random_passages(reader, [HASH]) for _ in range(2))
    np.testing.assert_array_equal(first[0].evidence, second[0].evidence)


# ---- The book ----


def test_the_embedded_book_is_built_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    messages: list[str] = []
    corpus = book_corpus(None, messages.append, "embedded")
    built = [index_store(corpus, ("embedded",), messages.append) for _ in range(2)]
    assert built[0] == built[1]
    assert sum("indexing" in line for line in messages) == 1
    manifest = artifact_cache.manifest(built[0])
    assert manifest.model_extra["passages"] == len(Index.load(built[0])) > 0
    assert manifest.made_from["sources"] == ["embedded"]
    with pytest.raises(UserError, match="embedded"):
        index_store(corpus, ("attack",), messages.append)
    assert not list((tmp_path / "ghost_jax" / "stores").glob("*.partial"))


@pytest.mark.slow
def test_with_nothing_fitted_84_percent_of_ctibench_are_right(ghost_data):
    items = read_items(ghost_data / "ctibench" / "cti-mcq.tsv")
    reader = Book.open("open", ghost_data, print).reader
    credits = answers_of(reader.read_all(items.items), orders_of(items.items, "cyclic")).credits(items.items)
    assert all((credit == credit[0]).all() for credit in credits)
    assert np.mean([credit[0] for credit in credits]) == pytest.approx(0.8378, abs=5e-4)
    assert retrieval.recall(reader.index, items.items).recall_at["5"] > 0.9
