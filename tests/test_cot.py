"""ghost_jax/data/builders/cot.py: a reason from a model's reply, beside the gold letter."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghost_jax.data.builders import cot, teacher
from tests.test_teacher import question, questions

GOLD = question(1)  # B) Persistence


def test_the_gold_letter_stays_and_a_reply_that_is_no_reason_gives_way_to_the_evidence(monkeypatch):
    for_d = "The correct answer is D. Execution is what it is."
    replies = [for_d, "It is \ufffd so. That is why.", "", for_d]
    monkeypatch.setattr(teacher, "ask", lambda api, asked: (replies, {"teacher": api.label}))
    asked = questions(4)  # whose gold letters are A, B, C and D
    evidence = [f"Evidence {i} says so. It says it twice." for i in range(4)]
    reasons, report = cot.explain(asked, "http://localhost:1/v1", "m")
    assert reasons == [evidence[0], replies[1], evidence[2], "Execution is what it is."]
    assert report == {"teacher": "m at localhost", "replaced": {"empty": 1, "refusal": 0, "another answer": 1}}
    assert cot.explain(asked, "offline", "") == (evidence, {"teacher": "offline evidence sentence"})


REASON = "It stays after a reboot. So it is kept."
# What surrounds a reason is removed.
BEFORE = ("", "B. ", "(B) ", "**B. Persistence**\n\n", "**Answer: B**\n\n", "Answer: B) Persistence.\nExplanation: ")
BEFORE += ("The correct answer is B. ", "Correct answer: Persistence. ", "## Explanation:\n\n", "Sure, because:\n\n")
BEFORE += ("<think>It could be C. The answer is C?</think>\n", "<THINK>\nHm.\n</THINK>B: ", "It is C.</think>")
SET = ("B) It stays after a reboot. So it is kept. More is not kept.", "It stays after a *reboot*. So it is **kept**.")
SET += ("> It stays after a `reboot`. So it is kept.", "- It stays after a reboot.\n- So it is kept.")
# Letters that name no answer are text.
TEXTS = ("A technique that stays after a reboot is of this tactic.", "Unlike option C, it stays after a reboot.")
TEXTS += ("Option B is correct because it stays, while option A is about beacons.",)
TEXTS += ("It runs *.exe and *.dll files named __init__ from C:\\Windows at every start.",)
TEXTS += ("C2 traffic is absent here, as nothing calls home.",)
OTHERS = ("C. It stays.", "C) It stays after a reboot.", "**C**\n\nIt stays after a reboot.", "Answer: C\nIt stays.")
OTHERS += ("The correct answer is C because it stays.", "The answer should be (D), since it stays.")
OTHERS += ("The given answer is off; the right option is actually D.", "B is not correct, since it stays.")
OTHERS += ("It stays. Hence option C is the correct one, not B.", "B is wrong here. It stays.", "I choose A here.")
OTHERS += ("B. Execution. It runs code at once.", "The correct answer is Execution since it runs.")
OTHERS += ("Execution is the correct answer as it runs.", "Answer: Command and Control. It beacons home.")
OTHERS += ("<think>B it is.</think>D. It runs after a reboot.",)
EMPTY = ("", "  \n", "B", "B.", "**B) Persistence**", "Answer: B", "<think>It is", "Persistence.")
REFUSALS = ("I'm sorry, but I can't help with that.", "I cannot assist with attacks.", "I’m unable to say.")
REFUSALS += ("As an AI, I",)


@pytest.mark.parametrize(
    ("reply", "reason", "fault"),
    [
        *((opening + REASON, REASON, "") for opening in BEFORE),
        *((reply, REASON, "") for reply in SET),
        *((reply, reply, "") for reply in TEXTS),
        *((reply, "", "another answer") for reply in OTHERS),
        *((reply, "", "empty") for reply in EMPTY),
        *((reply, "", "refusal") for reply in REFUSALS),
    ],
)
def test_a_reply_gives_a_reason_for_the_gold_answer_or_its_fault(reply, reason, fault):
    assert cot.reason_in(reply, GOLD) == (reason, fault)


def test_an_option_that_begins_like_the_gold_one_is_another_option():
    reply = "The correct answer is Command and Control because it beacons home."
    assert cot.reason_in(reply, question(0)) == (reply, "")
    assert cot.reason_in(reply, question(2)) == ("", "another answer")  # whose gold option is "Command"


PIECES = ("<think>", "</think>", "B", "C.", "**", "\n", "answer is", ":", "Persistence", " ", "is", "1.")


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=5)).map("".join))
def test_every_reply_gives_a_short_reason_or_a_fault(reply):
    reason, fault = cot.reason_in(reply, GOLD)
    assert bool(reason) != bool(fault)
    assert fault in ("", *cot.FAULTS)
    assert len(reason) <= cot.CHARACTERS + len(" …")
    assert "\n" not in reason
