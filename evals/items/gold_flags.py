"""The questions of CTIBench MCQ whose gold answer is in doubt, from an audit of all 2,500: docs/gold_audit.md."""

import functools
import json
from importlib import resources

from ghost_jax.data.items.formats import CTIBENCH_MCQ_SHA256
from ghost_jax.data.items.items import Items

KINDS = {
    "wrong_gold": "the page states another offered option, and not the gold one",
    "several_right": "the gold option is right, and another one is just as right",
    "none_right": "the page contradicts the gold option and every other",
    "not_on_page": "the page does not decide the question",
    "unclear": "the question cannot be understood by itself",
}


@functools.cache
def flags() -> dict[str, dict]:
    """Returns the flags by the id of the item, "line 3": kind (of `KINDS`), right (letters) and reason."""
    text = resources.files(__package__).joinpath("gold_flags.jsonl").read_text(encoding="utf-8")
    return {flag["id"]: flag for flag in map(json.loads, text.splitlines())}


def doubtful(items: Items) -> set[str]:
    """Returns the ids of the items whose gold answer is in doubt; none of another benchmark than CTIBench MCQ."""
    return {item.id for item in items} & flags().keys() if items.sha256 == CTIBENCH_MCQ_SHA256 else set()
