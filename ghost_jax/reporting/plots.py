"""The pictures of a report: figures drawn from a run's record or a score. `page.html` has their captions."""

import io
import textwrap
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")  # needs no display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import ghost_jax
from ghost_jax.data.retrieval.mcq_baselines import NEAREST
from ghost_jax.reporting.tables import (
    WORDS,
    answerer_of,
    asked_of,
    benchmark_scores,
    collapsed,
    lm_loss,
    orders_of,
    published_of,
)
from ghost_jax.runs.evaluation import Evaluation
from ghost_jax.runs.run_record import RunRecord

INK, ACCENT, MUTED, WARM = "#1d2733", "#2a6fb0", "#8d99a6", "#c4622d"
LETTER_COLORS = (  # as many as an item has options at most
    *(ACCENT, WARM, "#4f8f5b", "#8a5aa5", "#b0882a", MUTED),
    *("#c2518b", "#2f9c9c", "#7a5a3c", INK),
)
WIDTH = 5  # inches: text stays readable on a phone, which shows a picture 3.7 inches wide
LOSSES = {
    "loss": ("-", MUTED, "training"),
    "val_loss": ("o-", ACCENT, "validation, own mix"),
    "val_loss_shared": ("o-", WARM, "validation, shared"),
}


def png(figure: Figure) -> bytes:
    """Returns a figure as PNG that names the version of this program."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": f"ghost_jax {ghost_jax.__version__}"})
    return buffer.getvalue()


def new_figure(height: float, width: float = WIDTH, panels: int = 1) -> tuple[Figure, Sequence[Axes]]:
    """Returns a figure and its panels, one above the other; sizes are inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(panels, 1, squeeze=False)[:, 0]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def run_pictures(run: RunRecord) -> dict[str, Figure]:
    """Returns the pictures of a run's training by their names."""
    drawn = {"loss": loss_picture(run)} if run.metrics else {}
    return drawn | ({"mixture": mixture_picture(run)} if run.data.mixture else {})


def score_pictures(score: Evaluation) -> dict[str, Figure]:
    """Returns the pictures of a score by their names; what it lacks is not drawn."""
    drawn = {"accuracy": accuracy_picture(score), "letters": letter_picture(score)}
    if score.letter_log_probs:
        drawn["log-probs"] = log_prob_picture(score)
    if score.calibration:
        drawn["reliability"] = reliability_picture(score)
    return drawn


def loss_picture(run: RunRecord) -> Figure:
    """Draws the training loss, and validation losses where there are any."""
    figure, (axes,) = new_figure(3.6)
    metrics = [line | {"loss": lm_loss(line)} for line in run.metrics]
    for key, (form, color, label) in LOSSES.items():
        if lines := [line for line in metrics if line.get(key) is not None]:
            axes.plot([line["step"] for line in lines], [line[key] for line in lines], form, color=color, label=label)
    axes.legend(frameon=False)
    _finish(axes, "update", "loss, nats a token", run.name)
    return figure


def mixture_picture(run: RunRecord) -> Figure:
    """Draws each dataset's share of the records that a run trains on, and of their supervised tokens."""
    shares = run.data.mixture[::-1]
    figure, (axes,) = new_figure(1.8 + 0.45 * len(shares))
    places = range(len(shares))
    for shift, color, label, key in (
        (0.2, ACCENT, "records", "record_share"),
        (-0.2, WARM, "supervised tokens", "supervised_share"),
    ):
        values = [100 * getattr(share, key) for share in shares]
        axes.barh([place + shift for place in places], values, 0.4, color=color, label=label)
    # The multipliers of the last phase.
    axes.set_yticks(places, [f"{WORDS.get(share.name, share.name)} x{share.multiplier[-1]:g}" for share in shares])
    axes.set_xlim(0, 100)
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    _finish(axes, "share, %", "", "mixture")
    return figure


def accuracy_picture(score: Evaluation) -> Figure:
    """Draws the headline with its interval beside its controls and the baselines."""
    bars = [(answerer_of(score) + collapsed(score), score.headline.accuracy, score.headline.ci95, ACCENT)]
    bars += [(name, control.accuracy, control.ci95, WARM) for name, control in score.controls.items()]
    bars += [(name.replace("_", " "), each, None, MUTED) for name, each in score.baselines_over_orders.items()]
    figure, (axes,) = new_figure(1.2 + 0.27 * len(bars))
    axes.barh([name for name, *_ in bars], [100 * each for _, each, *_ in bars], color=[color for *_, color in bars])
    for place, (_, accuracy, interval, _) in enumerate(bars):
        if interval:
            ends = [[100 * (accuracy - interval[0])], [100 * (interval[1] - accuracy)]]
            axes.errorbar(100 * accuracy, place, xerr=ends, color=INK, capsize=3, linewidth=1)
    axes.axvline(100 * score.best_constant, color=INK, linewidth=1, linestyle="--", label="best constant letter")
    axes.invert_yaxis()
    figure.legend(frameon=False, loc="outside lower center")
    _finish(axes, f"accuracy, {orders_of(score)}, %", "", f"{score.items.name}, {asked_of(score)}")
    return figure


def letter_picture(score: Evaluation) -> Figure:
    """Draws the share of each answered letter."""
    figure, (axes,) = new_figure(3)
    axes.bar(list(score.letter_share), [100 * share for share in score.letter_share.values()], color=ACCENT)
    axes.set_ylim(0, 100)
    if len(set(map(len, score.headline.orders))) == 1:  # else a letter that few items have is answered less often
        axes.axhline(100 / len(score.letter_share), color=WARM, linewidth=1, linestyle="--", label="equal shares")
        axes.legend(frameon=False)
    _finish(axes, "letter answered", "share of answers, %", f"verdict: {collapsed(score).strip() or score.verdict}")
    return figure


def log_prob_picture(score: Evaluation) -> Figure:
    """Draws the distribution of each letter's log-probability over all prompts."""
    figure, (axes,) = new_figure(3)
    histogram = score.letter_log_probs
    for (letter, counts), color in zip(histogram.counts.items(), LETTER_COLORS, strict=False):
        axes.stairs(counts, histogram.edges, color=color, label=letter, linewidth=1.5)
    axes.legend(frameon=False)
    _finish(axes, "log-probability among the letters, nats", "prompts", "letters")
    return figure


def reliability_picture(score: Evaluation) -> Figure:
    """Draws accuracy against confidence, a bin a dot as large as its share."""
    figure, (axes,) = new_figure(3.4)
    bins = [each for each in score.calibration.bins if each.n]
    total = sum(each.n for each in bins)
    axes.plot([0, 100], [0, 100], color=MUTED, linewidth=1)
    axes.scatter(
        [100 * each.confidence for each in bins],
        [100 * each.accuracy for each in bins],
        s=[15 + 300 * each.n / total for each in bins],
        color=ACCENT,
    )
    axes.set(xlim=(0, 100), ylim=(0, 100))
    error = f"expected calibration error {score.calibration.ece:.3f}"
    _finish(axes, "confidence in the answered letter, %", "accuracy, %", error)
    return figure


def study_picture(runs: Sequence[RunRecord]) -> Figure | None:
    """Draws runs and the study's figures among the baselines, in the published order and over all orders.

    None where no run was scored on the benchmark in several orders, or one alone that rebuilds no row of the study.
    """
    scored = {name: score for name, score in benchmark_scores(runs).items() if not score.note}
    rebuilt = [published_of(run) for run in runs if published_of(run).get("accuracy")]
    study = {each["run"]: each["accuracy"] for each in rebuilt}
    if not scored or not (study or len(scored) > 1):
        return None
    score = next(iter(scored.values()))
    baselines = [(name, each) for name, each in score.baselines.items() if name != NEAREST]
    # Accuracy in the published order, accuracy over all orders, interval of the latter.
    rows = {name.replace("_", " "): (each, score.baselines_over_orders[name], None) for name, each in baselines}
    rows |= {f"study: {name}": (each, None, None) for name, each in sorted(study.items(), key=lambda row: row[1])}
    for name, each in scored.items():
        rows[f"ours: {name}{collapsed(each)}"] = each.single_order, each.headline.accuracy, each.headline.ci95
    figure, (axes,) = new_figure(1.4 + 0.24 * len(rows))
    for place, (published, over, interval) in enumerate(rows.values()):
        if interval:
            axes.plot([100 * bound for bound in interval], [place, place], color=ACCENT, linewidth=2)
        if over is not None:
            axes.plot([100 * published, 100 * over], [place, place], color=MUTED, linewidth=1, zorder=0)
            axes.plot(100 * over, place, "o", color=ACCENT, markersize=5)
        axes.plot(100 * published, place, "o", markerfacecolor="white", markeredgecolor=WARM)
    axes.set_yticks(range(len(rows)), rows, parse_math=False)
    axes.invert_yaxis()
    axes.plot([], [], "o", markerfacecolor="white", markeredgecolor=WARM, label="in the published order")
    axes.plot([], [], "o", color=ACCENT, markersize=5, label=orders_of(score))
    constant_lines = {"always C, published order": (score.baselines["always_C"], WARM)}
    constant_lines["best constant letter, all orders"] = score.best_constant, ACCENT
    for name, (accuracy, color) in constant_lines.items():
        axes.axvline(100 * accuracy, color=color, linewidth=1, linestyle="--", label=name)
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    _finish(axes, "accuracy, %", "", score.items.name)
    return figure


def _finish(axes: Axes, x: str, y: str, title: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    set_title(axes.figure, title)


def set_title(figure: Figure, title: str) -> None:
    """Writes a title above a figure in as many lines as it needs: beside long labels the panel itself is narrow."""
    lines = textwrap.fill(title, int(10.5 * figure.get_figwidth()))  # characters an inch
    figure.suptitle(lines, x=0.01, ha="left", fontsize=11, parse_math=False)  # a name may hold "$"
