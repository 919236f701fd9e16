"""Letter scores: the log-probability of each letter, for every item in every order that it is asked in."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from evals.analysis.report import letter_figures
from evals.answering.prefix_tree import Branch, Predict, Tree, read, shared_beginning
from evals.items.answers import Answers, orders_of
from evals.items.ctibench import held_out_of
from ghost_jax.data.items.items import Item, Order, permute
from ghost_jax.text.chat_format import Message, render_prompt
from ghost_jax.text.mcq_format import ask, letter_ids, with_context
from ghost_jax.text.tokenizer import Tokenizer


def letter_answers(
    predict: Predict,
    tokenizer: Tokenizer,
    items: Sequence[Item],
    orders: Sequence[Sequence[Order]],
    *,
    context: int,
    batch_size: int,
    layout: str = "classic",
    passages: Sequence[Sequence[str]] | None = None,
    doing: str = "scoring",
) -> tuple[Answers, int]:
    """Returns the answers to N items, each in its own orders, and how many of the prompts were cropped.

    A prompt longer than the context is cropped at its beginning. The layout must be one that ends in a letter.
    `passages` are shown in front of the question of each item.
    """
    most = max(len(item.options) for item in items)
    ids = {k: letter_ids(tokenizer, k, layout) for k in {len(item.options) for item in items}}
    # Every read scores as many letters; the scores of letters that an item lacks are dropped below.
    targets = {k: np.pad(of_k, (0, most - k), mode="edge")[None] for k, of_k in ids.items()}
    trees = []
    for item, asked, shown in zip(items, orders, passages or [()] * len(items), strict=True):
        prompts = [prompt_of(tokenizer, permute(item, order), layout, shown) for order in asked]
        shared = min(len(shared_beginning(prompts)), min(map(len, prompts)) - 1)  # a branch has at least one token
        branches = [
            Branch(prompt[shared:], np.array([len(prompt) - shared - 1]), targets[len(item.options)])
            for prompt in prompts
        ]
        trees.append(Tree(prompts[0][:shared], tuple(branches)))
    too_long = sum(len(tree.trunk) + len(branch.ids) > context for tree in trees for branch in tree.branches)
    found = read(predict, trees, context=context, batch_size=batch_size, doing=doing)
    scores = [np.concatenate(each)[:, : len(item.options)] for item, each in zip(items, found, strict=True)]
    return Answers.from_log_probs(orders, scores), too_long


def lettered(layout: str) -> str:
    """Returns the layout that a run is asked in: the one it was trained on, if that ends in a letter."""
    return "classic" if layout == "cloze" else layout


def prompt_of(tokenizer: Tokenizer, item: Item, layout: str = "classic", passages: Sequence[str] = ()) -> np.ndarray:
    """Returns the ids [T] after which the model's next token is its letter."""
    asked = with_context(ask(item.question, item.options, layout), passages)
    return render_prompt(tokenizer, [Message("user", asked)])


# ---- While a model trains ----


def make_probe(
    workdir: Path, tokenizer: Tokenizer, layout: str, *, questions: int, context: int
) -> Callable[[Predict], dict[str, float]]:
    """Returns `predict -> {"held_out_accuracy", "held_out_top_letter"}`, both fractions, for `metrics.jsonl`.

    The second is the share of the letter answered most: a collapse shows here long before the end. The `questions` are
    spread evenly over those that the run's own data held out. A benchmark scored during training would be tuned on.
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
