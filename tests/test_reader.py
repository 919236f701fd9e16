"""evals/open_book: the lexical reader, its fit, retrieval and controls, and the book that it reads."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from evals.items.answers import orders_of
from evals.open_book import retrieval
from evals.open_book.lexical import FEATURES, LexicalReader, answers_of
from evals.open_book.scoring import Book, fitted
from ghost_jax.core.errors import UserError
from ghost_jax.data.corpus import book_corpus, index_store
from ghost_jax.data.items.formats import read_items
from ghost_jax.data.items.items import Item, cyclic_orders, permute
from ghost_jax.data.retrieval.bm25 import Index, Passage
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
    """A reader of the lines, and of the paragraphs that two of them make."""
    lines = [Passage(url, "attack", *line, url) for *line, url in LINES]
    pairs = zip(lines[::2], lines[1::2], strict=True)
    whole = [replace(first, section="", text=f"{first.text} {second.text}") for first, second in pairs]
    return LexicalReader(Index.build(lines), Index.build(whole))


@pytest.fixture(scope="module")
def reader() -> LexicalReader:
    return small_reader()


def asked(question: str, *options: str) -> Item:
    return Item("1", question, options, 0)


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
def test_the_option_of_the_best_line_or_the_least_supported_if_negated_is_chosen(reader, item, chosen, evidence):
    read = reader.read(item)
    scores = read.scores()
    assert np.flatnonzero(scores == scores.max()).tolist() == [chosen]
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


def test_a_question_without_a_known_term_is_marked_and_answered_evenly(reader):
    for question in ("xyzzy plugh", "?!", "the of"):
        read = reader.read(asked(question, "Crash", "Mail", "Restart", "Links and more links"))
        assert not read.known
        assert answers_of([read], [cyclic_orders(4)]).said[0].tolist() == [[0.25] * 4] * 4
        assert reader.evidence(read) == []


def test_an_empty_option_is_never_chosen(reader):
    for question in ("What follows Divide By Zero?", "What does NOT follow Divide By Zero?", "xyzzy"):
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


def test_a_fit_learns_which_features_the_answers_have(reader):
    read = reader.read(asked("xyzzy?", "short", "a much longer option"))  # no line knows it: its form alone is left
    weights = fitted([read] * 100, [1] * 90 + [0] * 10)
    assert weights["longest"] > 0
    assert weights["line"] == 0
    assert read.scores(weights).argmax() == 1


def test_a_page_has_one_name():
    for url in (f"{ATTACK}/T1566/001", f"{ATTACK}/T1566.001/", "http://www.attack.mitre.org/techniques/t1566/001#a"):
        assert retrieval.page_of(url) == "attack.mitre.org/techniques/t1566.001"
    assert retrieval.page_of("http://capec.mitre.org/data/1.html") == "capec.mitre.org/data/1.html"
    assert [retrieval.page_of(url) for url in ("", "Manual", "NIST security_part5.txt")] == [""] * 3


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
    blank = reader.read(replace(other, question=""))
    assert not blank.known
    assert blank.scores({"longest": 1.0}).argmax() == 1
    assert not any(read.known for read in retrieval.passages_of_another(reader, [HASH, other]))
    first, second = (retrieval.random_passages(reader, [HASH]) for _ in range(2))
    np.testing.assert_array_equal(first[0].evidence, second[0].evidence)


def test_the_embedded_book_is_built_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    messages: list[str] = []
    corpus = book_corpus(None, messages.append, "embedded")
    built = [index_store(corpus, ("embedded",), messages.append) for _ in range(2)]
    assert built[0] == built[1]
    assert len(Index.load(built[0])) > 0
    assert sum("indexing" in line for line in messages) == 1
    with pytest.raises(UserError, match="embedded"):
        index_store(corpus, ("attack",), messages.append)


@pytest.mark.slow
def test_with_nothing_fitted_84_percent_of_ctibench_are_right(ghost_data):
    items = read_items(ghost_data / "ctibench" / "cti-mcq.tsv")
    reader = Book.open("open", ghost_data).reader
    credits = answers_of(reader.read_all(items.items), orders_of(items.items, "cyclic")).credits(items.items)
    assert all((credit == credit[0]).all() for credit in credits)
    assert np.mean([credit[0] for credit in credits]) == pytest.approx(0.8378, abs=5e-4)
    assert retrieval.recall(reader.index, items.items).recall_at["5"] > 0.9
