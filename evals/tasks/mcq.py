"""Multiple choice, closed or open book: CTIBench MCQ, or any items, asked of a run; see docs/scoring.md."""

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from evals.analysis.baselines import nearest_trained
from evals.analysis.report import show
from evals.analysis.verdict import judged
from evals.answering.controls import TRAINED, read_trained_without_questions, trained_without_questions, with_controls
from evals.answering.evaluate import evaluate, putting
from evals.answering.letters import lettered
from evals.answering.prefix_tree import Predict
from evals.items.ctibench import NoItems, find_items, part_of
from evals.open_book.scoring import Book, both_report
from evals.overlap.contamination import HELD_OUT, check, refuse
from ghost_jax.config.load import LETTERED, RANKED
from ghost_jax.core.atomic_io import read_config
from ghost_jax.data.items.formats import read_items
from ghost_jax.data.items.items import Items
from ghost_jax.data.retrieval.mcq_baselines import NEAREST
from ghost_jax.data.storage import artifact_cache
from ghost_jax.parallel import distributed
from ghost_jax.runs import evaluation, run_dir, run_record
from ghost_jax.runs.evaluation import Contamination, Evaluation
from ghost_jax.text.tokenizer import Tokenizer

FACTS = "facts.jsonl"  # in a run directory: the questions of `fact_mcq` in the splits below, which no run is trained on
SPLITS_OF_FACTS = ("validation", "test")
# A dataset whose questions are those of another one
QUESTIONS_OF = {"cot": "mcq", "raft": "mcq", "rank": "mcq", "fact_rank": "fact_mcq", "read": "fact_mcq"}


def evaluate_run(
    predict: Predict,
    tokenizer: Tokenizer,
    workdir: Path,
    data_dir: Path | None,
    *,
    context: int,
    batch_size: int,
    orders: str,
    path: Path | None = None,
    split: str = "all",
    book: Book | None = None,
    reader: str = "model",
    options_only: Path | None = None,
) -> Evaluation:
    """Returns the evaluation of a run on the items at `path`, by default those of `find_items`.

    Args:
      split: the part of CTIBench that is scored, a name in `SPLITS`.
      book: where given, prompts show its lines on each question.
      reader: of the open book, "model", or "both" for the model beside the lexical reader.
      options_only: the run directory of the same recipe trained without questions, the third control.
    """
    items, note = (read_items(path), "") if path else find_items(data_dir, workdir)
    distributed.check_same({"items": items.sha256})
    if options_only:  # before hours of scoring
        without = read_trained_without_questions(options_only, workdir, stem_of(path, split, orders), items)
    if note:
        run_dir.say(note)
    contamination = contamination_of(items, workdir)
    if book:
        book.searched(items)
    items = part_of(items, split)
    layout = read_config(workdir / "config.json")["data"].get("layout", "classic")
    if not book:
        layout = lettered(layout)  # a closed-book score is of letters; `cloze` has the options' texts
    how = {"context": context, "batch_size": batch_size, "layout": layout}
    several = ", then without the question and with another's" if orders != "published" else ""
    unseen = "" if book else ", and with the options not shown"
    run_dir.say(f"asking {len(items):,} questions, orders {orders}{several}{unseen}")
    answers = None
    if book and reader == "both":
        report = both_report(putting(predict, tokenizer, **how), orders, items, book)
    else:
        of_book = {"passages": book.passages, "book": book.name, "book_index": book.described()} if book else {}
        report, answers = evaluate(predict, tokenizer, items, **how, orders=orders, **of_book)
    report = replace(report, note=note, split=split, contamination=contamination, layout=layout)
    report = with_nearest_trained(report, items, workdir)
    if options_only:
        control = trained_without_questions(without, workdir, report, answers, items)
        report = with_controls(report, {TRAINED: control})
    return report


def with_nearest_trained(report: Evaluation, items: Items, workdir: Path) -> Evaluation:
    """Returns the report with the baseline that answers by the questions the run was tuned on, see docs/scoring.md.

    Where a store of theirs is not in the cache, it is left out, and the note says so.
    """
    data, own = run_record.read_data(workdir), read_config(workdir / "config.json")["data"].get("questions", {})
    mixed = {share.name for share in data.mixture if any(share.multiplier)} & {*LETTERED, *RANKED, *own}
    mixed = {QUESTIONS_OF.get(name, name) for name in mixed}
    places = {name: artifact_cache.find(store) for name, store in data.stores.items() if name in mixed}
    if missing := [name for name, place in places.items() if not place]:
        note = f"No baseline by the questions of {', '.join(missing)}, which are not in the cache."
        return replace(report, note=f"{report.note} {note}".strip())
    files = [place / "items-train.jsonl" for place in places.values()]
    trained = [item for file in files if file.is_file() and file.stat().st_size for item in read_items(file)]
    if not trained:
        return report
    shares = nearest_trained(items.items, trained)
    found = {NEAREST: float(np.mean([share[item.answer] for share, item in zip(shares, items, strict=True)]))}
    both = {name: getattr(report, name) | found for name in ("baselines", "baselines_over_orders")}
    return judged(replace(report, **both))


def check_data(workdir: Path, data_dir: Path | None) -> None:
    """Raises UserError where the data that a run is about to be trained on hold the items it will be scored on."""
    with contextlib.suppress(NoItems):  # a base has no held-out questions of its own
        contamination_of(find_items(data_dir, workdir)[0], workdir)


def check_questions(workdir: Path) -> None:
    """Raises UserError where the data of a run hold the questions that `data.questions` holds out."""
    for path in sorted(workdir.glob("questions-*.jsonl")):
        contamination_of(read_items(path), workdir)


def contamination_of(items: Items, workdir: Path) -> Contamination:
    """Returns what the data that a run was trained on hold of the items.

    Raises UserError where they hold an item together with its answer.
    """
    facts = workdir / FACTS
    own = facts.is_file() and artifact_cache.sha256_of(facts) == items.sha256
    held_out = SPLITS_OF_FACTS if own else HELD_OUT
    stores = {name: artifact_cache.find(name) for name in run_record.read_data(workdir).trained_on}
    result = check(items, [place for place in stores.values() if place], held_out)
    refuse(result)
    missing = [name for name, place in stores.items() if not place]
    if missing:
        result["verdict"] = f"not known: of {len(stores)} stores that the run learnt from, {len(missing)} are not here."
    return evaluation.from_json(result | {"not_searched": missing}, Contamination)


def stem_of(
    path: Path | None, split: str = "all", orders: str = "cyclic", book: str = "closed", reader: str = "model"
) -> str:
    """Returns the name of a report in a run's `evals/`: "ctibench", "ctibench-published", "ctibench-open-model"."""
    parts = [path.stem if path else "ctibench"]
    if split != "all":
        parts.append(split)
    if orders != "cyclic":
        parts.append(orders)
    if book != "closed":
        parts += [book if book == "open" else f"own-{artifact_cache.fingerprint(book)[:8]}", reader]
    return "-".join(parts)


def show_run(workdir: Path, console: Console) -> None:
    """Prints the evaluation in a run's directory."""
    show(evaluation.read(workdir / "evals" / "ctibench.json"), console)
