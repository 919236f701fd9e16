"""Compares runs item by item: `python -m evals.compare --runs=A,B[,C…] [--items=FILE]`.

`evals/analysis/comparison.py` computes the comparison; here it is shown and written.
"""

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import ghost_jax
from evals.analysis.comparison import compare, orders_per_item, p_shown, rows_of
from evals.analysis.recorded import check_alike, items_of, read_reports
from evals.analysis.report import print_line, right
from ghost_jax.core.atomic_io import write_json
from ghost_jax.core.console import make_console
from ghost_jax.core.errors import command
from ghost_jax.core.paths import local_path
from ghost_jax.reporting.tables import NONE
from ghost_jax.runs.evaluation import interval, percent, points


def show(comparison: dict, console: Console) -> None:
    """Prints a comparison as a table, with a sentence for each row and the notes below."""
    orders = orders_per_item(comparison["orders"])
    asked = f"{comparison['n']:,} questions in {orders} order{'s' if orders > 1 else ''}, {comparison['book']} book"
    print_line(console, f"{comparison['items']['name']}: {asked}")
    rows = comparison["rows"]
    several = any(row["seeds"]["n"] > 1 for row in rows)
    numbers = ("accuracy, %", *["over seeds"] * several, "difference", "p", "Holm's p", "detectable")
    table = Table("", *right(*numbers))
    for row in rows:
        seeds = row["seeds"]
        spread = f"{interval(seeds['min'], seeds['max'])}, sd {100 * seeds['sd']:.1f}" if seeds["n"] > 1 else NONE
        table.add_row(
            f"{escape(row['name'])} [bold]{row['collapsed']}[/bold]",
            percent(row["accuracy"], row["ci95"]),
            *[spread] * several,
            *_against(row["against_reference"]),
        )
    console.print(table)
    for row in rows[1:]:
        print_line(console, row["against_reference"]["text"])
    for note in comparison["notes"]:
        print_line(console, note, "dim")


def _against(against: dict | None) -> tuple[str, ...]:
    if against is None:
        return ("reference", *[NONE] * 3)
    return (
        points(against["mean"], against["ci95"], 1),
        p_shown(against["p"]),
        p_shown(against["p_holm"]),
        NONE if against["detectable"] is None else f"{100 * against['detectable']:.1f}",
    )


@command
def main(argv: Sequence[str]) -> int:
    """Compares runs that were scored on the same items with the first of them."""
    parser = argparse.ArgumentParser(prog="python -m evals.compare", description=main.__doc__)
    option = parser.add_argument
    option("--runs", required=True, metavar="A,B", help="run directories or reports; first: reference")
    option("--items", type=local_path, metavar="FILE", help="the items, and so evals/<its name>.json of each run")
    option("--out", type=local_path, metavar="FILE", help="the comparison as JSON")
    flags = parser.parse_args(argv)

    places = [place for place in str(flags.runs).split(",") if place]
    reports = read_reports(places, flags.items.stem if flags.items else "ctibench")
    check_alike(reports)
    items = items_of(reports, flags.items)
    comparison = compare(rows_of(reports, items), items)
    show(comparison, make_console())
    if flags.out:
        write_json(flags.out, {"ghost_jax": ghost_jax.__version__} | comparison)
        print(f"written to {flags.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
