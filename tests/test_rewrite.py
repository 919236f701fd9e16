"""ghost_jax/data/builders/rewrite.py and its wordings: facts in many wordings, far apart, and counted."""

import itertools
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ghost_jax.data.builders import mcq, rewrite
from ghost_jax.data.storage.schema import RELATIONS, Fact, Record
from ghost_jax.data.wordings import FORMS, QUESTIONS, fill
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.text.tokenizer import BOS

FACTS = [Fact(f"Subject of {each} (S1)", each, f"Object of {each}.", "As stated.") for each in RELATIONS]


def record(number: str, *facts: Fact, source: str = "test") -> Record:
    return Record(number, source, number, "Text.", url="", license="", facts=facts)


# Enough facts that a document in fifty is validation, of relations that alternate; one is stated twice.
RECORDS = [
    *(record(f"T{i}", Fact(f"Technique {i}", "tactic", f"Tactic {i % 7}", f"Evidence {i}.")) for i in range(60)),
    record("T-again", Fact("Technique 5", "tactic", "Tactic 5", "Told otherwise."), source="other"),
    record("long", Fact("It is a very long story. " * 20, "weakness_class", "Buffer Overflow", "As stated.")),
    *(record(f"port {i}", Fact(f"TCP port {i}", "port_service", f"Service {i}", "As stated.")) for i in range(40)),
    *(record(fact.relation, fact, source="published") for fact in FACTS),
]


def statements(fact: Fact) -> list[str]:
    return [fill(form, fact) for form in FORMS[fact.relation]]


DISTINCT = {(f.subject, f.relation, f.object): f for each in RECORDS for f in each.facts if rewrite.can_be_rewritten(f)}
STATED_BY = {line: fact for fact in DISTINCT.values() for line in statements(fact)}


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_relation_has_twenty_forms_half_of_them_from_either_end_and_eight_questions(relation):
    forms, questions = FORMS[relation], QUESTIONS[relation]
    assert len(set(forms)) == len(forms) >= 20
    assert sum(form.index("{object}") > form.index("{subject}") for form in forms) == len(forms) / 2
    for form in forms:
        assert sorted(re.findall(r"\{.*?\}", form)) == ["{object}", "{subject}"]
        assert form == " ".join(form.split())
        assert not re.search(r"\b(a|an) \{", form), "the article depends on the name"
        assert form[0] in '{"' or form[0].isupper() or " | " in form
        assert form[-1] in '."]' or " | " in form
        assert not re.search(r"\b(\w+) \1\b", form)
        assert "port {subject}" not in form or relation != "port_service", "the subject is TCP port 80"
    told = " ".join(forms)
    assert all(re.search(rf"{end} \[[^\]]+\]", told) for end in (r"\{subject\}", r"\{object\}")), "kinds of both ends"
    assert re.search(r'\{subject\}"? (is|That|This) ', told)
    assert len(set(questions)) == len(questions) >= 8
    assert all(re.findall(r"\{.*?\}", question) == ["{subject}"] for question in questions)
    asked = (*mcq.PHRASINGS.get(relation, ()), *questions)
    assert not [(form, question) for form in forms for question in asked if question in form]


ODD = st.text(st.sampled_from("ab {}%'\"\\.?!…<>\n|é") | st.characters(exclude_categories=["Cs"]), min_size=1)
ODD_NAMES = ODD | st.sampled_from(["{subject}", "{0}", "{}", "%(object)s", "\\1", 'Say "no".', "Acme Inc.", "Yahoo!"])


@given(subject=ODD_NAMES, name=ODD_NAMES, relation=st.sampled_from(sorted(RELATIONS)))
def test_odd_names_are_never_altered_and_get_no_second_stop(subject, name, relation):
    assume(subject != name)
    for form in FORMS[relation]:
        line = fill(form, Fact(subject, relation, name, "As stated."))
        assert subject in line
        assert name in line
        full = len(form) - len("{subject}{object}") + len(subject) + len(name)
        stopped = form.endswith("}.") and (subject if form.endswith("{subject}.") else name)[-1] in ".!?"
        assert len(line) == full - bool(stopped)


def test_each_statement_of_each_fact_is_in_the_rows_once():
    tokenizer = tokenizer_lib.train((line for fact in FACTS for line in statements(fact)), 600)
    written: dict[str, list[list[str]]] = {}  # split -> the lines of each document
    for split in ("train", "validation"):
        (row,) = rewrite.build(lambda: RECORDS, tokenizer, split, window=10**9)
        starts = [*np.flatnonzero(row["tokens"] == tokenizer.id(BOS)), len(row["tokens"])]
        texts = [tokenizer.decode(row["tokens"][a + 1 : b - 1]) for a, b in itertools.pairwise(starts)]
        written[split] = [text.split("\n") for text in texts]
    assert Counter(itertools.chain(*written["train"], *written["validation"])) == Counter(STATED_BY.keys())
    for document in written["train"][:-1]:
        assert len({STATED_BY[line] for line in document}) == rewrite.STATEMENTS
        ports = [line for line in document if STATED_BY[line].relation == "port_service"]
        assert len(ports) < 3 or len({re.sub(r"TCP port \d+|Service \d+", "", line) for line in ports}) > 1
    assert len(written["validation"]) == sum(map(len, written.values())) // 50 > 5
