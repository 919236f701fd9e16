"""Run records as tables: the study's result table with our columns beside it, and where each run was made.

Pure functions of what `ghost_jax.reporting.records.read_run` returns. Records of older runs lack newer keys and
still read.
"""

import shlex
import statistics
from collections.abc import Iterable, Sequence

from ghost_jax.data.builders import DATASETS
from ghost_jax.model.config import ModelConfig
from ghost_jax.runs.cropping import cropping_of

NONE = "—"
STUDY = ("study: run", "study: steps", "study: LR", "study: val", "study: CTIBench")
OURS = (
    *("steps", "LR", "val", "val shared", "state"),
    *("items", "accuracy over orders (95%)", "published order", "most frequent letter", "verdict"),
)
MACHINES = ("run", "parameters", "machine", "tokens/s")
# Datasets as the study's table calls them, in the order in which a recipe names them: small talk last.
WORDS = {name: DATASETS[name].title for name in sorted(DATASETS, key=lambda name: name == "small_talk")}


def result_table(runs: Sequence[dict]) -> list[tuple[str, ...]]:
    """Returns the rows of the result table, the header first; a run with several scores has a row for each.

    The study's columns stand in it where one of the runs rebuilds a row of the study.
    """
    studied = any(published_of(run).get("run") for run in runs)
    rows = [("run", "recipe", *(STUDY if studied else ()), *OURS)]
    for run in runs:
        named = (run["name"], recipe_of(run["config"]), *(study_cells(published_of(run)) if studied else ()))
        # A score with the book open says nothing of what a run knows, and stands in a table of its own.
        for score in [score for score in run["evals"].values() if score["book"] == "closed"] or [None]:
            rows.append(named + run_cells(run) + score_cells(score))
    return rows


def notes_of(runs: Iterable[dict]) -> list[str]:
    """Returns what stands below the result table: how its scores compare, and what can be had without reading."""
    runs = list(runs)
    said = []
    if any(published_of(run).get("accuracy") for run in runs):
        said.append("The study's figures are of one run each, in the published order alone; `published order` is ours.")
    scores = [(run["name"], score) for run in runs for score in run["evals"].values()]
    for name, score in scores:
        if cropped := cropping_of(score):
            said.append(f"{name}, {score['items']['name']}, {asked_of(score)}: {cropped}")
    for score in {score["items"]["sha256"]: score for _, score in scores}.values():
        baselines = ", ".join(
            f"{name.replace('_', ' ')} {100 * accuracy:.1f}" for name, accuracy in score["baselines"].items()
        )
        said.append(f"Without reading a question, {score['items']['name']} in the published order, %: {baselines}.")
    return said


def machine_table(runs: Iterable[dict]) -> list[tuple[str, ...]]:
    """Returns size, machine and speed of each run, the header first; tokens/s is the median over logged updates."""
    rows = [MACHINES]
    for run in runs:
        speeds = [line["tokens_per_s"] for line in run["metrics"]]
        rows.append(
            (
                run["name"],
                f"{ModelConfig(**run['config']['model']).parameters():,}",
                run["environment"].get("machine", NONE),
                f"{statistics.median(speeds):,.0f}" if speeds else NONE,
            )
        )
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows, the header first, as a Markdown table."""

    def cell(text: str) -> str:
        return " ".join(text.split()).replace("|", r"\|")

    lines = [rows[0], ("---",) * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)


# ---- Cells ----


def recipe_of(config: dict) -> str:
    """Returns a recipe in the study's words: "Q&A x1 + raw MCQ x5 on pretrain_v04"."""
    if "imported" in config:
        return f"imported from {config['imported']['from']}"
    mixture = {name: multiplier for name, multiplier in config["data"].get("mixture", {}).items() if multiplier > 0}
    known = [name for name in WORDS if name in mixture] + [name for name in mixture if name not in WORDS]
    # The oldest records of a base name no mixture: there was one dataset.
    mixed = " + ".join(f"{WORDS.get(name, name)} x{mixture[name]:g}" for name in known) or WORDS["pretrain"]
    layout, norm = config["data"].get("layout", "classic"), config.get("loss_norm", "token_mean")
    how = [f"asked as {layout}"] * (layout != "classic") + ["mean over records"] * (norm == "record_mean")
    on = f" on {config['base']['name']}" if "base" in config else ""
    on += ", imported" if "imported" in config.get("base", {}) else ""
    return mixed + on + "".join(f", {each}" for each in how)


def study_cells(published: dict) -> tuple[str, ...]:
    """Returns the study's row of a recipe as cells; empty ones for a recipe of ours."""
    loss, accuracy = published.get("val_loss"), published.get("accuracy")
    return (
        published.get("run") or NONE,
        f"{published['steps']:,}" if published.get("steps") else NONE,
        _rate(published["rate"]) if published.get("rate") else NONE,
        f"{loss:.3f}" if loss else NONE,
        f"{100 * accuracy:.1f}%" if accuracy else published.get("outcome") or NONE,
    )


def run_cells(run: dict) -> tuple[str, ...]:
    """Returns a run as cells: updates done, rate, validation losses in nats a token, how it ended."""
    config, lines = run["config"], run["metrics"]
    done = lines[-1]["step"] if lines else 0
    last = {key: line[key] for line in lines for key in ("val_loss", "val_loss_shared") if key in line}
    return (
        f"{done:,}" if done == config["steps"] else f"{done:,} of {config['steps']:,}",
        _rate(config["optim"]["peak_lr"]),
        *(f"{last[key]:.3f}" if key in last else NONE for key in ("val_loss", "val_loss_shared")),
        state_of(run),
    )


def command_of(run: dict) -> str:
    """Returns the command that trained a run, of older ones as far as it is known; empty for an imported one."""
    if words := run["environment"].get("command"):
        return shlex.join(["python", "-m", "ghost_jax.train", *words])
    spec = run["config"].get("spec")
    return f"python -m ghost_jax.train --config={spec}" if spec else ""


def state_of(run: dict) -> str:
    """Returns "finished", "unfinished", or when and why the divergence watch stopped the run."""
    if run["finished"]:
        return "finished"
    stopped = run["stopped"]
    return f"stopped at {stopped['step']:,}: {stopped['reason']}" if stopped else "unfinished"


def score_cells(score: dict | None) -> tuple[str, ...]:
    """Returns a score as cells: items, headline with interval, single order, most frequent letter, verdict.

    A score in one order has no headline: there a constant letter can look like knowledge. Where cloze shows what the
    letters do not, its accuracy stands beside the verdict.
    """
    if score is None:
        return (NONE,) * 5
    low, high = score["headline"]["ci95"]
    headline = f"{100 * score['headline']['accuracy']:.1f} ({100 * low:.1f} to {100 * high:.1f})"
    letter, share = max(score["letter_share"].items(), key=lambda item: item[1])
    readings = score.get("readings", {"differs": False})
    cloze = f", cloze {100 * readings['cloze']['accuracy']:.1f}" if readings["differs"] else ""
    return (
        f"{score['items']['name']} (n={score['n']:,}, {score['book']} book)",
        headline if orders_of(score) > 1 else f"{NONE} (one order)",
        f"{100 * score['single_order']:.1f}",
        f"{letter} {100 * share:.1f}%",
        (score["verdict"].upper() if score["verdict"] == "collapsed" else score["verdict"]) + cloze,
    )


def said_of(score: dict) -> str:
    """Returns in words what a score is worth: its verdict, and what else was asked."""
    said = [f"Verdict: {score.get('verdict_text') or score['verdict']}"]
    if cloze := score.get("cloze"):
        primary = cloze[cloze["primary"]]
        low, high = primary["ci95"]
        said.append(
            f"With the options not shown (cloze, {cloze['primary']}): {100 * primary['accuracy']:.1f}% "
            f"({100 * low:.1f} to {100 * high:.1f})."
        )
        for name, control in cloze.get("controls", {}).items():
            low, high = (100 * bound for bound in control["gain_ci95"])
            said.append(f"Over {name} it gains {100 * control['gain']:+.1f} points ({low:+.1f} to {high:+.1f}) there.")
    if score.get("flip_rate") is not None:
        said.append(f"Between two orders of a question another option is chosen in {score['flip_rate']:.0%}.")
    if gain := gain_of(score):
        said.append(f"The model beside it adds {gain}.")
    if cropped := cropping_of(score):
        said.append(cropped)
    return " ".join(said)


def asked_of(score: dict) -> str:
    """Returns how a score was asked: "closed book", "open book, reader both"."""
    return f"{score['book']} book" + (f", reader {score['reader']}" if score["book"] == "open" else "")


def answerer_of(score: dict) -> str:
    """Returns whose answers a score is of: of the lexical reader with the model beside it, it is not the model's."""
    return "lexical reader with this model" if score.get("reader") == "both" else "this model"


def gain_of(score: dict) -> str:
    """Returns in words what a model adds to the lexical reader; empty for any other score."""
    if "gain_over_lexical" not in score:
        return ""
    low, high = (100 * bound for bound in score["gain_over_lexical_ci95"])
    return f"{100 * score['gain_over_lexical']:+.2f} points ({low:+.2f} to {high:+.2f}) over the lexical reader alone"


def orders_of(score: dict) -> int:
    """Returns in how many orders each question was asked."""
    headline = score["headline"]
    return headline.get("orders_per_item", len(headline["orders"]))


def published_of(run: dict) -> dict:
    """Returns the row of the study that a run rebuilds: none where it starts from a model of somebody else."""
    config = run["config"]
    return {} if "imported" in config.get("base", {}) else config.get("published", {})


def _rate(value: float) -> str:
    """Returns a rate as the study writes it: 5e-5."""
    digits, exponent = f"{value:e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"
