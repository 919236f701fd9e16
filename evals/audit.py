"""The diagnostics for predictions of any model, ours or not: `python -m evals.audit --items=FILE --predictions=FILE`.

A single column is reported in full; several are set beside one another, a row each. What a predictions file may hold
stands in `evals/analysis/predictions.py`.
"""

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evals.analysis.predictions import Predictions, read_predictions
from evals.analysis.report import asked_in, report_of, show
from evals.analysis.verdict import words_of
from evals.items.formats import read_items
from evals.items.items import Items
from ghost_jax.core.atomic_io import write_json
from ghost_jax.core.console import make_console
from ghost_jax.core.errors import command
from ghost_jax.core.paths import local_path


def audit(predictions: Predictions, items: Items, file: str) -> dict:
    """Returns the report of `evals.analysis.report`, and under `read` what was read from where."""
    read = {"file": file, "name": predictions.name, "lower_case": predictions.lower_case}
    # Nobody who only sends letters can show that the book was closed; it is how answers are published.
    return report_of(predictions.answers, items) | {"book": "closed", "reader": "predictions", "predictions_file": read}


def show_several(reports: list[dict], console: Console) -> None:
    """Prints several reports on the same items, a row each, and below them what is scored without reading."""
    ways = {asked_in(report): report for report in reports}

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    say(f"{reports[0]['items']['name']}: {reports[0]['n']:,} questions{f', {next(iter(ways))}' * (len(ways) == 1)}")
    table = Table()
    table.add_column("predictions", overflow="fold")
    for column in ["asked"] * (len(ways) > 1) + ["accuracy, %", "balanced", "top letter", "no letter", "longest/not"]:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for report in reports:
        low, high = report["headline"]["ci95"]
        letter, share = max(report["letter_share"].items(), key=lambda each: each[1])
        by_length = [report["gold_longest"].get(group) for group in ("longest", "not longest")]
        table.add_row(
            escape(report["predictions_file"]["name"]),
            *[asked_in(report)] * (len(ways) > 1),
            f"{100 * report['headline']['accuracy']:.2f} ({100 * low:.1f} to {100 * high:.1f})",
            f"{100 * report['balanced_accuracy']:.2f}",
            f"{letter} {100 * share:.1f}%",
            f"{100 * report['no_letter']:.1f}%",
            "/".join(f"{100 * group['accuracy']:.1f}" if group else "—" for group in by_length),
            words_of(report).partition(":")[0],
        )
    console.print(table)
    say("longest/not: accuracy where the gold option is the longest, and where it is not")
    for asked, report in ways.items():
        reached = report["baselines_over_orders"].items()
        listed = ", ".join(f"{name.replace('_', ' ')} {100 * accuracy:.2f}" for name, accuracy in reached)
        say(f"without the question, {asked}, %: {listed}")
    say(f"Nothing here is called knowledge, because controls are missing: {', '.join(reports[0]['controls_missing'])}.")


@command
def main(argv: Sequence[str]) -> int:
    """Diagnoses predictions for multiple-choice items: collapse, shortcuts, and what the accuracy is worth."""
    parser = argparse.ArgumentParser(prog="python -m evals.audit", description=main.__doc__)
    parser.add_argument(
        "--items", required=True, type=local_path, metavar="FILE", help="the benchmark that was answered"
    )
    parser.add_argument("--predictions", required=True, type=local_path, metavar="FILE", help=".tsv, .csv or .jsonl")
    parser.add_argument("--column", metavar="NAME", help="audit this column alone (default: all that hold answers)")
    parser.add_argument("--order", metavar="CBDA", help="the new letter of each option in turn (default: as published)")
    parser.add_argument("--out", type=local_path, metavar="FILE", help="writes the report as JSON")
    flags = parser.parse_args(argv)

    items = read_items(flags.items)
    read = read_predictions(flags.predictions, items, column=flags.column, order=flags.order)
    reports = [audit(predictions, items, flags.predictions.name) for predictions in read]
    console = make_console()
    if len(reports) == 1:
        show(reports[0], console)
    else:
        show_several(reports, console)
    for report in reports:
        if small := report["predictions_file"]["lower_case"]:
            console.print(f"{report['predictions_file']['name']}: {small:,} lower-case letters read", markup=False)
    if flags.out:
        whole = {"predictions": {each["predictions_file"]["name"]: each for each in reports}}
        write_json(flags.out, reports[0] if len(reports) == 1 else whole)
        print(f"written to {flags.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
