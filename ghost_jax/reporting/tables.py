"""Run records as tables: the study's result table with our columns beside it."""

import itertools
import shlex
from collections.abc import Mapping, Sequence

from ghost_jax.data.builders import DATASETS
from ghost_jax.data.items.items import orders_label
from ghost_jax.data.retrieval.mcq_baselines import NEAREST
from ghost_jax.runs.evaluation import COLLAPSED, Evaluation, interval, percent, points
from ghost_jax.runs.run_record import RunRecord, differences

NONE = "—"
CTIBENCH = "CTIBench MCQ"
STUDY = ("study: run", "study: steps", "study: LR", "study: val", "study: CTIBench")
OURS = (
    *("steps", "LR", "val", "val shared", "state"),
    *("items", "accuracy over orders (95%)", "published order", "most frequent letter", "verdict"),
)
# Titles of datasets in the study's table, in the order in which a recipe names them: small talk last.
WORDS = {name: DATASETS[name].title for name in sorted(DATASETS, key=lambda name: name == "small_talk")}
Row = tuple[str, ...]


def result_table(runs: Sequence[RunRecord]) -> list[Row]:
    """Returns the rows of the result table, the header first; a run with several closed-book scores has a row for each.

    It has the study's columns where one of the runs rebuilds a row of the study.
    """
    studied = any(published_of(run).get("run") for run in runs)
    rows = [("run", "recipe", *(STUDY if studied else ()), *OURS)]
    for run in runs:
        named = (run.name, recipe_of(run.config), *(study_cells(published_of(run)) if studied else ()))
        closed = [score for score in run.evals.values() if score.book == "closed"]
        for score in closed or [None]:
            rows.append(named + run_cells(run) + score_cells(score))
    return rows


def notes_of(runs: Sequence[RunRecord]) -> list[str]:
    """Returns the notes below the result table: how scores compare, cropped prompts, and the baselines."""
    notes = []
    if any(published_of(run).get("accuracy") for run in runs):
        notes.append(
            "The study's figures are of one run each, in the published order alone; `published order` is ours."
        )
    notes += [*losses_of(runs), *differences(runs)]
    scores = [(run.name, score) for run in runs for score in run.evals.values()]
    for name, score in scores:
        if cropped := score.cropping:
            notes.append(f"{name}, {score.items.name}, {asked_of(score)}: {cropped}")
    for score in {(score.items.sha256, score.items.name): score for _, score in scores}.values():
        baselines = ", ".join(
            f"{name.replace('_', ' ')} {100 * each:.1f}" for name, each in score.baselines.items() if name != NEAREST
        )
        notes.append(f"Without a model, {score.items.name} in the published order, %: {baselines}.")
    return notes


def lm_loss(line: Mapping) -> float | None:
    """Returns the training loss of a line of metrics in nats a token; None where a run has other objectives alone."""
    return line.get("loss_lm", None if any(key.startswith("loss_") for key in line) else line.get("loss"))


def losses_of(runs: Sequence[RunRecord]) -> list[str]:
    """Returns how far the validation losses of runs compare; nothing on runs of one recipe."""
    recipes = {recipe_of(run.config) for run in runs if run.config}
    note = (
        "Validation losses are in nats a token of a run's own vocabulary: those of two vocabularies do not compare. "
        "`val` is of the datasets that a run mixes, `val shared` of the same ones for all chat recipes: it compares "
        "runs with the same `data.layout`, `data.truncation`, `data.qa_sources` and `data.validation_records`."
    )
    return [note] * (len(recipes) > 1)


def markdown(rows: Sequence[Row]) -> str:
    """Returns rows, the header first, as a Markdown table."""

    def line(cells: Row) -> str:
        return "| " + " | ".join(" ".join(cell.split()).replace("|", r"\|") for cell in cells) + " |"

    return "\n".join([line(rows[0]), line(("---",) * len(rows[0])), *map(line, rows[1:])])


# ---- A run ----


def recipe_of(config: dict) -> str:
    """Returns a recipe in the study's words: "Q&A x1 + raw MCQ x5 on pretrain_v04"."""
    if "imported" in config:
        return f"imported from {config['imported']['from']}"
    data = {"mixture": {}, "mixture_schedule": {}} | config["data"]  # the oldest records of a base had one dataset
    phases = [data["mixture"]]
    for _, changes in sorted(data["mixture_schedule"].items(), key=lambda each: int(each[0])):
        phases.append(phases[-1] | changes)
    mixture = {name: [phase.get(name, 0) for phase in phases] for name in phases[-1]}
    mixture = {name: [each for each, _ in itertools.groupby(found)] for name, found in mixture.items() if any(found)}
    known = [name for name in WORDS if name in mixture] + [name for name in mixture if name not in WORDS]
    shown = {name: "".join(f" x{each:g}," for each in mixture[name]).removesuffix(",") for name in known}
    parts = [" + ".join(f"{WORDS.get(name, name)}{shown[name]}" for name in known) or WORDS["pretrain"]]
    if base := config.get("base"):
        parts[0] += f" on {base['name']}" + (", imported" if "imported" in base else "")
    if (layout := config["data"].get("layout", "classic")) != "classic":
        parts.append(f"asked as {layout}")
    if config.get("loss_norm") == "record_mean":
        parts.append("mean over records")
    return ", ".join(parts)


def published_of(run: RunRecord) -> dict:
    """Returns the row of the study that a run rebuilds: {} where it starts from an imported model."""
    return {} if "imported" in run.config.get("base", {}) else run.config.get("published", {})


def study_cells(published: dict) -> Row:
    """Returns the study's row of a recipe as cells; empty ones for a recipe of ours."""
    loss, accuracy = published.get("val_loss"), published.get("accuracy")
    return (
        published.get("run") or NONE,
        f"{published['steps']:,}" if published.get("steps") else NONE,
        _rate(published["rate"]) if published.get("rate") else NONE,
        f"{loss:.3f}" if loss else NONE,
        f"{100 * accuracy:.1f}%" if accuracy else published.get("outcome") or NONE,
    )


def run_cells(run: RunRecord) -> Row:
    """Returns a run as cells: updates done, learning rate, validation losses in nats a token, state."""
    done, planned = run.metrics[-1]["step"] if run.metrics else 0, run.config["steps"]
    last = {key: line[key] for line in run.metrics for key in ("val_loss", "val_loss_shared") if key in line}
    return (
        f"{done:,}" if done == planned else f"{done:,} of {planned:,}",
        _rate(run.config["optim"]["peak_lr"]),
        *(f"{last[key]:.3f}" if key in last else NONE for key in ("val_loss", "val_loss_shared")),
        state_of(run),
    )


def state_of(run: RunRecord) -> str:
    """Returns "finished", "unfinished", or when and why the divergence watch stopped the run."""
    if run.finished:
        return "finished"
    return f"stopped at {run.stopped.step:,}: {run.stopped.reason}" if run.stopped else "unfinished"


def command_of(run: RunRecord) -> str:
    """Returns the command that trained a run, of older ones as far as it is known; empty for an imported one."""
    if words := run.environment.command:
        return shlex.join(["python", "-m", "ghost_jax.train", *words])
    spec = run.config.get("spec")
    return f"python -m ghost_jax.train --config={spec}" if spec else ""


def _rate(value: float) -> str:
    """Returns a learning rate as the study writes it: 5e-5."""
    digits, exponent = f"{value:e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


# ---- A score ----


def score_cells(score: Evaluation | None) -> Row:
    """Returns a score as cells: items, headline with interval, single order, most frequent letter, verdict.

    A score in one order has no headline, because there a constant letter can look like knowledge. The accuracy of cloze
    stands beside the verdict where it differs from that of the letters.
    """
    if score is None:
        return (NONE,) * 5
    letter, share = score.top_letter
    differs = score.readings and score.readings.differs
    cloze = f", cloze {percent(score.readings.cloze.accuracy)}" if differs else ""
    headline = percent(score.headline.accuracy, score.headline.ci95)
    return (
        f"{score.items.name} (n={score.n:,}, {score.book} book)",
        headline if score.orders_per_item > 1 else f"{NONE} (one order)",
        percent(score.single_order),
        f"{letter} {100 * share:.1f}%",
        (score.verdict.upper() if score.verdict == COLLAPSED else score.verdict) + cloze,
    )


def said_of(score: Evaluation) -> str:
    """Returns a score in sentences: its verdict, cloze, changes between orders, cropped prompts."""
    sentences = [f"Verdict: {score.verdict_text or score.verdict}"]
    if cloze := score.cloze:
        accuracy = percent(cloze.found.accuracy, cloze.found.ci95)
        sentences.append(f"With the options not shown (cloze, {cloze.primary}), %: {accuracy}.")
        for name, control in (cloze.controls or {}).items():
            sentences.append(f"Over {name} it gains there, in points: {points(control.gain, control.gain_ci95, 1)}.")
    if score.flip_rate is not None:
        sentences.append(f"Between two orders of a question another option is chosen in {score.flip_rate:.0%}.")
    if gain := gain_of(score):
        sentences.append(f"The model beside it adds {gain}.")
    if cropped := score.cropping:
        sentences.append(cropped)
    return " ".join(sentences)


def collapsed(score: Evaluation) -> str:
    """Returns " COLLAPSED", to stand behind a name, for a score whose answers are one letter; else ""."""
    return " COLLAPSED" if score.verdict == COLLAPSED else ""


def asked_of(score: Evaluation) -> str:
    """Returns how a score was asked: "closed book", "open book, reader both"."""
    return f"{score.book} book" + (f", reader {score.reader}" if score.book != "closed" else "")


def orders_of(score: Evaluation) -> str:
    """Returns what a score is over: "over 4 orders"."""
    return orders_label(score.headline.orders)


def answerer_of(score: Evaluation) -> str:
    """Returns who gave the answers: the model alone, or the lexical reader with the model beside it."""
    return "lexical reader with this model" if score.reader == "both" else "this model"


def gain_of(score: Evaluation) -> str:
    """Returns how much a model adds to the lexical reader; empty for any other score."""
    if score.gain_over_lexical is None:
        return ""
    ends = interval(*score.gain_over_lexical_ci95, "+.2f")
    return f"{points(score.gain_over_lexical)} points ({ends}) over the lexical reader alone"


def benchmark_scores(runs: Sequence[RunRecord]) -> dict[str, Evaluation]:
    """Returns the closed-book scores on the whole benchmark in several orders, by run."""
    scores = {run.name: run.evals.get("ctibench") for run in runs}
    return {name: score for name, score in scores.items() if score and on_benchmark(score)}


def on_benchmark(score: Evaluation) -> bool:
    """Returns whether a score is on the whole benchmark, in several orders."""
    return score.items.name == CTIBENCH and score.orders_per_item > 1
