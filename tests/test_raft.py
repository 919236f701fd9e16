"""ghost_jax/data/builders/raft.py: what stands in front of a question, how often, and what must not be there."""

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghost_jax.data.builders import Question, mcq, raft, rank
from ghost_jax.data.retrieval.bm25 import CONTEXT, SHOWN_CHARACTERS, Index, Passage, passages_of, shown
from ghost_jax.data.storage.schema import SPLITS, Record
from ghost_jax.text.mcq_format import LAYOUTS, ask, with_context

COUNT = 600
COLOURS = ("red", "green", "blue", "grey", "brown")
TOOLS = ("hammer", "chisel", "saw", "drill", "file", "plane", "level")


def page(i: int) -> Record:
    """A page whose second line tells its colour; the twin of every tenth page tells the same under another name."""
    told = f"Gadget {i} is painted {COLOURS[i % 5]} at workshop {i}."
    text = (
        f"Gadgets like this one hang near a {TOOLS[i % 7]}.\n\n{told}\n\n"
        f"Colour of gadget {i}: Ask at the {TOOLS[(i + 1) % 7]}. " + "Considerable perseverance was required. " * 10
    )
    return Record(f"G{i}", "test", f"Gadget {i}", text, f"https://x.org/{i}", license="")


def twin(i: int) -> Record:
    text = f"As told elsewhere, gadget {i} is painted {COLOURS[i % 5]} at workshop {i}."
    return Record(f"TWIN{i}", "test", f"Twin of gadget {i}", text, f"https://x.org/twin/{i}", license="")


def question(i: int, **changes) -> Question:
    fields = {
        "id": f"colour/test/G{i}",
        "source": "test",
        "split": SPLITS[i % 3],
        "question": f"Which colour has gadget {i}?",
        "options": COLOURS[:4] if COLOURS[i % 5] in COLOURS[:4] else COLOURS[1:],
        "answer": (COLOURS[:4] if COLOURS[i % 5] in COLOURS[:4] else COLOURS[1:]).index(COLOURS[i % 5]),
        "evidence": f"Gadget {i} is painted {COLOURS[i % 5]} at workshop {i}.",
        "url": f"https://x.org/{i}",
    }
    return Question(**{**fields, **changes})


PAGES = [page(i) for i in range(COUNT)] + [twin(i) for i in range(0, COUNT, 10)]
ASKED = [question(i) for i in range(COUNT)]


@pytest.fixture(scope="module")
def index() -> Index:
    return Index.build(made for record in PAGES for made in passages_of(record))


@pytest.fixture(scope="module")
def built(index) -> list:
    return list(raft.build(ASKED, index, seed=0, layout="classic"))


def context_of(conversation) -> list[str]:
    """The lines that stand in front of the question."""
    return re.findall(r"^- (.*)$", conversation.messages[0].content.partition("\n\nPick the best")[0], re.MULTILINE)


def number_of(q: Question) -> int:
    return int(q.evidence.split()[1])


def oracle_of(q: Question) -> str:
    """The line that tells it, as a prompt shows it."""
    return f"Gadget {number_of(q)} (G{number_of(q)}): {q.evidence}"


def kind_of(q: Question, conversation) -> str:
    context = context_of(conversation)
    return "none" if not context else "oracle" if oracle_of(q) in context else "replaced"


def pairs(built) -> list:
    return list(zip(ASKED, built, strict=True))


def test_the_oracle_is_in_seventy_percent_replaced_in_twenty_and_ten_have_no_context(built):
    kinds = Counter(kind_of(*pair) for pair in pairs(built))
    for kind, share in {"oracle": 0.7, "replaced": 0.2, "none": 0.1}.items():
        assert kinds[kind] / COUNT == pytest.approx(share, abs=0.05)


def test_a_context_has_four_different_passages_cut_between_words(built, index):
    known = {shown(index.passage(row)) for row in range(len(index))}
    for _, conversation in pairs(built):
        lines = context_of(conversation)
        assert len(lines) in (0, CONTEXT)
        assert len(set(lines)) == len(lines)
        assert known.issuperset(lines)
        assert all(len(line) <= SHOWN_CHARACTERS for line in lines)
    assert any(line.endswith(" …") for _, conversation in pairs(built) for line in context_of(conversation))


def test_where_the_oracle_is_replaced_nothing_of_its_page_and_nothing_that_tells_the_same_is_left(built):
    replaced = [(q, conversation) for q, conversation in pairs(built) if kind_of(q, conversation) == "replaced"]
    twins = 0
    for q, conversation in replaced:
        twins += number_of(q) % 10 == 0
        for line in context_of(conversation):
            assert not re.search(rf"(?i)\bgadget {number_of(q)}\b", line)
    assert twins


def test_a_replaced_oracle_leaves_what_was_retrieved_next_and_one_random_passage(index):
    """A page that tells nothing of the question, but has its words, is retrieved next; the random one is not."""
    near = [Record(f"N{i}", "test", f"Colour of gadget note {i}", "Empty.", f"https://n/{i}", "") for i in range(3)]
    far = [Record(f"F{i}", "test", f"Unrelated {i}", "Something else.", f"https://f/{i}", "") for i in range(50)]
    small = Index.build(p for record in [page(1), *near, *far] for p in passages_of(record))
    asked = [question(1, id=f"colour/test/G1/{i}") for i in range(200)]
    drawn = set()
    for conversation in raft.build(asked, small, seed=0, layout="classic"):
        lines = context_of(conversation)
        if lines and not any("is painted" in line for line in lines):
            assert sum("note" in line for line in lines) == 3
            drawn |= {line for line in lines if "Unrelated" in line}
    assert len(drawn) > 5


def test_the_oracles_place_is_no_shortcut(built):
    with_oracle = [(q, context_of(c)) for q, c in pairs(built) if kind_of(q, c) == "oracle"]
    places = Counter(lines.index(oracle_of(q)) for q, lines in with_oracle)
    for place in range(CONTEXT):
        assert places[place] / places.total() == pytest.approx(1 / CONTEXT, abs=0.08)


def test_an_oracle_that_was_not_retrieved_takes_the_place_of_the_last(index):
    asked = [question(7, id=f"colour/test/G7/{i}", question="What hangs near a hammer?") for i in range(60)]
    (retrieved,) = index.context([asked[0].question])
    found = [shown(index.passage(row)) for row in retrieved]
    oracle = shown(index.passage(index.best(asked[0].evidence, index.rows_of(asked[0].url))))
    assert oracle not in found
    with_it = [context_of(c) for c in raft.build(asked, index, 0, "classic") if oracle in context_of(c)]
    assert with_it
    assert all(sorted(lines) == sorted([*found[:-1], oracle]) for lines in with_it)


def test_the_turns_are_those_of_the_raw_set_behind_the_context(built):
    for q, conversation, plain in zip(ASKED, built, mcq.build(ASKED, 0, "classic"), strict=True):
        assert conversation.messages[1] == plain.messages[1]
        assert conversation.messages[0].content == with_context(plain.messages[0].content, context_of(conversation))
        assert (conversation.id, conversation.source) == (q.id, q.source)
        assert (conversation.split, conversation.letter) == (q.split, q.letter)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_stands_behind_a_context(index, layout):
    for q, conversation in zip(ASKED[:20], raft.build(ASKED[:20], index, 0, layout), strict=True):
        assert conversation.messages[0].content.endswith(ask(q.question, q.options, layout))


@given(st.permutations(range(30)), st.integers(1, 30))
def test_a_conversation_depends_on_its_question_and_the_seed_alone(index, built, order, count):
    some = [ASKED[i] for i in order[:count]]
    assert list(raft.build(iter(some), index, 0, "classic")) == [built[i] for i in order[:count]]


def test_another_seed_draws_otherwise(index, built):
    assert list(raft.build(ASKED[:30], index, 1, "classic")) != built[:30]


def test_a_loaded_index_gives_the_same_conversations(index, built, tmp_path):
    index.save(tmp_path)
    assert list(raft.build(ASKED[:100], Index.load(tmp_path), 0, "classic")) == built[:100]


@pytest.mark.parametrize(
    "stranger",
    [question(1, url="https://x.org/of-no-page"), question(1, evidence="Quite other words stand here.")],
)
def test_a_question_whose_evidence_is_not_in_the_index_is_left_out(index, stranger):
    (kept,) = raft.build([stranger, ASKED[0]], index, 0, "classic")
    assert kept.id == ASKED[0].id


def test_pages_without_an_address_are_told_apart_by_the_evidence():
    pages = [Record(f"G{i}", "test", f"Gadget {i}", page(i).text, "", "") for i in range(40)]
    nowhere = Index.build(made for record in pages for made in passages_of(record))
    asked = [question(i, url="") for i in range(40)]
    kinds = Counter(kind_of(q, c) for q, c in zip(asked, raft.build(asked, nowhere, 0, "classic"), strict=True))
    assert kinds["oracle"] > 20
    assert kinds["replaced"]


def test_an_index_smaller_than_a_context_gives_what_it_has():
    tiny = Index.build([Passage("G1", "test", "Gadget 1", "", question(1).evidence, question(1).url)])
    asked = [question(1, id=f"colour/test/G1/{i}") for i in range(60)]
    sizes = Counter(len(context_of(conversation)) for conversation in raft.build(asked, tiny, 0, "classic"))
    assert set(sizes) == {0, 1}


def test_a_question_can_be_ranked_behind_the_very_passages_of_its_conversation(index, built):
    ranked = list(rank.build(raft.with_passages(ASKED, index, seed=0)))
    assert [ranking.id for ranking in ranked] == [conversation.id for conversation in built]
    for ranking, conversation in zip(ranked, built, strict=True):
        assert (
            ranking.prompt.content.partition("Question:")[0].split("\n")[:-1]
            == (conversation.messages[0].content.partition("Pick the best answer")[0].split("\n")[:-1])
        )
        assert ranking.prompt.content.endswith("?\nAnswer:")
