"""The results of a sweep: one table, one picture. Every number is computed from the records of its runs.

The seeds of a setting are pooled: mean, range, and from three seeds on Student's t-interval of the mean.
"""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

import ghost_jax
from evals.analysis.stats import ENOUGH_SEEDS, pool
from ghost_jax.core.atomic_io import write_bytes, write_json, write_text
from ghost_jax.reporting.plots import ACCENT, INK, MUTED, WARM
from ghost_jax.reporting.records import read_run
from ghost_jax.reporting.tables import markdown, orders_of
from ghost_jax.runs.cropping import cropping_of
from ghost_jax.sweeps import curves as sweep_curves
from ghost_jax.sweeps.grid import Run, Sweep


def pool_accuracy(runs: Sequence[dict]) -> dict | None:
    """Returns the pooled accuracy of scored runs; a single one keeps the interval over its items. `over` says which."""
    accuracy = pool([run["accuracy"] for run in runs])
    if accuracy and accuracy["n"] == 1:
        return accuracy | {"ci95": runs[0]["ci95"], "over": "items"}
    return accuracy and accuracy | {"over": "seeds"}


def counted(runs: Sequence[dict]) -> list[dict]:
    """Returns the runs of a setting that are pooled: the finished ones, else what there is."""
    return [run for run in runs if run["state"] == "finished"] or list(runs)


def record_of(run: Run, workdir: Path, state: str, metrics: Sequence[str]) -> dict:
    """Returns what one run came to; what it did not come to is absent. Accuracies are fractions, losses nats."""
    read = read_run(workdir)
    lines, config, score = read["metrics"], read["config"], read["evals"].get("ctibench")
    record = {"run": run.name, "seed": run.seed, "state": state, "steps": lines[-1]["step"] if lines else 0}
    record |= {key: line[key] for line in lines for key in metrics if key in line}  # the last one of each
    record["curve"] = sweep_curves.curve_of(config, lines)
    if config:
        # Records of older runs have no figures of the study
        record |= {"rate": config["optim"]["peak_lr"], "published": config.get("published", {})}
    if score:
        record |= {
            "accuracy": score["headline"]["accuracy"],
            "ci95": score["headline"]["ci95"],
            "orders": orders_of(score),
            "letters": len(score["letter_share"]),
            "letter_share": max(score["letter_share"].values()),
            "verdict": score["verdict"],
            "note": score.get("note", ""),
            "cropping": cropping_of(score),
        }
    return record


def pooled(sweep: Sweep, folder: Path, states: Mapping[str, str]) -> list[dict]:
    """Returns a row a setting: its runs, and over its seeds the steps, rate, losses, accuracy, letters and verdicts.

    Finished runs alone are pooled, because a loss from halfway is no loss of the end; where a setting has none, what
    its other runs came to is shown, and `states` says so.

    Args:
      states: run name -> "finished", "stopped" (by the divergence watch), "failed" or "not started".
    """
    rows = []
    for setting in sweep.settings:
        runs = [
            record_of(run, folder / run.name, states[run.name], sweep.metrics)
            for run in sweep.runs()
            if run.setting == setting
        ]
        used = counted(runs)
        numbers = ("steps", "rate", *sweep.metrics, "letter_share")
        rows.append(
            {
                "setting": setting.name,
                "config": setting.spec,
                "overrides": dict(setting.overrides),
                "states": Counter(run["state"] for run in runs),
                "verdicts": Counter(run["verdict"] for run in used if "verdict" in run),
                **{key: pool([run[key] for run in used if key in run]) for key in numbers},
                "accuracy": pool_accuracy([run for run in used if "accuracy" in run]),
                "runs": runs,
            }
        )
    return rows


def table_of(sweep: Sweep, rows: Sequence[dict]) -> list[tuple[str, ...]]:
    """Returns the table, the header first; the study's own figures stand in it where a recipe has any."""
    studied = any(figures_of(row).get("run") for row in rows)
    header = ("setting", "steps", "rate", *(name.replace("_", " ") for name in sweep.metrics))
    header += ("accuracy, %", "95% interval", "min to max", "top letter, %", "verdict", "runs")
    table = [header + (("study's val loss", "study's accuracy, %") if studied else ())]
    for row in rows:
        cells = (row["setting"], _mean(row["steps"], ",.0f"), _mean(row["rate"], "g"))
        cells += tuple(loss_cell(row[name]) for name in sweep.metrics)
        cells += accuracy_cells(row)
        cells += (
            _mean(row["letter_share"], ".0f", 100),
            _counts(row["verdicts"]),
            _counts(row["states"], usual="finished"),
        )
        if studied:
            figures = figures_of(row)
            loss, accuracy = figures.get("val_loss"), figures.get("accuracy")
            cells += (f"{loss:.3f}" if loss else "—", f"{100 * accuracy:.1f}" if accuracy else "—")
        table.append(cells)
    return table


def accuracy_cells(row: dict) -> tuple[str, str, str]:
    """Returns the accuracy in percent, its interval (over seeds, unless it says items), and its range over seeds."""
    accuracy = row["accuracy"]
    if accuracy is None:
        return ("—",) * 3
    one_order = any(run.get("orders") == 1 for run in counted(row["runs"]))
    ci95, over = accuracy["ci95"], " (items)" if accuracy["over"] == "items" else ""
    return (
        f"{100 * accuracy['mean']:.1f}" + (" (one order)" if one_order else ""),
        f"{100 * ci95[0]:.1f} to {100 * ci95[1]:.1f}{over}" if ci95 else "—",
        f"{100 * accuracy['min']:.1f} to {100 * accuracy['max']:.1f}" if accuracy["n"] > 1 else "—",
    )


def loss_cell(loss: dict | None) -> str:
    """Returns a mean loss with half the width of its interval, where it has one."""
    if loss is None:
        return "—"
    return f"{loss['mean']:.3f}" + (f" ± {loss['ci95'][1] - loss['mean']:.3f}" if loss["ci95"] else "")


def figures_of(row: dict) -> dict:
    """Returns the study's own figures of a setting, as its recipe states them."""
    return next((run["published"] for run in row["runs"] if "published" in run), {})


def _mean(values: dict | None, form: str, scale: float = 1) -> str:
    return "—" if values is None else format(scale * values["mean"], form)


def _counts(counts: Counter, usual: str = "") -> str:
    """Returns "2 finished, 1 stopped", or the number alone where all are what is usual."""
    if list(counts) == [usual]:
        return str(counts[usual])
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "—"


def notes_of(rows: Sequence[dict]) -> list[str]:
    """Returns what a reader must know before believing the table."""
    runs = [run for row in rows for run in row["runs"]]
    notes = list(dict.fromkeys(run["note"] for run in runs if run.get("note")))
    notes += [f"In {run['run']}, {run['cropping']}" for run in runs if run.get("cropping")]
    few = [row["setting"] for row in rows if row["states"]["finished"] < ENOUGH_SEEDS]
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
    if any(run.get("orders") == 1 for run in runs):
        notes.append("Scored in one order of the options: there a constant letter can look like knowledge.")
    apart = [run["run"] for run in runs if run["state"] != "finished"]
    if apart:
        notes.append(f"Not finished, and so not pooled with finished ones: {', '.join(apart)}.")
    return notes


def positions(sweep: Sweep) -> list[float] | None:
    """Returns the place of each setting on a numeric axis; None where the settings are drawn by name."""
    values = [setting.overrides.get(sweep.axis) for setting in sweep.settings]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return [float(value) for value in values] if numeric else None


def picture(sweep: Sweep, rows: Sequence[dict]) -> Figure:
    """Draws accuracy and losses against the axis: each seed a dot, the mean a line, its interval a bar."""
    numeric = positions(sweep)
    places = numeric or [float(number) for number in range(len(rows))]
    figure = Figure(figsize=(max(7.0, 0.6 * len(rows) + 2), 6.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    letters = next((run["letters"] for row in rows for run in row["runs"] if "letters" in run), 4)
    above.axhline(100 / letters, color=WARM, linewidth=1, linestyle="--", label="chance")
    line = "o-" if numeric else "o"  # between two names there is nothing
    _draw(above, places, rows, "accuracy", ACCENT, line, scale=100)
    for name, color in zip(
        sweep.metrics,
        (ACCENT, WARM, INK, MUTED),
        strict=False,
    ):
        _draw(below, places, rows, name, color, line)
    above.set_ylabel("accuracy, %")
    over = {row["accuracy"]["over"] for row in rows if row["accuracy"]}
    one_seed = "\n(of one seed: the interval over its items)" if "items" in over else ""
    above.set_title(f"{sweep.name}: mean with 95% interval, a dot a seed{one_seed}", loc="left", fontsize=11)
    below.set_ylabel("loss, nats a token")
    below.set_xlabel(sweep.axis)
    if numeric is None:
        below.set_xticks(places, [row["setting"] for row in rows], rotation=30, ha="right")
    else:
        if min(numeric) > 0 and max(numeric) >= 10 * min(numeric):
            below.set_xscale("log")
        below.set_xticks(places, [f"{place:g}" for place in places])
        below.set_xticks([], minor=True)
    for axes in (above, below):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw(axes, places: Sequence[float], rows: Sequence[dict], key: str, color: str, line: str, scale: float = 1):
    for place, row in zip(places, rows, strict=True):
        seeds = [scale * run[key] for run in counted(row["runs"]) if key in run]
        axes.plot([place] * len(seeds), seeds, ".", color=color, alpha=0.4)
    drawn = [(place, row[key]) for place, row in zip(places, rows, strict=True) if row[key]]
    means = [scale * of["mean"] for _, of in drawn]
    bounds = [[scale * bound for bound in of["ci95"] or (of["mean"], of["mean"])] for _, of in drawn]
    below = [mean - low for mean, (low, _) in zip(means, bounds, strict=True)]
    above = [high - mean for mean, (_, high) in zip(means, bounds, strict=True)]
    label = key.replace("_", " ")
    axes.errorbar([place for place, _ in drawn], means, (below, above), fmt=line, color=color, capsize=4, label=label)


def _draw_file(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_bytes(path, buffer.getvalue())


def write(sweep: Sweep, folder: Path, states: Mapping[str, str]) -> tuple[list[tuple[str, ...]], list[str]]:
    """Writes `sweep.json`, `sweep.md`, `sweep.png` and `curves.png` into `folder`; returns the table and its notes.

    There is no `curves.png` where no run has two validation losses.
    """
    rows = pooled(sweep, folder, states)
    table, notes = table_of(sweep, rows), notes_of(rows)
    _draw_file(picture(sweep, rows), folder / "sweep.png")
    curves = sweep_curves.picture(rows)
    if curves:
        _draw_file(curves, folder / "curves.png")
    signed = {"ghost_jax": ghost_jax.__version__, "name": sweep.name, "axis": sweep.axis}
    write_json(folder / "sweep.json", signed | {"settings": rows, "notes": notes})
    said = "".join(f"\n{note}\n" for note in notes)
    page = f"# {sweep.name}\n\n{markdown(table)}\n{said}\n![accuracy and loss](sweep.png)\n"
    page += "\n![validation loss against tokens and time](curves.png)\n" if curves else ""
    write_text(folder / "sweep.md", page)
    return table, notes
