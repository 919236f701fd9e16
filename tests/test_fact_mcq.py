"""ghost_jax/data/builders/fact_mcq.py: questions that the options alone do not answer, and their four orders."""

import dataclasses
import itertools
import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghost_jax.data.builders import fact_mcq
from ghost_jax.data.examples import Question
from ghost_jax.data.items.items import cyclic_orders, order_name, permute
from ghost_jax.data.retrieval.mcq_baselines import content_words
from ghost_jax.data.sources.data_files import locate, read
from ghost_jax.data.storage.schema import SPLITS, Fact, Record, split_of
from ghost_jax.data.wordings import FORMS, QUESTIONS

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
    records = [record("ids", n, fact(f"CWE-{n}", "weakness_name", f"{WORDS[n]} flaw")) for n in range(90)]
    for number in range(700):
        true = dict.fromkeys(rng.choices(names, popularity, k=rng.choice([1, 1, 2, 5])))
        subject = f"{' '.join(rng.sample(WORDS, 2)).title()} (S{number})"
        if number % 3 == 0:  # a third of the subjects contain the name of their answer
            subject = f"{next(iter(true))} {subject}"
        relation = ("mitigation", "group_technique")[number % 2]
        records.append(record("big" if number % 4 else "small", number, *(fact(subject, relation, n) for n in true)))
    return records


RECORDS = corpus()
SUBJECTS = sorted({stated.subject for each in RECORDS for stated in each.facts}, key=len, reverse=True)


def questions(records: list[Record], seed: int = 0) -> list[Question]:
    return fact_mcq.questions(lambda: records, seed)


@pytest.fixture(scope="module")
def asked() -> list[Question]:
    return questions(RECORDS)


def relation_of(q: Question) -> str:
    return q.id.split("/")[0]


def gold_of(q: Question) -> str:
    return q.options[q.answer]


def check(asked: list[Question], records: list[Record] | None = None) -> None:
    """Every four questions have the same options, each gold in one of them and false for the other three subjects."""
    true = defaultdict(set)
    for stated in (stated for each in records or [] for stated in each.facts):
        for form in QUESTIONS[stated.relation]:
            true[stated.relation, form.format(subject=stated.subject)].add(stated.object)
    assert len({q.id for q in asked}) == len(asked)
    assert len(asked) % 4 == 0
    for start in range(0, len(asked), 4):
        four = asked[start : start + 4]
        assert [q.answer for q in four] == [0, 1, 2, 3]
        assert len({(relation_of(q), q.source, q.split, q.options) for q in four}) == 1
        assert len(set(four[0].options)) == 4
        if records:
            assert all(set(q.options) & true[relation_of(q), q.question] == {gold_of(q)} for q in four)


def test_held_out_questions_have_wordings_that_no_train_question_and_no_statement_has(asked):
    used = defaultdict(set)
    for q in asked:
        subject = next(subject for subject in SUBJECTS if subject in q.question)
        assert q.split == split_of(subject)
        used[q.split].add(q.question.replace(subject, "{subject}"))
    assert used.keys() == set(SPLITS)
    assert set().union(*used.values()) <= set(itertools.chain(*QUESTIONS.values()))
    assert not used["train"] & (used["validation"] | used["test"])
    held_out = {form for forms in QUESTIONS.values() for form in forms[-fact_mcq.HELD_OUT_FORMS :]}
    assert not any(form in statement for form in held_out for statement in itertools.chain(*FORMS.values()))


def test_most_facts_are_asked_once_in_sound_sets(asked):
    check(asked, RECORDS)
    assert questions(RECORDS) == asked != questions(RECORDS, seed=1)
    facts = {(f.relation, f.subject, f.object) for each in RECORDS for f in each.facts}
    assert set(Counter((q.question, gold_of(q)) for q in asked).values()) == {1}
    assert len(facts) * 0.5 < len(asked) <= len(facts)
    assert {relation_of(q) for q in asked} == {"mitigation", "group_technique", "weakness_name"}
    for q in asked:
        assert q.evidence.endswith(f" has {gold_of(q)}.")
        assert q.url.startswith("https://example.org/")


def train_subjects(form: str, count: int) -> list[str]:
    subjects = (form.format(i) for i in range(10 * count))
    return [subject for subject in subjects if split_of(subject) == "train"][:count]


def test_neither_parent_nor_sub_technique_of_a_true_technique_is_offered():
    families = [f"Way (T{1000 + i // 3}{f'.00{i % 3}' if i % 3 else ''})" for i in range(15)]  # five of three
    groups = enumerate(train_subjects("Group {}", 150))
    asked = questions([record("test", i, fact(group, "group_technique", families[i % 15])) for i, group in groups])
    assert len(asked) > 100
    siblings = 0
    for q in asked:
        numbers = sorted(option[5:-1] for option in q.options)
        assert not any(a != b and b.startswith(a) for a in numbers for b in numbers), q.options
        siblings += len({number[:5] for number in numbers}) < 4
    assert siblings  # two sub-techniques of one technique are two techniques


def test_no_broader_or_narrower_weakness_is_offered_beside_a_true_one():
    # CWE-1 above CWE-2 above CWE-3; the others stand alone. A name, a number and both together mean one entry.
    entries = [record("cwe", n, fact(f"CWE-{n}", "weakness_name", f"Weakness {n} of all")) for n in range(1, 9)]
    for n in (2, 3):
        stated = fact(f"Weakness {n} (CWE-{n})", "parent_weakness", f"Weakness {n - 1} (CWE-{n - 1})")
        entries.append(record("tree", n, stated))
    kinds = {
        "weakness_class": ("Here is what went wrong in the product that has the number {} .", "Weakness {} of all"),
        "related_weakness": ("Pattern {}", "CWE-{}"),
    }
    for relation, (subject, name) in kinds.items():
        for i, text in enumerate(train_subjects(subject, 200)):
            entries.append(record(relation, i, fact(text, relation, name.format(i % 8 + 1))))
    asked = questions(entries)
    for relation in kinds:
        sets = [q.options for q in asked if relation_of(q) == relation]
        assert len(sets) > 50
        assert all(sum(any(f"{n}" in option for n in (1, 2, 3)) for option in options) <= 1 for options in sets)
        assert any("3" in option for options in sets for option in options)


def test_every_baseline_is_at_a_quarter_in_each_split_although_questions_share_words_with_their_answers(asked):
    for name, accuracies in fact_mcq.measure(asked).items():
        assert list(accuracies) == ["all", *SPLITS]
        tolerance = 0.03 if "question" in name else 1e-12
        assert accuracies == pytest.approx(dict.fromkeys(accuracies, 0.25), abs=tolerance), name
    shared = [bool(content_words(f.subject) & content_words(f.object)) for each in RECORDS for f in each.facts]
    assert sum(shared) > 0.15 * len(shared)
    named = [q for q in asked if content_words(gold_of(q)) & content_words(q.question)]
    assert len(named) > 20, "else the fewest common words would be a shortcut"


SUBJECT = st.sampled_from([f"Thing {i} a" for i in range(12)])
OBJECT = st.sampled_from(["a", "bb", "b a", "ccc", "A", "dd dd", "e", "f"])
FACT = st.builds(fact, SUBJECT, st.sampled_from(["tactic", "mitigation"]), OBJECT)


@given(st.lists(st.lists(FACT, max_size=4), max_size=40), st.integers(0, 3))
@settings(max_examples=60)
def test_any_corpus_gives_sound_sets(drawn, seed):
    records = [record(f"source {i % 2}", i, *stated) for i, stated in enumerate(drawn)]
    check(questions(records, seed), records)


def test_each_question_is_written_in_its_four_cyclic_orders_and_once_in_a_cloze(asked):
    written = list(fact_mcq.build(asked, "classic"))
    asked_in = [(q, order) for q in asked for order in cyclic_orders(4)]
    for conversation, (q, order) in zip(written, asked_in, strict=True):
        turned = dataclasses.replace(permute(q, order), id=f"{q.id}/{order_name(order)}")
        assert conversation in (turned.answered("classic", ""), turned.answered("classic", gold_of(q)))
    bare = sum(len(conversation.messages[1].content) == 1 for conversation in written)
    assert bare / len(written) == pytest.approx(0.7, abs=0.03)
    cloze = fact_mcq.build(asked[:40], "cloze")
    assert [conversation.messages[1].content for conversation in cloze] == [gold_of(q) for q in asked[:40]]


@pytest.mark.slow
def test_the_real_corpus_gives_ten_to_fifty_thousand_questions_at_chance_for_every_baseline(ghost_data):
    paths = ((name, path) for name in ("attack", "capec", "cwe", "cve") for path in locate(name, [ghost_data]))
    real = questions([document for name, path in paths for document in read(name, path)])
    assert 10_000 <= len(real) <= 50_000
    check(real)
    by_relation = defaultdict(list)
    for q in real:
        by_relation[relation_of(q)].append(q)
    assert max(map(len, by_relation.values())) <= fact_mcq.MOST
    assert len(by_relation) >= 14
    for of_relation, tolerance in [(real, 0.01), *((each, 0.05) for each in by_relation.values())]:
        for accuracies in fact_mcq.measure(of_relation).values():
            assert list(accuracies.values()) == pytest.approx([0.25] * len(accuracies), abs=tolerance)
