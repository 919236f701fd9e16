"""Reading: a chat run's held-out fact questions, asked closed book and behind passages; see docs/scoring.md#reading.

Each question is asked four times: without passages, behind random ones, behind those that a search finds, and behind
these with the oracle among them, the passage of the question's page that fits question and answer best. Pages are those
of `BOOK` in the run's corpus. Search, prompts and answers are those of training: options are ranked in the layout
`cloze`, and letters answer in the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from rich.console import Console
from rich.table import Table

from evals.analysis.report import right
from evals.analysis.stats import accuracy_of, paired_difference
from evals.answering.evaluate import putting
from evals.answering.prefix_tree import Predict
from evals.items.answers import orders_of
from evals.tasks import facts
from ghost_jax.core.atomic_io import read_config
from ghost_jax.core.errors import UserError
from ghost_jax.data.builders import BOOK
from ghost_jax.data.builders.raft import rows_by_page
from ghost_jax.data.corpus import index_store
from ghost_jax.data.items.items import Item, clusters_of
from ghost_jax.data.retrieval.bm25 import Index, shown
from ghost_jax.data.storage import artifact_cache
from ghost_jax.runs import evaluation, run_dir, run_record
from ghost_jax.runs.evaluation import Accuracy, Interval
from ghost_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class BehindPassages(Accuracy):
    """The accuracy behind passages, and its paired gain over the same questions closed book."""

    gain: float
    gain_ci95: Interval
    prompts_cropped: int


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The accuracies of a run by what it reads, over the `n` questions about a page of the book."""

    n: int
    layout: str
    oracle_found: float  # the share of questions whose oracle the search finds
    closed: BehindPassages
    random: BehindPassages
    found: BehindPassages
    oracle: BehindPassages
    step: int | None = None
    machine: str | None = None


check_data = facts.check_data  # the questions are the same


def evaluate_run(predict: Predict, tokenizer: Tokenizer, workdir: Path, data_dir: Path | None, **size: int) -> Reading:
    """Returns the accuracies by what is read. Raises UserError where the run has no question about a page."""
    index = index_of(workdir)
    rows_of = rows_by_page(index)
    items = [item for item in facts.items_of(workdir) if item.url in rows_of]
    if not items:
        raise UserError(
            f"No question of {workdir} is about a page of {', '.join(BOOK)}. Take reading out of its evals."
        )
    oracles = [_oracle(index, item, rows_of[item.url]) for item in items]
    rows = rows_read(index, items, oracles)
    layout = read_config(workdir / "config.json")["data"]["layout"]
    put = putting(predict, tokenizer, layout=layout, **size)
    orders, clusters = orders_of(items, "cyclic"), clusters_of(items)
    credits, cropped = {}, {}
    for name, read in rows.items():
        passages = [[shown(index.passages[row]) for row in of_item] for of_item in read]
        answers, cropped[name] = put(items, orders, passages=passages, doing=f"reading, {name}")
        credits[name] = answers.mean_credits(items)
    found = {}
    for name, each in credits.items():
        gain = paired_difference(each, credits["closed"], clusters)
        found[name] = accuracy_of(
            each, clusters, BehindPassages, gain=gain.mean, gain_ci95=gain.ci95, prompts_cropped=cropped[name]
        )
    among = np.mean([oracle in of_item for oracle, of_item in zip(oracles, rows["found"], strict=True)])
    return Reading(n=len(items), layout=layout, oracle_found=float(among), **found)


def index_of(workdir: Path) -> Index:
    """Returns the index of the book's pages in a run's corpus. Raises UserError where that is not in the cache."""
    name = run_record.read_data(workdir).corpus
    if not (corpus := artifact_cache.find(name)):
        raise UserError(f"{name}, the corpus of {workdir}, is not in the cache. Repeat the run's command.")
    return Index.load(index_store(corpus, BOOK, run_dir.say))


def rows_read(index: Index, items: Sequence[Item], oracles: Sequence[int]) -> dict[str, list[list[int]]]:
    """Returns for each way to read the rows of the passages in front of each question, in random order."""
    rng = Random(0)  # the oracle's position must not give it away
    search = index.context([item.question for item in items]).tolist()
    found = list(zip(search, oracles, strict=True))
    with_oracle = [rows if oracle in rows else [*rows[:-1], oracle] for rows, oracle in found]
    return {
        "closed": [[] for _ in items],
        "random": [rng.sample(range(len(index)), len(rows)) for rows in search],
        "found": [rng.sample(rows, len(rows)) for rows in search],
        "oracle": [rng.sample(rows, len(rows)) for rows in with_oracle],
    }


def show_run(workdir: Path, console: Console) -> None:
    """Prints the reading in a run's directory."""
    report = evaluation.read(workdir / "evals" / "reading.json", Reading)
    columns = right("accuracy, % (95% interval)", "gain over closed book, points", "cropped prompts")
    table = Table("passages", *columns, title="reading")
    for name in ("closed", "random", "found", "oracle"):
        found = getattr(report, name)
        gained = evaluation.points(found.gain, found.gain_ci95, 1)
        table.add_row(name, found.shown(1), gained, f"{found.prompts_cropped:,}")
    console.print(table)


def _oracle(index: Index, item: Item, page: Sequence[int]) -> int:
    return page[int(np.argmax(index.scores(f"{item.question} {item.options[item.answer]}")[page]))]
