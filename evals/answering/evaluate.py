"""Evaluates a model: letters in every order, controls, contextual calibration, and cloze."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

from evals.analysis import stats
from evals.analysis.report import report_of
from evals.analysis.verdict import judged
from evals.answering import cloze
from evals.answering.controls import controls_of, with_controls, without_questions
from evals.answering.letters import letter_answers
from evals.answering.prefix_tree import Predict
from evals.items.answers import Answers, orders_of
from ghost_jax.data.items.items import Item, Items, clusters_of
from ghost_jax.runs.evaluation import ContextualCalibration, Evaluation
from ghost_jax.text.tokenizer import Tokenizer

CONTENT_FREE = "N/A"  # in place of a question and its options (Zhao et al. 2021)

# `(items, orders, *, passages of each or None, label of the progress line) -> answers, how many prompts were cropped`
Put = Callable[..., tuple[Answers, int]]


def putting(predict: Predict, tokenizer: Tokenizer, *, layout: str, **size: int) -> Put:
    """Returns the function that asks a model: by letters in a layout that has them, by ranking in a cloze."""
    if layout == "cloze":
        return functools.partial(cloze.ranked_answers, predict, tokenizer, **size)
    return functools.partial(letter_answers, predict, tokenizer, layout=layout, **size)


def evaluate(
    predict: Predict,
    tokenizer: Tokenizer,
    items: Items,
    *,
    context: int,
    batch_size: int = 16,
    orders: str = "cyclic",
    layout: str = "classic",
    passages: Callable[[Sequence[str]], list[list[str]]] | None = None,
    **others: object,
) -> tuple[Evaluation, Answers]:
    """Returns the report of a model on items, and its answers; `others` are further fields of the report.

    Args:
      context: longest prompt in tokens; a longer one is cropped at its beginning and counted.
      batch_size: rows a forward pass; a row holds several questions, see `evals/answering/prefix_tree.py`.
      orders: a name in `ORDERS`; "published" asks in one order, without controls.
      layout: of the prompts, a name in `ghost_jax.text.mcq_format.LAYOUTS`.
      passages: of an open book, questions -> what the prompt of each shows in front of it.
    """
    asked = orders_of(items.items, orders)
    size = {"context": context, "batch_size": batch_size}
    put = putting(predict, tokenizer, layout=layout, **size)

    def ask(those: Sequence[Item], doing: str) -> tuple[Answers, int]:
        shown = passages([item.question for item in those]) if passages else None
        return put(those, asked, passages=shown, doing=doing)

    answers, cropped = ask(items.items, "scoring")
    report = report_of(answers, items, prompts_cropped=cropped, layout=layout, **others)
    if orders != "published":
        without = {name: ask(those, f"scoring, {name}")[0] for name, those in without_questions(items).items()}
        report = with_controls(report, controls_of(without, answers, items))
    if layout == "cloze":  # the scores of options' texts are not those of letters
        report = replace(report, calibration=None, letter_log_probs=None)
    else:
        report = replace(report, contextual_calibration=_without_prior(put, answers, items))
    if not passages:
        by_cloze = cloze.evaluate(predict, tokenizer, items, **size, controlled=orders != "published")
        report = judged(replace(report, cloze=by_cloze))
    return report, answers


def _without_prior(put: Put, answers: Answers, items: Items) -> ContextualCalibration:
    """Returns the accuracy after contextual calibration (Zhao et al. 2021, "Calibrate Before Use").

    The letters' log-probabilities in a question without content, which the model prefers anyway, are subtracted.
    """
    sizes = sorted({len(item.options) for item in items})
    empty = [Item("", CONTENT_FREE, (CONTENT_FREE,) * k, 0) for k in sizes]
    prior = put(empty, orders_of(empty, "published"), doing="scoring, content-free")[0]
    prior_of = {k: scores[0] for k, scores in zip(sizes, prior.log_probs, strict=True)}
    scores = [each - prior_of[each.shape[1]] for each in answers.log_probs]
    calibrated = Answers.from_log_probs(answers.orders, scores)
    return stats.accuracy_of(
        calibrated.mean_credits(items.items),
        clusters_of(items.items),
        ContextualCalibration,
        single_order=float(calibrated.first_credits(items.items).mean()),
        content_free={str(k): tuple(each.tolist()) for k, each in prior_of.items()},
    )
