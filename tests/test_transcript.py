"""The transcript: the same held-out prompts to several runs, side by side, as text that is no markup."""

from collections import Counter

import pytest

import ghost_jax
from ghost_jax.data.builders import qa, small_talk
from ghost_jax.data.sources import embedded
from ghost_jax.inference.transcript import KINDS, Prompt, markdown, prompts


def answer(text: str, cut: bool = False) -> dict:
    return {"prompt": "?", "answer": text, "tokens": 7, "cut": cut}


def table_of(page: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("|")]


def test_there_are_nine_prompts_of_each_kind_and_no_two_alike():
    asked = prompts()
    assert Counter(prompt.kind for prompt in asked) == dict.fromkeys(KINDS, 9)
    assert len({prompt.text for prompt in asked}) == 27
    choices = [prompt.text for prompt in asked if "\nD) " in prompt.text]
    assert all(text.startswith("Pick the best answer (A, B, C, or D)") for text in choices)
    assert len(choices) == 5


def test_no_prompt_is_in_what_the_pack_trains_on():
    learnt = [*small_talk.build(), *qa.build(embedded.read, ["embedded"], per_source=10_000, seed=0)]
    users = {message.content.casefold() for each in learnt for message in each.messages if message.role == "user"}
    assert len(users) > 500
    assert not {prompt.text.casefold() for prompt in prompts()} & users


def test_a_run_is_a_column_and_a_prompt_a_row():
    asked = [Prompt("knowledge", "What?"), Prompt("conversation", "Hi"), Prompt("knowledge", "Why?")]
    answers = {"first, step 8": map(answer, ("this", "hello", "since")), "second, step 9": map(answer, "abc")}
    page = markdown(asked, answers, "asked greedily")
    assert f"3 held-out prompts, asked greedily. Written by ghost_jax {ghost_jax.__version__}." in page
    header = ["prompt", "first, step 8", "second, step 9"]
    knowledge, conversation = ["What?", "this", "a"], ["Hi", "hello", "b"]
    rows = [row for row in table_of(page) if row[0] != "---"]
    assert rows == [header, knowledge, ["Why?", "since", "c"], header, conversation, header]
    assert page.index("## Knowledge") < page.index("Why?") < page.index("## Conversation") < page.index("Hi")


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (answer("a | b\nc"), r"a \| b<br>c"),
        (answer("<script>x</script> & *y* `z` [l](u)"), r"&lt;script&gt;x&lt;/script&gt; &amp; \*y\* \`z\` \[l\](u)"),
        (answer("\x1b[2Jred\u202e"), r"\\x1b\[2Jred\\u202e"),
        (answer(" "), "(nothing)"),
        (answer("on and on", cut=True), "on and on … (cut off after 7 tokens)"),
        ({"prompt": "?", "error": "A prompt has 900 tokens."}, "(not asked: A prompt has 900 tokens.)"),
    ],
)
def test_an_answer_is_shown_as_it_is(said, shown):
    assert f"| What? | {shown} |" in markdown([Prompt("knowledge", "What?")], {"run": [said]}, "asked")
