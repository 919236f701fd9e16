"""Compares runs with the first of them, item by item, on the credits of their recorded letters over all orders.

The seeds of one recipe are one row: the mean of their credits on each item.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from evals.analysis import stats
from evals.analysis.recorded import Report, answers_of
from ghost_jax.data.items.items import Items, clusters_of
from ghost_jax.runs import run_record
from ghost_jax.runs.evaluation import COLLAPSED, SIGNIFICANT, interval, percent, points

HOW = (
    "Differences, intervals and p are paired by item and clustered by page; Holm's p is corrected for the rows of the "
    "table. Detectable: the true difference that would be found at 5% with a power of 80%."
)
ONE_ORDER = "All was asked in one order of the options, where a constant letter can look like knowledge."
SEEDS = "Intervals and p are over items. They leave out the effect of the seed, which one seed does not show."
ONE_RECIPE = "All runs are seeds of one recipe: there is no other to compare it with."


@dataclasses.dataclass(frozen=True)
class Row:
    """A report, or those of the seeds of one recipe."""

    reports: Sequence[Report]  # S of them
    credits: np.ndarray  # [S, N] credit of each item, its mean over the orders

    @property
    def name(self) -> str:
        """The name of the run; of several seeds that of the first, with their number."""
        first, n = self.reports[0], len(self.reports)
        return first.name if n == 1 else f"{first.name.removesuffix(f'-seed{first.seed[0]}')}, {n} seeds"

    @property
    def collapsed(self) -> str:
        """Whether the answers collapsed, in words, with the number of seeds; empty where none did."""
        n = sum(report.evaluation.verdict == COLLAPSED for report in self.reports)
        if n == len(self.reports):
            return "COLLAPSED"
        return f"COLLAPSED ({n} of {len(self.reports)})" if n else ""


def rows_of(reports: Sequence[Report], items: Items) -> list[Row]:
    """Returns a row for each recipe, in the order of the reports.

    A second report of one seed is another training of the same run: it is in another row of the recipe.
    """
    gathered: dict[tuple[str, int], list[Report]] = {}
    seen: Counter[tuple] = Counter()
    for report in reports:
        run = (report.recipe, report.seed)
        gathered.setdefault((report.recipe, seen[run]), []).append(report)
        seen[run] += 1
    return [
        Row(seeds, np.stack([answers_of(report, items).mean_credits(items.items) for report in seeds]))
        for seeds in gathered.values()
    ]


def compare(rows: Sequence[Row], items: Items) -> dict:
    """Returns the comparison of rows with the first as JSON values; accuracies and differences are fractions."""
    clusters = clusters_of(items.items)
    reference, *others = rows
    differences = [
        stats.paired_difference(row.credits.mean(axis=0), reference.credits.mean(axis=0), clusters, of=len(others))
        for row in others
    ]
    corrected = stats.holm([difference.p for difference in differences])
    table = [_row(reference, clusters) | {"against_reference": None}]
    for row, difference, p_holm in zip(others, differences, corrected, strict=True):
        labels = (f"{each.name} {each.collapsed}".strip() for each in (row, reference))
        text = sentence(*labels, difference, p_holm)
        against = dataclasses.asdict(difference) | {"p_holm": p_holm, "text": text}
        table.append(_row(row, clusters) | {"against_reference": against})
    first = reference.reports[0].evaluation
    return {
        "items": {"name": first.items.name, "file": first.items.file, "sha256": first.items.sha256},
        "n": len(items),
        "book": first.book,
        "orders": list(first.headline.orders),
        "reference": reference.name,
        "rows": table,
        "notes": notes_of(rows),
    }


def _row(row: Row, clusters: stats.Clusters) -> dict:
    found = stats.accuracy_of(row.credits.mean(axis=0), clusters)
    by_seed = [float(credits.mean()) for credits in row.credits]
    return {
        "name": row.name,
        "collapsed": row.collapsed,
        "accuracy": found.accuracy,
        "ci95": list(found.ci95),
        "seeds": stats.pool(by_seed),
        "runs": [
            {"report": str(report.path), "seed": list(report.seed), "accuracy": accuracy}
            for report, accuracy in zip(row.reports, by_seed, strict=True)
        ],
    }


def sentence(name: str, reference: str, difference: stats.Difference, p_holm: float) -> str:
    """Returns in words whether a run differs from its reference."""
    low, high = difference.ci95
    if difference.p == 1 and low == high:
        return f"{name} earns the same as {reference}, page by page."
    if p_holm < SIGNIFICANT:
        if difference.mean < 0:
            low, high = -high, -low
        better = "better" if difference.mean > 0 else "worse"
        by = f"{percent(abs(difference.mean))} points ({interval(low, high)})"
        return f"{name} is {better} than {reference} by {by}, Holm's p {p_shown(p_holm)}."
    by = f"{points(difference.mean, digits=1)} points ({interval(low, high, '+.1f')}), Holm's p {p_shown(p_holm)}"
    seen = "too few pages to say more"
    if difference.detectable is not None:
        seen = f"only differences above {percent(difference.detectable)} points would be seen"
    return f"{name} is not told apart from {reference}: {by}; {seen}."


def notes_of(rows: Sequence[Row]) -> list[str]:
    """Returns what a reader must know before believing the table."""
    notes = [HOW]
    if rows[0].reports[0].evaluation.orders_per_item == 1:
        notes.append(ONE_ORDER)
    runs = [report.workdir for row in rows for report in row.reports if report.workdir]
    if runs:
        notes.append(SEEDS)
    if len(rows) == 1:
        notes.append(ONE_RECIPE)
    notes += run_record.differences([run_record.read(workdir, scored=False) for workdir in runs])
    for row in rows:
        for report, credits in zip(row.reports, row.credits, strict=True):
            if cropped := report.evaluation.cropping:
                notes.append(f"{report.name}: {cropped}")
            reported, earned = report.evaluation.headline.accuracy, float(credits.mean())
            if abs(reported - earned) > 1e-9:
                notes.append(
                    f"{report.name}: its report has {100 * reported:.2f}%, its letters earn {100 * earned:.2f}%; where "
                    "letters tie, the report shares the credit and names the first."
                )
    return notes


def p_shown(p: float) -> str:
    """Returns a p-value as text."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"
