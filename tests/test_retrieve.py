"""bm25.py: every word of a page is in one passage, and the index finds, keeps and reads them."""

import json
import math
import os
import pickle
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ghost_jax.core.errors import UserError
from ghost_jax.data import sources
from ghost_jax.data.retrieval.bm25 import (
    CONTEXT,
    SHOWN_CHARACTERS,
    TITLE_WEIGHT,
    WORDS,
    Index,
    Passage,
    passages_of,
    shown,
    terms,
)
from ghost_jax.data.storage.schema import Record

ROOT = Path(__file__).parents[1]
PAGES = (
    ("Phishing", "T1566", "Adversaries send messages with links.", "Mitigation M1031 Scanner: Scan the mail."),
    ("Pass the Hash", "T1550", "Adversaries steal hashes of passwords.", "Mitigation M1026 Accounts: Limit rights."),
    ("Divide By Zero", "CWE-369", "The product divides a value by zero.", "Consequence for Availability: Crash."),
)


def record(text: str, number: str = "page/1", title: str = "Title", url: str = "https://example.org/1") -> Record:
    return Record(number, "test", title, text, url, license="")


def passage(text: str, title: str = "Page", section: str = "", url: str = "") -> Passage:
    return Passage(title, "test", title, section, text, url)


@pytest.fixture
def index() -> Index:
    pages = [record("\n\n".join(text), number, title, f"https://x.org/{number}") for title, number, *text in PAGES]
    return Index.build(made for page in pages for made in passages_of(page))


@pytest.fixture
def saved(index, tmp_path) -> Path:
    index.save(tmp_path)
    return tmp_path


# ---- Passages ----

ANY_WORD = st.text("abcXYZ019.,;:!?()[]'\"-", min_size=1, max_size=12)
ANY_PARAGRAPH = st.lists(ANY_WORD | st.sampled_from(["word", "end. Next", "Label:", "\n", "\n- "]), max_size=150)


@given(st.lists(ANY_PARAGRAPH.map(" ".join), max_size=4).map("\n\n".join))
@example("Mitigation: One. Two.\n\nNote: Note: three.\n\n- a\n- b")
@example("Long " * 200)
def test_the_passages_hold_every_word_of_a_page_in_its_order_and_none_is_too_long(text):
    def words_of(part: str) -> list[str]:
        return [word for word in part.split() if word != "-"]  # a list's mark is no word

    together = list(passages_of(record(text)))
    for paragraph in text.split("\n\n"):
        of_paragraph = list(passages_of(record(paragraph)))
        assert [together.pop(0) for _ in of_paragraph] == of_paragraph
        words, read = words_of(paragraph), {0}  # how many words the passages so far may have told
        for made in of_paragraph:
            assert 0 < len(made.text.split()) <= WORDS
            forms = (words_of(made.text), words_of(f"{made.section}: {made.text}"))
            read = {at + len(form) for at in read for form in forms if words[at : at + len(form)] == form}
        heading = not of_paragraph and len(words) <= 8 and not re.search(r'[.;!?"\n]|:.', paragraph.strip())
        assert len(words) in read or heading
    assert not together


@pytest.mark.parametrize(
    "heading",
    [
        *("Explore", "Execution Flow", "Techniques", "Notes:", "Several types exist:", "SMS/iMessage Delivery"),
        *("[Craft a malicious website]", "Request service tickets", "Home | About us | Contact", "Skip to content"),
        *("## Overview", "### 3. Rotation vs Dynamic Creation", "Mitigations & Detections", "Überblick"),
    ],
)
def test_a_heading_alone_is_no_passage(heading):
    assert [made.text for made in passages_of(record(f"It lures.\n\n{heading}\n\n  {heading} \n\nIt ends."))] == [
        "It lures.",
        "It ends.",
    ]
    assert not list(passages_of(record(heading)))


@pytest.mark.parametrize(
    "line",
    [
        *(
            "It lures.",
            "Does it lure?",
            "- Man in the middle",
            "1. Survey",
            "reg save HKLM\\sam sam",
            "He said 'stop.'",
        ),
        *("C:\\Users\\x\\Normal.dotm", "procdump -ma lsass.exe out", "Platforms: Windows", "First line\nsecond line"),
        "A line of more than eight words is a statement without a full stop",
    ],
)
def test_a_line_that_states_something_is_a_passage(line):
    (made,) = passages_of(record(line))
    assert made.text


def test_a_passage_carries_its_pages_title_number_and_section():
    text = "Adversaries lure.\n\nMitigation M1031 Network Intrusion Prevention: Scan the mail. Drop the rest."
    first, second = passages_of(record(text, "enterprise/T1566", "Phishing"))
    url = "https://example.org/1"
    assert first == Passage("enterprise/T1566", "test", "Phishing (T1566)", "", "Adversaries lure.", url)
    assert second.section == "Mitigation M1031 Network Intrusion Prevention"
    assert second.text == "Scan the mail. Drop the rest."


@pytest.mark.parametrize(
    ("number", "title", "shown_title"),
    [
        ("CWE-79", "Cross-site Scripting", "Cross-site Scripting (CWE-79)"),
        ("mobile/T1417.001", "Keylogging", "Keylogging (T1417.001)"),
        ("cve/CVE-2021-44228", "CVE-2021-44228", "CVE-2021-44228"),
        ("library/README.md", "A library", "A library"),
    ],
)
def test_a_publishers_number_stands_once_in_the_title(number, title, shown_title):
    assert [made.title for made in passages_of(record("Text.", number, title))] == [shown_title]


@pytest.mark.parametrize(
    ("paragraph", "section"),
    [
        ("Detection by Process: OS API Execution: Monitor calls.", "Detection by Process: OS API Execution"),
        ("Procedure of njRAT v0.7 (S0385): It spies.", "Procedure of njRAT v0.7 (S0385)"),
        ("Adversaries may use names (ex: admin). They hide.", ""),
        ("It has ended. Then: nothing.", ""),
        ("See https://example.org/x for more.", ""),
    ],
)
def test_the_label_of_a_paragraph_becomes_the_section(paragraph, section):
    (made,) = passages_of(record(paragraph))
    assert made.section == section


def test_a_long_paragraph_is_cut_at_the_ends_of_sentences_and_keeps_its_section():
    sentence = "It has " + "very " * 20 + "many words."
    made = list(passages_of(record(f"Mitigation: {' '.join([sentence] * 5)}")))
    assert [len(m.text.split()) // len(sentence.split()) for m in made] == [2, 2, 1]
    assert all(m.text.endswith("many words.") and m.section == "Mitigation" for m in made)


@given(st.lists(st.sampled_from(["word", "hyphen-ated", "x" * 40]), max_size=120).map(" ".join))
def test_a_passage_is_shown_with_its_heading_and_cut_between_words(text):
    line = shown(passage(text, "Phishing (T1566)", "Mitigation"))
    whole_line = f"Phishing (T1566), Mitigation: {text}".strip()
    assert len(line) <= SHOWN_CHARACTERS
    if len(whole_line) <= SHOWN_CHARACTERS:
        assert line == whole_line
    else:
        kept = line.removesuffix(" …").split()
        assert line.endswith(" …")
        assert kept == whole_line.split()[: len(kept)]


# ---- Search ----


def test_terms_are_stems_and_numbers_stay_whole():
    assert terms("Mitigations mitigating") == ["mitig", "mitig"]
    assert terms("What is T1566.002, or CWE-79?") == ["t1566.002", "cwe-79"]


def bm25(query: str, passages: list[Passage], k1: float = 1.5, b: float = 0.75) -> list[float]:
    """Robertson's formula with Lucene's idf, written down as it is published."""
    bags = [Counter(terms(p.title) * TITLE_WEIGHT + terms(p.section) + terms(p.text)) for p in passages]
    mean = sum(bag.total() for bag in bags) / len(bags)

    def score(bag: Counter, term: str) -> float:
        df = sum(term in other for other in bags)
        idf = math.log(1 + (len(bags) - df + 0.5) / (df + 0.5))
        return idf * bag[term] / (bag[term] + k1 * (1 - b + b * bag.total() / mean))

    return [sum(score(bag, term) for term in terms(query)) for bag in bags]


TEXT = st.lists(st.sampled_from(["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]), min_size=1, max_size=8).map(
    " ".join
)


@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=8, unique=True), st.lists(TEXT, max_size=2))
def test_a_search_gives_the_highest_bm25_scores_in_order_and_the_lower_row_of_equals(parts, queries):
    passages = [passage(text, title, section) for title, section, text in parts]
    rows, scores = Index.build(passages).search(queries, 5)
    assert rows.dtype == np.int32
    assert scores.dtype == np.float32
    assert rows.shape == scores.shape == (len(queries), min(5, len(passages)))
    for query, found, given_scores in zip(queries, rows, scores, strict=True):
        expected = np.asarray(bm25(query, passages))
        np.testing.assert_allclose(given_scores, expected[found], rtol=1e-5)
        np.testing.assert_allclose(given_scores, np.sort(expected)[::-1][: len(found)], rtol=1e-5)
        pairs = list(zip(-given_scores, found, strict=True))
        assert pairs == sorted(pairs)
        assert len(set(found)) == len(found)


def test_of_equal_passages_the_lower_rows_are_found_first():
    texts = ("alpha alpha", "alpha beta")  # 200 of each score, and 100 of them just within reach
    rows, scores = Index.build(passage(texts[i % 2], f"Page {i}") for i in range(400)).search(["alpha"], 300)
    assert rows[0].tolist() == [*range(0, 400, 2), *range(1, 200, 2)]
    assert len(set(scores[0])) == 2


def test_a_word_in_the_title_counts_more_than_in_the_text():
    built = Index.build([passage("zero matters one", "Seven words"), passage("seven words one", "Zero matters")])
    assert built.search(["zero"], 1)[0].tolist() == [[1]]


def test_a_query_without_a_known_word_scores_nothing(index):
    for query in ("", "the of", "xyzzy"):
        rows, scores = index.search([query], 3)
        assert rows.tolist() == [[0, 1, 2]]
        assert not scores.any()


def test_a_question_finds_its_page_by_name_and_by_number(index):
    for question in ("How are phishing links scanned?", "What is T1566?"):
        (rows,) = index.context([question])
        assert len(rows) == CONTEXT
        assert index.passage(rows[0]).title == "Phishing (T1566)"


def test_the_best_of_a_page_is_of_that_page_even_where_another_matches_better(index):
    rows = index.rows_of("https://x.org/T1550")
    assert index.passage(index.best("Mitigation: scan the mail", rows)).text == "Limit rights."
    assert [index.passage(row).title for row in rows] == ["Pass the Hash (T1550)"] * 2
    assert len(index.rows_of("https://x.org/unknown")) == 0


def test_a_passage_that_comes_again_is_kept_once_unless_its_section_differs():
    built = Index.build(
        [
            passage("High.", section="Severity", url="a"),
            passage("High.", section="Severity", url="b"),
            passage("High.", section="Likelihood"),
        ]
    )
    assert [(built.passage(row).section, built.passage(row).url) for row in range(len(built))] == [
        ("Severity", "a"),
        ("Likelihood", ""),
    ]


@pytest.mark.parametrize("passages", [[], [passage("", "")], [passage("the", "of")]])
def test_nothing_to_search_in_is_refused(passages):
    with pytest.raises(UserError, match="nothing to search in"):
        Index.build(passages)


@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=8, unique=True), st.sets(st.text("abz", max_size=3)))
def test_a_passage_covers_the_weights_of_the_terms_that_it_holds_anywhere(parts, strange):
    passages = [passage(text, title, section) for title, section, text in parts]
    built = Index.build(passages)
    weights = {term: built.weight(term) for term in ("alpha", "beta", *sorted(strange))}
    held = [{*terms(p.title), *terms(p.section), *terms(p.text)} for p in passages]
    expected = [sum(weights[term] for term in weights if term in bag) / sum(weights.values()) for bag in held]
    np.testing.assert_allclose(built.coverage(weights), expected, rtol=1e-5, atol=1e-6)


def test_a_rarer_term_weighs_more_and_an_unknown_one_most(index):
    assert index.weight("adversari") < index.weight("scan") < index.weight("xyzzy")
    assert not index.coverage({}).any()
    assert not index.coverage({"phish": 0.0}).any()


# ---- On disk ----


def test_a_loaded_index_answers_as_the_built_one_did(index, saved):
    loaded = Index.load(saved)
    queries = ["phishing mail", "divides by zero", "xyzzy", ""]
    for mine, theirs in zip(index.search(queries, 6), loaded.search(queries, 6), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert [loaded.passage(row) for row in range(len(loaded))] == [index.passage(row) for row in range(len(index))]
    for _, number, *_ in PAGES:
        np.testing.assert_array_equal(
            loaded.rows_of(f"https://x.org/{number}"), index.rows_of(f"https://x.org/{number}")
        )


@given(text=st.text())
def test_any_text_comes_back_from_disk_as_it_was(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    Index.build([passage("known"), passage(text, url=text)]).save(folder)
    loaded = Index.load(folder)
    assert loaded.passage(len(loaded) - 1) == passage(text, url=text)
    assert len(loaded) - 1 in loaded.rows_of(text)


def test_the_arrays_stay_on_disk(saved):
    loaded = Index.load(saved)
    assert all(isinstance(loaded._bm25.scores[name].base, np.memmap) for name in ("data", "indices", "indptr"))


SAVE = """
import sys
from pathlib import Path
from ghost_jax.data import sources
from ghost_jax.data.retrieval.bm25 import Index, passages_of
Index.build(p for record in sources.embedded.read() for p in passages_of(record)).save(Path(sys.argv[1]))
"""


def test_the_same_passages_give_the_same_bytes_in_another_process(tmp_path):
    for name in "12":
        (tmp_path / name).mkdir()
        environment = os.environ | {"PYTHONHASHSEED": name}
        subprocess.run([sys.executable, "-c", SAVE, tmp_path / name], cwd=ROOT, env=environment, check=True)
    files = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "2").iterdir())
    for name in files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_no_file_is_a_pickle(saved):
    for path in saved.iterdir():
        if path.suffix == ".npy":
            np.load(path, allow_pickle=False)
        else:
            for document in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
                json.loads(document)


FILES = (
    *("data.csc.index.npy", "indices.csc.index.npy", "indptr.csc.index.npy", "vocab.index.json", "params.index.json"),
    *("passages.jsonl", "ends.npy", "url_of.npy", "urls.json", "index.json"),
)


def test_the_damaged_files_below_are_all_there_are(saved):
    assert sorted(path.name for path in saved.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_or_cut_off_or_a_pickle_is_an_error_that_names_the_folder(saved, name):
    content = (saved / name).read_bytes()
    damages = [content[: len(content) // 2], b""] + [pickle.dumps([name])] * name.endswith(".npy")
    for damaged in damages:
        (saved / name).write_bytes(damaged)
        with pytest.raises(UserError, match=f"{saved} is no whole index.*Delete the folder"):
            Index.load(saved)
    (saved / name).unlink()
    with pytest.raises(UserError, match=f"{saved} is no whole index"):
        Index.load(saved)


def test_files_of_two_indexes_are_refused(saved, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    Index.build([passage("another")]).save(other)
    (saved / "url_of.npy").write_bytes((other / "url_of.npy").read_bytes())
    with pytest.raises(UserError, match="of different indexes"):
        Index.load(saved)


def test_an_index_of_another_format_is_refused(saved):
    (saved / "index.json").write_text(json.dumps({"format": 0, "passages": 6}))
    with pytest.raises(UserError, match="format 0, and this version reads"):
        Index.load(saved)


START = """
import socket, sys, tempfile
from pathlib import Path
import jax
from ghost_jax.data.retrieval.bm25 import Index, Passage
index = Index.build([Passage("1", "test", "Title", "", "A text.", "")])
with tempfile.TemporaryDirectory() as folder:
    index.save(Path(folder))
    Index.load(Path(folder)).search(["text"], 1)
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=1, process_id=0)
print(jax.device_count())
"""


def test_jax_can_still_be_distributed_after_a_search():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    ran = subprocess.run([sys.executable, "-c", START], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.stdout == "1\n", ran.stderr


# ---- Real pages ----


def test_questions_that_name_a_real_attack_pattern_find_its_page(ghost_data):
    (file,) = sources.locate("capec", [ghost_data])
    pages = list(sources.SOURCES["capec"].read(file))
    index = Index.build(made for page in pages for made in passages_of(page))
    rows = index.context([f"How does an adversary carry out {page.title}?" for page in pages])
    found = [page.url in [index.passage(row).url for row in four] for page, four in zip(pages, rows, strict=True)]
    assert len(found) > 400
    assert np.mean(found) > 0.97
