"""Compares runs item by item: `python -m evals.compare --runs=A,B[,C…] [--items=FILE]`."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

import ghost_jax
from evals.analysis.comparison import compare, p_shown, rows_of
from evals.analysis.recorded import check_alike, items_of, read_reports
from evals.analysis.report import print_line, right
from ghost_jax.core.atomic_io import write_json
from ghost_jax.core.console import escape_controls, make_console
from ghost_jax.core.errors import command, parser_of
from ghost_jax.core.paths import local_path
from ghost_jax.data.items.items import orders_label
from ghost_jax.reporting.tables import NONE
from ghost_jax.runs.evaluation import interval, percent, points


def show(comparison: dict, asked: str, console: Console) -> None:
    """Prints a comparison of runs that were `asked` so: a table, a sentence for each row, and the notes."""
    about = f"{comparison['n']:,} questions, {asked}, {comparison['book']} book"
    print_line(console, f"{comparison['items']['name']}: {about}")
    rows = comparison["rows"]
    several = any(row["seeds"]["n"] > 1 for row in rows)
    numbers = ("accuracy, %", *["over seeds"] * several, "difference", "p", "Holm's p", "detectable")
    table = Table("", *right(*numbers))
    for row in rows:
        seeds = row["seeds"]
        spread = f"{interval(seeds['min'], seeds['max'])}, sd {100 * seeds['sd']:.1f}" if seeds["n"] > 1 else NONE
        against = ["reference", NONE, NONE, NONE]
        if found := row["against_reference"]:
            detectable = NONE if found["detectable"] is None else percent(found["detectable"])
            ps = p_shown(found["p"]), p_shown(found["p_holm"])
            against = [points(found["mean"], found["ci95"], 1), *ps, detectable]
        name = Text.assemble(escape_controls(row["name"]), " ", (row["collapsed"], "bold"))
        table.add_row(name, percent(row["accuracy"], row["ci95"]), *[spread] * several, *against)
    console.print(table)
    for row in rows[1:]:
        print_line(console, row["against_reference"]["text"])
    for note in comparison["notes"]:
        print_line(console, note, "dim")


@command
def main(argv: Sequence[str]) -> int:
    """Compares runs that were scored on the same items with the first of them."""
    parser = parser_of(main)
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
    show(comparison, orders_label(reports[0].evaluation.headline.orders), make_console())
    if flags.out:
        write_json(flags.out, {"ghost_jax": ghost_jax.__version__} | comparison)
        print(f"written to {flags.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
