"""Do runs differ, or only their luck with the items? `python -m evals.compare --runs=A,B[,C…] [--items=FILE]`.

Every run is set against the first, item by item, on the credits that its recorded letters earn over all orders. Seeds
of one recipe are one row: the mean of their credits on each item. Runs can be compared if they were asked the same: the
items, the orders, and with the book open or closed.
"""

import argparse
import dataclasses
import io
import sys
from collections import Counter
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import ghost_jax
from evals import stats
from evals.clusters import clusters_of
from evals.items import Items
from evals.recorded import Report, check_alike, credits_of, items_of, read_reports
from ghost_jax.cropping import cropping_of
from ghost_jax.errors import command
from ghost_jax.paths import local_path
from ghost_jax.progress import make_console
from ghost_jax.whole import write_bytes, write_json

SIGNIFICANT = 0.05
NONE = "—"
HOW = (
    "Differences, intervals and p are paired by item and clustered by page; Holm's p is corrected for the rows of the "
    "table. Detectable: the true difference that would be found at 5% with a power of 80%."
)
MCNEMAR = "McNemar's exact p is of the first order alone, where a constant letter can look like knowledge."
ONE_ORDER = "All was asked in one order of the options, where a constant letter can look like knowledge."
SEEDS = "Intervals are over items. What the seed does to a run is not in them: it is the spread beside them."


# ---- Rows ----


@dataclasses.dataclass(frozen=True)
class Row:
    """A report, or those of the seeds of one recipe.

    Attributes:
      reports: S of them.
      credits: [S, N] credit of each item, its mean over the orders.
      single: [S, N] credit of each item in the first order, 0 or 1.
    """

    reports: Sequence[Report]
    credits: np.ndarray
    single: np.ndarray

    @property
    def name(self) -> str:
        """The name of the run; of several seeds that of the first, with how many they are."""
        first, n = self.reports[0], len(self.reports)
        return first.name if n == 1 else f"{first.name.removesuffix(f'-seed{first.seed[0]}')}, {n} seeds"

    @property
    def collapsed(self) -> str:
        """ "COLLAPSED" where an answer was, with how many of several seeds; empty where none was."""
        n = sum(report.content.get("verdict") == "collapsed" for report in self.reports)
        return "" if not n else "COLLAPSED" if n == len(self.reports) else f"COLLAPSED ({n} of {len(self.reports)})"

    @property
    def label(self) -> str:
        """The name, marked where the answers collapsed, as every sentence has it."""
        return f"{self.name} {self.collapsed}".strip()


def rows_of(reports: Sequence[Report], items: Items) -> list[Row]:
    """Returns a row a recipe, in the order of the reports.

    A seed that comes a second time is no new seed but the same run made again, by other code perhaps: it begins or
    joins another row of the recipe.
    """
    gathered: dict[tuple[str, int], list[Report]] = {}
    seen: Counter[tuple] = Counter()
    for report in reports:
        run = (report.recipe, report.seed)
        gathered.setdefault((report.recipe, seen[run]), []).append(report)
        seen[run] += 1
    rows = []
    for seeds in gathered.values():
        earned = [credits_of(report, items) for report in seeds]
        credits = np.array([[credit.mean() for credit in one] for one in earned])
        rows.append(Row(seeds, credits, np.array([[credit[0] for credit in one] for one in earned])))
    return rows


def compare(rows: Sequence[Row], items: Items) -> dict:
    """Returns the comparison of rows with the first as JSON values; accuracies and differences are fractions."""
    urls = clusters_of(items.items)
    reference, *others = rows
    differences = [
        stats.paired_difference(row.credits.mean(axis=0), reference.credits.mean(axis=0), urls) for row in others
    ]
    corrected = stats.holm([difference.p for difference in differences])
    table = [_row(reference, urls) | {"against_reference": None}]
    for row, difference, p_holm in zip(others, differences, corrected, strict=True):
        one_answer = len(row.reports) == len(reference.reports) == 1  # McNemar's test is of one answer an item
        against = dataclasses.asdict(difference) | {
            "p_holm": p_holm,
            "mcnemar": dataclasses.asdict(stats.mcnemar(row.single[0], reference.single[0])) if one_answer else None,
            "text": sentence(row.label, reference.label, difference, p_holm, len(others)),
        }
        table.append(_row(row, urls) | {"against_reference": against})
    first = reference.reports[0].content
    return {
        "items": {key: first["items"].get(key) for key in ("name", "file", "sha256")},
        "n": len(items),
        "book": first["book"],
        "orders": first["headline"]["orders"],
        "reference": reference.name,
        "rows": table,
        "notes": notes_of(rows),
    }


def _row(row: Row, urls: Sequence[str]) -> dict:
    accuracy, low, high = stats.clustered_interval(row.credits.mean(axis=0), urls)
    by_seed = [float(credits.mean()) for credits in row.credits]
    return {
        "name": row.name,
        "collapsed": row.collapsed,
        "accuracy": accuracy,
        "ci95": [low, high],
        "seeds": stats.pool(by_seed),
        "runs": [
            {"report": str(report.path), "seed": list(report.seed), "accuracy": accuracy}
            for report, accuracy in zip(row.reports, by_seed, strict=True)
        ],
    }


def sentence(name: str, reference: str, difference: stats.Difference, p_holm: float, comparisons: int) -> str:
    """Returns in words whether a run differs from its reference, among so many comparisons with that."""
    low, high = difference.ci95
    if difference.p == 1 and low == high:
        return f"{name} earns the same as {reference}, page by page."
    if difference.detectable is None and low < high:
        return f"{name} is not told apart from {reference}: all items come from one page, and say nothing of others."
    if p_holm < SIGNIFICANT:
        if difference.mean < 0:
            low, high = -high, -low
        better = "better" if difference.mean > 0 else "worse"
        by = f"{100 * abs(difference.mean):.1f} points ({100 * low:.1f} to {100 * high:.1f})"
        return f"{name} is {better} than {reference} by {by}, Holm's p {_p(p_holm)}."
    by = f"{100 * difference.mean:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
    luck = f", no more than the luck of {comparisons} comparisons" if difference.p < SIGNIFICANT else ""
    if difference.detectable is None:
        return f"{name} is not told apart from {reference}: {by}{luck}; too few pages to say more."
    seen = f"only differences above {100 * difference.detectable:.1f} points would be seen"
    return f"{name} is not told apart from {reference}: {by}{luck}; {seen}."


def _orders_per_item(orders: Sequence[str]) -> int:
    """The number of orders that items with one number of options were asked in, by the names of all orders."""
    return max(Counter(map(len, orders)).values())


def notes_of(rows: Sequence[Row]) -> list[str]:
    """Returns what a reader must know before believing the table."""
    one_order = _orders_per_item(rows[0].reports[0].content["headline"]["orders"]) == 1
    notes = [HOW, ONE_ORDER if one_order else MCNEMAR]
    if any(len(row.reports) > 1 for row in rows):
        notes.append(SEEDS)
    if len(rows) == 1:
        notes.append("All runs are seeds of one recipe: there is no other to compare it with.")
    for row in rows:
        for report, credits in zip(row.reports, row.credits, strict=True):
            if cropped := cropping_of(report.content):
                notes.append(f"{report.name}: {cropped}")
            said, earned = report.content["headline"]["accuracy"], float(credits.mean())
            if abs(said - earned) > 1e-9:
                notes.append(
                    f"{report.name}: its report has {100 * said:.2f}%, its letters earn {100 * earned:.2f}%; where "
                    "letters tie, the report shares the credit and names the first."
                )
    return notes


# ---- What is shown ----


def show(comparison: dict, console: Console) -> None:
    """Prints a comparison as a table with a sentence a row."""
    orders = _orders_per_item(comparison["orders"])
    asked = f"{comparison['n']:,} questions in {orders} order{'s' if orders > 1 else ''}, {comparison['book']} book"
    console.print(f"{comparison['items']['name']}: {asked}", highlight=False, markup=False)
    seeds = any(row["seeds"]["n"] > 1 for row in comparison["rows"])
    drawn = Table()
    for header in ("", "accuracy, %", *(["over seeds"] if seeds else []), "difference", "p", "Holm's p", "McNemar's p"):
        drawn.add_column(header, justify="right" if header else "left")
    drawn.add_column("detectable", justify="right")
    for row in comparison["rows"]:
        low, high = row["ci95"]
        cells = [f"{100 * row['accuracy']:.1f} ({100 * low:.1f} to {100 * high:.1f})"]
        if seeds:
            cells.append(_spread(row["seeds"]))
        drawn.add_row(
            f"{escape(row['name'])} [bold]{row['collapsed']}[/bold]", *cells, *_against(row["against_reference"])
        )
    console.print(drawn)
    for row in comparison["rows"][1:]:
        console.print(row["against_reference"]["text"], highlight=False, markup=False, soft_wrap=True)
    for note in comparison["notes"]:
        console.print(note, style="dim", highlight=False, markup=False, soft_wrap=True)


def _against(against: dict | None) -> tuple[str, ...]:
    if against is None:
        return ("reference", *[NONE] * 4)
    low, high = against["ci95"]
    return (
        f"{100 * against['mean']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
        _p(against["p"]),
        _p(against["p_holm"]),
        _p(against["mcnemar"]["p"]) if against["mcnemar"] else NONE,
        NONE if against["detectable"] is None else f"{100 * against['detectable']:.1f}",
    )


def _spread(seeds: dict) -> str:
    if seeds["n"] == 1:
        return NONE
    return f"{100 * seeds['min']:.1f} to {100 * seeds['max']:.1f}, sd {100 * seeds['sd']:.1f}"


def _p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def picture(comparison: dict) -> bytes:
    """Returns a PNG of the differences with their intervals: what crosses zero is not told apart."""
    from matplotlib.figure import Figure  # not above: a comparison that is only read needs none of it

    rows = comparison["rows"][1:]
    means = [100 * row["against_reference"]["mean"] for row in rows]
    bounds = [[100 * bound for bound in row["against_reference"]["ci95"]] for row in rows]
    sides = [[mean - low for mean, (low, _) in zip(means, bounds, strict=True)]]
    sides += [[high - mean for mean, (_, high) in zip(means, bounds, strict=True)]]
    figure = Figure(figsize=(7, 1.6 + 0.35 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="0.6", linewidth=1, linestyle="--")
    axes.errorbar(means, range(len(rows)), xerr=sides, fmt="o", capsize=4)
    axes.set_yticks(range(len(rows)), [f"{row['name']} {row['collapsed']}" for row in rows])
    axes.invert_yaxis()
    axes.margins(y=0.5 / len(rows))
    axes.set_xlabel(f"points better than {comparison['reference']}, 95% interval over items")
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


@command
def main() -> int:
    """Compares runs that were scored on the same items with the first of them."""
    parser = argparse.ArgumentParser(prog="python -m evals.compare", description=main.__doc__)
    parser.add_argument(
        "--runs",
        required=True,
        type=local_path,
        metavar="A,B",
        help="run directories or JSON reports; first: reference",
    )
    parser.add_argument(
        "--items", type=local_path, metavar="FILE", help="the items, and so evals/<its name>.json of each run"
    )
    parser.add_argument(
        "--out", type=local_path, metavar="FILE", help="the comparison as JSON, with a picture (.png) beside"
    )
    flags = parser.parse_args()

    places = [place for place in str(flags.runs).split(",") if place]
    reports = read_reports(places, flags.items.stem if flags.items else "ctibench")
    check_alike(reports)
    items = items_of(reports, flags.items)
    comparison = compare(rows_of(reports, items), items)
    show(comparison, make_console())
    if flags.out:
        write_json(flags.out, {"ghost_jax": ghost_jax.__version__} | comparison)
        if len(comparison["rows"]) > 1:
            write_bytes(flags.out.with_suffix(".png"), picture(comparison))
        print(f"written to {flags.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
