"""Cloze: how probable a model finds each option's text as the answer, with the options not shown.

No letter is read and no order is asked, so that nothing can collapse to one letter. Three normalisations are reported;
which of them counts is declared here and not chosen by what comes out.
"""

from collections.abc import Sequence

import numpy as np

from evals.analysis import stats
from evals.answering.controls import SWAPPED, swapped
from evals.answering.prefix_tree import Branch, Predict, Tree, cropped, read
from evals.items.answers import Answers
from evals.items.clusters import clusters_of
from evals.items.items import Item, Items, Order, cyclic_orders
from ghost_jax.runs.evaluation import Cloze
from ghost_jax.text.chat_format import Message, render, render_prompt
from ghost_jax.text.mcq_format import answer, ask, with_context
from ghost_jax.text.tokenizer import Tokenizer

# By the difference to what the option has without the question, a model that does not read the question gives every
# option 0 and scores chance, whatever it thinks of long options or common words.
PRIMARY = "pmi"


def evaluate(
    predict: Predict, tokenizer: Tokenizer, items: Items, *, context: int, batch_size: int, controlled: bool = True
) -> Cloze:
    """Returns accuracy and interval under each normalisation, as fractions, and which of them was declared primary.

    With log P(option | question) = Σ_t log p_t over its tokens: `sum` is that, `per_token` its mean, and `pmi` its
    difference to log P(option | blank question), domain-conditional PMI (Holtzman et al. 2021, "Surface Form
    Competition"). `ranked` is the mean over the tokens and the end of the turn, which `objective.ranking` trains. Ties
    share the credit. An option without text is never chosen. `chance` is the credit where all options with text tie:
    1/k. Intervals are clustered by page, and by option set where many items share theirs (`evals/items/clusters.py`):
    whoever finds one option of a set probable finds it so in every question of the set.

    With `controlled`, and several items, `controls` has the primary with the question swapped: how probable each option
    is after another item's question, what the model gains on that, and the interval of the gain, paired by item. The
    control with the question blank needs no reading: its `pmi` ties everywhere.
    """
    asked = [*items, *swapped(items.items)] if controlled and len(items) > 1 else [*items]
    scores = option_scores(predict, tokenizer, asked, context=context, batch_size=batch_size)
    clusters = clusters_of(items.items)

    def credits_by(of_items: Sequence[np.ndarray]) -> np.ndarray:
        orders = [cyclic_orders(len(each))[:1] for each in of_items]
        return np.concatenate(Answers.from_log_probs(orders, [each[None] for each in of_items]).credits(items.items))

    credits = {name: credits_by(of_items[: len(items)]) for name, of_items in scores.items()}
    controls = {}
    if len(asked) > len(items):
        without = credits_by(scores[PRIMARY][len(items) :])
        controls[SWAPPED] = stats.control_of(credits[PRIMARY], without, clusters)
    worded = [[bool(option.strip()) for option in item.options] for item in items]
    chance = float(np.mean([has[item.answer] / max(1, sum(has)) for item, has in zip(items, worded, strict=True)]))
    found = {name: stats.accuracy_of(each, clusters) for name, each in credits.items()}
    return Cloze(primary=PRIMARY, chance=chance, controls=controls, **found)


def option_scores(
    predict: Predict, tokenizer: Tokenizer, items: Sequence[Item], *, context: int, batch_size: int
) -> dict[str, list[np.ndarray]]:
    """Returns for each normalisation the score [K] of every item's options."""
    texts = sorted({option for item in items for option in item.options if option.strip()})
    row_of = {text: row for row, text in enumerate(texts)}
    # Equal options are read once, so that no rounding decides between them.
    worded = [list(dict.fromkeys(option for option in item.options if option in row_of)) for item in items]
    trees = [
        tree_of(tokenizer, item.question, options, ended=True) for item, options in zip(items, worded, strict=True)
    ]
    blank = tree_of(tokenizer, "", texts, ended=True)
    readings = read(
        predict,
        [cropped(tree, context) for tree in (*trees, blank)],
        context=context,
        batch_size=batch_size,
        doing="scoring, options not shown",
    )
    log_probs = [[reading.log_probs.astype(np.float64) for reading in of_tree] for of_tree in readings]
    alone = np.array([found[:-1].sum() for found in log_probs.pop()])
    scores: dict[str, list[np.ndarray]] = {"sum": [], "per_token": [], "pmi": [], "ranked": []}
    for item, options, of_options in zip(items, worded, log_probs, strict=True):
        rows = [row_of[option] for option in options]
        total = np.array([found[:-1].sum() for found in of_options])
        each = {
            "sum": total,
            "per_token": np.array([found[:-1].mean() for found in of_options]),
            "pmi": total - alone[rows],
            "ranked": np.array([found.mean() for found in of_options]),
        }
        for name, values in each.items():
            of_text = dict(zip(options, values, strict=True))
            scores[name].append(np.array([of_text.get(option, -np.inf) for option in item.options]))
    return scores


def ranked_answers(
    predict: Predict,
    tokenizer: Tokenizer,
    items: Sequence[Item],
    orders: Sequence[Sequence[Order]],
    *,
    context: int,
    batch_size: int,
    passages: Sequence[Sequence[str]] | None = None,
    doing: str = "scoring",
) -> tuple[Answers, int]:
    """Returns the answers to N items by the log-probability of each option's text, and how many prompts were cropped.

    That is the mean which `objective.ranking` trains: over the option's tokens and the end of its turn. It is the same
    in every order. `passages` are what the prompts of each item show in front of the question. An option without text
    is worth less than every other.
    """
    in_front = passages or [()] * len(items)
    worded = [list(dict.fromkeys(option for option in item.options if option.strip())) for item in items]
    trees = [
        tree_of(tokenizer, item.question, options, shown, ended=True)
        for item, options, shown in zip(items, worded, in_front, strict=True)
    ]
    readings = read(
        predict, [cropped(tree, context) for tree in trees], context=context, batch_size=batch_size, doing=doing
    )
    scores = []
    for item, options, of_tree in zip(items, worded, readings, strict=True):
        mean = {text: found.log_probs.astype(float).mean() for text, found in zip(options, of_tree, strict=True)}
        least = min(mean.values(), default=0.0) - 1
        scores.append(np.array([mean.get(option, least) for option in item.options]))
    return Answers.from_options(orders, scores), sum(tree.depth > context for tree in trees)


def tree_of(
    tokenizer: Tokenizer, question: str, options: Sequence[str], passages: Sequence[str] = (), *, ended: bool = False
) -> Tree:
    """Returns the question as a trunk with an option a branch, all of whose tokens are read.

    A branch begins with the prompt's last token, because that is the place which predicts its first one. With `ended`
    the end of the turn is read as well.
    """
    message = Message("user", with_context(ask(question, options, "cloze"), passages))
    prompt = render_prompt(tokenizer, [message])
    branches = []
    for option in options:
        said, _ = render(tokenizer, [message, Message("assistant", answer("", option, "cloze"))])
        ids = said[len(prompt) - 1 : None if ended else -1]
        branches.append(Branch(ids[:-1], np.arange(len(ids) - 1), ids[1:, None]))
    return Tree(prompt[:-1], tuple(branches))
