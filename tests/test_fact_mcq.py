"""ghost_jax/data/builders/fact_mcq.py: questions on which nothing but knowledge pays, and their four orders."""

import hashlib
import os
import random
import string
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.items.items import Item, cyclic_orders, order_name, permute
from ghost_jax.data import sources
from ghost_jax.data.builders import Question, fact_mcq
from ghost_jax.data.retrieval import mcq_baselines
from ghost_jax.data.storage.schema import RELATIONS, SPLITS, Fact, Record, split_of
from ghost_jax.data.wordings.question_forms import QUESTIONS
from ghost_jax.data.wordings.surface_forms import FORMS
from ghost_jax.text.mcq_format import LETTERS, ask

BASELINES = 9
WORDS = [a + b + c for a in "bdfgk" for b in "aeiou" for c in ("rn", "st", "mp", "nd")]


def record(source: str, number: int, *facts: Fact) -> Record:
    return Record(f"{number}", source, "", "", f"https://example.org/{number}", "", facts)


def fact(subject: str, relation: str, name: str) -> Fact:
    return Fact(subject, relation, name, f"{subject} has {name}.")


def corpus() -> list[Record]:
    """Facts as publishers have them: a few objects are very popular, lengths differ, names share words."""
    rng = random.Random(0)
    names = [" ".join(rng.sample(WORDS, rng.choice([1, 1, 2, 3, 6]))).title() for _ in range(60)]
    popularity = [100 / rank for rank in range(1, len(names) + 1)]
    records = []
    for number in range(700):
        source = "big" if number % 4 else "small"
        subject = f"{' '.join(rng.sample(WORDS, 2)).title()} (S{number})"
        true = dict.fromkeys(rng.choices(names, popularity, k=rng.choice([1, 1, 2, 5])))
        if number % 3 == 0:  # a third of the subjects bear the name of their answer
            subject = f"{next(iter(true))} {subject}"
        relation = ("mitigation", "group_technique")[number % 2]
        records.append(record(source, number, *(fact(subject, relation, name) for name in true)))
    records += [record("ids", n, fact(f"CWE-{n}", "weakness_name", f"{WORDS[n]} flaw")) for n in range(90)]
    return records


RECORDS = corpus()
SUBJECTS = sorted({stated.subject for each in RECORDS for stated in each.facts}, key=len, reverse=True)


@pytest.fixture(scope="module")
def asked() -> list[Question]:
    return fact_mcq.questions(lambda: iter(RECORDS), seed=0)


def relation_of(q: Question) -> str:
    return q.id.split("/")[0]


def gold_of(q: Question) -> str:
    return q.options[q.answer]


def true_of(records: list[Record]) -> dict[tuple[str, str], set[str]]:
    """Relation and question -> what is true of its subject; a question of these tests names one subject."""
    true = defaultdict(set)
    for each in records:
        for stated in each.facts:
            for form in QUESTIONS[stated.relation]:
                true[stated.relation, form.format(subject=stated.subject)].add(stated.object)
    return true


def check_sets(asked: list[Question]) -> None:
    """Every four questions have the same options, and each option is gold in one of them."""
    assert len(asked) % 4 == 0
    for start in range(0, len(asked), 4):
        four = asked[start : start + 4]
        assert [q.answer for q in four] == [0, 1, 2, 3]
        assert len({(relation_of(q), q.source, q.split, q.options) for q in four}) == 1
        assert len(set(four[0].options)) == 4


def check_truths(asked: list[Question], records: list[Record]) -> None:
    true = true_of(records)
    for q in asked:
        assert set(q.options) & true[relation_of(q), q.question] == {gold_of(q)}


# ---- What is asked ----


def test_every_relation_is_asked_in_eight_ways_about_its_subject_alone():
    assert set(QUESTIONS) == set(RELATIONS)
    for relation, forms in QUESTIONS.items():
        assert len(set(forms)) == len(forms) >= 8, relation
        for form in forms:
            assert [name for _, name, _, _ in string.Formatter().parse(form) if name is not None] == ["subject"]


def test_held_out_questions_have_wordings_that_no_train_question_and_no_statement_has(asked):
    def wordings(*splits: str) -> set[str]:
        named = {(q.question.replace(subject, "{subject}")) for q in asked if q.split in splits for subject in SUBJECTS}
        return {form for forms in QUESTIONS.values() for form in forms if form in named}

    assert wordings("train")
    assert wordings("validation", "test")
    assert not wordings("train") & wordings("validation", "test")
    held_out = {form for forms in QUESTIONS.values() for form in forms[-fact_mcq.HELD_OUT_FORMS :]}
    assert not held_out & {form.replace("{object}", "") for forms in FORMS.values() for form in forms}
    assert not any(form in statement for form in held_out for forms in FORMS.values() for statement in forms)


def test_sets_of_four_have_the_same_options_and_each_is_gold_once(asked):
    check_sets(asked)


def test_one_option_is_true_and_no_other_is_true_in_any_document(asked):
    check_truths(asked, RECORDS)


def test_most_facts_are_asked_and_each_at_most_once(asked):
    facts = {(f.relation, f.subject, f.object) for each in RECORDS for f in each.facts}
    keys = Counter((q.question, gold_of(q)) for q in asked)
    assert set(keys.values()) == {1}
    assert len(facts) * 0.5 < len(asked) <= len(facts)
    assert len({q.id for q in asked}) == len(asked)
    assert {relation_of(q) for q in asked} == {"mitigation", "group_technique", "weakness_name"}


def test_a_subject_is_in_the_split_that_is_drawn_from_it(asked):
    assert {q.split for q in asked} == set(SPLITS)
    for q in asked:
        subject = next(subject for subject in SUBJECTS if subject in q.question)
        assert q.split == split_of(subject)


def test_the_facts_of_a_subject_are_asked_in_different_words():
    group = record("test", 0, *(fact("Group (G1)", "group_technique", f"Technique {i}") for i in range(8)))
    others = [record("test", i, fact(f"Other {i}", "group_technique", f"Technique {i}x")) for i in range(1, 300)]
    asked = fact_mcq.questions(lambda: iter([group, *others]), seed=0)
    of_group = [q.question for q in asked if "Group (G1)" in q.question]
    assert len(set(of_group)) == len(of_group) > 4


def test_a_question_carries_its_evidence_and_its_page(asked):
    for q in asked[:40]:
        assert q.evidence.endswith(f" has {gold_of(q)}.")
        assert q.url.startswith("https://example.org/")


def test_of_a_relation_no_more_is_asked_than_the_limit_and_rare_answers_come_first(monkeypatch):
    monkeypatch.setattr(fact_mcq, "MOST", 200)
    asked = fact_mcq.questions(lambda: iter(RECORDS), seed=0)
    assert max(Counter(map(relation_of, asked)).values()) <= 200
    golds = Counter(gold_of(q) for q in asked if relation_of(q) == "mitigation")
    assert max(golds.values()) <= 0.1 * golds.total()  # of the facts, the most popular object has a fifth


def test_questions_depend_on_the_seed(asked):
    assert fact_mcq.questions(lambda: iter(RECORDS), seed=0) == asked
    assert fact_mcq.questions(lambda: iter(RECORDS), seed=1) != asked


def test_questions_do_not_depend_on_the_hash_seed_of_the_process(asked):
    command = (
        "import hashlib; from ghost_jax.data.builders import fact_mcq; from tests.test_fact_mcq import RECORDS;"
        "print(hashlib.sha256(repr(fact_mcq.questions(lambda: iter(RECORDS), 0)).encode()).hexdigest())"
    )
    result = subprocess.run(
        [sys.executable, "-c", command],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == hashlib.sha256(repr(asked).encode()).hexdigest()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_corpus_too_small_for_a_question_gives_none(count):
    few = [record("test", i, fact(f"CWE-{i}", "weakness_name", f"Name {i}")) for i in range(count)]
    assert fact_mcq.questions(lambda: iter(few), seed=0) == []
    assert fact_mcq.measure([])["longest option"] == {}


def test_an_answer_shared_by_all_subjects_cannot_be_asked():
    same = [record("test", i, fact(f"T{i}", "tactic", f"Tactic {i % 3}")) for i in range(100)]
    assert fact_mcq.questions(lambda: iter(same), seed=0) == []


# ---- What is not offered ----


def train_subjects(form: str, count: int) -> list[str]:
    subjects = (form.format(i) for i in range(10 * count))
    return [subject for subject in subjects if split_of(subject) == "train"][:count]


def test_neither_parent_nor_sub_technique_of_a_true_technique_is_offered():
    techniques = [
        f"Way (T{1000 + i // 3}{f'.00{i % 3}' if i % 3 else ''})" for i in range(15)
    ]  # five families of three
    records = [
        record("test", i, fact(group, "group_technique", techniques[i % 15]))
        for i, group in enumerate(train_subjects("Group {}", 150))
    ]
    asked = fact_mcq.questions(lambda: iter(records), seed=0)
    assert len(asked) > 100
    siblings = 0
    for q in asked:
        numbers = sorted(option[5:-1] for option in q.options)
        assert not any(a != b and b.startswith(a) for a in numbers for b in numbers), q.options
        siblings += len({number[:5] for number in numbers}) < 4
    assert siblings  # two sub-techniques of one technique are two techniques


def test_no_broader_or_narrower_weakness_is_offered_beside_a_true_one():
    # CWE-1 above CWE-2 above CWE-3; the others stand alone. A name, a number and both together mean one entry.
    names = [record("cwe", n, fact(f"CWE-{n}", "weakness_name", f"Weakness {n} of all")) for n in range(1, 9)]
    tree = [
        record("tree", n, fact(f"Weakness {n} (CWE-{n})", "parent_weakness", f"Weakness {n - 1} (CWE-{n - 1})"))
        for n in (2, 3)
    ]
    described = [
        record("cve", 1000 + i, fact(text, "weakness_class", f"Weakness {i % 8 + 1} of all"))
        for i, text in enumerate(train_subjects("Here is what went wrong in the product that has the number {} .", 200))
    ]
    patterns = [
        record("capec", 2000 + i, fact(name, "related_weakness", f"CWE-{i % 8 + 1}"))
        for i, name in enumerate(train_subjects("Pattern {}", 200))
    ]
    asked = fact_mcq.questions(lambda: iter(names + tree + described + patterns), seed=0)
    for relation in ("weakness_class", "related_weakness"):
        sets = [q.options for q in asked if relation_of(q) == relation]
        assert len(sets) > 50
        for options in sets:
            assert sum(any(f"{n}" in option for n in (1, 2, 3)) for option in options) <= 1, options
        assert any(any("3" in option for option in options) for options in sets)


def test_a_subject_too_long_to_show_and_a_vendors_spelling_are_not_asked():
    words = "A description of {} whose cause is told in as many words as it takes to see it"
    classes = [record("cwe", n, fact(f"CWE-{n}", "weakness_name", f"Class {n}")) for n in range(8)]
    long, short, spelled, fine = (
        train_subjects(form, 80) for form in (words + " x" * 200, "Flaw {}", words, words + ".")
    )
    records = classes + [
        record("cve", i, *(fact(texts[i], "weakness_class", name) for texts, name in said))
        for i in range(80)
        for said in [
            ((long, f"Class {i % 8}"), (short, f"Class {i % 8}"), (spelled, "A class"), (fine, f"Class {i % 8}"))
        ]
    ]
    asked = [q for q in fact_mcq.questions(lambda: iter(records), seed=0) if relation_of(q) == "weakness_class"]
    assert len(asked) > 40
    assert all(any(text in q.question for text in fine) for q in asked)


# ---- What knowing nothing earns ----


def test_baselines_that_look_at_the_options_are_at_exactly_a_quarter_in_each_split(asked):
    measured = fact_mcq.measure(asked)
    assert len(measured) == BASELINES
    for name, accuracies in measured.items():
        assert list(accuracies) == ["all", *SPLITS]
        if "question" not in name:
            assert accuracies == pytest.approx(dict.fromkeys(accuracies, 0.25), abs=1e-12)


@given(salt=st.text(max_size=4))
@settings(max_examples=20)
def test_whatever_prefers_some_options_to_others_is_right_in_one_question_of_four(asked, salt):
    def liking(option: str) -> bytes:
        return hashlib.md5(f"{salt}{option}".encode()).digest()

    for split in SPLITS:
        of_split = [q for q in asked if q.split == split]
        right = sum(max(q.options, key=liking) == gold_of(q) for q in of_split)
        assert right * 4 == len(of_split)


def test_the_words_of_the_question_do_not_give_the_answer_away(asked):
    given_away = [
        bool(mcq_baselines.content_words(f.subject) & mcq_baselines.content_words(f.object))
        for each in RECORDS
        for f in each.facts
    ]
    assert sum(given_away) > 0.15 * len(given_away)
    accuracies = fact_mcq.measure(asked)["most words of the question"]
    assert accuracies["all"] == pytest.approx(0.25, abs=0.01)
    assert [accuracies[split] for split in SPLITS] == pytest.approx([0.25] * 3, abs=0.03)
    for relation in ("mitigation", "group_technique"):
        of_relation = [q for q in asked if relation_of(q) == relation]
        assert fact_mcq.measure(of_relation)["most words of the question"]["all"] == pytest.approx(0.25, abs=0.02)


def test_some_answers_are_still_named_in_their_question(asked):
    shared = [
        max(
            q.options,
            key=lambda option: len(mcq_baselines.content_words(option) & mcq_baselines.content_words(q.question)),
        )
        for q in asked
    ]
    named = sum(
        best == gold_of(q) and bool(mcq_baselines.content_words(best) & mcq_baselines.content_words(q.question))
        for q, best in zip(asked, shared, strict=True)
    )
    assert named > 20  # else the fewest common words would be the shortcut


def test_the_summary_has_a_line_for_each_baseline_in_percent(asked):
    lines = fact_mcq.summary(fact_mcq.measure(asked))
    assert len(lines) == BASELINES
    assert lines[0].split() == [
        "always",
        "A",
        "all",
        "25.00%",
        "train",
        "25.00%",
        "validation",
        "25.00%",
        "test",
        "25.00%",
    ]


names = st.sampled_from(["a", "bb", "b a", "ccc", "A", "dd dd", "e", "f"])
facts = st.builds(
    fact, st.sampled_from([f"Thing {i} a" for i in range(12)]), st.sampled_from(["tactic", "mitigation"]), names
)


@given(st.lists(st.lists(facts, max_size=4), max_size=40), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_any_corpus_gives_sound_sets(drawn, seed):
    records = [record(f"source {i % 2}", i, *stated) for i, stated in enumerate(drawn)]
    asked = fact_mcq.questions(lambda: iter(records), seed)
    check_sets(asked)
    check_truths(asked, records)
    assert len({q.id for q in asked}) == len(asked)


# ---- Four orders ----


@pytest.mark.parametrize("layout", ["classic", "letter_after", "options_only"])
def test_each_question_is_written_in_its_four_cyclic_orders(asked, layout):
    written = list(fact_mcq.build(asked[:40], layout))
    assert Counter(c.letter for c in written) == dict.fromkeys("ABCD", 40)
    asked_in = [(q, order) for q in asked[:40] for order in cyclic_orders(4)]
    for conversation, (q, order) in zip(written, asked_in, strict=True):
        turned = permute(Item(q.id, q.question, q.options, q.answer), order)
        user, assistant = conversation.messages
        assert conversation.id == f"{q.id}/{order_name(order)}"
        assert (conversation.source, conversation.split) == (q.source, q.split)
        assert user.content == ask(q.question, turned.options, layout)
        assert conversation.letter == LETTERS[turned.answer]
        assert assistant.content in (conversation.letter, f"{conversation.letter}. {gold_of(q)}")


def test_a_cloze_has_no_order_and_is_written_once(asked):
    written = list(fact_mcq.build(asked[:40], "cloze"))
    assert [c.messages[1].content for c in written] == [gold_of(q) for q in asked[:40]]
    assert len({c.id for c in written}) == 40


def test_about_seventy_percent_of_the_answers_are_the_bare_letter(asked):
    answers = [c.messages[1].content for c in fact_mcq.build(asked, "classic")]
    assert sum(len(answer) == 1 for answer in answers) / len(answers) == pytest.approx(0.7, abs=0.03)


# ---- Real data ----


@pytest.fixture(scope="module")
def real(ghost_data) -> list[Question]:
    def documents():
        for name in ("attack", "capec", "cwe", "cve"):
            for path in sources.locate(name, [ghost_data]):
                yield from sources.SOURCES[name].read(path)

    return fact_mcq.questions(documents, seed=0)


def test_the_real_corpus_gives_ten_to_fifty_thousand_questions_that_no_baseline_knows(real):
    assert 10_000 <= len(real) <= 50_000
    check_sets(real)
    measured = fact_mcq.measure(real)
    for accuracies in measured.values():
        assert list(accuracies.values()) == pytest.approx([0.25] * 4, abs=0.01)
    for relation in {relation_of(q) for q in real}:
        for name, accuracies in fact_mcq.measure([q for q in real if relation_of(q) == relation]).items():
            assert list(accuracies.values()) == pytest.approx([0.25] * 4, abs=0.05), (relation, name)


def test_no_relation_dominates_the_real_questions(real):
    of_relation = Counter(map(relation_of, real))
    assert max(of_relation.values()) <= fact_mcq.MOST
    assert len(of_relation) >= 14
