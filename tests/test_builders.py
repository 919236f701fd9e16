"""ghost_jax/data/builders and prose.first_sentences: what is asked, of whom, and what is kept out of training."""

import itertools
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghost_jax.data.builders import Question, cot, mcq, pretrain, qa, small_talk, teacher
from ghost_jax.data.storage.schema import RELATIONS, SPLITS, Fact, Record, split_of
from ghost_jax.data.storage.text_cleaning import first_sentences
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.text.mcq_format import LETTERS
from ghost_jax.text.tokenizer import BOS, EOS

TACTICS = ("Persistence", "Execution", "Discovery", "Collection", "Exfiltration", "Impact")


def record(number: str, *facts: Fact, source: str = "test") -> Record:
    text = f"{number} is described here in a long first sentence. It has a second one. And a third. And a fourth."
    return Record(number, source, f"Title of {number}", text, url="https://example.org", license="", facts=facts)


def fact(subject: str, relation: str, name: str) -> Fact:
    return Fact(subject, relation, name, f"{subject} has {name}. It is so. This is too much.")


def technique(i: int, *tactics: str) -> Record:
    return record(f"T{i:04}", *(fact(f"Technique {i}", "tactic", tactic) for tactic in tactics))


def weakness(i: int) -> Record:
    class_of = fact(f"The product forgets check number {i}.", "weakness_class", f"Weakness {i}")
    return record(f"CWE-{i}", fact(f"CWE-{i}", "weakness_name", f"Weakness {i}"), class_of)


RECORDS = [
    *(technique(i, TACTICS[i % 6]) for i in range(60)),
    technique(60, *TACTICS[:3]),  # three of six are true of it, so the three others must be its wrong options
    *(record(f"ACR{i}", fact(f"ACR{i}", "expansion", f"Expansion {i}"), source="words") for i in range(300)),
    *(weakness(i) for i in range(60)),
    record("V-1", fact("A vendor's own words.", "weakness_class", "Some spelling of Weakness 1")),
    *(record(f"P{i}", fact(f"TCP port {i}", "port_service", f"Service {i}")) for i in range(40)),
    *(record(f"CAPEC-{i}", fact(f"CAPEC-{i}", "attack_pattern_name", f"Pattern {i % 2}")) for i in range(30)),
    record("every", *(fact(f"Subject of {relation}", relation, f"Object of {relation}") for relation in RELATIONS)),
]
SOURCES = ("test", "words")


def documents():
    return iter(RECORDS)


@pytest.fixture(scope="module")
def asked() -> list[Question]:
    return list(mcq.questions(documents, seed=0))


@pytest.fixture(scope="module")
def answered() -> list:
    return list(qa.build(documents, SOURCES, per_source=10_000, seed=0))


SUBJECTS = {stated.subject for each in RECORDS for stated in each.facts}
ANY_SUBJECT = re.compile("|".join(map(re.escape, sorted(SUBJECTS, key=len, reverse=True))))


def subject_of(text: str) -> str:
    """The subject that a question is about."""
    return ANY_SUBJECT.search(text)[0]


def relation_of(question: Question) -> str:
    return question.id.split("/")[0]


# ---- Multiple choice ----


def test_the_options_hold_the_gold_once_and_nothing_else_that_is_true(asked):
    true_of = {}
    for each in RECORDS:
        for stated in each.facts:
            true_of.setdefault((stated.relation, stated.subject), set()).add(stated.object)
    for q in asked:
        assert len(q.options) == len(set(q.options)) == 4
        assert q.letter == LETTERS[q.answer]
        true = true_of[relation_of(q), subject_of(q.question)]
        assert set(q.options) & true == {q.options[q.answer]}


def test_a_subject_with_several_true_answers_is_never_offered_two(asked):
    (q,) = [q for q in asked if re.search(r"Technique 60\b", q.question)]
    assert set(q.options) - {q.options[q.answer]} == set(TACTICS[3:])


def test_the_studys_counts_are_limits_and_test_subjects_come_beyond_them(asked):
    acronyms = Counter(q.split for q in asked if relation_of(q) == "expansion")
    assert acronyms["train"] + acronyms["validation"] == mcq.COUNTS["expansion"] == 147
    subjects = [f"ACR{i}" for i in range(300)] + ["Subject of expansion"]
    assert acronyms["test"] == sum(split_of(subject) == "test" for subject in subjects)


def test_relations_without_a_count_are_asked_of_test_subjects_alone(asked):
    others = [q for q in asked if relation_of(q) not in mcq.COUNTS]
    assert {relation_of(q) for q in others} >= {"weakness_name", "port_service"}
    assert {q.split for q in others} == {"test"}


def test_what_has_too_few_wrong_answers_is_not_asked(asked):
    assert "attack_pattern_name" not in {relation_of(q) for q in asked}  # of three names, two are wrong


def test_a_spelling_that_is_no_official_name_is_neither_asked_nor_offered(asked):
    assert not any("vendor" in q.question for q in asked)
    assert not any("spelling" in option for q in asked for option in q.options)


def test_questions_depend_on_the_seed_alone(asked):
    assert list(mcq.questions(documents, seed=0)) == asked
    other = list(mcq.questions(documents, seed=1))
    assert other != asked
    held_out = [{q.id for q in questions if q.split == "test"} for questions in (asked, other)]
    assert held_out[0] == held_out[1]


def test_gold_letters_are_balanced():
    drawn = Counter(q.letter for seed in range(5) for q in mcq.questions(documents, seed))
    for letter in "ABCD":
        assert drawn[letter] / drawn.total() == pytest.approx(0.25, abs=0.06)


def question(i: int) -> Question:
    return Question(f"q{i}", "test", "train", "Which?", ("one", "two", "three", "four"), i % 4, "It is. So.", "")


def test_about_seventy_percent_of_the_answers_are_the_bare_letter():
    conversations = list(mcq.build(map(question, range(3000)), seed=0, layout="classic"))
    answers = [conversation.messages[1].content for conversation in conversations]
    assert np.mean([len(answer) == 1 for answer in answers]) == pytest.approx(0.7, abs=0.03)
    for conversation, q in zip(conversations, map(question, range(3000)), strict=True):
        assert conversation.messages[1].content in (q.letter, f"{q.letter}. {q.options[q.answer]}")
        assert conversation.letter == q.letter


def test_a_reasoned_answer_starts_with_the_gold_letter_and_quotes_the_evidence(asked):
    for conversation, q in zip(cot.build(asked, teacher.Offline(), "classic"), asked, strict=True):
        user, assistant = conversation.messages
        letter, reason = assistant.content.split(". ", 1)
        assert (letter, conversation.letter, conversation.split) == (q.letter, q.letter, q.split)
        assert q.evidence.startswith(reason)
        assert reason.endswith("It is so.")
        assert all(f"{name}) {option}" in user.content for name, option in zip("ABCD", q.options, strict=True))


# ---- Questions and answers ----


def test_no_placeholder_is_left_and_every_relation_is_asked(answered):
    for conversation in answered:
        for message in conversation.messages:
            assert message.content.strip()
            assert not re.search(r"[{}]", message.content)
    asked_relations = {name for name in qa.FACTS if any(f"Object of {name}" in c.messages[1].content for c in answered)}
    assert asked_relations == set(qa.FACTS)


def test_braces_of_a_source_are_text():
    odd = Record("x", "test", "The {title} of {subject}", "A {format} string is read. " * 3, "", "", ())
    (conversation,) = qa.build(lambda: iter([odd]), ["test"], per_source=10, seed=0)
    assert "The {title} of {subject}" in conversation.messages[0].content
    assert "{format}" in conversation.messages[1].content


def test_about_as_many_are_drawn_as_were_asked_for():
    drawn = list(qa.build(documents, SOURCES, per_source=100, seed=0))
    kinds = Counter((c.source, re.sub(r"\d+$", "", c.id.rpartition("/")[2])) for c in drawn)
    for source in SOURCES:
        for kind in ("about", "fact"):
            assert kinds[source, kind] == pytest.approx(100, abs=35)


def test_only_the_sources_asked_of_are_asked():
    assert {c.source for c in qa.build(documents, ["words"], per_source=100, seed=0)} == {"words"}


# ---- Splits ----


def test_splits_are_about_eighty_ten_ten():
    drawn = Counter(split_of(f"subject {i}") for i in range(5000))
    assert set(drawn) == set(SPLITS)
    assert drawn["train"] / 5000 == pytest.approx(0.8, abs=0.02)
    assert drawn["test"] / 5000 == pytest.approx(0.1, abs=0.02)
    assert split_of("Phishing") == split_of("PHISHING")


def test_a_subject_is_in_one_split_whatever_is_asked_of_it(asked, answered):
    splits: dict[str, set[str]] = {}
    for text, split in [
        *((q.question, q.split) for q in asked),
        *((c.messages[0].content, c.split) for c in answered if not c.id.endswith("/about")),
    ]:
        splits.setdefault(subject_of(text), set()).add(split)
    assert len(splits) > 300
    assert {subject: found for subject, found in splits.items() if len(found) > 1} == {}


def test_a_document_that_states_a_held_out_fact_is_held_out(answered):
    about = {c.id: c.split for c in answered if c.id.endswith("/about")}
    held_out = 0
    for each in RECORDS:
        if any(split_of(stated.subject) == "test" for stated in each.facts):
            held_out += 1
            assert about[f"{each.source}/{each.id}/about"] == "test"
    assert held_out > 20
    assert "train" in about.values()


def test_no_builder_gives_an_id_twice(asked, answered):
    reasoned = cot.build(asked, teacher.Offline(), "classic")
    for conversations in (mcq.build(asked, 0, "classic"), reasoned, answered, small_talk.build()):
        ids = [conversation.id for conversation in conversations]
        assert len(set(ids)) == len(ids) > 0


# ---- Small talk ----


def test_small_talk_is_enough_to_answer_a_greeting():
    pairs = list(small_talk.build())
    assert len(pairs) >= 120
    assert all([m.role for m in c.messages] == ["user", "assistant"] for c in pairs)
    assert {c.split for c in pairs} == set(SPLITS)


# ---- Windows of text ----


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_lib.train(map(pretrain.text_of, documents()), 400)


def stream_of(tokenizer, split: str) -> list[int]:
    chosen = [each for i, each in enumerate(RECORDS) if (i % 50 == 49) == (split == "validation")]
    bos, eos = tokenizer.id(BOS), tokenizer.id(EOS)
    return [i for each in chosen for i in (bos, *tokenizer.encode(pretrain.text_of(each)), eos)]


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("window", [16, 100])
def test_windows_have_each_token_once_as_a_target(tokenizer, split, window):
    rows = list(pretrain.build(documents, tokenizer, split, window))
    expected = stream_of(tokenizer, split)
    assert {len(row["tokens"]) for row in rows} == {window + 1}
    targets = np.concatenate([row["tokens"][row["mask"]] for row in rows])
    np.testing.assert_array_equal(targets, expected[1 : len(targets) + 1])
    assert len(expected) - 1 - len(targets) < window  # the tail that fills no window
    for row, following in itertools.pairwise(rows):
        assert following["tokens"][0] == row["tokens"][-1]
    assert len({row["id"] for row in rows}) == len(rows)


@pytest.mark.parametrize("batch", [1, 7])
def test_windows_do_not_depend_on_how_many_documents_are_tokenised_at_once(tokenizer, monkeypatch, batch):
    whole = [row["tokens"].tobytes() for row in pretrain.build(documents, tokenizer, "train", 64)]
    monkeypatch.setattr(pretrain, "BATCH", batch)
    assert [row["tokens"].tobytes() for row in pretrain.build(documents, tokenizer, "train", 64)] == whole


def test_a_corpus_smaller_than_a_window_is_one_short_row(tokenizer):
    (row,) = pretrain.build(lambda: iter(RECORDS[:1]), tokenizer, "train", 10_000)
    assert tokenizer.decode(row["tokens"][1:-1]) == pretrain.text_of(RECORDS[0])
    assert list(pretrain.build(lambda: iter(RECORDS[:1]), tokenizer, "validation", 10_000)) == []


@pytest.mark.parametrize(
    ("number", "title", "head"),
    [
        ("CWE-79", "Cross-site Scripting", "CWE-79: Cross-site Scripting"),
        ("CVE-2024-1", "CVE-2024-1", "CVE-2024-1"),
        ("enterprise/T1566", "Phishing", "Phishing"),
    ],
)
def test_a_document_is_headed_by_what_it_is_about(number, title, head):
    assert pretrain.text_of(Record(number, "s", title, "Text.", "", "")) == f"{head}\n\nText."


# ---- Sentences ----


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        ("", 2, ""),
        ("   \n\n second paragraph.", 2, ""),
        ("no full stop", 2, "no full stop"),
        ("One. Two. Three.", 2, "One. Two."),
        ("One. Two.", 5, "One. Two."),
        ("One! Two? Three.", 2, "One! Two?"),
        ("One. Two\n\nThree.", 3, "One. Two"),
        ("On one\nline. Two.", 1, "On one line."),
        ("Use e.g. the shell. Two.", 1, "Use e.g. the shell."),
        ("Version v1.2 is old. Two.", 1, "Version v1.2 is old."),
        ("It ends with a rest. and goes on. Two.", 1, "It ends with a rest. and goes on."),
    ],
)
def test_first_sentences(text, count, expected):
    assert first_sentences(text, count, limit=100) == expected


@given(text=st.text(max_size=200), count=st.integers(1, 3), limit=st.integers(1, 60))
def test_first_sentences_are_cut_between_words(text, count, limit):
    kept, whole = first_sentences(text, count, limit), first_sentences(text, count, limit=10**6)
    assert len(kept) <= limit + len(" …")
    if len(whole) <= limit:
        assert kept == whole
    else:
        assert kept.endswith(" …")
        assert whole.startswith(kept.removesuffix(" …"))


def test_a_long_sentence_is_cut_between_words_and_says_so():
    assert first_sentences("alpha beta, gamma delta", 1, limit=14) == "alpha beta …"
    assert first_sentences("x" * 50, 1, limit=10) == "x" * 10 + " …"
