"""Diagnoses the predictions of any model: `python -m evals.audit --items=FILE --predictions=FILE`.

A single column is reported in full; several have a row each. `evals/analysis/predictions.py` describes the file.
"""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Column, Table

from evals.analysis.predictions import read_predictions
from evals.analysis.report import print_line, report_of, right, show, show_blemishes
from ghost_jax.core.atomic_io import write_json
from ghost_jax.core.console import make_console
from ghost_jax.core.errors import command, parser_of
from ghost_jax.core.paths import local_path
from ghost_jax.data.items.formats import read_items
from ghost_jax.data.items.items import orders_label
from ghost_jax.runs.evaluation import Evaluation, PredictionsFile, percent, to_json


def show_several(reports: list[Evaluation], console: Console) -> None:
    """Prints several reports on the same items, a row each, and the baselines below them."""
    first = reports[0]
    ways = {orders_label(report.headline.orders): report for report in reports}
    show_blemishes(first, console)
    one_way = f", {orders_label(first.headline.orders)}" if len(ways) == 1 else ""
    print_line(console, f"{first.items.name}: {first.n:,} questions{one_way}")
    doubts = ["sure gold"] * bool(first.without_doubtful_gold)
    asked = ["asked"] * (len(ways) > 1)
    numbers = right(*asked, "accuracy, %", "balanced", "top letter", "no letter", "longest/not", *doubts, no_wrap=True)
    table = Table(Column("predictions", overflow="fold", min_width=16), *numbers, Column("verdict"))
    for report in reports:
        letter, share = report.top_letter
        by_length = [report.gold_longest.get(group) for group in ("longest", "not longest")]
        table.add_row(
            report.predictions_file.name,
            *[orders_label(report.headline.orders) for _ in asked],
            report.headline.shown(),
            percent(report.balanced_accuracy, digits=2),
            f"{letter} {100 * share:.1f}%",
            f"{100 * report.no_letter:.1f}%",
            "/".join(percent(group.accuracy) if group else "—" for group in by_length),
            *[percent(report.without_doubtful_gold.accuracy, digits=2) for _ in doubts],
            report.verdict_text.partition(":")[0],
        )
    console.print(table)
    print_line(console, "longest/not: accuracy where the gold option is the longest, and where it is not")
    if sure := first.without_doubtful_gold:
        print_line(console, f"sure gold: accuracy without the {first.n - sure.n:,} questions whose gold is in doubt")
    for way, report in ways.items():
        baselines = report.baselines_over_orders.items()
        listed = ", ".join(f"{name.replace('_', ' ')} {100 * accuracy:.2f}" for name, accuracy in baselines)
        print_line(console, f"without a model, {way}, %: {listed}")
    missing = ", ".join(first.controls_missing)
    print_line(console, f"Nothing here is called knowledge, because controls are missing: {missing}.")


@command
def main(argv: Sequence[str]) -> int:
    """Diagnoses predictions for multiple-choice items: collapse, shortcuts, and what the accuracy is worth."""
    parser = parser_of(main)
    option = parser.add_argument
    option("--items", required=True, type=local_path, metavar="FILE", help="the benchmark that was answered")
    option("--predictions", required=True, type=local_path, metavar="FILE", help=".tsv, .csv or .jsonl")
    option("--column", metavar="NAME", help="audit this column alone (default: all that hold answers)")
    option("--out", type=local_path, metavar="FILE", help="writes the report as JSON")
    flags = parser.parse_args(argv)

    items = read_items(flags.items)
    read = read_predictions(flags.predictions, items, column=flags.column)
    reports = []
    for each in read:
        file = PredictionsFile(file=flags.predictions.name, name=each.name, lower_case=each.lower_case)
        reports.append(report_of(each.answers, items, reader="predictions", predictions_file=file))
    console = make_console()
    if len(reports) == 1:
        show(reports[0], console)
    else:
        show_several(reports, console)
    for each in read:
        if each.lower_case:
            print_line(console, f"{each.name}: {each.lower_case:,} lower-case letters read")
    if flags.out:
        by_name = {report.predictions_file.name: to_json(report) for report in reports}
        write_json(flags.out, to_json(reports[0]) if len(reports) == 1 else {"predictions": by_name})
        print(f"written to {flags.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
