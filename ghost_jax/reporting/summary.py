"""The benchmark at a glance: the study's best, what is scored without reading, published models, ours.

Pure functions of run records and of reports that are no run's: of the open book, and of an audit of published answers.
Each row names the command that it comes from. Figures with the book open and closed never stand in one column.
"""

from collections.abc import Iterable, Sequence

from ghost_jax.reporting.tables import command_of, gain_of, orders_of, published_of

NONE = "—"
HEADER = ("who", "closed book, published order", "closed book, over all orders", "open book, over all orders", "from")
BASELINES = {
    "always_C": "always C",
    "longest": "the longest option",
    "position_length_popularity": "place, length and popularity of options, fitted",
}
CTIBENCH = "CTIBench MCQ"
AUDIT = "python -m evals.audit"
SHOWN_MODEL = "ChatGPT-4"  # GPT-4, as the published file calls it; the audit has all five


def glance_table(runs: Sequence[dict], reports: Sequence[dict]) -> list[tuple[str, ...]]:
    """Returns the rows of the table, the header first; empty where no run was scored on the benchmark in all orders.

    Args:
      runs: the records of runs, as `ghost_jax.reporting.records.read_run` returns them.
      reports: reports of no run: of the lexical reader, and of an audit.
    """
    scores = {run["name"]: score for run in runs if (score := _on_benchmark(run["evals"].get("ctibench")))}
    if not scores:
        return []
    any_score = next(iter(scores.values()))
    rows = [HEADER, *_study(runs)]
    for baseline, name in BASELINES.items():
        if baseline in any_score["baselines"]:
            published, over = any_score["baselines"][baseline], any_score["baselines_over_orders"][baseline]
            rows.append((name, _percent(published), _percent(over), NONE, "every report"))
    rows += _published_models(reports)
    name, best = max(scores.items(), key=lambda each: each[1]["headline"]["accuracy"])
    command = next(command_of(run) for run in runs if run["name"] == name)
    ours = f"ours, the best of {len(scores)} runs: {name}" if len(scores) > 1 else f"ours: {name}"
    rows.append((ours, _percent(best["single_order"]), _headline(best), NONE, f"`{command}`"))
    return rows + _open_book(runs, reports)


def story(runs: Sequence[dict], reports: Sequence[dict]) -> list[tuple[str, str]]:
    """Returns who answers and how well, over all orders: the best run, the best baseline, and the open-book reader.

    Rows of what is not among the records are left out; without a run that was scored on the benchmark there is none.
    """
    scores = {run["name"]: score for run in runs if (score := _on_benchmark(run["evals"].get("ctibench")))}
    if not scores:
        return []
    name, best = max(scores.items(), key=lambda each: each[1]["headline"]["accuracy"])
    baseline, accuracy = max(best["baselines_over_orders"].items(), key=lambda each: each[1])
    known = BASELINES.get(baseline, baseline.replace("_", " "))
    rows = [(f"{name}, closed book", _headline(best)), (f"without reading the question: {known}", _percent(accuracy))]
    for report in reports:
        if report.get("reader") == "lexical" and _on_benchmark(report):
            rows.append(("the open-book reader, without a model", _headline(report)))
    return rows


def _study(runs: Iterable[dict]) -> list[tuple[str, ...]]:
    """The row of the study's best; its figure is of one run in the published order, and has no interval."""
    published = [published_of(run) for run in runs]
    best = max((each for each in published if each.get("accuracy")), key=lambda each: each["accuracy"], default=None)
    return [(f"the study's best, {best['run']}", _percent(best["accuracy"]), NONE, NONE, "the study")] if best else []


def _published_models(reports: Iterable[dict]) -> list[tuple[str, ...]]:
    audited = [report["predictions"].get(SHOWN_MODEL) for report in reports if "predictions" in report]
    return [
        ("GPT-4, published answers", _percent(*_of(each["headline"])), NONE, NONE, f"`{AUDIT}`")
        for each in audited
        if each and each["items"]["name"] == CTIBENCH
    ]


def _open_book(runs: Sequence[dict], reports: Iterable[dict]) -> list[tuple[str, ...]]:
    command = "python -m evals.ctibench --book=open"
    rows = []
    for report in reports:
        for row in report.get("fits", []) if report.get("book") == "open" else []:
            name = f"ours: lexical reader, fitted on {row['fitted_on']}, scored on {row['scored_on']}"
            accuracy = _percent(row["accuracy"], row["ci95"])
            rows.append((name, NONE, NONE, accuracy, f"`{command} --reader=lexical`"))
    for run in runs:
        for stem, score in run["evals"].items():
            if stem.startswith("ctibench-open-") and _on_benchmark(score):
                how = f"`{command} --reader={score['reader']} --workdir=…`"
                name = f"ours: {run['name']} reads"
                if gain := gain_of(score):
                    name = f"ours: lexical reader with {run['name']}, {gain}"
                rows.append((name, NONE, NONE, _headline(score), how))
    return rows


def _on_benchmark(score: dict | None) -> dict | None:
    whole = score and score["items"]["name"] == CTIBENCH and orders_of(score) > 1
    return score if whole else None


def _headline(score: dict) -> str:
    return _percent(*_of(score["headline"])) + (" COLLAPSED" if score["verdict"] == "collapsed" else "")


def _of(headline: dict) -> tuple[float, Sequence[float]]:
    return headline["accuracy"], headline["ci95"]


def _percent(accuracy: float, interval: Sequence[float] | None = None) -> str:
    within = f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else ""
    return f"{100 * accuracy:.1f}{within}"
