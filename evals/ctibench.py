"""CTIBench MCQ, or any items, for a run: `python -m evals.ctibench --workdir=runs/NAME`.

The model is asked every question in the cyclic shifts of its options, once more without the question and with
another's, and with the options not shown. What the answers are worth is worked out in `evals/diagnosis.py`.

With `--book=open` it reads what a search finds in front of each question. The lexical reader needs no model:
`python -m evals.ctibench --book=open --reader=lexical`.
"""

import argparse
import contextlib
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from evals import matching
from evals.answers import ORDERS
from evals.asking import check_options, evaluate, putting
from evals.contamination import HELD_OUT, check, refuse
from evals.controls import TRAINED, check_trained_without_questions, trained_without_questions, with_controls
from evals.diagnosis import show
from evals.find import NoItems, find_items
from evals.formats import read_items
from evals.items import Items
from evals.open_book.scoring import Book, both_report, lexical_report, show_evidence, show_open
from evals.score import lettered
from evals.splits import SPLITS, part_of
from evals.trees import Predict
from ghost_jax import run_dir, runtime
from ghost_jax.checkpoint import load_model
from ghost_jax.data import store
from ghost_jax.errors import UsageError, UserError, command
from ghost_jax.generate import Generator
from ghost_jax.parallel.mesh import make_mesh
from ghost_jax.paths import local_path
from ghost_jax.progress import make_console
from ghost_jax.step import make_predict
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.text.tokenizer import Tokenizer
from ghost_jax.whole import read_config, read_json, write_json

READERS = ("model", "lexical", "both")


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
    generate: matching.Generate | None = None,
    held_out: Sequence[str] = HELD_OUT,
) -> dict:
    """Returns the report of a run on the items at `path`, by default those of `find_items`.

    Args:
      split: the part of CTIBench that is scored, a name in `SPLITS`.
      book: where given, prompts show what it has on each question.
      reader: of the open book, "model", or "both" for the model beside the lexical reader.
      options_only: the run directory of the same recipe trained without questions, the third control.
      generate: where free answers are wanted as well.
      held_out: the splits that hold the items and that the run is not trained on.
    """
    if options_only:  # before hours of scoring
        check_trained_without_questions(options_only, workdir, stem_of(path))
    items, note = (read_items(path), "") if path else find_items(data_dir, workdir)
    if note:
        run_dir.say(note)
    contamination = contamination_of(items, workdir, held_out)
    items = part_of(items, split)
    layout = read_config(workdir / "config.json")["data"].get("layout", "classic")
    if not book:
        layout = lettered(layout)  # a closed-book score is one of letters; the options' texts stand beside it
    how = {"context": context, "batch_size": batch_size, "layout": layout}
    several = ", then without the question and with another's" if orders != "published" else ""
    unseen = "" if book else ", and with the options not shown"
    run_dir.say(f"asking {len(items):,} questions, orders {orders}{several}{unseen}")
    if book and reader == "both":
        report = both_report(putting(predict, tokenizer, **how), orders, items, book, run_dir.say) | {"layout": layout}
    else:
        passages = book.passages if book else None
        report, answers = evaluate(predict, tokenizer, items, **how, orders=orders, passages=passages)
        report |= {"book_index": book.described()} if book else {}
    if options_only:
        control = trained_without_questions(options_only, workdir, stem_of(path), report, answers, items)
        report = with_controls(report, {TRAINED: control})
    if generate:
        report["matching"] = matching.evaluate(generate, tokenizer, items.items, context=context)
    return report | {"note": note, "split": split, "contamination": contamination}


def check_data(workdir: Path, data_dir: Path | None) -> None:
    """Raises UserError where the data that a run is about to be trained on hold the items it will be scored on."""
    with contextlib.suppress(NoItems):  # a base has no held-out questions of its own
        contamination_of(find_items(data_dir, workdir)[0], workdir)


def contamination_of(items: Items, workdir: Path, held_out: Sequence[str] = HELD_OUT) -> dict:
    """Returns what the data that a run was trained on hold of the items, and which of it was not there to search.

    Raises UserError where they hold an item together with its answer.
    """
    names = read_json(workdir / "data.json").get("trained_on")
    if names is None:
        raise UserError(
            f"{workdir}/data.json does not say which stores the run learnt from: an older version wrote it. Train the "
            "run anew, and score that."
        )
    stores = {name: store.find(name) for name in names}
    result = check(items, [place for place in stores.values() if place], held_out)
    refuse(result)
    missing = [name for name, place in stores.items() if not place]
    if missing:
        told = f"not known: of {len(stores)} stores that the run learnt from, {len(missing)} are not here."
        result |= {"verdict": told}
    return result | {"not_searched": missing}


def stem_of(path: Path | None) -> str:
    """Returns the name, without ".json", of the report on the items at `path` in a run's `evals/`."""
    return path.stem if path else "ctibench"


def show_run(workdir: Path, console: Console) -> None:
    """Prints the report that a run's directory holds. Raises UserError for one of an older version."""
    report = read_json(workdir / "evals" / "ctibench.json")
    if "baselines" not in report:
        raise UserError(
            f"{workdir} was scored by version {report.get('ghost_jax')}, whose report lacks what is shown now. Score "
            f"it again: python -m evals.ctibench --workdir={workdir}."
        )
    show(report, console)


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
    runtime.set_up()  # the record names the machine, which JAX is asked for
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
def main() -> int:
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
    parser.add_argument("--split", choices=SPLITS, default="all", help="of CTIBench, see WORKSPACE.md (default: all)")
    parser.add_argument("--evidence", action="store_true", help="print the lines that each lexical answer rests on")
    parser.add_argument("--controls", action="store_true", help="the lexical reader on other lines as well: minutes")
    parser.add_argument(
        "--options_only", type=local_path, metavar="DIR", help="the same recipe trained with data.layout=options_only"
    )
    parser.add_argument("--matching", action="store_true", help="also let the model answer freely, options not shown")
    parser.add_argument("--out", type=local_path, metavar="FILE", help="the JSON report (default: in the run's evals/)")
    flags = parser.parse_args()
    check_flags(flags)
    if flags.reader == "lexical":
        return main_lexical(flags)

    runtime.set_up()
    mesh = make_mesh()
    model, params, step = load_model(flags.workdir, mesh)
    tokenizer = tokenizer_lib.load(flags.workdir / "tokenizer.json")
    if not tokenizer.has_roles:
        raise UserError(f"{flags.workdir} is a base model without a chat format. Score a chat run made from it.")
    new_tokens = matching.NEW_TOKENS
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
