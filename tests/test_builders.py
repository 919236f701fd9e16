"""ghost_jax/data/builders: mcq, qa, small_talk and pretrain, and which split a subject is in."""

import dataclasses
import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from ghost_jax.data.builders import mcq, pretrain, qa
from ghost_jax.data.examples import Conversation, Question
from ghost_jax.data.sources import embedded
from ghost_jax.data.storage.schema import RELATIONS, SPLITS, Fact, Record, split_of
from ghost_jax.data.storage.text_cleaning import first_sentence, first_sentences
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.text.tokenizer import BOS, EOS

TACTICS = ("Persistence", "Execution", "Discovery", "Collection", "Exfiltration", "Impact")


def record(number: str, *facts: Fact, source: str = "test") -> Record:
    text = f"{number} is described here in a long first sentence. It has a second one. And a third. And a fourth."
    return Record(number, source, f"Title of {number}", text, url="https://example.org", license="", facts=facts)


def fact(subject: str, relation: str, name: str) -> Fact:
    return Fact(subject, relation, name, f"{subject} has {name}. It is so. This is too much.")


def weakness(i: int) -> Record:
    class_of = fact(f"The product forgets check number {i}.", "weakness_class", f"Weakness {i}")
    return record(f"CWE-{i}", fact(f"CWE-{i}", "weakness_name", f"Weakness {i}"), class_of)


RECORDS = [
    *(record(f"T{i}", fact(f"Technique {i}", "tactic", TACTICS[i % 6])) for i in range(60)),
    # Three of six are true of it, so the three others must be its wrong options.
    record("T60", *(fact("Technique 60", "tactic", tactic) for tactic in TACTICS[:3])),
    *(record(f"ACR{i}", fact(f"ACR{i}", "expansion", f"Expansion {i}"), source="words") for i in range(300)),
    *(weakness(i) for i in range(60)),
    record("V-1", fact("A vendor's own words.", "weakness_class", "Some spelling of Weakness 1")),
    *(record(f"P{i}", fact(f"TCP port {i}", "port_service", f"Service {i}")) for i in range(40)),
    *(record(f"CAPEC-{i}", fact(f"CAPEC-{i}", "attack_pattern_name", f"Pattern {i % 2}")) for i in range(30)),
    record("every", *(fact(f"Subject of {relation}", relation, f"Object of {relation}") for relation in RELATIONS)),
]


def documents() -> list[Record]:
    return RECORDS


@pytest.fixture(scope="module")
def asked() -> list[Question]:
    return list(mcq.questions(documents, seed=0))


@pytest.fixture(scope="module")
def answered() -> list[Conversation]:
    return list(qa.build(documents, ("test", "words"), per_source=10_000, seed=0))


def subject_of(q: Question) -> str:
    return q.evidence.partition(" has ")[0]


def relation_of(q: Question) -> str:
    return q.id.split("/")[0]


def test_one_option_is_true_of_the_subject(asked):
    true_of = defaultdict(set)
    for stated in (stated for each in RECORDS for stated in each.facts):
        true_of[stated.relation, stated.subject].add(stated.object)
    for q in asked:
        assert len(q.options) == len(set(q.options)) == 4
        assert set(q.options) & true_of[relation_of(q), subject_of(q)] == {q.options[q.answer]}
    (q,) = [q for q in asked if re.search(r"Technique 60\b", q.question)]
    assert set(q.options) - {q.options[q.answer]} == set(TACTICS[3:])


def test_the_studys_counts_are_limits_and_test_subjects_are_asked_beyond_them(asked):
    acronyms = Counter(q.split for q in asked if relation_of(q) == "expansion")
    assert acronyms["train"] + acronyms["validation"] == mcq.COUNTS["expansion"] == 147
    subjects = [f"ACR{i}" for i in range(300)] + ["Subject of expansion"]
    assert acronyms["test"] == sum(split_of(subject) == "test" for subject in subjects)
    assert {relation_of(q) for q in asked} == mcq.COUNTS.keys()
    assert not any("vendor" in q.question or "spelling" in option for q in asked for option in q.options)


def test_questions_depend_on_the_seed_alone_and_letters_are_balanced(asked):
    drawn = [list(mcq.questions(documents, seed)) for seed in range(5)]
    assert drawn[0] == asked != drawn[1]
    held_out = [{q.id for q in questions if q.split == "test"} for questions in drawn]
    assert held_out[0] == held_out[1]
    letters = Counter(q.letter for questions in drawn for q in questions)
    assert all(letters[letter] / letters.total() == pytest.approx(0.25, abs=0.06) for letter in "ABCD")


def test_a_matching_question_quotes_the_one_option_that_is_its_answer():
    text = ". ".join(f"It has {a} words of {b} in lines of {a}" for a in ("plain", "many", "few") for b in "wxyz")
    records = [Record(f"D{i}", "test", "T", text.replace("It", f"It{chr(97 + i)}"), "", "", ()) for i in range(12)]
    asked = list(mcq.matching(lambda: records, seed=0))
    assert asked == list(mcq.matching(lambda: records, seed=0))
    options = [option.lower() for q in asked for option in q.options]
    assert len(set(options)) == len(options) > 50
    for q in asked:
        form = next(form for form in mcq.MATCHING if q.question == form.format(phrase=q.options[q.answer]))
        assert form
        assert q.split == split_of(q.options[q.answer].lower())
    assert len({q.letter for q in asked}) == 4


def test_no_placeholder_is_left_and_every_relation_is_asked(answered):
    odd = Record("x", "test", "The {title} of {subject}", "A {format} string is read. " * 3, "", "", ())
    (conversation,) = qa.build(lambda: [odd], ["test"], per_source=10, seed=0)
    assert "The {title} of {subject}" in conversation.messages[0].content
    assert "{format}" in conversation.messages[1].content
    texts = [message.content for conversation in answered for message in conversation.messages]
    assert not [text for text in texts if not text.strip() or re.search(r"[{}]", text)]
    assert all(any(f"Object of {name}" in text for text in texts) for name in RELATIONS)


def test_splits_are_about_eighty_ten_ten():
    drawn = Counter(split_of(f"subject {i}") for i in range(5000))
    assert [drawn[split] / 5000 for split in SPLITS] == pytest.approx([0.8, 0.1, 0.1], abs=0.02)
    assert split_of("Phishing") == split_of("PHISHING")


def test_a_subject_is_in_one_split_and_a_document_with_a_held_out_fact_is_held_out(asked, answered):
    assert all(q.split == split_of(subject_of(q)) for q in asked)
    found = {conversation.id: conversation.split for conversation in answered}
    for each in RECORDS:
        splits = [split_of(stated.subject) for stated in each.facts]
        assert [found[f"{each.source}/{each.id}/fact{i}"] for i in range(len(splits))] == splits
        assert "test" not in splits or found[f"{each.source}/{each.id}/about"] == "test"
    assert {split for name, split in found.items() if name.endswith("/about")} == set(SPLITS)


def test_pages_of_one_title_are_in_one_split_wherever_they_come_from():
    held_out = next(name for name in map(str, range(100)) if split_of(name) == "test")
    pages = [Record(str(i), "test", "Same title", "It is described. " * 4, "", "") for i in range(20)]
    pages[10] = dataclasses.replace(pages[10], title="same Title", facts=(fact(held_out, "expansion", "Word"),))
    built = qa.build(lambda: pages, ["test"], per_source=100, seed=0)
    assert {each.split for each in built} == {"test"}


def test_answers_of_the_pack_describe_and_state_nothing_twice():
    uses = Fact("APT (G1)", "group_software", "Tool (S1)", "APT (G1) uses Tool (S1).")
    pages = {f"{page.source}/{page.id}": page for page in [record("G1", uses), record("G2", uses), *embedded.read()]}
    built = qa.build(lambda: iter(pages.values()), ["test", "embedded"], per_source=10_000, seed=0)
    answers = {each.id: each.messages[1].content for each in built}
    for name, page in pages.items():
        assert first_sentence(page.text.rpartition("\n\n")[2]) in answers[f"{name}/about"]
    assert [answer.count("Tool") for answer in answers.values() if "Tool (S1)" in answer] == [1]


@pytest.mark.parametrize(("split", "window", "batch"), [("train", 16, 7), ("train", 100, 512), ("validation", 100, 7)])
def test_windows_have_each_token_once_as_a_target(monkeypatch, split, window, batch):
    monkeypatch.setattr(pretrain, "BATCH", batch)
    chosen = [each for i, each in enumerate(RECORDS) if (i % 50 == 49) == (split == "validation")]
    texts = list(map(pretrain.text_of, chosen))
    tokenizer = tokenizer_lib.train(texts, 400)
    expected = [i for text in texts for i in (tokenizer.id(BOS), *tokenizer.encode(text), tokenizer.id(EOS))]
    rows = list(pretrain.build(documents, tokenizer, split, window))
    assert len(rows) == (len(expected) - 1) // window, "a tail that fills no window is dropped"
    for number, row in enumerate(rows):
        np.testing.assert_array_equal(row["tokens"], expected[number * window :][: window + 1])
        np.testing.assert_array_equal(row["mask"], np.arange(window + 1) > 0)
    assert len({row["id"] for row in rows}) == len(rows)
    (short,) = pretrain.build(documents, tokenizer, split, len(expected))
    assert short["tokens"].tolist() == expected, "unless it is all there is"


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        ("   \n\n second paragraph.", 2, ""),
        ("One. Two\n\nThree.", 3, "One. Two"),
        ("On one\nline. Two.", 1, "On one line."),
        ("Use e.g. the shell. Two.", 1, "Use e.g. the shell."),
        ("It ends with a rest. and goes on. Two.", 1, "It ends with a rest. and goes on."),
        ("alpha beta, " + "gamma " * 20, 1, "alpha beta," + " gamma" * 14 + " …"),
        ("x" * 150, 1, "x" * 100 + " …"),
    ],
)
def test_first_sentences(text, count, expected):
    assert first_sentences(text, count, limit=100) == expected
