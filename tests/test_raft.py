"""ghost_jax/data/builders/raft.py: which passages a question has, how often, and what they must not contain."""

import dataclasses
import re
from collections import Counter

import pytest

from ghost_jax.data.builders import mcq, raft, rank
from ghost_jax.data.examples import Question
from ghost_jax.data.retrieval.bm25 import CONTEXT, Index, passages_of, shown
from ghost_jax.data.storage.schema import SPLITS, Record
from ghost_jax.text import tokenizer
from ghost_jax.text.mcq_format import LAYOUTS, ask, with_context

COUNT = 600
COLOURS = ("red", "green", "blue", "grey")
TOOLS = ("hammer", "chisel", "saw", "drill", "file", "plane", "level")


def page(i: int, url: str = "https://x.org/{}") -> Record:
    """A page whose second line has its colour."""
    lines = (
        f"Gadgets like this one hang near a {TOOLS[i % 7]}.",
        f"Gadget {i} is painted {COLOURS[i % 4]} at workshop {i}.",
        f"Colour of gadget {i}: Ask at the {TOOLS[(i + 1) % 7]}. " + "Considerable perseverance was required. " * 10,
    )
    return Record(f"G{i}", "test", f"Gadget {i}", "\n\n".join(lines), url.format(i), license="")


def twin(i: int) -> Record:
    """A page that has the colour of a gadget under another name."""
    text = f"As told elsewhere, gadget {i} is painted {COLOURS[i % 4]} at workshop {i}."
    return Record(f"TWIN{i}", "test", f"Twin of gadget {i}", text, f"https://x.org/twin/{i}", license="")


def question(i: int, **changes: str) -> Question:
    evidence = f"Gadget {i} is painted {COLOURS[i % 4]} at workshop {i}."
    of_source = {"source": "test", "split": SPLITS[i % 3], "evidence": evidence, "url": f"https://x.org/{i}"}
    made = Question(f"colour/test/G{i}", f"Which colour has gadget {i}?", COLOURS, i % 4, **of_source)
    return dataclasses.replace(made, **changes)


def oracle_of(i: int) -> str:
    return f"Gadget {i} (G{i}): {question(i).evidence}"


def index_of(pages: list[Record]) -> Index:
    return Index.build(made for record in pages for made in passages_of(record))


def contexts(asked: list[Question], index: Index, seed: int = 0) -> list[list[str]]:
    return [lines for _, lines in raft.with_passages(asked, index, seed)]


def repeated(i: int, **changes: str) -> list[Question]:
    """The question under other ids, each of which has its own draw."""
    return [question(i, id=f"colour/test/G{i}/{n}", **changes) for n in range(200)]


ASKED = [question(i) for i in range(COUNT)]


@pytest.fixture(scope="module")
def index() -> Index:
    return index_of([page(i) for i in range(COUNT)] + [twin(i) for i in range(0, COUNT, 10)])


@pytest.fixture(scope="module")
def found(index) -> list[list[str]]:
    return contexts(ASKED, index)


def test_the_oracle_is_in_seventy_percent_at_any_position_and_replaced_in_twenty(found, index):
    known = set(map(shown, index.passages))
    oracles, places = 0, Counter()
    for i, lines in enumerate(found):
        assert len(lines) == len(set(lines)) in (0, CONTEXT)
        assert known.issuperset(lines)
        oracles += oracle_of(i) in lines
        places.update(place for place, line in enumerate(lines) if line == oracle_of(i))
    assert oracles / COUNT == pytest.approx(0.7, abs=0.05)
    assert sum(not lines for lines in found) / COUNT == pytest.approx(0.1, abs=0.05)
    assert [places[place] / oracles for place in range(CONTEXT)] == pytest.approx([1 / CONTEXT] * CONTEXT, abs=0.08)


def test_where_the_oracle_is_replaced_no_passage_gives_the_answer(found):
    replaced = [i for i, lines in enumerate(found) if lines and oracle_of(i) not in lines]
    assert any(i % 10 == 0 for i in replaced), "one has a twin"
    for i in replaced:
        assert not any(re.search(rf"(?i)\bgadget {i}\b", line) for line in found[i])


def test_a_replaced_oracle_leaves_what_was_retrieved_next_and_one_random_passage():
    near = [Record(f"N{i}", "test", f"Colour of gadget note {i}", "Empty.", f"https://n/{i}", "") for i in range(3)]
    far = [Record(f"F{i}", "test", f"Unrelated {i}", "Something else.", f"https://f/{i}", "") for i in range(50)]
    drawn = set()
    for lines in contexts(repeated(1), index_of([page(1), *near, *far])):
        if lines and oracle_of(1) not in lines:
            assert sum("note" in line for line in lines) == 3
            drawn |= {line for line in lines if "Unrelated" in line}
    assert len(drawn) > 5


def test_an_oracle_that_was_not_retrieved_replaces_the_last_passage(index):
    asked = repeated(7, question="What hangs near a hammer?")
    retrieved = [shown(index.passages[row]) for row in index.context([asked[0].question])[0]]
    assert oracle_of(7) not in retrieved
    with_it = [lines for lines in contexts(asked, index) if oracle_of(7) in lines]
    assert with_it
    assert all(sorted(lines) == sorted([*retrieved[:-1], oracle_of(7)]) for lines in with_it)


def test_passages_depend_on_the_question_and_the_seed_alone(index, found):
    some = range(COUNT - 1, 0, -13)
    assert contexts([ASKED[i] for i in some], index) == [found[i] for i in some]
    assert contexts(ASKED[:30], index, seed=1) != found[:30]


def test_a_question_whose_evidence_is_not_in_the_index_is_left_out(index):
    asked = [question(1, url="https://x.org/of-no-page"), question(1, evidence="Quite other words are here."), ASKED[0]]
    assert [q for q, _ in raft.with_passages(asked, index, 0)] == [ASKED[0]]


def test_pages_without_an_address_are_found_by_source_and_id_and_a_small_index_gives_fewer_passages():
    pages = [page(i, url="") for i in range(40)]
    found = contexts([question(i, url=pages[i].page) for i in range(40)], index_of(pages))
    assert {oracle_of(i) in lines for i, lines in enumerate(found) if lines} == {True, False}
    assert not contexts([question(0, url="")], index_of(pages))
    tiny = index_of([Record("G1", "test", "Gadget 1", question(1).evidence, question(1).url, "")])
    assert {len(lines) for lines in contexts(repeated(1), tiny)} == {0, 1}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_passages_are_in_front_of_the_question_in_each_layout_and_of_a_ranked_one(index, found, layout):
    vocabulary = tokenizer.train(["Context and question"], 300).with_chat_tokens([])
    asked = ASKED[:60]
    built, without = raft.build(asked, index, 0, layout), mcq.build(asked, 0, layout)
    for q, lines, conversation, plain in zip(asked, found[:60], built, without, strict=True):
        assert conversation.messages[0].content == with_context(ask(q.question, q.options, layout), lines)
        assert dataclasses.replace(conversation, messages=plain.messages) == plain
        assert conversation.messages[1] == plain.messages[1]
        row = rank.row(vocabulary, q, lines)
        prompt = vocabulary.decode(row["tokens"][row["branches"] == 0].tolist())
        assert with_context(ask(q.question, q.options, "cloze"), lines) in prompt
        assert ("Context:" in prompt) == bool(lines)
