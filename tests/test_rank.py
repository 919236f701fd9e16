"""ghost_jax/data/builders/rank.py: a question with all its options as branches, from the builder to the batch."""

import numpy as np
import pytest

from ghost_jax.data.builders import rank
from ghost_jax.data.examples import Question, by_split
from ghost_jax.data.mixture import Mix, train_batches, validation_batches
from ghost_jax.data.storage.array_record import write_examples
from ghost_jax.data.storage.artifact_cache import Manifest
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.text.chat_format import Message, render, render_prompt
from ghost_jax.text.mcq_format import LETTERS, answer, ask
from ghost_jax.text.tokenizer import END, Tokenizer

OPTIONS = ("Persistence", "Initial Access", "Impact", "Command and Control")


def question(i: int) -> Question:
    of_source = {"source": "test", "split": "validation" if i % 5 == 4 else "train", "evidence": "It does."}
    options = OPTIONS[i % 4 :] + OPTIONS[: i % 4]
    return Question(f"tactic/test/{i}", f"Which tactic does technique {i} serve?", options, i % 4, **of_source)


ASKED = [question(i) for i in range(20)]


@pytest.fixture(scope="module")
def vocabulary() -> Tokenizer:
    texts = [ask(q.question, q.options, layout) for q in ASKED for layout in ("cloze", "classic")]
    return tokenizer_lib.train(texts, 320).with_chat_tokens([])


@pytest.fixture(scope="module")
def stores(tmp_path_factory, vocabulary) -> dict:
    """`rank` and, of the same questions, `mcq` and `qa`, the latter without a letter."""
    rows = {"rank": [], "mcq": [], "qa": []}
    for q in ASKED:
        tokens, mask = render(vocabulary, [Message("user", ask(q.question, q.options)), Message("assistant", q.letter)])
        spoken = {"id": q.id, "source": "test", "letter": "", "tokens": tokens, "mask": mask}
        for name, row in (("rank", rank.row(vocabulary, q)), ("mcq", spoken | {"letter": q.letter}), ("qa", spoken)):
            rows[name].append((q.split, row))
    made = {}
    for name, of_dataset in rows.items():
        made[name] = tmp_path_factory.mktemp(name)
        counts = {name: write_examples(made[name], name, by_split(of_dataset))}
        Manifest(datasets=counts).write(made[name])
    return made


def mix_of(stores: dict, *names: str, packing: bool = True, loss_norm: str = "token_mean") -> Mix:
    phases = {0: dict.fromkeys(names, 1.0)}
    return Mix(stores, phases, 0, batch_size=4, seq_len=256, packing=packing, truncation="crop", loss_norm=loss_norm)


def test_each_branch_behind_the_prompt_is_the_conversation_with_that_answer(vocabulary):
    for q in ASKED:
        row = rank.row(vocabulary, q)
        assert (row["id"], row["source"], row["letter"]) == (q.id, q.source, q.letter)
        prompt = Message("user", ask(q.question, q.options, "cloze"))
        assert all(option not in prompt.content for option in q.options)
        for branch, option in enumerate(q.options, 1):
            seen = (row["branches"] == 0) | (row["branches"] == branch)
            ids, mask = render(vocabulary, [prompt, Message("assistant", answer("", option, "cloze"))])
            np.testing.assert_array_equal(row["tokens"][seen], ids)
            np.testing.assert_array_equal(row["mask"][seen], mask)
        assert set(row["branches"]) == set(range(1 + len(q.options)))
        assert (np.diff(row["branches"].astype(int)) >= 0).all()
        shared = render_prompt(vocabulary, [prompt])[:-1]
        np.testing.assert_array_equal(row["tokens"][row["branches"] == 0], shared)


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "one a row"])
def test_every_ranked_question_of_a_batch_is_complete_and_marks_its_gold_option(stores, vocabulary, packing):
    batch = train_batches(mix_of(stores, "rank", packing=packing))[0]
    segments = batch["segments"] if packing else (batch["tokens"] > 0).astype(int)
    by_question = {q.question: q for q in ASKED}
    found = 0
    for b, row in enumerate(segments):
        for segment in range(1, row.max() + 1):
            here = {key: values[b][row == segment] for key, values in batch.items()}
            text = vocabulary.decode(here["tokens"][here["branches"] == 0].tolist())
            q = by_question[text.partition("Question: ")[2].partition("\n")[0]]
            for branch, option in enumerate(q.options, 1):
                scored = (here["branches"] == branch) & (here["ranked"] > 0)
                assert vocabulary.decode(here["targets"][scored].tolist()) == option + END
                assert set(here["ranked"][scored]) == {1 + (LETTERS[branch - 1] == q.letter)}
            found += 1
    assert found >= 4
    assert not batch["weights"].any()
    assert not batch["ranked"][segments == 0].any()


@pytest.mark.parametrize("names", [["qa"], ["qa", "mcq"], ["qa", "rank"], ["qa", "mcq", "rank"]], ids=str)
def test_rows_have_the_fields_of_the_datasets_in_their_mixture(stores, names):
    fields = {"tokens", "targets", "weights"} | ({"letters"} if "mcq" in names else set())
    fields |= {"branches", "ranked"} if "rank" in names else set()
    packed = train_batches(mix_of(stores, *names))
    assert all(packed[t].keys() == fields | {"positions", "segments"} for t in range(3))
    alone = train_batches(mix_of(stores, *names, packing=False))[0]
    assert alone.keys() == fields | ({"positions"} if "rank" in names else set())


def test_in_record_mean_a_batch_weighs_its_number_of_conversations(stores):
    batch = train_batches(mix_of(stores, "qa", "rank", loss_norm="record_mean"))[0]
    questions = sum(len(set(s[b > 0])) for s, b in zip(batch["segments"], batch["branches"], strict=True))
    assert questions > 0
    assert batch["weights"].sum() == pytest.approx(batch["segments"].max(axis=1).sum() - questions)


def test_validation_batches_hold_conversations_alone_weighted_by_token(stores):
    mix = mix_of(stores, "mcq", "rank", loss_norm="record_mean")
    assert validation_batches(mix, "rank", batch_size=2, records=100) == []
    (batch, *_) = validation_batches(mix, "mcq", batch_size=2, records=100)
    assert batch.keys() == {"tokens", "targets", "weights", "positions", "segments"}
    assert set(np.unique(batch["weights"])) == {0, 1}
