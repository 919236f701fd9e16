"""Validation loss of the runs of a sweep against tokens and against training time, from their records."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from matplotlib.figure import Figure

from ghost_jax.reporting.plots import LETTER_COLORS as COLORS


def curve_of(config: Mapping, lines: Sequence[Mapping]) -> list[dict[str, float]]:
    """Returns `step`, `tokens`, `seconds` and `val_loss` of each evaluation of a run, [] where records lack speeds.

    Tokens include padding. Seconds are those of updates after the first one, which compiles; evaluations, checkpoints
    and interruptions are not counted.
    """
    if not all("tokens_per_s" in line for line in lines) or "batch_size" not in config:
        return []
    tokens, seconds, curve = config["batch_size"] * config["data"]["seq_len"], 0.0, []  # tokens of an update
    for before, line in pairwise(lines):
        seconds += (line["step"] - before["step"]) * tokens / line["tokens_per_s"]
        if "val_loss" in line:
            point = {"step": line["step"], "tokens": line["step"] * tokens, "seconds": seconds}
            curve.append(point | {"val_loss": line["val_loss"]})
    return curve


def picture(rows: Sequence) -> Figure | None:
    """Draws the curves of a sweep: two panels for each config, a color for each setting, a curve for each seed.

    Configs share no panel: losses over different vocabularies do not compare. None where no run has two evaluations.
    """
    drawn = [row for row in rows if any(len(run.curve) > 1 for run in row.runs)]
    configs = list(dict.fromkeys(row.setting.spec for row in drawn))
    if not configs:
        return None
    figure = Figure(figsize=(10, 3.6 * len(configs)), layout="constrained")
    panels = figure.subplots(len(configs), 2, sharey="row", squeeze=False)
    for config, (by_tokens, by_time) in zip(configs, panels, strict=True):
        for number, row in enumerate(row for row in drawn if row.setting.spec == config):
            for seed, run in enumerate(row.runs):
                style = {"color": COLORS[number % len(COLORS)], "linewidth": 1}
                style["label"] = None if seed else row.setting.name
                losses = [point["val_loss"] for point in run.curve]
                by_tokens.plot([point["tokens"] / 1e6 for point in run.curve], losses, **style)
                by_time.plot([point["seconds"] / 60 for point in run.curve], losses, **style)
        by_tokens.set(xlabel="tokens, millions", ylabel="validation loss, nats a token")
        by_time.set(xlabel="training time without evaluations, minutes")
        by_tokens.legend(frameon=False)
        for axes in (by_tokens, by_time):
            axes.spines[["top", "right"]].set_visible(False)
    return figure
