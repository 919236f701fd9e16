"""ghost_jax/data/builders/rewrite and surface_forms: facts in many wordings, far apart, and counted."""

import itertools
import json
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ghost_jax.data import sources
from ghost_jax.data.builders import mcq, pretrain, rewrite
from ghost_jax.data.storage.schema import RELATIONS, Fact, Record, split_of
from ghost_jax.data.wordings import question_forms
from ghost_jax.data.wordings.surface_forms import FORMS
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.text.tokenizer import BOS

# Names as the publishers write them, one pair a relation.
NAMES = {
    "tactic": ("Phishing (T1566)", "Initial Access"),
    "mitigation": ("Phishing (T1566)", "User Training"),
    "detection": ("Phishing (T1566)", "Network Traffic: Network Traffic Flow"),
    "group_technique": ("APT29 (G0016)", "Phishing (T1566)"),
    "software_technique": ("Mimikatz (S0002)", "LSASS Memory (T1003.001)"),
    "campaign_technique": ("SolarWinds Compromise (C0024)", "Web Protocols (T1071.001)"),
    "group_software": ("APT29 (G0016)", "Mimikatz (S0002)"),
    "weakness_name": ("CWE-22", "Path Traversal: 'dir\\..\\..\\filename'"),
    "weakness_class": ("The product trusts its input.", "Improper Input Validation"),
    "parent_weakness": ("CWE-79", "CWE-74"),
    "consequence": ("CWE-79", "Read Application Data"),
    "weakness_mitigation": ("CWE-89", "Use a library that does not allow this weakness to occur."),
    "attack_pattern_name": ("CAPEC-8", "Buffer Overflow in an API Call"),
    "related_weakness": ("Buffer Overflow in an API Call (CAPEC-8)", "CWE-120"),
    "vulnerability_weakness": ("CVE-2021-44228", "CWE-502"),
    "vulnerability_product": ("CVE-2021-44228", "Apache Log4j"),
    "exploited_vulnerability": ("EDB-50592", "CVE-2021-44228"),
    "expansion": ("XSS", "Cross-Site Scripting"),
    "port_service": ("TCP port 443", "HTTPS"),
}
FACTS = [Fact(subject, relation, name, "As stated.") for relation, (subject, name) in NAMES.items()]
relations = pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.relation)


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
WHOLE = 10**9  # a window that everything fits


def documents():
    return iter(RECORDS)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_lib.train((line for fact in FACTS for line in rewrite.statements(fact)), 600)


@pytest.fixture(scope="module")
def written(tokenizer):
    """The lines of every document in the rows, by split."""

    def lines(split: str) -> list[list[str]]:
        (row,) = rewrite.build(documents, tokenizer, split, WHOLE)
        starts = [*np.flatnonzero(row["tokens"] == tokenizer.id(BOS)), len(row["tokens"])]
        texts = [tokenizer.decode(row["tokens"][a + 1 : b - 1]) for a, b in itertools.pairwise(starts)]
        return [text.split("\n") for text in texts]

    return {split: lines(split) for split in ("train", "validation")}


DISTINCT = {(f.subject, f.relation, f.object): f for each in RECORDS for f in each.facts if rewrite.can_be_rewritten(f)}
STATED_BY = {line: fact for fact in DISTINCT.values() for line in rewrite.statements(fact)}


# ---- Wordings ----


def test_every_relation_has_forms():
    assert set(FORMS) == set(NAMES) == set(RELATIONS)


@relations
def test_a_fact_is_stated_in_twenty_forms_half_of_them_from_either_end(fact):
    lines = rewrite.statements(fact)
    assert len(set(lines)) == len(lines) >= 20
    asks_for_object = sum(line.rindex(fact.object) > line.index(fact.subject) for line in lines)
    assert asks_for_object == len(lines) / 2 >= 10


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_form_names_either_end_once_and_reads_like_english(relation):
    for form in FORMS[relation]:
        assert sorted(re.findall(r"\{.*?\}", form)) == ["{object}", "{subject}"]
        assert "  " not in form
        assert form == form.strip()
        assert not re.search(r"\b(a|an) \{", form), "the article depends on the name"
        assert form[0] in '{"' or form[0].isupper() or " | " in form
        assert form[-1] in '."]' or " | " in form
        assert not re.search(r"\b(\w+) \1\b", form)


@relations
def test_no_line_repeats_a_word_or_a_stop_where_a_name_joins_it(fact):
    for line in rewrite.statements(fact):
        framed = line.replace(fact.subject, fact.subject.split()[-1]).replace(fact.object, "NAME")
        assert not re.search(r"\b(\w+) \1\b", framed)
        assert not re.search(r"[.!?]\.$|\s\s", framed)
        assert not re.search(r"\bport TCP\b", line)


@relations
def test_some_forms_tell_what_kind_of_thing_either_end_is(fact):
    told = " ".join(rewrite.statements(fact))
    assert re.search(rf"{re.escape(fact.subject)} \[[^\]]+\]", told)
    assert re.search(rf"{re.escape(fact.object)} \[[^\]]+\]", told)
    assert re.search(rf'{re.escape(fact.subject)}"? (is|That|This) ', told)


ODD = st.text(st.sampled_from("ab {}%'\"\\.?!…<>\n|é") | st.characters(exclude_categories=["Cs"]), min_size=1)
ODD_NAMES = ODD | st.sampled_from(
    ["{subject}", "{object}", "{0}", "{}", "%s", "%(object)s", "\\1", 'Say "no".', "Inc."]
)


@given(subject=ODD_NAMES, name=ODD_NAMES, relation=st.sampled_from(sorted(RELATIONS)))
def test_odd_names_are_never_altered_and_leave_no_placeholder(subject, name, relation):
    assume(subject != name)
    lines = rewrite.statements(Fact(subject, relation, name, "As stated."))
    assert len(set(lines)) == len(lines) >= 20
    for line, form in zip(lines, FORMS[relation], strict=True):
        assert subject in line
        assert name in line
        full = len(form) - len("{subject}{object}") + len(subject) + len(name)
        assert len(line) == full or (len(line) == full - 1 and form[-1] == "." and line[-1] in ".!?")


@pytest.mark.parametrize("name", ["Acme Inc.", "Yahoo!", "Who?", "and so on..."])
def test_a_name_that_ends_in_a_stop_gets_no_second_one(name):
    lines = rewrite.statements(Fact("CVE-2020-1", "vulnerability_product", name, ""))
    assert f"CVE-2020-1 affects {name}" in lines
    assert not any(line.endswith(f"{name}.") for line in lines)


def test_no_line_holds_a_question_of_the_multiple_choice_sets_in_its_own_words():
    for relation, phrasings in (*mcq.PHRASINGS.items(), *question_forms.QUESTIONS.items()):
        assert not [(form, phrasing) for form in FORMS[relation] for phrasing in phrasings if phrasing in form]


@pytest.mark.parametrize(
    ("subject", "name", "expected"),
    [
        ("CWE-79", "Cross-site Scripting", True),
        ("The product trusts its input.", "Improper Input Validation", True),
        ("d" * 300, "Improper Input Validation", True),
        ("d" * 301, "Improper Input Validation", False),
        ("Improper Input Validation", "d" * 301, False),
        ("SSH", "SSH", False),
        ("", "SSH", False),
        ("SSH", "", False),
    ],
)
def test_only_facts_about_things_with_a_name_are_rewritten(subject, name, expected):
    assert rewrite.can_be_rewritten(Fact(subject, "weakness_class", name, "")) is expected


def test_every_fact_of_the_pack_has_its_forms():
    facts = [fact for each in sources.SOURCES["embedded"].read() for fact in each.facts]
    assert len(facts) > 1000
    for fact in filter(rewrite.can_be_rewritten, facts):
        lines = rewrite.statements(fact)
        assert len(set(lines)) >= 20
        assert all(fact.subject in line and fact.object in line and "  " not in line for line in lines)


# ---- Rows ----


def test_each_statement_of_each_fact_is_in_the_rows_once(written):
    lines = Counter(line for split in written.values() for document in split for line in document)
    assert lines == Counter(STATED_BY.keys())


def test_a_document_holds_a_handful_of_statements_of_different_facts(written):
    for document in written["train"][:-1]:
        assert len({STATED_BY[line] for line in document}) == rewrite.STATEMENTS


def test_one_document_in_fifty_is_validation(written):
    count = sum(map(len, written.values()))
    assert len(written["validation"]) == count // 50 > 5


def test_the_statements_of_a_fact_stand_far_apart_among_changing_neighbours(written):
    train, validation = written["train"], iter(written["validation"])
    ordered = []
    for index in range(sum(map(len, written.values()))):
        ordered.append(next(validation) if pretrain.is_in("validation", index) else train[len(ordered) - index // 50])
    places, neighbours = defaultdict(list), defaultdict(set)
    for place, line in enumerate(itertools.chain(*ordered)):
        places[STATED_BY[line]].append(place)
    for document in ordered:
        for a, b in itertools.permutations(map(STATED_BY.get, document), 2):
            neighbours[a].add(b)
    assert len(places) == len(DISTINCT)
    for fact, found in places.items():
        assert min(b - a for a, b in itertools.pairwise(found)) > 0.7 * len(DISTINCT)
        assert len(neighbours[fact]) > 0.2 * len(DISTINCT)


def test_neighbouring_statements_are_in_different_forms(written):
    opening = Counter()
    for document in written["train"]:
        ports = [line for line in document if STATED_BY[line].relation == "port_service"]
        skeletons = {re.sub(r"TCP port \d+|Service \d+", "", line) for line in ports}
        opening[len(ports) > 2 and len(skeletons) == 1] += 1
    assert opening[True] == 0


def test_rows_depend_on_the_facts_alone(tokenizer):
    def rows(read, window):
        return [(row["id"], row["tokens"].tobytes()) for row in rewrite.build(read, tokenizer, "train", window)]

    def retold():
        return (record(f"x{i}", *each.facts, source="elsewhere") for i, each in enumerate(RECORDS))

    assert rows(documents, 64) == rows(documents, 64) == rows(retold, 64)


@pytest.mark.parametrize("window", [16, 100])
def test_rows_are_windows_as_plain_documents_have_them(tokenizer, window):
    (whole,) = rewrite.build(documents, tokenizer, "train", WHOLE)
    rows = list(rewrite.build(documents, tokenizer, "train", window))
    assert {(len(row["tokens"]), row["source"]) for row in rows} == {(window + 1, "facts")}
    targets = np.concatenate([row["tokens"][row["mask"]] for row in rows])
    np.testing.assert_array_equal(targets, whole["tokens"][1 : len(targets) + 1])
    assert len(whole["tokens"]) - 1 - len(targets) < window


def test_documents_without_facts_give_no_row(tokenizer):
    assert list(rewrite.build(lambda: iter([record("empty")]), tokenizer, "train", 64)) == []
    assert list(rewrite.facts_of(lambda: iter([record("empty")]))) == []


# ---- Exposures ----


def test_the_counter_agrees_with_what_is_in_the_rows(written):
    in_rows = Counter(STATED_BY[line] for document in written["train"] for line in document)
    lines = list(rewrite.facts_of(documents))
    counted = {DISTINCT[line["subject"], line["relation"], line["object"]]: line["forms"] for line in lines}
    assert counted == in_rows
    assert len(lines) == len(counted) == len(DISTINCT)
    held_out = sum(map(len, written["validation"]))
    assert sum(counted.values()) + held_out == len(STATED_BY)


def test_a_fact_of_two_documents_is_one_fact_of_the_first(written):
    (line,) = [line for line in rewrite.facts_of(documents) if line["subject"] == "Technique 5"]
    assert line["source"] == "test"
    assert line["forms"] <= len(FORMS["tactic"])
    assert json.loads(json.dumps(line)) == line


def test_facts_of_held_out_subjects_are_stated_as_well():
    subjects = {line["subject"] for line in rewrite.facts_of(documents)}
    assert {split_of(subject) for subject in subjects} == {"train", "validation", "test"}


def test_the_summary_adds_the_lines_up():
    lines = list(rewrite.facts_of(documents))
    summary = rewrite.summary(documents)
    assert summary["facts"] == len(lines)
    assert summary["forms"] == sum(line["forms"] for line in lines)
    assert (summary["least_forms"], summary["most_forms"]) == (
        min(line["forms"] for line in lines),
        max(line["forms"] for line in lines),
    )
    assert set(summary["relations"]) == set(RELATIONS)
    tactics = [line["forms"] for line in lines if line["relation"] == "tactic"]
    assert summary["relations"]["tactic"] == {
        "facts": 61,
        "forms": sum(tactics),
        "least_forms": min(tactics),
        "most_forms": max(tactics),
    }
    assert rewrite.summary(lambda: iter([])) == {
        **dict.fromkeys(("facts", "forms", "least_forms", "most_forms"), 0),
        "relations": {},
    }


@pytest.mark.parametrize("source", ["capec", "cwe"])
def test_published_names_are_stated_unaltered(ghost_data, source):
    (path,) = sources.locate(source, [ghost_data])
    facts = [fact for each in sources.SOURCES[source].read(path) for fact in each.facts]
    for fact in filter(rewrite.can_be_rewritten, facts):
        lines = rewrite.statements(fact)
        assert len(set(lines)) >= 20
        assert all(fact.subject in line and fact.object in line for line in lines)
