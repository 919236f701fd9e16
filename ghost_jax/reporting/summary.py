"""The parts of a report that its page and RESULTS.md share: the benchmark at a glance, paired findings, the tables.

Figures with the book open and closed never stand in one column. Two accuracies of one table are no comparison, since
each depends on the items drawn; findings are therefore read from the records of `evals.compare`
(`--out=FILE.json` beside the runs), which pairs runs item by item.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import ghost_jax
from ghost_jax.data.retrieval.mcq_baselines import NEAREST
from ghost_jax.reporting import tables
from ghost_jax.reporting.records import Beside, runs_compared, sentences_of
from ghost_jax.reporting.tables import CTIBENCH, NONE, Row
from ghost_jax.runs.evaluation import Evaluation, percent
from ghost_jax.runs.run_record import RunRecord

SIGNATURE = "Written by ghost_jax"  # in reports of every version: marks a file that a report may replace
SIGNED = f"{SIGNATURE} {ghost_jax.__version__}."
HEADER = ("who", "closed book, published order", "closed book, over all orders", "open book, over all orders", "from")
BASELINES = {
    "always_C": "always C",
    "longest": "the longest option",
    "position_length_popularity": "place, length and popularity of options, fitted",
}
SHOWN_MODEL = "ChatGPT-4"  # GPT-4, as the published file calls it; the audit has all five
CHOSEN = "Ours is chosen by its score here: the luck of the choice is in it, and not in its interval."
HOW = "Paired by item, intervals of 95% clustered by page, p corrected for the rows of a comparison (Holm)."


class Part(NamedTuple):
    """A part of a report: rows of a table, the header first, and notes."""

    heading: str
    rows: Sequence[Row]
    notes: Sequence[str]


def parts_of(runs: Sequence[RunRecord], beside: Beside) -> list[Part]:
    """Returns the tables and notes of a report, in their order."""
    several = len(tables.benchmark_scores(runs)) > 1
    parts = [
        Part(f"At a glance, {CTIBENCH}, %", glance_table(runs, beside), [CHOSEN] * several),
        Part("What we learned", [], learned(runs, beside.comparisons)),
        Part("Runs", tables.result_table(runs), tables.notes_of(runs)),
    ]
    return [part for part in parts if part.rows or part.notes]


def results_of(parts: Iterable[Part]) -> str:
    """Returns the parts of a report as RESULTS.md."""
    blocks = ["# Results"]
    for part in parts:
        blocks += [f"## {part.heading}", *([tables.markdown(part.rows)] if part.rows else []), *part.notes]
    return "\n\n".join([*blocks, SIGNED]) + "\n"


# ---- At a glance ----


def glance_table(runs: Sequence[RunRecord], beside: Beside) -> list[Row]:
    """Returns the rows of the first table, the header first; [] where no run has the benchmark in all orders."""
    scores = tables.benchmark_scores(runs)
    if not scores:
        return []
    any_score, rows = next(iter(scores.values())), [HEADER]
    # The study's figure is of one run in the published order, without an interval.
    rebuilt = [each for each in map(tables.published_of, runs) if each.get("accuracy")]
    if rebuilt:
        top = max(rebuilt, key=lambda each: each["accuracy"])
        rows.append((f"the study's {top['run']}", percent(top["accuracy"]), NONE, NONE, "the study"))
    for baseline, name in BASELINES.items():
        if baseline in any_score.baselines:
            published, over = any_score.baselines[baseline], any_score.baselines_over_orders[baseline]
            rows.append((name, percent(published), percent(over), NONE, "every report"))
    for audit in beside.audits:
        if SHOWN_MODEL in audit and audit[SHOWN_MODEL].items.name == CTIBENCH:
            headline = audit[SHOWN_MODEL].headline
            accuracy = percent(headline.accuracy, headline.ci95)
            rows.append(("GPT-4, published answers", accuracy, NONE, NONE, "`python -m evals.audit`"))
    name, best = _best(scores)
    command = next(tables.command_of(run) for run in runs if run.name == name)
    ours = f"ours, the best of {len(scores)} runs: {name}" if len(scores) > 1 else f"ours: {name}"
    source = f"`{command}`" if command else NONE  # an imported model was trained elsewhere
    rows.append((ours, percent(best.single_order), _headline(best), NONE, source))
    return rows + _open_book(runs, beside)


def story(runs: Sequence[RunRecord], beside: Beside) -> list[tuple[str, str]]:
    """Returns name and accuracy over all orders of the best run, the best baseline that does not read, and the reader.

    Empty without a run that was scored on the benchmark.
    """
    scores = tables.benchmark_scores(runs)
    if not scores:
        return []
    name, best = _best(scores)
    unread = {
        name: each for name, each in best.baselines_over_orders.items() if "overlap" not in name and name != NEAREST
    }
    baseline, accuracy = max(unread.items(), key=lambda each: each[1])
    known = BASELINES.get(baseline, baseline.replace("_", " "))
    rows = [(f"{name}, closed book", _headline(best)), (f"without reading the question: {known}", percent(accuracy))]
    for score in beside.lexical:
        if score.reader == "lexical" and score.book == "open" and tables.on_benchmark(score):
            rows.append(("the open-book reader, without a model", _headline(score)))
    return rows


def _best(scores: dict[str, Evaluation]) -> tuple[str, Evaluation]:
    return max(scores.items(), key=lambda each: each[1].headline.accuracy)


def _open_book(runs: Iterable[RunRecord], beside: Beside) -> list[Row]:
    command = "python -m evals.ctibench --book=open"
    lexical = [score for score in beside.lexical if score.book == "open" and tables.on_benchmark(score)]
    rows = []
    for fit in [fit for score in lexical for fit in score.fits or ()]:
        name = f"ours: lexical reader, fitted on {fit.fitted_on}, scored on {fit.scored_on}"
        rows.append((name, NONE, NONE, percent(fit.accuracy, fit.ci95), f"`{command} --reader=lexical`"))
    for run in runs:
        for stem, score in run.evals.items():
            if stem.startswith("ctibench-open-") and tables.on_benchmark(score):
                gain = tables.gain_of(score)
                name = f"ours: lexical reader with {run.name}, {gain}" if gain else f"ours: {run.name} reads"
                rows.append((name, NONE, NONE, _headline(score), f"`{command} --reader={score.reader} --workdir=…`"))
    return rows


def _headline(score: Evaluation) -> str:
    return percent(score.headline.accuracy, score.headline.ci95) + tables.collapsed(score)


# ---- What comparisons found ----


def learned(runs: Sequence[RunRecord], comparisons: Sequence[dict]) -> list[str]:
    """Returns what comparisons found, a sentence a pair of runs, and which scored runs no comparison has."""
    sentences = [sentence for comparison in comparisons for sentence in sentences_of(comparison)]
    sentences += [HOW] if comparisons else []
    compared = {name for comparison in comparisons for name in runs_compared(comparison)}
    scored = [run.name for run in runs if any(score.book == "closed" for score in run.evals.values())]
    left = [name for name in scored if name not in compared]
    if left and (comparisons or len(scored) > 1):
        sentences.append(
            f"No finding on {', '.join(left)}: no comparison with another run is recorded. Rows of a table "
            "that look different may differ by the luck of the items alone. To record one: python -m evals.compare "
            "--runs=A,B --out=FILE.json, with FILE.json beside the runs."
        )
    return sentences or ["No finding: one needs two scored runs and a recorded comparison of them."]
