"""Validation loss of the runs of a sweep against tokens and against training time, from their records."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from matplotlib.figure import Figure

from ghost_jax.reporting.plots import LETTER_COLORS as COLORS


def curve_of(config: Mapping, lines: Sequence[Mapping]) -> list[dict[str, float]]:
    """Returns `step`, `tokens`, `seconds` and `val_loss` of each evaluation of a run, [] where records lack speeds.

    Tokens are those of all updates so far, padding included. Seconds are those that updates took, from the end of the
    first one, which compiles, to the evaluation; evaluations, checkpoints and interruptions are not counted.

    Args:
      config: of the run, from its JSON.
      lines: of its metrics.jsonl.
    """
    if not all("tokens_per_s" in line for line in lines) or "batch_size" not in config:
        return []
    an_update, seconds, curve = config["batch_size"] * config["data"]["seq_len"], 0.0, []
    for before, line in pairwise(lines):
        seconds += (line["step"] - before["step"]) * an_update / line["tokens_per_s"]
        if "val_loss" in line:
            taken = {"step": line["step"], "tokens": line["step"] * an_update, "seconds": seconds}
            curve.append(taken | {"val_loss": line["val_loss"]})
    return curve


def picture(rows: Sequence) -> Figure | None:
    """Draws the curves of a sweep: a line of panels for each config, a color for each setting, a curve for each seed.

    Losses of configs with different vocabularies do not compare, so they share no panel.

    Args:
      rows: of `ghost_jax.sweeps.results.pooled`.

    Returns None where no run has a curve of at least two evaluations.
    """
    drawn = [row for row in rows if any(len(run.curve) > 1 for run in row.runs)]
    configs = list(dict.fromkeys(row.setting.spec for row in drawn))
    if not configs:
        return None
    figure = Figure(figsize=(10, 3.6 * len(configs)), layout="constrained")
    panels = figure.subplots(len(configs), 2, sharey="row", squeeze=False)
    for config, (by_tokens, by_time) in zip(configs, panels, strict=True):
        for number, row in enumerate(row for row in drawn if row.setting.spec == config):
            color = COLORS[number % len(COLORS)]
            for label, run in zip([row.setting.name] + [None] * len(row.runs), row.runs, strict=False):
                losses = [point["val_loss"] for point in run.curve]
                for axes, key, unit in ((by_tokens, "tokens", 1e6), (by_time, "seconds", 60)):
                    places = [point[key] / unit for point in run.curve]
                    axes.plot(places, losses, color=color, linewidth=1, label=label)
        by_tokens.set(xlabel="tokens, millions", ylabel="validation loss, nats a token")
        by_time.set(xlabel="training time without evaluations, minutes")
        by_tokens.legend(frameon=False)
        for axes in (by_tokens, by_time):
            axes.spines[["top", "right"]].set_visible(False)
    return figure
