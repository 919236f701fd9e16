"""Reasons by a language model behind a chat-completions API (`ghost_jax/core/chat_api.py`), cached for the user."""

import re
from collections.abc import Sequence

from ghost_jax.config.keys import KEY_VARIABLE
from ghost_jax.core.chat_api import ChatApi, Names
from ghost_jax.core.paths import cache_dir
from ghost_jax.data.examples import Question
from ghost_jax.data.storage.text_cleaning import flat
from ghost_jax.text.mcq_format import LETTERS

IN_FLIGHT = 4  # requests at once
NAMES = Names("teacher", "data.cot.teacher", "data.cot.model", KEY_VARIABLE, ", or set data.cot.teacher to offline")
# Reasoning models think before the sentences that are kept; others stop by themselves.
PARAMETERS = {"temperature": 0, "max_tokens": 1024, "seed": 0}
PROMPT = """\
Here is a multiple-choice question about cyber security, its correct answer, and evidence from a published source.

Question: {question}
{options}
Correct answer: {letter}) {gold}
Evidence: {evidence}

Explain in one or two plain sentences why this answer is correct. Write only these sentences, without letters, lists or
formatting, and do not refer to the evidence as such."""


def open_api(base_url: str, model: str) -> ChatApi:
    """Returns the API of a model, whose replies are cached, one file a model.

    Raises UserError where the key is malformed; the URL and the model were checked with the config.
    """
    path = cache_dir() / "teacher" / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', model)[:100]}.jsonl"
    return ChatApi(base_url, model, NAMES, path, in_flight=IN_FLIGHT)


def ask(api: ChatApi, questions: Sequence[Question]) -> tuple[list[str], dict]:
    """Returns a reply for each question, and counts of replies for the manifest, in which equal requests are one.

    Raises UserError where the API fails for good.
    """
    replies, counts = api.ask([_request(api.model, q) for q in questions], [q.id for q in questions])
    return [each.reply for each in replies], {"teacher": api.label, **counts}


def _request(model: str, q: Question) -> dict:
    options = "\n".join(f"{letter}) {option}" for letter, option in zip(LETTERS, q.options, strict=False))
    prompt = PROMPT.format(
        question=q.question, options=options, letter=q.letter, gold=q.options[q.answer], evidence=flat(q.evidence)
    )
    return {"model": model, "messages": [{"role": "user", "content": prompt}], **PARAMETERS}
