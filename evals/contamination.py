"""Searches training data for test items: `python -m evals.contamination --items=FILE --data=STORE [--data=STORE …]`."""

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

import ghost_jax
from evals.overlap.contamination import check, refuse
from ghost_jax.core.atomic_io import write_json
from ghost_jax.core.console import make_console
from ghost_jax.core.errors import command
from ghost_jax.core.paths import local_path
from ghost_jax.data.items.formats import read_items


def show(result: dict, console: Console) -> None:
    """Prints a result of `check` as a table."""
    table = Table("store", "part", title=f"{result['items']['name']}: search for {result['n']:,} items")
    for heading in ("records", f"{result['ngram_words']} words", "stem", "options", "contaminated"):
        table.add_column(heading, justify="right")
    for row in result["parts"]:
        numbers = [f"{row[kind]:,}" for kind in ("records", "ngram", "stem", "options", "contaminated")]
        if row["held_out"]:
            numbers[-1] += " (held out)"
        table.add_row(row["store"], row["part"], *numbers)
    console.print(table)
    if result["sources"]:
        most = list(result["sources"].items())[:6]
        listed = "  ".join(f"{source} {found['records']:,} ({found['share']:.0%})" for source, found in most)
        console.print(f"records with {result['ngram_words']} words of an item, by source: {listed}", highlight=False)
    console.print(f"verdict: {result['verdict']}", highlight=False, soft_wrap=True)


@command
def main(argv: Sequence[str]) -> int:
    """Searches prepared data for the items of a benchmark."""
    parser = argparse.ArgumentParser(prog="python -m evals.contamination", description=main.__doc__)
    parser.add_argument("--items", required=True, type=local_path, metavar="FILE", help="a file of benchmark items")
    data_help = "a prepared store; may be repeated"
    parser.add_argument("--data", required=True, type=local_path, action="append", metavar="STORE", help=data_help)
    parser.add_argument("--out", type=local_path, metavar="FILE", help="the result as JSON")
    flags = parser.parse_args(argv)

    result = check(read_items(flags.items), flags.data)
    show(result, make_console())
    if flags.out:
        write_json(flags.out, {"ghost_jax": ghost_jax.__version__} | result)
        print(f"written to {flags.out}")
    refuse(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
