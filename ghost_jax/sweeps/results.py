"""The results of a sweep: its record, table and pictures, all computed from the records of its runs.

The seeds of a setting are pooled: mean, range, and from three seeds on Student's t-interval of the mean.
"""

import dataclasses
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import ghost_jax
from evals.analysis.stats import ENOUGH_SEEDS, pool
from ghost_jax.core.atomic_io import write_bytes, write_json, write_text
from ghost_jax.reporting.plots import ACCENT, LETTER_COLORS, WARM, WIDTH, new_figure, png, set_title
from ghost_jax.reporting.tables import NONE, losses_of, markdown
from ghost_jax.runs import run_record
from ghost_jax.runs.evaluation import Evaluation, interval
from ghost_jax.runs.metrics import seconds_of
from ghost_jax.runs.run_record import RunRecord
from ghost_jax.sweeps.grid import Setting, Sweep

BENCHMARK = "ctibench"  # the evaluation that is pooled


@dataclasses.dataclass(frozen=True)
class Row:
    """A setting with its runs. The finished ones are counted, all where there is none."""

    setting: Setting
    runs: list[RunRecord]
    figures: list[dict[str, float]]  # `figures_of` each run that is counted
    pooled: dict[str, dict | None]  # what `pool` returns of each figure
    states: Counter  # of the runs
    scores: list[Evaluation]  # of the runs that are counted
    verdicts: Counter  # of these scores


def figures_of(run: RunRecord, metrics: Sequence[str]) -> dict[str, float]:
    """Returns steps, rate, accuracy, `letter_share` of the most frequent letter, and the last value of each loss.

    What the run lacks, or is not finite, is absent. Accuracies and shares are fractions, losses nats a token.
    """
    figures = {"steps": run.metrics[-1]["step"] if run.metrics else 0}
    figures |= {key: line[key] for line in run.metrics for key in metrics if key in line}
    if run.config:
        figures["rate"] = run.config["optim"]["peak_lr"]
    if score := run.evals.get(BENCHMARK):
        figures |= {"accuracy": score.headline.accuracy, "letter_share": score.top_letter[1]}
    # The last loss of a run that diverged may be NaN, which has no mean.
    return {key: value for key, value in figures.items() if math.isfinite(value)}


def rows_of(sweep: Sweep, folder: Path, states: Mapping[str, str]) -> list[Row]:
    """Returns the settings of a sweep, with their seeds pooled; `states` are those of its runs by their names.

    A single score keeps the interval over its items; `over` says which interval it is.
    """
    rows = []
    for setting in sweep.settings:
        runs = [run_record.read(folder / run.name) for run in sweep.runs() if run.setting == setting]
        # A loss from halfway does not compare with one of the end.
        counted = [run for run in runs if states[run.name] == "finished"] or runs
        keys = ("steps", "rate", *sweep.metrics, "letter_share", "accuracy")
        figures = [figures_of(run, sweep.metrics) for run in counted]
        pooled = {key: pool([each[key] for each in figures if key in each]) for key in keys}
        scores = [run.evals[BENCHMARK] for run in counted if BENCHMARK in run.evals]
        if len({asked_of(score) for score in scores}) > 1:
            pooled |= {"accuracy": None, "letter_share": None}
        elif len(scores) == 1:
            pooled["accuracy"] |= {"ci95": scores[0].headline.ci95, "over": "items"}
        elif scores:
            pooled["accuracy"]["over"] = "seeds"
        verdicts = Counter(score.verdict for score in scores)
        rows.append(Row(setting, runs, figures, pooled, Counter(states[run.name] for run in runs), scores, verdicts))
    return rows


def asked_of(score: Evaluation) -> str:
    """Returns what a score is on: only accuracies on the same are pooled and compared."""
    orders = " ".join(score.headline.orders)
    return f"{score.items.name} ({score.items.sha256[:8]}), {score.n:,} questions in the orders {orders}"


def table_of(sweep: Sweep, rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Returns the table, the header first."""
    header = ("setting", "steps", "rate", *(name.replace("_", " ") for name in sweep.metrics))
    table = [(*header, "accuracy, %", "95% interval", "min to max", "top letter, %", "verdict", "runs")]
    for row in rows:
        cells = (
            row.setting.name,
            _mean(row, "steps", ",.0f"),
            _mean(row, "rate", "g"),
            *(_loss_cell(row, name) for name in sweep.metrics),
            *_accuracy_cells(row),
            _mean(row, "letter_share", ".0f", 100),
            _counts(row.verdicts),
            _counts(row.states, usual="finished"),
        )
        table.append(cells)
    return table


def _accuracy_cells(row: Row) -> tuple[str, ...]:
    """Returns the mean accuracy in percent, its interval, and its range over seeds."""
    accuracy = row.pooled["accuracy"]
    if accuracy is None:
        return (NONE,) * 3
    one_order = any(score.orders_per_item == 1 for score in row.scores)
    over = " (items)" if accuracy["over"] == "items" else ""
    return (
        _mean(row, "accuracy", ".1f", 100) + (" (one order)" if one_order else ""),
        f"{interval(*accuracy['ci95'])}{over}" if accuracy["ci95"] else NONE,
        interval(accuracy["min"], accuracy["max"]) if accuracy["n"] > 1 else NONE,
    )


def _loss_cell(row: Row, key: str) -> str:
    """Returns a mean loss with half the width of its interval, where it has one."""
    loss = row.pooled[key]
    half = f" ± {loss['ci95'][1] - loss['mean']:.3f}" if loss and loss["ci95"] else ""
    return _mean(row, key, ".3f") + half


def _mean(row: Row, key: str, form: str, scale: float = 1) -> str:
    """Returns the mean of a figure, and of how many runs it is where some lack it or it was not finite there."""
    if (values := row.pooled[key]) is None:
        return NONE
    n, counted = values["n"], len(row.figures)
    return format(scale * values["mean"], form) + (f" ({n} of {counted})" if n < counted else "")


def _counts(counts: Mapping[str, int], usual: str = "") -> str:
    """Returns "2 finished, 1 stopped", or the number alone where all are `usual`."""
    if list(counts) == [usual]:
        return str(counts[usual])
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or NONE


def notes_of(rows: Sequence[Row], states: Mapping[str, str]) -> list[str]:
    """Returns the limits of the table: cropped prompts, too few seeds, a single order, runs that are not pooled."""
    runs = [run for row in rows for run in row.runs]
    scores = {run.name: run.evals[BENCHMARK] for run in runs if BENCHMARK in run.evals}
    notes = list(dict.fromkeys(score.note for score in scores.values() if score.note))
    by_questions: dict[str, list[str]] = defaultdict(list)
    for name, score in scores.items():
        by_questions[asked_of(score)].append(name)
    if len(by_questions) > 1:
        listed = "; ".join(f"{asked}: {', '.join(names)}" for asked, names in by_questions.items())
        notes.append(f"Accuracies on other questions do not compare, and are not pooled. {listed}.")
    notes += [f"In {name}, {cropped}" for name, score in scores.items() if (cropped := score.cropping)]
    few = [row.setting.name for row in rows if row.states["finished"] < ENOUGH_SEEDS]
    if few:
        notes.append(
            f"Fewer than {ENOUGH_SEEDS} seeds: {', '.join(few)}. Never a claim from one seed: what sets these apart "
            "from others may be the seed alone."
        )
    if len(few) < len(rows):
        notes.append(
            "Intervals over seeds are Student's t: how far the mean may be off because of the seed. The seeds of a "
            "sweep share its base and the items, whose own chance is not in them."
        )
    if any(score.orders_per_item == 1 for score in scores.values()):
        notes.append("Scored in one order of the options: there a constant letter can look like knowledge.")
    records = [run for run in runs if run.config]
    notes += [*losses_of(records), *run_record.differences(records)]
    if unfinished := [run.name for run in runs if states[run.name] != "finished"]:
        notes.append(f"Not finished, and so not pooled with finished ones: {', '.join(unfinished)}.")
    return notes


def picture(sweep: Sweep, rows: Sequence[Row]) -> Figure:
    """Draws accuracy and losses by setting: each seed a small dot, the mean a large one, its interval a bar."""
    values = [row.setting.overrides.get(sweep.axis) for row in rows]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    numeric = numeric and len(set(values)) == len(values)  # of a grid of two keys several settings share a place
    places = values if numeric else list(range(len(rows)))
    figure, (above, below) = new_figure(6.4, max(WIDTH, 0.6 * len(rows) + 1), panels=2)
    letters = next((len(score.letter_share) for row in rows for score in row.scores), 4)
    above.axhline(100 / letters, color=WARM, linewidth=1, linestyle="--", label="chance")
    line = "o-" if numeric else "o"  # there is nothing between two names
    _draw(above, places, rows, "accuracy", ACCENT, line)
    for name, color in zip(sweep.metrics, itertools.cycle(LETTER_COLORS), strict=False):
        _draw(below, places, rows, name, color, line)
    over = {accuracy["over"] for row in rows if (accuracy := row.pooled["accuracy"])}
    one_seed = " (of one seed: the interval over its items)" if "items" in over else ""
    set_title(figure, f"{sweep.name}: mean with 95% interval, a dot a seed{one_seed}")
    above.set_ylabel("accuracy, %")
    below.set(ylabel="loss, nats a token", xlabel=sweep.axis)
    for axes in (above, below):
        if axes.get_legend_handles_labels()[0]:  # Matplotlib warns of an empty legend
            axes.legend(frameon=False)
        if numeric and min(places) > 0 and max(places) >= 10 * min(places):
            axes.set_xscale("log")
        axes.set_xticks([], minor=True)
        axes.set_xticks(places, [f"{place:g}" for place in places] if numeric else [])
    if not numeric:
        below.set_xticks(places, [row.setting.name for row in rows], rotation=30, ha="right")
    return figure


def _draw(axes: Axes, places: Sequence[float], rows: Sequence[Row], key: str, color: str, line: str) -> None:
    scale = 100 if key == "accuracy" else 1
    for place, row in zip(places, rows, strict=True):
        seeds = [scale * each[key] for each in row.figures if key in each]
        axes.plot([place] * len(seeds), seeds, ".", color=color, alpha=0.4)
    drawn = [(place, row.pooled[key]) for place, row in zip(places, rows, strict=True) if row.pooled[key]]
    if drawn:
        at, figures = zip(*drawn, strict=True)
        means = scale * np.array([each["mean"] for each in figures])
        ends = scale * np.array([each["ci95"] or [np.nan] * 2 for each in figures])
        bars = abs(ends.T - means)
        axes.errorbar(at, means, bars, fmt=line, color=color, capsize=4, label=key.replace("_", " "))


# ---- Validation loss against tokens and training time ----


def curve_of(run: RunRecord) -> list[tuple[float, float, float]]:
    """Returns tokens, seconds and validation loss of each evaluation of a run, [] where records lack speeds.

    Tokens include padding. Seconds are those of updates after the first one, which compiles; evaluations, checkpoints
    and interruptions are not counted.
    """
    if "batch_size" not in run.config or not run.metrics or "tokens_per_s" not in run.metrics[0]:
        return []
    tokens = run.config["batch_size"] * run.config["data"]["seq_len"]  # of an update
    first, *_ = spent = seconds_of(run.metrics, tokens)
    lines = zip(run.metrics, spent, strict=True)
    return [(line["step"] * tokens, seconds - first, line["val_loss"]) for line, seconds in lines if "val_loss" in line]


def curves(rows: Sequence[Row]) -> Figure | None:
    """Draws the curves of a sweep: two panels for each config, a color for each setting, a curve for each seed.

    Configs share no panel: losses over different vocabularies do not compare. None where no run has two evaluations.
    """
    every = [(row.setting, [curve_of(run) for run in row.runs]) for row in rows]
    drawn = [(setting, of_runs) for setting, of_runs in every if any(len(curve) > 1 for curve in of_runs)]
    configs = list(dict.fromkeys(setting.spec for setting, _ in drawn))
    if not configs:
        return None
    figure = Figure(figsize=(10, 3.6 * len(configs)), layout="constrained")
    panels = figure.subplots(len(configs), 2, sharey="row", squeeze=False)
    for config, (by_tokens, by_time) in zip(configs, panels, strict=True):
        for number, (setting, of_runs) in enumerate(each for each in drawn if each[0].spec == config):
            color = LETTER_COLORS[number % len(LETTER_COLORS)]
            dashes = ("-", "--", ":", "-.")[number // len(LETTER_COLORS) % 4]
            for seed, curve in enumerate(of_runs):
                label = None if seed else setting.name
                style = {"color": color, "linestyle": dashes, "linewidth": 1, "label": label}
                losses = [loss for _, _, loss in curve]
                by_tokens.plot([tokens / 1e6 for tokens, *_ in curve], losses, **style)
                by_time.plot([seconds / 60 for _, seconds, _ in curve], losses, **style)
        by_tokens.set(xlabel="tokens, millions", ylabel="validation loss, nats a token")
        by_time.set(xlabel="training time without evaluations, minutes")
        by_tokens.legend(frameon=False)
        for axes in (by_tokens, by_time):
            axes.spines[["top", "right"]].set_visible(False)
    return figure


# ---- The record ----


def write(sweep: Sweep, folder: Path, states: Mapping[str, str]) -> tuple[list[tuple[str, ...]], list[str]]:
    """Writes `sweep.json`, `sweep.md`, `sweep.png` and `curves.png` into `folder`; returns the table and its notes.

    There is no `curves.png` where no run has two validation losses.
    """
    rows = rows_of(sweep, folder, states)
    table, notes = table_of(sweep, rows), notes_of(rows, states)
    signed = {"ghost_jax": ghost_jax.__version__, "name": sweep.name, "axis": sweep.axis}
    settings = [
        {"setting": row.setting.name, "states": row.states, "verdicts": row.verdicts, **row.pooled} for row in rows
    ]
    write_json(folder / "sweep.json", signed | {"settings": settings, "notes": notes, "table": table})
    write_bytes(folder / "sweep.png", png(picture(sweep, rows)))
    blocks = [f"# {sweep.name}", markdown(table), *notes, "![accuracy and loss](sweep.png)"]
    if drawn := curves(rows):
        write_bytes(folder / "curves.png", png(drawn))
        blocks.append("![validation loss against tokens and time](curves.png)")
    write_text(folder / "sweep.md", "\n\n".join(blocks) + "\n")
    return table, notes
