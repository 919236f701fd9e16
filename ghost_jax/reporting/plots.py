"""The pictures of a report: pure functions of run records, each a figure that says one thing.

Records of older runs lack newer keys; what they lack is not drawn.
"""

from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")  # no screen is needed, nor looked for
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ghost_jax.reporting.tables import WORDS, answerer_of, asked_of, orders_of, published_of

INK, ACCENT, MUTED, WARM = "#1d2733", "#2a6fb0", "#a9b4c0", "#c4622d"
WIDTH = 5  # inches: on a phone, which shows a picture 3.7 inches wide, its words stay readable
LETTER_COLORS = (ACCENT, WARM, "#4f8f5b", "#8a5aa5", "#b0882a", MUTED)


def loss_picture(run: dict) -> Figure:
    """Draws training loss, and validation losses where they were taken, in nats a supervised token."""
    figure, axes = _figure(3.6)
    lines = run["metrics"]
    axes.plot([line["step"] for line in lines], [line["loss"] for line in lines], color=MUTED, label="training")
    for key, color, label in (
        ("val_loss", ACCENT, "validation, own mix"),
        ("val_loss_shared", WARM, "validation, shared"),
    ):
        taken = [line for line in lines if key in line]
        if taken:
            axes.plot([line["step"] for line in taken], [line[key] for line in taken], "o-", color=color, label=label)
    _finish(axes, "update", "loss, nats a token", run["name"])
    axes.legend(frameon=False)
    return figure


def mixture_picture(run: dict) -> Figure:
    """Draws each dataset's share of the records that a run learns from, and of the tokens that are learnt."""
    shares = list(reversed(run["data"]["mixture"]))
    names = [f"{WORDS.get(share['name'], share['name'])} x{_last(share['multiplier']):g}" for share in shares]
    figure, axes = _figure(1.6 + 0.45 * len(shares))
    places = range(len(shares))
    of_tokens = [100 * share["supervised_share"] for share in shares]
    axes.barh([place + 0.2 for place in places], [100 * share["record_share"] for share in shares], 0.4, color=ACCENT)
    axes.barh([place - 0.2 for place in places], of_tokens, 0.4, color=WARM)
    axes.set_yticks(places, names)
    axes.set_xlim(0, 100)
    _finish(axes, "share, %: records (blue), learnt tokens (orange)", "", "mixture")
    return figure


def accuracy_picture(score: dict) -> Figure:
    """Draws the headline with its interval beside its controls and the baselines that read no question."""
    baselines, controls = score["baselines_over_orders"], score["controls"]
    names = [*reversed(baselines), *reversed(controls), f"{answerer_of(score)}{collapsed(score)}"]
    values = [*reversed(baselines.values()), *(control["accuracy"] for control in reversed(controls.values()))]
    colors = [MUTED] * len(baselines) + [WARM] * len(controls) + [ACCENT]
    figure, axes = _figure(1.2 + 0.27 * len(names))
    accuracy = score["headline"]["accuracy"]
    axes.barh([name.replace("_", " ") for name in names], [100 * v for v in (*values, accuracy)], color=colors)
    intervals = {len(names) - 1: (accuracy, score["headline"]["ci95"])}
    for place, control in enumerate(reversed(controls.values()), len(baselines)):
        intervals[place] = control["accuracy"], control["ci95"]
    for place, (value, (low, high)) in intervals.items():
        axes.errorbar(
            100 * value, place, xerr=[[100 * (value - low)], [100 * (high - value)]], color=INK, capsize=3, linewidth=1
        )
    axes.axvline(100 * _chance(score), color=INK, linewidth=1, linestyle="--")
    _finish(axes, f"accuracy over {orders_of(score)} orders, %", "", f"{score['items']['name']}, {asked_of(score)}")
    return figure


def letter_picture(score: dict) -> Figure:
    """Draws the share of each answered letter; a collapse is one tall bar."""
    figure, axes = _figure(3, 4.2)
    axes.bar(list(score["letter_share"]), [100 * share for share in score["letter_share"].values()], color=ACCENT)
    axes.axhline(100 / len(score["letter_share"]), color=WARM, linewidth=1, linestyle="--")
    axes.set_ylim(0, 100)
    _finish(axes, "letter answered", "share of answers, %", f"verdict: {collapsed(score).strip() or score['verdict']}")
    return figure


def log_prob_picture(score: dict) -> Figure:
    """Draws how probable each letter was over all prompts; in a collapse one letter stands right of the others."""
    figure, axes = _figure(3)
    edges = score["letter_log_probs"]["edges"]
    for (letter, counts), color in zip(score["letter_log_probs"]["counts"].items(), LETTER_COLORS, strict=False):
        axes.stairs(counts, edges, color=color, label=letter, linewidth=1.5)
    _finish(axes, "log-probability among the letters, nats", "prompts", "letters")
    axes.legend(frameon=False)
    return figure


def reliability_picture(score: dict) -> Figure:
    """Draws accuracy against confidence, a bin a dot as large as its share; on the diagonal the model is calibrated."""
    figure, axes = _figure(3.4, 4.2)
    bins = [each for each in score["calibration"]["bins"] if each["n"]]
    total = sum(each["n"] for each in bins)
    axes.plot([0, 100], [0, 100], color=MUTED, linewidth=1)
    axes.scatter(
        [100 * each["confidence"] for each in bins],
        [100 * each["accuracy"] for each in bins],
        s=[15 + 300 * each["n"] / total for each in bins],
        color=ACCENT,
    )
    axes.set(xlim=(0, 100), ylim=(0, 100))
    title = f"expected calibration error {score['calibration']['ece']:.3f}"
    _finish(axes, "confidence in the answered letter, %", "accuracy, %", title)
    return figure


def study_picture(runs: Sequence[dict]) -> Figure | None:
    """Draws the study's accuracies among baselines that read no question, in the published order and over all of them.

    None where no run rebuilds a row of the study, or none was scored on its benchmark in several orders.
    """
    studied = [run for run in runs if published_of(run).get("accuracy")]
    scored = {run["name"]: score for run in studied if (score := _in_several_orders(run))}
    if not scored:
        return None
    score = next(iter(scored.values()))
    orders = orders_of(score)
    rows: list[tuple[str, float | None, float | None, Sequence[float] | None]] = [
        (name.replace("_", " "), value, score["baselines_over_orders"][name], None)
        for name, value in score["baselines"].items()
    ]
    study = {published_of(run)["run"]: published_of(run)["accuracy"] for run in studied}
    for name, accuracy in sorted(study.items(), key=lambda row: row[1]):  # one, however often it was rebuilt
        rows.append((f"study: {name}", accuracy, None, None))
    for name, each in scored.items():
        rows.append(
            (
                f"ours: {name}{collapsed(each)}",
                each["single_order"],
                each["headline"]["accuracy"],
                each["headline"]["ci95"],
            )
        )
    figure, axes = _figure(1.4 + 0.24 * len(rows), 1.2 * WIDTH)
    for place, (_, published, over, interval) in enumerate(reversed(rows)):
        if interval:
            axes.plot([100 * bound for bound in interval], [place, place], color=ACCENT, linewidth=2)
        if published is not None and over is not None:
            axes.plot([100 * published, 100 * over], [place, place], color=MUTED, linewidth=1, zorder=0)
        if published is not None:
            axes.plot(100 * published, place, "o", markerfacecolor="white", markeredgecolor=WARM)
        if over is not None:
            axes.plot(100 * over, place, "o", color=ACCENT, markersize=5)
    axes.set_yticks(range(len(rows)), [name for name, *_ in reversed(rows)])
    axes.axvline(100 * score["baselines"]["always_C"], color=WARM, linewidth=1, linestyle="--")
    axes.axvline(100 * _chance(score), color=ACCENT, linewidth=1, linestyle="--")
    axes.plot([], [], "o", markerfacecolor="white", markeredgecolor=WARM, label="in the published order")
    axes.plot([], [], "o", color=ACCENT, markersize=5, label=f"over {orders} cyclic orders")
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    _finish(axes, "accuracy, %", "", f"{score['items']['name']}: who reads the question?")
    return figure


def _in_several_orders(run: Mapping) -> dict | None:
    score = run["evals"].get("ctibench")
    if score and orders_of(score) > 1 and "always_C" in score["baselines"] and not score.get("note"):
        return score
    return None


def collapsed(score: Mapping) -> str:
    """Returns " COLLAPSED" for a score whose answers are one letter, to stand behind a name; else nothing."""
    return " COLLAPSED" if score["verdict"] == "collapsed" else ""


def _chance(score: Mapping) -> float:
    """The accuracy of the best constant letter over the orders asked."""
    return max(accuracy for name, accuracy in score["baselines_over_orders"].items() if name.startswith("always_"))


def _last(multiplier: float | Sequence[float]) -> float:
    """The multiplier of a dataset, the last one where it changes during the run; the oldest records have a number."""
    return multiplier[-1] if isinstance(multiplier, Sequence) else multiplier


def _figure(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _finish(axes: Axes, x: str, y: str, title: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
