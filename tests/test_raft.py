"""ghost_jax/data/builders/raft.py: which passages a question has, how often, and what they must not contain."""

import random
import re
from collections import Counter

import pytest

from ghost_jax.data.builders import mcq, raft, rank
from ghost_jax.data.examples import Conversation, Question
from ghost_jax.data.retrieval.bm25 import CONTEXT, SHOWN_CHARACTERS, Index, passages_of, shown
from ghost_jax.data.storage.schema import SPLITS, Record
from ghost_jax.text import tokenizer
from ghost_jax.text.mcq_format import LAYOUTS, ask, with_context

COUNT = 600
COLOURS = ("red", "green", "blue", "grey", "brown")
TOOLS = ("hammer", "chisel", "saw", "drill", "file", "plane", "level")


def page(i: int) -> Record:
    """A page whose second line has its colour."""
    text = (
        f"Gadgets like this one hang near a {TOOLS[i % 7]}.\n\nGadget {i} is painted {COLOURS[i % 5]} at workshop {i}."
        f"\n\nColour of gadget {i}: Ask at the {TOOLS[(i + 1) % 7]}. " + "Considerable perseverance was required. " * 10
    )
    return Record(f"G{i}", "test", f"Gadget {i}", text, f"https://x.org/{i}", license="")


def twin(i: int) -> Record:
    """A page that has the colour of a gadget under another name."""
    text = f"As told elsewhere, gadget {i} is painted {COLOURS[i % 5]} at workshop {i}."
    return Record(f"TWIN{i}", "test", f"Twin of gadget {i}", text, f"https://x.org/twin/{i}", license="")


def question(i: int, **changes) -> Question:
    options = COLOURS[:4] if COLOURS[i % 5] in COLOURS[:4] else COLOURS[1:]
    fields = {
        "id": f"colour/test/G{i}",
        "source": "test",
        "split": SPLITS[i % 3],
        "question": f"Which colour has gadget {i}?",
        "options": options,
        "answer": options.index(COLOURS[i % 5]),
        "evidence": f"Gadget {i} is painted {COLOURS[i % 5]} at workshop {i}.",
        "url": f"https://x.org/{i}",
    }
    return Question(**fields | changes)


def index_of(pages: list[Record]) -> Index:
    return Index.build(made for record in pages for made in passages_of(record))


ASKED = [question(i) for i in range(COUNT)]


@pytest.fixture(scope="module")
def index() -> Index:
    return index_of([page(i) for i in range(COUNT)] + [twin(i) for i in range(0, COUNT, 10)])


@pytest.fixture(scope="module")
def built(index) -> list[Conversation]:
    return list(raft.build(ASKED, index, seed=0, layout="classic"))


def context_of(conversation: Conversation) -> list[str]:
    """Returns the lines in front of the question."""
    return re.findall(r"^- (.*)$", conversation.messages[0].content.partition("\n\nPick the best")[0], re.MULTILINE)


def oracle_of(q: Question) -> str:
    number = q.evidence.split()[1]
    return f"Gadget {number} (G{number}): {q.evidence}"


def kind_of(q: Question, conversation: Conversation) -> str:
    context = context_of(conversation)
    return "none" if not context else "oracle" if oracle_of(q) in context else "replaced"


def test_the_oracle_is_in_seventy_percent_at_any_position_and_replaced_in_twenty(built, index):
    kinds = Counter(kind_of(*pair) for pair in zip(ASKED, built, strict=True))
    for kind, share in {"oracle": 0.7, "replaced": 0.2, "none": 0.1}.items():
        assert kinds[kind] / COUNT == pytest.approx(share, abs=0.05)
    known = {shown(index.passage(row)) for row in range(len(index))}
    places: Counter[int] = Counter()
    for q, conversation, plain in zip(ASKED, built, mcq.build(ASKED, 0, "classic"), strict=True):
        lines = context_of(conversation)
        assert len(lines) in (0, CONTEXT)
        assert len(set(lines)) == len(lines)
        assert known.issuperset(lines)
        assert all(len(line) <= SHOWN_CHARACTERS for line in lines)
        places.update(i for i, line in enumerate(lines) if line == oracle_of(q))
        assert conversation.messages[1] == plain.messages[1]
        assert conversation.messages[0].content == with_context(plain.messages[0].content, lines)
        same = ("id", "source", "split", "letter")
        assert all(getattr(conversation, name) == getattr(q, name) for name in same)
    for place in range(CONTEXT):
        assert places[place] / places.total() == pytest.approx(1 / CONTEXT, abs=0.08)


def test_where_the_oracle_is_replaced_no_passage_gives_the_answer(built):
    replaced = [q for q, conversation in zip(ASKED, built, strict=True) if kind_of(q, conversation) == "replaced"]
    for q in replaced:
        number = int(q.evidence.split()[1])
        assert not any(re.search(rf"(?i)\bgadget {number}\b", line) for line in context_of(built[number]))
    assert any(int(q.evidence.split()[1]) % 10 == 0 for q in replaced), "one has a twin"


def test_a_replaced_oracle_leaves_what_was_retrieved_next_and_one_random_passage():
    near = [Record(f"N{i}", "test", f"Colour of gadget note {i}", "Empty.", f"https://n/{i}", "") for i in range(3)]
    far = [Record(f"F{i}", "test", f"Unrelated {i}", "Something else.", f"https://f/{i}", "") for i in range(50)]
    asked = [question(1, id=f"colour/test/G1/{i}") for i in range(200)]
    drawn = set()
    for conversation in raft.build(asked, index_of([page(1), *near, *far]), seed=0, layout="classic"):
        lines = context_of(conversation)
        if lines and not any("is painted" in line for line in lines):
            assert sum("note" in line for line in lines) == 3
            drawn |= {line for line in lines if "Unrelated" in line}
    assert len(drawn) > 5


def test_an_oracle_that_was_not_retrieved_replaces_the_last_passage(index):
    asked = [question(7, id=f"colour/test/G7/{i}", question="What hangs near a hammer?") for i in range(60)]
    (retrieved,) = index.context([asked[0].question])
    found = [shown(index.passage(row)) for row in retrieved]
    oracle = oracle_of(asked[0])
    assert oracle not in found
    with_it = [context_of(c) for c in raft.build(asked, index, 0, "classic") if oracle in context_of(c)]
    assert with_it
    assert all(sorted(lines) == sorted([*found[:-1], oracle]) for lines in with_it)


def test_a_conversation_depends_on_its_question_and_the_seed_alone(index, built):
    some = random.Random(0).sample(range(COUNT), 40)
    assert list(raft.build((ASKED[i] for i in some), index, 0, "classic")) == [built[i] for i in some]


def test_another_seed_layout_and_a_loaded_index(index, built, tmp_path):
    for layout in LAYOUTS:
        for q, conversation in zip(ASKED[:20], raft.build(ASKED[:20], index, 0, layout), strict=True):
            assert conversation.messages[0].content.endswith(ask(q.question, q.options, layout))
    index.save(tmp_path)
    assert list(raft.build(ASKED[:100], Index.load(tmp_path), 0, "classic")) == built[:100]
    assert list(raft.build(ASKED[:30], index, 1, "classic")) != built[:30]


@pytest.mark.parametrize("changes", [{"url": "https://x.org/of-no-page"}, {"evidence": "Quite other words are here."}])
def test_a_question_whose_evidence_is_not_in_the_index_is_left_out(index, changes):
    (kept,) = raft.build([question(1, **changes), ASKED[0]], index, 0, "classic")
    assert kept.id == ASKED[0].id


def test_pages_without_an_address_are_found_by_the_evidence_and_a_small_index_gives_fewer_passages():
    pages = [Record(f"G{i}", "test", f"Gadget {i}", page(i).text, "", "") for i in range(40)]
    asked = [question(i, url="") for i in range(40)]
    built = list(raft.build(asked, index_of(pages), 0, "classic"))
    assert {kind_of(q, c) for q, c in zip(asked, built, strict=True)} >= {"oracle", "replaced"}
    asked = [question(1, id=f"colour/test/G1/{i}") for i in range(60)]
    tiny = index_of([Record("G1", "test", "Gadget 1", question(1).evidence, question(1).url, "")])
    assert {len(context_of(conversation)) for conversation in raft.build(asked, tiny, 0, "classic")} == {0, 1}


def test_a_ranked_question_has_the_passages_of_its_conversation(index, built):
    vocabulary = tokenizer.train(["Context and question"], 300).with_chat_tokens([])
    for (q, passages), conversation in zip(raft.with_passages(ASKED, index, 0), built, strict=True):
        row = rank.row(vocabulary, q, passages)
        prompt = vocabulary.decode(row["tokens"][row["branches"] == 0].tolist()).partition("Question:")[0]
        context = conversation.messages[0].content.partition("Pick the best")[0]
        assert row["id"] == conversation.id
        assert prompt.endswith(context)
        assert ("Context:" in prompt) == bool(context)
