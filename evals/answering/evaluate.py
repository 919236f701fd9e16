"""Asking a model all that a report needs: letters in every order, controls, calibration, and options not shown."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from evals.analysis import stats
from evals.analysis.report import report_of
from evals.analysis.verdict import judged
from evals.answering import cloze
from evals.answering.controls import controls_of, with_controls
from evals.answering.letters import letter_answers
from evals.answering.prefix_tree import Predict
from evals.items.answers import ORDERS, Answers, orders_of
from evals.items.clusters import clusters_of
from evals.items.items import Item, Items, Order
from ghost_jax.core.errors import UsageError
from ghost_jax.runs.evaluation import ContextualCalibration, Evaluation
from ghost_jax.text.tokenizer import Tokenizer

CONTENT_FREE = "N/A"  # what stands for a question and its options where there is nothing to know (Zhao et al. 2021)

# How a model answers: `(items, orders, passages of each or None, what the progress line says) -> answers, how many
# prompts were cropped`.
Put = Callable[[Sequence[Item], Sequence[Sequence[Order]], Sequence[Sequence[str]] | None, str], tuple[Answers, int]]
Passages = Callable[[Sequence[str]], list[list[str]]]  # questions -> what a prompt shows in front of each


def check_options(batch_size: int, orders: str) -> None:
    """Raises UsageError where the options of an evaluation are none; a training run asks before it begins."""
    if batch_size < 1:
        raise UsageError(f"The batch size of an evaluation is {batch_size}; it must be at least 1.")
    if orders not in ORDERS:
        raise UsageError(f'evals.ctibench.orders is "{orders}"; use one of {", ".join(ORDERS)}.')


def putting(predict: Predict, tokenizer: Tokenizer, *, context: int, batch_size: int, layout: str) -> Put:
    """Returns how questions are put to a model: by letters in a layout that has them, by ranking in a cloze."""

    def put(
        items: Sequence[Item], orders: Sequence[Sequence[Order]], passages: Sequence[Sequence[str]] | None, doing: str
    ) -> tuple[Answers, int]:
        how = {"context": context, "batch_size": batch_size, "passages": passages, "doing": doing}
        if layout == "cloze":
            return cloze.ranked_answers(predict, tokenizer, items, orders, **how)
        return letter_answers(predict, tokenizer, items, orders, layout=layout, **how)

    return put


def evaluate(
    predict: Predict,
    tokenizer: Tokenizer,
    items: Items,
    *,
    context: int,
    batch_size: int = 16,
    orders: str = "cyclic",
    layout: str = "classic",
    passages: Passages | None = None,
) -> tuple[Evaluation, Answers]:
    """Returns the report of a model on items, and the answers that it is of.

    Args:
      context: longest prompt in tokens; a longer one loses its beginning and is counted.
      batch_size: rows a forward pass; a row holds several questions, see `evals/answering/prefix_tree.py`.
      orders: a name in `ORDERS`; "published" is a quick look in one order alone, without controls.
      layout: how the questions are put, a name in `ghost_jax.text.mcq_format.LAYOUTS`, see `putting`.
      passages: of an open book, what the prompt of each question shows in front of it.
    """
    check_options(batch_size, orders)
    asked = orders_of(items.items, orders)
    size = {"context": context, "batch_size": batch_size}
    put = putting(predict, tokenizer, layout=layout, **size)

    def found_for(those: Sequence[Item]) -> list[list[str]] | None:
        return passages([item.question for item in those]) if passages else None

    answers, too_long = put(items.items, asked, found_for(items.items), "scoring")
    book = "open" if passages else "closed"
    report = report_of(answers, items, book=book, prompts_cropped=too_long, layout=layout)
    if orders != "published":

        def ask(others: Sequence[Item], doing: str) -> Answers:
            return put(others, asked, found_for(others), doing)[0]

        report = with_controls(report, controls_of(ask, answers, items))
    if layout != "cloze":
        report = replace(report, contextual_calibration=calibrated(put, answers, items))
    if not passages:
        by_cloze = cloze.evaluate(predict, tokenizer, items, **size, controlled=orders != "published")
        report = judged(replace(report, cloze=by_cloze))
    return report, answers


def calibrated(put: Put, answers: Answers, items: Items) -> ContextualCalibration:
    """Returns the accuracy when what a letter has without any content is taken from its score.

    Contextual calibration (Zhao et al. 2021, "Calibrate Before Use"): the letters of a question and options that say
    nothing show what the model prefers anyway.
    """
    sizes = sorted({len(item.options) for item in items})
    empty = [Item("", CONTENT_FREE, (CONTENT_FREE,) * k, 0) for k in sizes]
    prior = put(empty, orders_of(empty, "published"), None, "scoring, nothing to know")[0]
    prior_of = {k: scores[0] for k, scores in zip(sizes, prior.log_probs, strict=True)}
    scores = [each - prior_of[each.shape[1]] for each in answers.log_probs]
    credits = Answers.from_log_probs(answers.orders, scores).credits(items.items)
    found = stats.accuracy_of(np.array([each.mean() for each in credits]), clusters_of(items.items))
    return ContextualCalibration(
        accuracy=found.accuracy,
        ci95=found.ci95,
        single_order=float(np.mean([each[0] for each in credits])),
        content_free={str(k): tuple(each.tolist()) for k, each in prior_of.items()},
    )
