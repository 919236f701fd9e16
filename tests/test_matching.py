"""evals/answering/free_text.py: which option a free answer is, and that naming everything matches nothing."""

import itertools

import numpy as np
import pytest

from evals.answering.free_text import NEW_TOKENS, evaluate, inverse_document_frequency, match, weighted_f1
from ghost_jax.data.items.items import Item, permute
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.text.chat_format import Message, render_prompt

TACTICS = ("Credential Access", "Initial Access", "Lateral Movement", "Exfiltration")
MITIGATIONS = (
    "Limiting privileges of cloud accounts",
    "Preventing unsigned applications from running",
    "Minimizing applications with setuid or setgid bits set",
    "Enforcing the highest UAC level",
)
NESTED = ("Injection", "SQL injection", "Blind SQL injection")
IDF = inverse_document_frequency([*TACTICS, *MITIGATIONS])


@pytest.mark.parametrize(
    ("options", "text", "credits"),
    [
        *(
            (TACTICS, text, [0, 0, 0, 1])
            for text in ("exfiltration.", "  “EXFILTRATION”\n", "It is Ｅxfiltration, so.")
        ),
        (MITIGATIONS, "They limit the privileges of accounts in the cloud.", [1, 0, 0, 0]),
        (MITIGATIONS, "Unsigned applications are prevented from being run", [0, 1, 0, 0]),
        (MITIGATIONS, "fewer applications with the setuid or setgid bit", [0, 0, 1, 0]),
        (MITIGATIONS, "the highest UAC level is enforced", [0, 0, 0, 1]),
        (MITIGATIONS, "the highest UAC level is enforced a1 a2 a3 a4 a5 a6 a7 a8", [0, 0, 0, 0]),
        *((TACTICS, text, [0, 0, 0, 0]) for text in ("", "!?", "the", "Persistence", "Some access that moves on")),
        (NESTED, "A blind SQL injection.", [0, 0, 1]),
        (NESTED, "A SQL injection", [0, 1, 0]),
        (NESTED, "It is injection", [1, 0, 0]),
        (NESTED, "SQL injection, a kind of injection", [0, 0, 0]),  # names both
        (("T1566", "T1566.001"), "T1566.001", [0, 1]),
        (("T1566", "T1566.001"), "T1566.002", [0, 0]),
        (TACTICS, "By access", [0.5, 0.5, 0, 0]),
        (("Exfiltration", "Impact", "exfiltration"), "exfiltration!", [0.5, 0, 0.5]),
        (("stolen cookies", "cookies stolen", "a ticket"), "the cookies are stolen", [0.5, 0.5, 0]),
        (("Exfiltration", ""), "Exfiltration", [1, 0]),
        (("Exfiltration", ""), "", [0, 0]),
    ],
)
def test_the_options_that_a_text_matches(options, text, credits):
    assert match(text, options, IDF).tolist() == credits


@pytest.mark.parametrize("options", [TACTICS, MITIGATIONS])
def test_a_text_that_lists_several_options_or_nearly_all_their_words_matches_none(options):
    for count in (2, 3, 4):
        for listed in itertools.permutations(options, count):
            assert not match(" or ".join(listed), options, IDF).any()
    words = sorted(" ".join(MITIGATIONS).split())
    for left_out in range(len(words) + 1):
        assert not match(" ".join(words[:left_out] + words[left_out + 1 :]), MITIGATIONS, IDF).any()


def test_a_text_earns_at_most_one_option_in_any_order_of_the_options():
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
    assert 0.1 < np.mean([of_text.any() for of_text in credits]) < 0.9  # else the loop above shows nothing


def test_the_f1_is_weighted_by_how_rare_a_word_is():
    idf = {"rare": 3.0, "common": 1.0}.__getitem__
    assert weighted_f1({"rare"}, {"rare", "common"}, idf) == pytest.approx(2 * 3 / (3 + 4))
    assert weighted_f1({"common"}, {"rare", "common"}, idf) == pytest.approx(2 * 1 / (1 + 4))
    assert weighted_f1(set(), set(), idf) == 0
    assert IDF("unheard") > IDF("access") > 0


def test_the_report_is_that_of_the_generated_texts():
    tokenizer = tokenizer_lib.train([" ".join((*TACTICS, *MITIGATIONS))] * 3, 320).with_chat_tokens([])
    texts = ["Lateral Movement", "exfiltration of data", "no idea", "Initial Access or Exfiltration", "exfiltration"]
    questions = ["Which? " * 40, *(f"Which tactic is number {number}?" for number in range(1, len(texts)))]
    items = [Item(str(n), question, TACTICS, 3, f"page {n}") for n, question in enumerate(questions)]
    asked = []

    def generate(prompts):
        asked[:] = prompts
        return [np.asarray(tokenizer.encode(text), np.int32) for text in texts]

    report = evaluate(generate, tokenizer, items, context=110)
    for prompt, question in zip(asked, questions, strict=True):  # without options, cropped at the beginning
        whole = render_prompt(tokenizer, [Message("user", f"Question: {question}\nAnswer:")])
        np.testing.assert_array_equal(prompt, whole[-(110 - NEW_TOKENS) :])
    assert report.how["prompts_cropped"] == 1
    assert report.accuracy == pytest.approx(2 / 5)
    assert report.matched == pytest.approx(3 / 5)
    assert report.ci95[0] < 2 / 5 < report.ci95[1]
    assert [example["matched"] for example in report.examples] == ["C", "D", "-", "-", "D"]
    assert report.examples[1] == {"question": questions[1], "generated": texts[1], "matched": "D", "gold": "D"}

    shifted = evaluate(generate, tokenizer, [permute(item, (1, 2, 3, 0)) for item in items], context=110)
    assert (shifted.accuracy, shifted.matched) == (report.accuracy, report.matched)
