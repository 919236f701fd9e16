"""ghost_jax/data/builders/fact_mcq.py: questions that the options alone do not answer, and their four orders."""

import dataclasses
import itertools
import random
from collections import Counter, defaultdict
from types import SimpleNamespace

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
    for q in asked:
        subject = q.evidence.removesuffix(f" has {gold_of(q)}.")
        forms = QUESTIONS[relation_of(q)]
        forms = forms[:-2] if q.split == "train" else forms[-2:]
        assert q.split == split_of(subject)
        assert q.question in [form.format(subject=subject) for form in forms]
    assert {q.split for q in asked} == set(SPLITS)
    held_out = itertools.chain.from_iterable(forms[-2:] for forms in QUESTIONS.values())
    statements = list(itertools.chain(*FORMS.values()))
    assert not [form for form in held_out if any(form in statement for statement in statements)]


def test_a_technique_and_its_sub_techniques_are_in_one_split():
    splits = [
        [split_of(f"{name} (T{n}{sub})") for name, sub in (("One", ""), ("One: Two", ".001"))]
        for n in range(1000, 1060)
    ]
    assert all(one == two for one, two in splits)
    assert {one for one, _ in splits} == set(SPLITS)


def test_the_held_out_items_have_no_fact_that_questions_on_other_subjects_show():
    items: list[Question] = []
    options = SimpleNamespace(seed=0, layout="classic")
    hooks = {"documents": lambda: RECORDS, "write_items": items.extend, "say": print, "render": list}
    fact_mcq.dataset(SimpleNamespace(options=options, recorded={}, **hooks))
    held_out = {relation_of(q) for q in items if q.split != "train"}
    assert held_out
    assert not held_out & set(fact_mcq.LINKED)
    assert "weakness_name" in {relation_of(q) for q in items if q.split == "train"}


def test_most_facts_are_asked_once_in_sound_sets(asked):
    check(asked, RECORDS)
    assert questions(RECORDS) == asked != questions(RECORDS, seed=1)
    facts = {(f.relation, f.subject, f.object) for each in RECORDS for f in each.facts}
    assert set(Counter((q.question, gold_of(q)) for q in asked).values()) == {1}
    assert len(facts) * 0.5 < len(asked) <= len(facts)
    assert {relation_of(q) for q in asked} == {"mitigation", "group_technique", "weakness_name"}
    assert all(q.url.startswith("https://example.org/") for q in asked)


# Two techniques of three numbers each, and four others; CWE-1 is above CWE-2, and that above CWE-3.
NUMBERS = ("1000", "1000.001", "1000.002", "1001", "1001.001", "1001.002", "2000", "2001", "2002", "2003")
TECHNIQUES = [f"Way{i} (T{number})" for i, number in enumerate(NUMBERS)]
SAME_NAME = ["Audio Capture (T1123)", "Audio capture (T1429)", "Evasion (T1500)", "Defense Evasion (T1600)"]
TREE = [record("cwe", n, fact(f"CWE-{n}", "weakness_name", f"Weakness {n} of all")) for n in range(1, 9)]
for n in (1, 2):
    TREE.append(record("cwe", n, fact(f"Weakness {n + 1} (CWE-{n + 1})", "parent_weakness", f"Weakness {n} (CWE-{n})")))


@pytest.mark.parametrize(
    ("relation", "subject", "objects", "related"),
    [
        ("group_technique", "Group {}", TECHNIQUES, [{0, 1}, {0, 2}, {3, 4}, {3, 5}]),
        ("software_technique", "Tool {}", SAME_NAME + TECHNIQUES[6:], [{0, 1}, {2, 3}]),
        (
            "weakness_class",
            "Of what went wrong {} times {}",
            [f"Weakness {n} of all" for n in range(1, 9)],
            [{0, 1, 2}],
        ),
        ("related_weakness", "Pattern {}", [f"CWE-{n}" for n in range(1, 9)], [{0, 1, 2}]),
    ],
)
def test_nothing_broader_or_narrower_than_a_true_object_or_of_its_name_is_offered(relation, subject, objects, related):
    subjects = [subject.format(i, "and again " * 5) for i in range(200)]
    stated = [record("test", i, fact(each, relation, objects[i % len(objects)])) for i, each in enumerate(subjects)]
    asked = [q for q in questions([*TREE, *stated]) if relation_of(q) == relation]
    offered = [{objects.index(option) for option in q.options} for q in asked]
    assert set().union(*offered) == set(range(len(objects)))
    assert not [(each, line) for each in offered for line in related if len(each & line) > 1]
    assert relation != "group_technique" or any({1, 2} <= each for each in offered), "two sub-techniques are two"


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
