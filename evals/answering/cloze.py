"""Cloze: the log-probability of each option's text as the answer, where the prompt does not show the options.

No letter is read and no order is asked, so that nothing can collapse to one letter.
"""

from collections.abc import Callable, Sequence

import numpy as np

from evals.analysis import stats
from evals.answering.controls import SWAPPED, swapped
from evals.answering.prefix_tree import Predict, Tree, read, scored_text
from evals.items.answers import Answers, orders_of
from ghost_jax.data.items.items import Item, Items, Order, clusters_of
from ghost_jax.runs.evaluation import Cloze
from ghost_jax.text import mcq_format
from ghost_jax.text.tokenizer import Tokenizer

# Declared before anything was scored. A model that does not read the question gives every option 0 and scores chance,
# even if it prefers long options or common words.
PRIMARY = "pmi"
# name -> (log-probabilities of an option's tokens and the end of the turn, the same behind a blank question) -> score
NORMALISATIONS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "sum": lambda found, blank: found[:-1].sum(),
    "per_token": lambda found, blank: found[:-1].mean(),
    "pmi": lambda found, blank: found[:-1].sum() - blank[:-1].sum(),
    "ranked": lambda found, blank: found.mean(),
}


def evaluate(
    predict: Predict, tokenizer: Tokenizer, items: Items, *, context: int, batch_size: int, controlled: bool = True
) -> Cloze:
    """Returns the accuracy under each normalisation.

    With log P(option | question) = Σ_t log p_t over its tokens: `sum` is that, `per_token` its mean, and `pmi` its
    difference from log P(option | blank question), domain-conditional PMI (Holtzman et al. 2021, "Surface Form
    Competition"). `ranked` is the mean over the tokens and the end of the turn, which `objective.ranking` trains. Ties
    share the credit. An option without text is never chosen. `chance` is the credit where all options with text tie.

    With `controlled`, and several items, `controls` has the primary with the question swapped. With the question blank,
    `pmi` ties everywhere.
    """
    asked = [*items, *swapped(items.items)] if controlled and len(items) > 1 else [*items]
    scores = option_scores(predict, tokenizer, asked, context=context, batch_size=batch_size)
    clusters, orders = clusters_of(items.items), orders_of(items.items, "published")

    def credits_by(of_items: Sequence[np.ndarray]) -> np.ndarray:
        return Answers.from_options(orders, of_items).first_credits(items.items)

    credits = {name: credits_by(of_items[: len(items)]) for name, of_items in scores.items()}
    controls = {}
    if len(asked) > len(items):
        without = credits_by(scores[PRIMARY][len(items) :])
        controls[SWAPPED] = stats.control_of(credits[PRIMARY], without, clusters)
    tied = credits_by([np.array([bool(option.strip()) for option in item.options]) for item in items])
    found = {name: stats.accuracy_of(each, clusters) for name, each in credits.items()}
    return Cloze(primary=PRIMARY, chance=float(tied.mean()), controls=controls, **found)


def option_scores(
    predict: Predict, tokenizer: Tokenizer, items: Sequence[Item], *, context: int, batch_size: int
) -> dict[str, list[np.ndarray]]:
    """Returns for each normalisation the score [K] of every item's options, -inf for an option without text."""
    texts = sorted({option for item in items for option in item.options})
    # A tree for each text: where one does not fit the context, the beginning of its own tree alone is cropped.
    asked = [*items, *(Item("", "", (text,), 0) for text in texts if text.strip())]
    how = {"context": context, "batch_size": batch_size, "doing": "scoring, options not shown"}
    found, _ = _token_scores(predict, tokenizer, asked, **how)
    of_items = found[: len(items)]
    alone = {text: log_probs for of_text in found[len(items) :] for text, log_probs in of_text.items()}
    return {
        name: [
            np.array([score(found[text], alone[text]) if text in found else -np.inf for text in item.options])
            for item, found in zip(items, of_items, strict=True)
        ]
        for name, score in NORMALISATIONS.items()
    }


def ranked_answers(
    predict: Predict,
    tokenizer: Tokenizer,
    items: Sequence[Item],
    orders: Sequence[Sequence[Order]],
    *,
    passages: Sequence[Sequence[str]] | None = None,
    **how,
) -> tuple[Answers, int]:
    """Returns the answers to N items by the score that `objective.ranking` trains, and how many prompts were cropped.

    The score is the same in every order. `passages` are shown in front of the question of each item. An option without
    text scores less than every other. `how` are the options of `prefix_tree.read`.
    """
    found, cropped = _token_scores(predict, tokenizer, items, passages, **how)
    scores = []
    for item, of_item in zip(items, found, strict=True):
        mean = {text: log_probs.mean() for text, log_probs in of_item.items()}
        least = min(mean.values()) - 1
        scores.append(np.array([mean.get(option, least) for option in item.options]))
    return Answers.from_options(orders, scores), cropped


def _token_scores(
    predict: Predict,
    tokenizer: Tokenizer,
    items: Sequence[Item],
    passages: Sequence[Sequence[str]] | None = None,
    *,
    context: int,
    batch_size: int,
    doing: str = "scoring",
) -> tuple[list[dict[str, np.ndarray]], int]:
    """Returns of each item the log-probabilities of each option's tokens and the end of the turn [T + 1].

    Options without text are left out, and equal options are read once, so that no rounding decides between them. Also
    returns how many items were cropped.
    """
    options = [list(dict.fromkeys(option for option in item.options if option.strip())) for item in items]
    trees = []  # the question is the trunk, each option with the end of its turn a branch
    for item, texts, shown in zip(items, options, passages or [()] * len(items), strict=True):
        trunk, turns = mcq_format.cloze(tokenizer, item.question, texts, shown)
        trees.append(Tree(trunk, tuple(scored_text(ids[: np.flatnonzero(learnt)[-1] + 1]) for ids, learnt in turns)))
    found = read(predict, trees, context=context, batch_size=batch_size, doing=doing)
    scores = [
        {text: log_probs[:, 0].astype(np.float64) for text, log_probs in zip(texts, of_tree, strict=True)}
        for texts, of_tree in zip(options, found, strict=True)
    ]
    return scores, sum(tree.depth > context for tree in trees)
