"""The letters of a model while it trains, on a few of the run's own held-out questions, in the cyclic orders.

A collapse shows here long before the end. A benchmark that is scored during training would be tuned on.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from evals.analysis.report import letter_figures
from evals.answering.letters import letter_answers, lettered
from evals.answering.prefix_tree import Predict
from evals.items.answers import orders_of
from evals.items.locate import held_out_of
from ghost_jax.text.tokenizer import Tokenizer


def make_probe(
    workdir: Path, tokenizer: Tokenizer, layout: str, *, questions: int, context: int
) -> Callable[[Predict], dict[str, float]]:
    """Returns `predict -> {"held_out_accuracy", "held_out_top_letter"}`, both fractions, for `metrics.jsonl`.

    The second is the share of the letter answered most. The `questions` are spread evenly over those held out.
    """
    every = held_out_of(workdir).items
    items = [every[row] for row in np.linspace(0, len(every) - 1, min(questions, len(every))).astype(int)]
    orders = orders_of(items, "cyclic")

    def probe(predict: Predict) -> dict[str, float]:
        how = {"context": context, "batch_size": 16, "layout": lettered(layout), "doing": "probing"}
        answers, _ = letter_answers(predict, tokenizer, items, orders, **how)
        accuracy, shares = float(answers.mean_credits(items).mean()), letter_figures(answers, items)["letter_share"]
        return {"held_out_accuracy": accuracy, "held_out_top_letter": max(shares.values())}

    return probe
