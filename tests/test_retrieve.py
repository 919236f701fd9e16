"""ghost_jax/data/retrieval/bm25.py: every word of a page is in one passage; the index finds, saves and loads them."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ghost_jax.core.errors import UserError
from ghost_jax.data.retrieval.bm25 import LINE, SHOWN_CHARACTERS, Index, Passage, missing, passages_of, shown, terms
from ghost_jax.data.storage.schema import Record
from tests.conftest import ROOT

PAGES = (
    ("Phishing", "T1566", "Adversaries send messages with links.", "Mitigation M1031 Scanner: Scan the mail."),
    ("Pass the Hash", "T1550", "Adversaries steal “hashes”\u2028.", "Mitigation M1026 Accounts: Limit rights."),
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
        words, read = words_of(paragraph), {0}  # how many words the passages so far may hold
        for made in of_paragraph:
            assert 0 < len(made.text.split()) <= LINE
            forms = (words_of(made.text), words_of(f"{made.section}: {made.text}"))
            read = {at + len(form) for at in read for form in forms if words[at : at + len(form)] == form}
        heading = not of_paragraph and len(words) <= 8 and not re.search(r'[.;!?"\n]|:.', paragraph.strip())
        assert len(words) in read or heading
    assert not together


HEADINGS = ("Explore", "Execution Flow", "Notes:", "Several types exist:", "SMS/iMessage Delivery", "Überblick")
HEADINGS += ("[Craft a malicious website]", "Home | About us | Contact", "## Overview", "### 3. Rotation vs Creation")
LINES = ("It lures.", "Does it lure?", "- Man in the middle", "1. Survey", "reg save HKLM\\sam sam", "He said 'stop.'")
LINES += ("C:\\Users\\x\\Normal.dotm", "procdump -ma lsass.exe out", "Platforms: Windows", "First line\nsecond line")


@pytest.mark.parametrize(
    ("line", "passages"),
    [*((line, 0) for line in HEADINGS), *((line, 1) for line in LINES), ("a line of more than eight words is one", 1)],
)
def test_a_heading_alone_is_no_passage(line, passages):
    assert len(list(passages_of(record(f"It lures.\n\n{line}\n\n  {line} \n\nIt ends.")))) == 2 + 2 * passages


@pytest.mark.parametrize(
    ("number", "title", "shown_title"),
    [
        ("CWE-79", "Cross-site Scripting", "Cross-site Scripting (CWE-79)"),
        ("mobile/T1417.001", "Keylogging", "Keylogging (T1417.001)"),
        ("cve/CVE-2021-44228", "CVE-2021-44228", "CVE-2021-44228"),
        ("library/README.md", "A library", "A library"),
    ],
)
def test_a_publishers_number_is_once_in_the_title(number, title, shown_title):
    (made,) = passages_of(record("Text.", number, title))
    assert made == Passage(number, "test", shown_title, "", "Text.", "https://example.org/1")


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ("Detection by Process: OS API Execution", "Monitor calls."),
        ("Procedure of njRAT v0.7 (S0385)", "It spies. Drop the rest."),
        ("", "Adversaries may use names (ex: admin). They hide."),
        ("", "It has ended. Then: nothing."),
        ("", "See https://example.org/x for more."),
    ],
)
def test_the_label_of_a_paragraph_is_the_section(section, text):
    (made,) = passages_of(record(f"{section}: {text}" if section else text))
    assert (made.section, made.text) == (section, text)


def test_a_long_paragraph_is_split_at_the_ends_of_sentences_and_keeps_its_section():
    sentence = "It has " + "very " * 20 + "many words."
    made = list(passages_of(record(f"Mitigation: {' '.join([sentence] * 5)}"), words=60))
    assert [len(m.text.split()) // len(sentence.split()) for m in made] == [2, 2, 1]
    assert all(m.text.endswith("many words.") and m.section == "Mitigation" for m in made)


def test_the_numbers_of_a_field_are_named_and_others_are_not():
    text = "Related weaknesses: CWE-79 and CWE-1.\n\nSee CWE-79."
    made = passages_of(record(text), names={"CWE-79": "Cross-site Scripting"})
    assert [each.text for each in made] == ["Cross-site Scripting (CWE-79) and CWE-1.", "See CWE-79."]


@given(st.lists(st.sampled_from(["word", "hyphen-ated", "x" * 40]), max_size=120).map(" ".join))
def test_a_passage_is_shown_with_its_heading_and_cut_between_words(text):
    line = shown(passage(text, "Phishing (T1566)", "Mitigation"))
    complete = f"Phishing (T1566), Mitigation: {text}".strip()
    assert len(line) <= SHOWN_CHARACTERS
    kept = line.removesuffix(" …").split()
    assert line == complete if len(complete) <= SHOWN_CHARACTERS else kept == complete.split()[: len(kept)]


def test_a_question_that_is_the_name_of_a_page_finds_its_beginning_first(index):
    for question in ("What is phishing?", "T1566", "Phishing (T1566)"):
        assert [line.text for line in index.answering(question)] == [PAGES[0][2], "Scan the mail."]
    assert index.answering("Who scans phishing mail?")[0].text == "Scan the mail."
    assert index.answering("xyzzy") == []


def test_terms_are_stems_and_numbers_are_one_term():
    assert terms("Mitigations mitigating") == ["mitig", "mitig"]
    assert terms("What is T1566.002, or CWE-79?") == ["t1566.002", "cwe-79"]


def test_of_equal_passages_the_lower_rows_are_found_first():
    texts = ("alpha alpha", "alpha beta")  # 200 of each score, and 100 of them just within reach
    rows, _ = Index.build(passage(texts[i % 2], f"Page {i}") for i in range(400)).search(["alpha"], 300)
    assert rows[0].tolist() == [*range(0, 400, 2), *range(1, 200, 2)]


def test_an_index_without_terms_is_refused():
    for passages in ([], [passage("", "")], [passage("the", "of")]):
        with pytest.raises(UserError, match=r"data\.sources"):
            Index.build(passages)


def test_terms_weigh_by_rarity_and_a_passage_covers_those_that_it_holds_anywhere(index):
    assert index.weight("adversari") < index.weight("scan") < index.weight("xyzzy")
    assert not index.coverage({"phish": 0.0}).any()
    weights = {"phish": 1.0, "m1031": 2.0, "scan": 3.0, "xyzzy": 4.0}
    passages = list(index.passages)
    held = [{*terms(p.title), *terms(p.section), *terms(p.text)} for p in passages]
    np.testing.assert_allclose(index.coverage(weights), [sum(weights.get(t, 0) for t in bag) / 10 for bag in held])
    assert len(Index.build(passages * 2)) == len(passages), "repeated passages are kept once"


def test_a_loaded_index_answers_as_the_built_one_did(index, tmp_path):
    built = Index.build([*index.passages, passage("“odd”\n\u2028\0 text", url="“\n")])
    built.save(tmp_path)
    loaded = Index.load(tmp_path)
    queries = ["phishing mail", "divides by zero", "xyzzy", ""]
    for mine, theirs in zip(built.search(queries, 6), loaded.search(queries, 6), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert loaded.passages == built.passages


DEVICES_AFTER_A_SEARCH = """
import jax
from ghost_jax.data.retrieval.bm25 import Index, Passage
Index.build([Passage("1", "test", "Title", "", "A text.", "")]).search(["text"], 1)
jax.config.update("jax_num_cpu_devices", 3)  # refused where JAX has its devices
print(jax.device_count())
"""


def test_a_search_initializes_no_devices_so_that_jax_can_still_be_distributed():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", DEVICES_AFTER_A_SEARCH]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.stdout == "3\n", ran.stderr


def test_words_of_a_question_that_no_passage_has_are_named_once_as_they_are_spelled():
    found = [Passage("t", "attack", "Phishing (T1566)", "Detection", "Read the mails.", "")]
    asked = "How do I bake a Chocolate cake by phishing mail, chocolate T1566?"
    assert missing(asked, found) == ["bake", "Chocolate", "cake"]
