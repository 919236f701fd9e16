"""What runs teach, in sentences: differences that were paired item by item, and nothing else.

Two accuracies in one table are no comparison: each has the luck of the items in it. What can be told apart was found by
`evals.compare`, whose record (`--out=FILE.json`) lies beside the runs; this only words it.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

SIGNIFICANT = 0.05
HOW = "Paired by item, intervals of 95% clustered by page, p corrected for the rows of a comparison (Holm)."


def is_comparison(report: dict) -> bool:
    """Returns whether a JSON report beside the runs is one of `evals.compare`."""
    return report.keys() >= {"reference", "rows", "orders"}


def learned(runs: Sequence[dict], reports: Iterable[dict]) -> list[str]:
    """Returns what the comparisons among the reports say of the runs, a sentence an item; where none, what is missing.

    Args:
      runs: the records of runs, as `ghost_jax.reporting.records.read_run` returns them.
      reports: JSON reports of no run; those of `evals.compare` are read.
    """
    comparisons = [report for report in reports if is_comparison(report)]
    said = [sentence for comparison in comparisons for sentence in _of_comparison(comparison)]
    if said:
        said.append(HOW)
    compared = {name for comparison in comparisons for name in _runs_of(comparison)}
    scored = [run["name"] for run in runs if any(score["book"] == "closed" for score in run["evals"].values())]
    left = [name for name in scored if name not in compared]
    if left and (comparisons or len(scored) > 1):
        said.append(
            f"Nothing can be told of {', '.join(left)}: no comparison with another run is recorded. Rows of a table "
            "that look different may differ by the luck of the items alone. To record one: python -m evals.compare "
            "--runs=A,B --out=FILE.json, with FILE.json beside the runs."
        )
    return said or ["Nothing can be told: it takes two scored runs and a recorded comparison of them."]


def _of_comparison(comparison: dict) -> list[str]:
    others = [row["against_reference"] for row in comparison["rows"][1:]]
    apart = [each for each in others if each["p_holm"] < SIGNIFICANT]
    better = sum(each["mean"] > 0 for each in apart)
    orders = comparison["orders"]
    in_one = len(orders) == len(set(map(len, orders)))  # a name of an order is as long as its item has options
    asked = "in one order, where a constant letter can look like knowledge" if in_one else "in all orders"
    found = (
        f"{better} better, {len(apart) - better} worse, {len(others) - len(apart)} not told apart"
        if apart
        else f"none of {len(others)} told apart from it"
    )
    lead = (
        f"{comparison['items']['name']}, {comparison['n']:,} questions {asked}, {comparison['book']} book, against "
        f"{comparison['reference']}: {found}."
    )
    return [lead, *(each["text"] for each in others)]


def _runs_of(comparison: dict) -> Iterable[str]:
    """Yields the names of the run directories whose reports were compared: `NAME/evals/FILE.json`."""
    for row in comparison["rows"]:
        for run in row["runs"]:
            report = Path(run["report"])
            if report.parent.name == "evals":
                yield report.resolve().parents[1].name
