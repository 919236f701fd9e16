"""Recall by exposure: how often a base finds the object of a fact, against how often the fact was stated to it.

Each fact is put as the beginning of a text, in a wording that training had for no fact, and the model compares four
objects as its end by PMI, the difference to the same wording about "it".
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from evals.analysis.report import right
from evals.analysis.stats import accuracy_of
from evals.answering.prefix_tree import Predict, Tree, read, scored_text
from evals.items.answers import Answers
from ghost_jax.core.atomic_io import read_text
from ghost_jax.core.errors import UserError
from ghost_jax.runs import evaluation
from ghost_jax.runs.evaluation import Accuracy, ExposureRecall, Recall
from ghost_jax.text.tokenizer import Tokenizer

ITEMS = "exposure.jsonl"
WAYS = {"statement": "blank", "question": "blank_question"}  # how a fact is put, and the same about nothing


def check_data(workdir: Path, data_dir: Path | None) -> None:
    """Raises UserError where the run has no dataset `exposure`; the facts asked for are meant to be in it."""
    if not (path := workdir / ITEMS).is_file():
        raise UserError(
            f"There is no {path}: recall is measured of a base that the dataset exposure is mixed into. Train one by "
            "--config=configs/pretrain_exposure.py."
        )


def evaluate_run(predict: Predict, tokenizer: Tokenizer, workdir: Path, data_dir: Path | None, **size: int) -> Recall:
    """Returns the recall of a base run, over all facts and by exposures, clustered by the sets that share options.

    Raises UserError where the run was not trained on the dataset `exposure`.
    """
    check_data(workdir, data_dir)
    items = [json.loads(line) for line in read_text(workdir / ITEMS).splitlines()]
    answers = [item["answer"] for item in items]
    credits = {}
    for way, blank in WAYS.items():
        with_fact, without = (_log_probs(predict, tokenizer, items, key, **size) for key in (way, blank))
        said = Answers.from_log_probs([], with_fact - without).said  # those that tie share one answer
        credits[way] = np.array([shares[answer] for shares, answer in zip(said, answers, strict=True)])
    counts = np.array([item["exposures"] for item in items])
    sets = np.array([str(item["set"]) for item in items])

    def recall_of(chosen: np.ndarray) -> dict[str, Accuracy]:
        return {way: accuracy_of(each[chosen], sets[chosen].tolist()) for way, each in credits.items()}

    by_exposures = {
        str(count): ExposureRecall(n=int((counts == count).sum()), **recall_of(counts == count))
        for count in sorted(set(counts.tolist()))
    }
    return Recall(
        n=len(items),
        **recall_of(counts > 0),
        by_exposures=by_exposures,
        credits={way: tuple(each.tolist()) for way, each in credits.items()},
        ids=tuple(item["id"] for item in items),
        exposures=tuple(counts.tolist()),
        sha256=hashlib.sha256(json.dumps([item | {"exposures": None} for item in items]).encode()).hexdigest(),
    )


def show_run(workdir: Path, console: Console) -> None:
    """Prints the recall in a run's directory."""
    report = evaluation.read(workdir / "evals" / "recall.json", Recall)
    columns = right("exposures", "facts", "statement in a new wording", "question")
    table = Table(*columns, title="recall, % (95% interval), by how often a fact was stated; 25 is chance")
    for count, found in [*report.by_exposures.items(), ("all", report)]:
        table.add_row(count, f"{found.n:,}", found.statement.shown(1), found.question.shown(1))
    console.print(table)


def _log_probs(predict: Predict, tokenizer: Tokenizer, items: Sequence[dict], key: str, **size: int) -> np.ndarray:
    """Returns the log-probability [N, 4] of each item's options behind the text at `key`."""
    texts = sorted({item[key] for item in items})
    options = {text: sorted({o for item in items if item[key] == text for o in item["options"]}) for text in texts}
    trees = []
    for text in texts:
        trunk = np.array([tokenizer.bos_id, *tokenizer.encode(text)], np.int32)
        ends = [np.array([trunk[-1], *tokenizer.encode(f" {option}")], np.int32) for option in options[text]]
        trees.append(Tree(trunk[:-1], tuple(map(scored_text, ends))))
    found = read(predict, trees, doing=f"recall, {key.replace('_', ' ')}", **size)
    score = {
        (text, option): float(log_probs.astype(np.float64).sum())
        for text, of_tree in zip(texts, found, strict=True)
        for option, log_probs in zip(options[text], of_tree, strict=True)
    }
    return np.array([[score[item[key], option] for option in item["options"]] for item in items])
