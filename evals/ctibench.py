"""CTIBench MCQ, or any items, for a run: `python -m evals.ctibench --workdir=runs/NAME`.

The model is asked every question in the cyclic shifts of its options, once more without the question and with
another's, and with the options not shown. What the answers are worth is worked out in `evals/analysis/report.py`.

With `--book=open` it reads what a search finds in front of each question. The lexical reader needs no model:
`python -m evals.ctibench --book=open --reader=lexical`.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from evals.analysis.report import show
from evals.answering import free_text
from evals.answering.evaluate import check_options
from evals.items.answers import ORDERS
from evals.items.formats import read_items
from evals.items.locate import find_items
from evals.items.splits import SPLITS, part_of
from evals.open_book.scoring import Book, lexical_report, show_evidence, show_open
from evals.tasks.mcq import evaluate_run, stem_of
from ghost_jax.core import jax_setup
from ghost_jax.core.atomic_io import write_json
from ghost_jax.core.console import make_console
from ghost_jax.core.errors import UsageError, UserError, command
from ghost_jax.core.paths import local_path
from ghost_jax.inference.generate import Generator
from ghost_jax.parallel.mesh import make_mesh
from ghost_jax.runs import run_dir
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.training.checkpoint import load_model
from ghost_jax.training.step import make_predict

READERS = ("model", "lexical", "both")


def report_name(flags: argparse.Namespace) -> str:
    """Returns the name of a report in a run's `evals/`: "ctibench", "ctibench-published", "ctibench-open-model"."""
    unusual = [
        *([flags.split] if flags.split != "all" else []),
        *([flags.orders] if flags.orders != "cyclic" else []),
        *(["open", flags.reader] if flags.book == "open" else []),
    ]
    return "-".join([stem_of(flags.items), *unusual])


def check_flags(flags: argparse.Namespace) -> None:
    """Raises UsageError where flags contradict each other, so that none is passed over in silence."""
    check_options(flags.batch_size, flags.orders)
    lexical = flags.reader == "lexical"
    if flags.reader != "model" and flags.book == "closed":
        raise UsageError(f"The reader {flags.reader} reads a book: add --book=open.")
    if not flags.workdir and not lexical:
        raise UsageError("Name the run to score with --workdir; only --book=open --reader=lexical needs none.")
    if lexical and (flags.workdir or flags.options_only or flags.matching or flags.orders != "cyclic"):
        raise UsageError(
            "The lexical reader is no model: leave --workdir, --options_only, --matching and --orders out."
        )
    if not lexical and (flags.evidence or flags.controls):
        raise UsageError("--evidence and --controls are the lexical reader's: add --book=open --reader=lexical.")
    if flags.book == "open" and (flags.options_only or flags.matching):
        raise UsageError("--options_only and --matching are asked with the book closed: leave --book=open out.")


def main_lexical(flags: argparse.Namespace) -> int:
    """Scores the lexical reader, which needs the data alone."""
    jax_setup.set_up()  # the record names the machine, which JAX is asked for
    items = read_items(flags.items) if flags.items else find_items(flags.data_dir, Path())[0]
    book = Book.open(flags.data_dir, run_dir.say)
    report, reads = lexical_report(items, book, flags.split, run_dir.say, controls=flags.controls)
    console = make_console()
    if flags.evidence:
        show_evidence(part_of(items, flags.split), reads, book, console)
    show(report, console)
    show_open(report, console)
    if flags.out:
        write_json(flags.out, report | {"machine": run_dir.machine()})
        print(f"written to {flags.out}")
    return 0


@command
def main(argv: Sequence[str]) -> int:
    """Scores a run, or the open-book reader, on CTIBench MCQ or on items of your own."""
    parser = argparse.ArgumentParser(prog="python -m evals.ctibench", description=main.__doc__)
    parser.add_argument("--workdir", type=local_path, metavar="DIR", help="the run, e.g. runs/chat_v5-nano")
    parser.add_argument("--items", type=local_path, metavar="FILE", help="items (.tsv, .jsonl, …) instead of CTIBench")
    parser.add_argument(
        "--data_dir", type=local_path, metavar="DIR", help="folder with ctibench/ (default: $GHOST_DATA)"
    )
    parser.add_argument("--batch_size", type=int, default=16, help="rows a forward pass (default: 16)")
    parser.add_argument("--orders", choices=ORDERS, default="cyclic", help="default: cyclic")
    parser.add_argument("--book", choices=("closed", "open"), default="closed", help="default: closed")
    parser.add_argument("--reader", choices=READERS, default="model", help="of the open book (default: model)")
    parser.add_argument("--split", choices=SPLITS, default="all", help="of CTIBench, docs/scoring.md (default: all)")
    parser.add_argument("--evidence", action="store_true", help="print the lines that each lexical answer rests on")
    parser.add_argument("--controls", action="store_true", help="the lexical reader on other lines as well: minutes")
    parser.add_argument(
        "--options_only", type=local_path, metavar="DIR", help="the same recipe trained with data.layout=options_only"
    )
    parser.add_argument("--matching", action="store_true", help="also let the model answer freely, options not shown")
    parser.add_argument("--out", type=local_path, metavar="FILE", help="the JSON report (default: in the run's evals/)")
    flags = parser.parse_args(argv)
    check_flags(flags)
    if flags.reader == "lexical":
        return main_lexical(flags)

    jax_setup.set_up()
    mesh = make_mesh()
    model, params, step = load_model(flags.workdir, mesh)
    tokenizer = tokenizer_lib.load(flags.workdir / "tokenizer.json")
    if not tokenizer.has_roles:
        raise UserError(f"{flags.workdir} is a base model without a chat format. Score a chat run made from it.")
    new_tokens = free_text.NEW_TOKENS
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
        book=Book.open(flags.data_dir, run_dir.say) if flags.book == "open" else None,
        reader=flags.reader,
        options_only=flags.options_only,
        generate=Generator(model, params, mesh, batch_size=32, new_tokens=new_tokens, stop_ids=tokenizer.end_ids)
        if flags.matching
        else None,
    )
    out = flags.out or flags.workdir / "evals" / f"{report_name(flags)}.json"
    write_json(out, report | {"step": step, "machine": run_dir.machine()})
    console = make_console()
    show(report, console)
    show_open(report, console)
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
