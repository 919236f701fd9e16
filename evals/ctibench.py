"""Scores a run on CTIBench, or on any items: `python -m evals.ctibench --workdir=runs/NAME`; see docs/scoring.md.

It also scores a model behind an API (`--endpoint`), the lexical reader (`--book=open --reader=lexical`), and free-text
answers (`--task`).
"""

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from evals.analysis.report import show
from evals.items.answers import ORDERS
from evals.items.ctibench import SPLITS, find_items, part_of
from evals.open_book.scoring import Book, lexical_report, show_evidence, show_open
from evals.tasks import TASKS, open_answers
from evals.tasks.mcq import contamination_of, evaluate_run, stem_of
from ghost_jax.core import jax_setup
from ghost_jax.core.atomic_io import write_text
from ghost_jax.core.console import make_console
from ghost_jax.core.errors import UsageError, UserError, command, parser_of, positive
from ghost_jax.core.object_store import path_of
from ghost_jax.core.paths import local_path
from ghost_jax.data.items.formats import read_items
from ghost_jax.data.items.items import Items
from ghost_jax.data.storage.artifact_cache import sha256_of
from ghost_jax.inference.generate import Generator
from ghost_jax.parallel.mesh import make_mesh
from ghost_jax.runs import evaluation, run_dir
from ghost_jax.runs.evaluation import EndpointModel, Evaluation, TaskEvaluation
from ghost_jax.text.chat_format import Message, render_prompt
from ghost_jax.training.loading import load_chat_model
from ghost_jax.training.step import make_predict

READERS = ("model", "lexical", "both")
LETTER_TOKENS, TASK_TOKENS = 64, 1024  # of a reply

# What is scored, and the flags that it has beside the common ones: for answers by letter, and for free text.
RUN, READING_RUN, LEXICAL = "a run (--workdir)", "a run with a book (--book)", "the lexical reader (--reader=lexical)"
ENDPOINT, SHEET, BASELINES = "an endpoint (--endpoint)", "a sheet (--predictions)", "the baselines"
COMMON = {"task", "items", "data_dir", "out"}
OF_LETTERS = {
    RUN: {"workdir", "batch_size", "orders", "split", "options_only"},
    READING_RUN: {"workdir", "batch_size", "orders", "split", "book", "reader"},
    LEXICAL: {"split", "book", "reader", "evidence", "controls"},
    ENDPOINT: {"endpoint", "model", "concurrency", "max_tokens", "orders", "split"},
}
OF_TEXTS = {
    RUN: {"workdir", "max_tokens"},
    ENDPOINT: {"endpoint", "model", "concurrency", "max_tokens"},
    SHEET: {"predictions", "column"},
}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the flags. Raises UsageError where they do not go together."""
    parser = parser_of(main)
    option = parser.add_argument
    option("--workdir", type=path_of, metavar="DIR", help="the run, e.g. runs/chat_v5-nano")
    option("--items", type=local_path, metavar="FILE", help="items (.tsv, .jsonl, …) instead of CTIBench")
    option("--data_dir", type=path_of, metavar="DIR", help="folder with ctibench/ (default: $GHOST_DATA)")
    option("--batch_size", type=positive, default=16, help="rows a forward pass (default: 16)")
    option("--orders", choices=ORDERS, default="cyclic", help="default: cyclic")
    option("--book", default="closed", metavar="BOOK", help="closed (default), open, or your files: FOLDER,cwe,…")
    option("--reader", choices=READERS, default="model", help="of the book (default: model)")
    option("--split", choices=SPLITS, default="all", help="of CTIBench, docs/scoring.md (default: all)")
    option("--evidence", action="store_true", help="print the lines that each lexical answer rests on")
    option("--controls", action="store_true", help="the lexical reader on other lines as well: minutes")
    option("--options_only", type=path_of, metavar="DIR", help="the recipe trained with data.layout=options_only")
    option("--task", choices=("mcq", *TASKS, "taa"), default="mcq", help="of CTIBench (default: mcq)")
    option("--predictions", type=local_path, metavar="FILE", help="answers to --task=rcm, vsp or ate; else baselines")
    option("--column", metavar="NAME", help="the column of --predictions with the answers")
    option("--out", type=local_path, metavar="FILE", help="the JSON report (default: in the run's evals/)")
    option("--endpoint", metavar="URL", help="an OpenAI-compatible API, http://HOST/v1; its key: $OPENAI_API_KEY")
    option("--model", metavar="NAME", help="the endpoint's name of the model")
    option("--concurrency", type=positive, default=8, metavar="N", help="requests to it at once (default: 8)")
    option("--max_tokens", type=positive, metavar="N", help="of a reply (default: 64, of a --task 1,024)")
    flags = parser.parse_args(argv)
    if flags.task == "taa":
        raise UsageError("TAA cannot be scored: its published file has no gold column (URL, Text, Prompt).")
    if flags.task == "mcq" and flags.predictions:
        raise UsageError("--predictions belongs to --task=rcm, vsp and ate. Use evals.audit for letters.")
    kind, known = kind_of(flags), OF_LETTERS if flags.task == "mcq" else OF_TEXTS
    given = {name for name, value in vars(flags).items() if value != parser.get_default(name)}
    if others := sorted(given - COMMON - known.get(kind, set())):
        owners = [owner for owner, its in known.items() if others[0] in its]
        where = f"it belongs to {', '.join(owners)}" if owners else "another --task has it"
        raise UsageError(f"--{others[0]} does not go with --task={flags.task} of {kind}: {where}.")
    if flags.reader != "model" and flags.book == "closed":
        raise UsageError(f"The reader {flags.reader} reads a book: add --book=open.")
    if kind in (RUN, READING_RUN) and not flags.workdir:
        raise UsageError(
            "There is no model to score. Name a run with --workdir, or a model behind an API with --endpoint; only "
            "--book=open --reader=lexical needs none."
        )
    if kind == ENDPOINT and not (flags.out and flags.model):
        raise UsageError("--endpoint needs --model=NAME and --out=FILE; its raw answers are kept beside that report.")
    if flags.out and flags.out.is_dir():
        raise UsageError(f"--out={flags.out} is a folder. Name the file of the report.")
    return flags


def kind_of(flags: argparse.Namespace) -> str:
    """Returns what the flags ask to score."""
    if flags.predictions:
        return SHEET
    if flags.endpoint is not None:
        return ENDPOINT
    if flags.reader == "lexical":
        return LEXICAL
    if flags.reader != "model" or flags.book != "closed":
        return READING_RUN
    return RUN if flags.workdir or flags.task == "mcq" else BASELINES


def score_task(flags: argparse.Namespace, console: Console) -> None:
    """Prints and writes the evaluation of free-text answers to a task, or of its baselines."""
    task = TASKS[flags.task]
    items = open_answers.read_task(task, flags.items, flags.data_dir)
    out = flags.out
    if flags.workdir and not out:
        out = flags.workdir / "evals" / f"{items.name.removesuffix('.tsv')}.json"
        check_place(out, items.sha256, f"rename {items.path}", TaskEvaluation)
    answers, fields = None, {}
    if flags.predictions:
        answers, fields["predictions_file"] = open_answers.read_answers(task, items, flags.predictions, flags.column)
    rivals = task.baselines(items, flags.data_dir)  # first: their data may be missing, and asking a model takes hours
    if flags.endpoint:
        answers, fields["endpoint"] = ask_endpoint(flags, items)
    elif flags.workdir:
        answers, fields = ask_run(flags, items)
        lines = [json.dumps({"id": item.id, "text": text}) for item, text in zip(items, answers, strict=True)]
        write_text(out.with_suffix(".answers.jsonl"), "\n".join([*lines, ""]))
    report = open_answers.score(task, items, answers, rivals, **fields)
    open_answers.show(report, console)
    if out:
        evaluation.write(out, report)
        print(f"written to {out}")


def ask_run(flags: argparse.Namespace, items: open_answers.TaskItems) -> tuple[list[str], dict]:
    """Returns what a run writes to the prompts of a task, and fields of the evaluation."""
    contamination = contamination_of(open_answers.as_questions(items), flags.workdir)
    jax_setup.set_up()
    mesh = make_mesh()
    model, params, step, tokenizer = load_chat_model(flags.workdir, mesh)
    new_tokens = min(flags.max_tokens or TASK_TOKENS, model.context // 2)
    generate = Generator(model, params, mesh, batch_size=32, new_tokens=new_tokens, stop_ids=tokenizer.special_ids)
    prompts = [render_prompt(tokenizer, [Message("user", item.prompt)]) for item in items]
    most = model.context - new_tokens
    texts = [tokenizer.decode(ids) for ids in generate([prompt[-most:] for prompt in prompts])]
    cropped = sum(len(prompt) > most for prompt in prompts)
    return texts, {"contamination": contamination, "prompts_cropped": cropped, "step": step}


def ask_endpoint(flags: argparse.Namespace, items: open_answers.TaskItems) -> tuple[list[str], EndpointModel]:
    """Returns what a model behind an API writes to the prompts of a task, and the model."""
    from evals.answering import endpoint  # not above: importing openai takes a second

    api = endpoint.open_api(flags.endpoint, flags.model, flags.out, flags.concurrency)
    prompts = {item.prompt: item.id for item in items}
    replies, model = endpoint.ask_all(api, prompts, flags.max_tokens or TASK_TOKENS, extra={})
    return [replies[item.prompt].reply for item in items], model


def place_of(flags: argparse.Namespace) -> Path | None:
    """Returns the file of the report, None where it is only printed.

    Raises UserError where it is a report on other items, except that CTIBench takes the place of held-out questions.
    """
    if flags.out or not flags.workdir:
        return flags.out
    name = stem_of(flags.items, flags.split, flags.orders, flags.book, flags.reader)
    place = flags.workdir / "evals" / f"{name}.json"
    if flags.items:
        if not flags.items.is_file():
            raise UserError(f"There is no file {flags.items}. Name a file of questions with --items.")
        check_place(place, sha256_of(flags.items), f"rename {flags.items}")
    elif place.is_file():
        items, note = find_items(flags.data_dir, flags.workdir)
        if note:
            check_place(place, items.sha256, "set GHOST_DATA to the folder that holds ctibench/")
    return place


def check_place(place: Path, sha256: str, fix: str, kind: type = Evaluation) -> None:
    """Raises UserError where `place` holds a report on other items than those of this hash."""
    if place.is_file() and (before := evaluation.read(place, kind).items).sha256 != sha256:
        raise UserError(
            f"{place} is the report on other items, {before.file}. Name another file with --out=FILE, or {fix}."
        )


def benchmark(flags: argparse.Namespace) -> Items:
    """Returns the items that are scored without a run: those of --items, else CTIBench, or the split of it."""
    items = read_items(flags.items) if flags.items else find_items(flags.data_dir, None)[0]
    return part_of(items, flags.split)


def score_lexical(flags: argparse.Namespace, console: Console) -> Evaluation:
    """Returns the evaluation of the lexical reader, and prints its evidence where that is asked for."""
    items = benchmark(flags)
    book = Book.open(flags.book, flags.data_dir)
    report, reads = lexical_report(items, book, flags.split, controls=flags.controls)
    if flags.evidence:
        show_evidence(items, reads, book, console)
    return report


def score_endpoint(flags: argparse.Namespace) -> Evaluation:
    """Returns the evaluation of a model behind an API."""
    from evals.answering import endpoint  # not above: importing openai takes a second

    api = endpoint.open_api(flags.endpoint, flags.model, flags.out, flags.concurrency)
    max_tokens = flags.max_tokens or LETTER_TOKENS
    report = endpoint.evaluate(benchmark(flags), api, orders=flags.orders, max_tokens=max_tokens)
    return replace(report, split=flags.split)


def score_run(flags: argparse.Namespace) -> Evaluation:
    """Returns the evaluation of a run."""
    mesh = make_mesh()
    model, params, step, tokenizer = load_chat_model(flags.workdir, mesh)
    report = evaluate_run(
        functools.partial(make_predict(model, params, mesh), params),
        tokenizer,
        flags.workdir,
        flags.data_dir,
        context=model.context,
        batch_size=flags.batch_size,
        orders=flags.orders,
        path=flags.items,
        split=flags.split,
        book=Book.open(flags.book, flags.data_dir) if flags.book != "closed" else None,
        reader=flags.reader,
        options_only=flags.options_only,
    )
    return replace(report, step=step)


@command
def main(argv: Sequence[str]) -> int:
    """Scores a run, an endpoint or the lexical reader on CTIBench or on items of your own."""
    flags = parse(argv)
    console = make_console()
    if flags.task != "mcq":
        return score_task(flags, console)
    jax_setup.set_up()
    out = place_of(flags)
    if flags.endpoint is not None:
        report = score_endpoint(flags)
    else:
        report = score_lexical(flags, console) if flags.reader == "lexical" else score_run(flags)
    show(report, console)
    show_open(report, console)
    if out:
        evaluation.write(out, replace(report, machine=run_dir.machine()))
        print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
