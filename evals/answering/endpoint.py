"""Evaluates a model behind an OpenAI-compatible API; docs/scoring.md#a-model-behind-an-api says how it is read."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from evals.analysis.report import report_of
from evals.answering.controls import controls_of, with_controls, without_questions
from evals.items.answers import Answers, orders_of, without_thoughts
from ghost_jax.core.chat_api import ChatApi, Names, Refused, Reply
from ghost_jax.data.items.items import LETTERS, Item, Items, Order, order_name, permute
from ghost_jax.runs import run_dir
from ghost_jax.runs.evaluation import EndpointModel, Evaluation
from ghost_jax.text import mcq_format

NAMES = Names("model", "--endpoint", "--model", "OPENAI_API_KEY")
LAYOUT = "classic"
LOGPROBS = {"logprobs": True, "top_logprobs": 20}  # the most that the API allows

Replies = dict[str, Reply]  # by prompt
Orders = Sequence[Sequence[Order]]  # of each item


def open_api(base_url: str, model: str, out: Path, concurrency: int) -> ChatApi:
    """Returns the API whose replies are kept beside the report `out`. Raises UserError for a malformed URL or key."""
    kept = out.with_suffix(".answers.jsonl")
    api = ChatApi(base_url, model, NAMES, kept, in_flight=concurrency)
    print(f"raw answers are kept in {kept}")
    return api


def evaluate(items: Items, api: ChatApi, *, orders: str, max_tokens: int) -> Evaluation:
    """Returns the report of a model on items, without controls for the orders "published"."""
    asked = orders_of(items.items, orders)
    controls = without_questions(items) if orders != "published" else {}
    prompts: dict[str, str] = {}  # prompt -> what the file of the replies calls it
    for name, those in {"": items.items, **controls}.items():
        for cases, of_item in zip(cases_of(those, asked), asked, strict=True):
            for case, order in zip(cases, of_item, strict=True):
                prompts.setdefault(prompt_of(case), f"{case.id} {order_name(order)} {name}".strip())
    replies, model = ask_all(api, prompts, max_tokens)

    read = {
        name: [read_as(those, asked, replies) for those in (items.items, *controls.values())]
        for name, read_as in READINGS.items()
        if name == "text" or all(reply.top_logprobs is not None for reply in replies.values())
    }
    silent = {  # the share of all cases without a letter
        name: float(np.mean([not row.any() for answers in stages for said in answers.said for row in said]))
        for name, stages in read.items()
    }
    chosen = min(silent, key=silent.get)  # the first of equal ones
    answers, *of_controls = read[chosen]
    model = replace(model, letters_by=chosen, unanswered=silent[chosen])
    report = report_of(answers, items, reader="endpoint", layout=LAYOUT, endpoint=model)
    return with_controls(report, controls_of(dict(zip(controls, of_controls, strict=True)), answers, items))


def ask_all(
    api: ChatApi, prompts: dict[str, str], max_tokens: int, extra: dict = LOGPROBS
) -> tuple[Replies, EndpointModel]:
    """Returns the reply to each prompt, and the model. Raises UserError where the API fails for good.

    Args:
      prompts: prompt -> what the file of the replies calls it.
      extra: keys of the requests, which are left out where the server refuses log-probabilities.
    """
    limit, fixed = "max_tokens", {"temperature": 0, "seed": 0}
    while True:
        size = {**fixed, limit: max_tokens, **extra}
        bodies = [{"model": api.model, "messages": [{"role": "user", "content": each}], **size} for each in prompts]
        missing = api.missing(bodies)
        estimate = sum(len(body["messages"][0]["content"]) for body in missing) // 4  # in English
        count = f"{len(prompts):,} requests, {len(prompts) - len(missing):,} of them answered before"
        run_dir.say(f"{api.label}: {count}; the others have about {estimate:,} prompt tokens")
        try:
            found, counts = api.ask(bodies, list(prompts.values()))
            break
        except Refused as fault:
            said = fault.said.lower()
            if limit == "max_tokens" and "max_completion_tokens" in said:
                limit = "max_completion_tokens"
            elif extra and "logprob" in said:
                extra = {}
                run_dir.say(f"{api.label} refuses log-probabilities: asking for text alone")
            elif refused := next((key for key in fixed if key in said), ""):
                del fixed[refused]
                run_dir.say(f"{api.label} refuses {refused} and is asked without: it may answer otherwise another time")
            else:
                raise
    replies = dict(zip(prompts, found, strict=True))
    used: dict[str, int | None] = {}
    for name in ("prompt_tokens", "completion_tokens"):
        of_replies = [getattr(reply, name) for reply in found]
        used[name] = None if None in of_replies else sum(of_replies)
    tokens = "the server did not count tokens"
    if None not in used.values():
        tokens = f"{used['prompt_tokens']:,} prompt and {used['completion_tokens']:,} reply tokens"
    run_dir.say(f"{counts['asked']:,} requests were made; of all {len(replies):,}: {tokens}")
    host = ", ".join(counts["answered_by"])
    return replies, EndpointModel(
        model=api.model,
        host=host,
        requests=len(replies),
        max_tokens=max_tokens,
        drawn="temperature" not in fixed,
        **used,
    )


def cases_of(items: Sequence[Item], orders: Orders) -> list[list[Item]]:
    """Returns each item with its options in each of its orders."""
    return [[permute(item, order) for order in asked] for item, asked in zip(items, orders, strict=True)]


def prompt_of(case: Item) -> str:
    """Returns the user turn, as runs of this project are asked."""
    return mcq_format.ask(case.question, case.options, LAYOUT)


def by_logprobs(items: Sequence[Item], orders: Orders, replies: Replies) -> Answers:
    """Returns the answers by the first token; there is none where it is more likely no letter.

    Among 20 alternatives some letter nearly always stands, also where a model thinks first, or refuses in words.
    """
    scores = [
        np.array([letter_scores(replies[prompt_of(case)], len(case.options)) for case in cases])
        for cases in cases_of(items, orders)
    ]
    answers = Answers.from_log_probs(orders, scores)
    named = [np.exp(each).sum(axis=1, keepdims=True) > 0.5 for each in scores]
    return replace(answers, said=[said * any_named for said, any_named in zip(answers.said, named, strict=True)])


def by_text(items: Sequence[Item], orders: Orders, replies: Replies) -> Answers:
    """Returns the answers by `letter_of` the text."""
    letters = [
        [letter_of(replies[prompt_of(case)].reply, case.options) for case in cases] for cases in cases_of(items, orders)
    ]
    return Answers.from_letters(orders, letters)


READINGS = {"logprobs": by_logprobs, "text": by_text}


def letter_scores(reply: Reply, count: int) -> np.ndarray:
    """Returns the log-probability [count] of each letter: over all first tokens that strip to it; -inf for none."""
    scores = np.full(count, -np.inf)
    for token, log_prob in reply.top_logprobs:
        if (letter := token.strip()) in tuple(LETTERS[:count]):
            place = LETTERS.index(letter)
            scores[place] = np.logaddexp(scores[place], log_prob)
    return scores


def letter_of(text: str, options: Sequence[str]) -> int:
    """Returns the index of the letter in a reply, -1 for none, by the first of these rules that fits.

    Thoughts are left out. Then: the letter alone; the last "Answer: X"; "X)" or "X." at the beginning; the exact text
    of one option. Case, blanks and marks around a letter or a text do not count, except that a letter that does not
    stand alone is a capital. Several letters, "A, B" or "A) and B)", are none.
    """
    text = without_thoughts(text).strip()
    letters = LETTERS[: len(options)]
    if alone := re.fullmatch(rf"[\W_]*((?ia:[{letters}]))[\W_]*", text):
        return letters.index(alone[1].upper())
    another = rf"[\s).\]*_\"']*(?:,|\band\b|\bor\b|&)[\W_]*(?:(?:and|or)\b[\W_]*)?[{letters}]\b"
    ends = r"(?=[).:,;*_\]\"']|[ \t]+[-–—]|\s*$)"
    if named := re.findall(rf"(?i:answer)[*_]*:[\W_]*([{letters}])(?:({another})|{ends})", text, re.M):
        letter, more = named[-1]
        return -1 if more else letters.index(letter)
    if leading := re.match(rf"[\W_]*([{letters}])(?!{another})[).][*_]*(?:\s|$)", text):
        return letters.index(leading[1])
    same = [place for place, option in enumerate(options) if _bare(text) == _bare(option) != ""]
    return same[0] if len(same) == 1 else -1


def _bare(text: str) -> str:
    return re.sub(r"^[\W_]+|[\W_]+$", "", " ".join(text.split())).casefold()
