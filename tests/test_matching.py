"""evals/answering/free_text.py: which option a free answer is, and what cannot be had by saying everything."""

import itertools

import numpy as np
import pytest

from evals.answering.free_text import NEW_TOKENS, THRESHOLD, evaluate, inverse_document_frequency, match, weighted_f1
from evals.items.items import Item, permute
from ghost_jax.runs.evaluation import to_json
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.text.chat_format import Message, render_prompt

TACTICS = ("Credential Access", "Initial Access", "Lateral Movement", "Exfiltration")
MITIGATIONS = (
    "Limiting privileges of cloud accounts",
    "Preventing unsigned applications from running",
    "Minimizing applications with setuid or setgid bits set",
    "Enforcing the highest UAC level",
)
IDF = inverse_document_frequency([*TACTICS, *MITIGATIONS])


def matched(text: str, options=TACTICS) -> list[float]:
    return match(text, options, IDF).tolist()


# ---- One answer ----


@pytest.mark.parametrize(
    "text",
    [
        "Exfiltration",
        "exfiltration.",
        "  “EXFILTRATION”\n",
        "It is Exfiltration, by which data leave.",
        "Ｅxfiltration",
    ],
)
def test_an_option_that_the_text_names_is_the_answer_however_it_is_set(text):
    assert matched(text) == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("They limit the privileges of accounts in the cloud.", 0),
        ("Unsigned applications are prevented from being run", 1),
        ("fewer applications with the setuid or setgid bit", 2),
        ("the highest UAC level is enforced", 3),
    ],
)
def test_an_answer_in_nearly_its_words_is_the_option(text, answer):
    assert match(text, MITIGATIONS, IDF).tolist() == [float(i == answer) for i in range(4)]


@pytest.mark.parametrize("text", ["", "!?", "the", "Persistence", "Some access to something or other that moves on"])
def test_what_is_near_to_no_option_matches_none(text):
    assert matched(text) == [0, 0, 0, 0]


def test_the_name_within_a_longer_name_is_not_named():
    options = ("Injection", "SQL injection", "Blind SQL injection")
    assert matched("A blind SQL injection.", options) == [0, 0, 1]
    assert matched("A SQL injection", options) == [0, 1, 0]
    assert matched("It is injection", options) == [1, 0, 0]
    assert matched("SQL injection, a kind of injection", options) == [0, 0, 0]  # here both are
    assert matched("T1566.001", ("T1566", "T1566.001")) == [0, 1]
    assert matched("T1566.002", ("T1566", "T1566.001")) == [0, 0]


def test_options_that_tie_share_the_credit():
    assert matched("By access") == [0.5, 0.5, 0, 0]
    assert matched("exfiltration!", ("Exfiltration", "Impact", "exfiltration")) == [0.5, 0, 0.5]
    twins = ("stolen session cookies", "session cookies stolen", "a golden ticket")
    assert matched("cookies of a session are stolen", twins) == [0.5, 0.5, 0]


def test_an_empty_option_matches_nothing():
    assert matched("Exfiltration", ("Exfiltration", "")) == [1, 0]
    assert matched("", ("Exfiltration", "")) == [0, 0]


# ---- Gaming ----


@pytest.mark.parametrize("options", [TACTICS, MITIGATIONS], ids=["short", "long"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_text_that_lists_several_options_matches_none(options, count):
    for listed in itertools.permutations(options, count):
        assert matched(" or ".join(listed), options) == [0, 0, 0, 0]


def test_a_long_text_cannot_win_by_holding_every_word():
    words = sorted(" ".join(MITIGATIONS).split())
    assert matched(" ".join(words), MITIGATIONS) == [0, 0, 0, 0]
    for left_out in range(len(words)):  # nor by nearly every
        assert matched(" ".join(words[:left_out] + words[left_out + 1 :]), MITIGATIONS) == [0, 0, 0, 0]
    right = "the highest UAC level is enforced"
    assert matched(right, MITIGATIONS)[3] == 1
    padding = " ".join(f"word{i}" for i in range(8))
    assert matched(f"{right} {padding}", MITIGATIONS) == [0, 0, 0, 0]


def test_no_text_earns_more_than_one_option_and_none_does_by_the_order_of_options():
    rng = np.random.default_rng(0)
    words = " ".join((*TACTICS, *MITIGATIONS)).split()
    credits = []
    for _ in range(300):
        text = " ".join(rng.choice(words, rng.integers(1, 7)))
        options = [(*TACTICS, *MITIGATIONS)[i] for i in rng.permutation(8)[:4]]
        credits.append(match(text, options, IDF))
        assert credits[-1].sum() == pytest.approx(1) or not credits[-1].any()
        order = rng.permutation(4)
        np.testing.assert_array_equal(match(text, [options[i] for i in order], IDF), credits[-1][order])
    assert 0.1 < np.mean([of_text.any() for of_text in credits]) < 0.9  # else the loop above showed nothing


def test_the_f1_is_weighted_by_how_rare_a_word_is():
    def idf(stem: str) -> float:
        return {"rare": 3.0, "common": 1.0}[stem]

    assert weighted_f1({"rare"}, {"rare", "common"}, idf) == pytest.approx(2 * 3 / (3 + 4))
    assert weighted_f1({"common"}, {"rare", "common"}, idf) == pytest.approx(2 * 1 / (1 + 4))
    assert weighted_f1(set(), set(), idf) == 0
    assert IDF("unheard") > IDF("access") > 0


# ---- A model's answers ----


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_lib.train([" ".join((*TACTICS, *MITIGATIONS))] * 3, 320).with_chat_tokens([])


def test_the_report_is_that_of_the_texts_generated(tokenizer):
    said = ["Lateral Movement", "exfiltration of data", "no idea", "Initial Access or Exfiltration", "exfiltration"]
    questions = [f"Which tactic is number {number}?" for number in range(len(said))]
    items = [Item(str(n), question, TACTICS, 3, f"page {n}") for n, question in enumerate(questions)]
    asked = []

    def generate(prompts):
        asked.extend(prompts)
        return [np.asarray(tokenizer.encode(text), np.int32) for text in said]

    report = to_json(evaluate(generate, tokenizer, items, context=512))
    for prompt, question in zip(asked, questions, strict=True):  # no option is in it
        np.testing.assert_array_equal(
            prompt, render_prompt(tokenizer, [Message("user", f"Question: {question}\nAnswer:")])
        )
    assert report["accuracy"] == pytest.approx(2 / 5)
    assert report["matched"] == pytest.approx(3 / 5)
    assert report["ci95"][0] < 2 / 5 < report["ci95"][1]
    assert [example["matched"] for example in report["examples"]] == ["C", "D", "-", "-", "D"]
    assert report["examples"][1] == {"question": questions[1], "generated": said[1], "matched": "D", "gold": "D"}
    assert report["how"]["threshold"] == THRESHOLD
    assert report["how"]["prompts_cropped"] == 0

    shifted = evaluate(generate, tokenizer, [permute(item, (1, 2, 3, 0)) for item in items], context=512)
    assert (shifted.accuracy, shifted.matched) == (report["accuracy"], report["matched"])


def test_a_question_that_leaves_no_room_for_an_answer_loses_its_beginning_and_is_counted(tokenizer):
    items = [Item("1", "Which? " * 40, TACTICS, 0), Item("2", "Which?", TACTICS, 0)]
    lengths = []

    def generate(prompts):
        lengths.extend(map(len, prompts))
        return [np.zeros(0, np.int32)] * len(prompts)

    report = to_json(evaluate(generate, tokenizer, items, context=100))
    assert lengths[0] == 100 - NEW_TOKENS > lengths[1]
    assert report["how"]["prompts_cropped"] == 1
    assert (report["accuracy"], report["matched"]) == (0, 0)
