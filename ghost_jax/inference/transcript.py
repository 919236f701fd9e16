"""What several runs say to the same held-out prompts, side by side, as a page of Markdown.

The prompts are this project's own, and no training record holds one: 9 questions of the field, 9 of conversation, 9
instructions and choices. A transcript is read by people; it is no score. Answers are greedy: nothing in it is luck.
"""

import dataclasses
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources

import ghost_jax
from ghost_jax.inference.conversation import harmless
from ghost_jax.text.mcq_format import ask

PROMPTS = "transcript_prompts.jsonl"  # in this package
KINDS = {"knowledge": "Knowledge", "conversation": "Conversation", "instruction": "Instructions and choices"}


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """A user's turn, and the kind of prompt it is: a key of KINDS."""

    kind: str
    text: str


def prompts() -> list[Prompt]:
    """Returns the held-out prompts in their order; a choice is put as every multiple-choice question is."""
    lines = resources.files(__package__).joinpath(PROMPTS).read_text(encoding="utf-8").splitlines()
    rows = map(json.loads, lines)
    return [Prompt(row["kind"], ask(row["text"], row["options"]) if "options" in row else row["text"]) for row in rows]


def markdown(asked: Sequence[Prompt], answers: Mapping[str, Iterable[dict]], how: str) -> str:
    """Returns the page: for each kind of prompts a table, a row a prompt and a column a run.

    Args:
      answers: of each run by name, to each prompt what `Conversation.answers` yields.
      how: in words, how the runs were asked.
    """
    columns = {name: list(of_run) for name, of_run in answers.items()}
    page = ["# Transcript", f"{len(asked)} held-out prompts, {how}. Written by ghost_jax {ghost_jax.__version__}."]
    for kind, heading in KINDS.items():
        table = [["prompt", *columns], ["---"] * (1 + len(columns))]
        table += [
            [prompt.text, *(_said(of_run[number]) for of_run in columns.values())]
            for number, prompt in enumerate(asked)
            if prompt.kind == kind
        ]
        page += [f"## {heading}", "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in table)]
    return "\n\n".join(page) + "\n"


def _said(answer: Mapping) -> str:
    if "error" in answer:
        return f"(not asked: {answer['error']})"
    if not answer["answer"].strip():
        return "(nothing)"
    return answer["answer"].strip() + (f" … (cut off after {answer['tokens']} tokens)" if answer["cut"] else "")


def _cell(text: str) -> str:
    """Returns text as a table's cell that shows it as it is, and neither as markup nor as a terminal's command."""
    escaped = re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(harmless(text), quote=False))
    return "<br>".join(escaped.splitlines())
