"""The model card of an exported run, README.md beside its weights, from the run's records and nothing else.

Every number in it stands in the run's config.json, environment.json, data.json, metrics.jsonl, stopped.json or
evals/*.json, in the export's config.json, or in the comparison with the present canonical run. Records of older runs
lack newer keys and still read.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from ghost_jax.core.atomic_io import read_json
from ghost_jax.core.errors import UserError
from ghost_jax.hub.channel import Channel
from ghost_jax.reporting.records import read_run
from ghost_jax.reporting.tables import (
    NONE,
    WORDS,
    answerer_of,
    asked_of,
    gain_of,
    markdown,
    notes_of,
    orders_of,
    published_of,
    recipe_of,
    result_table,
    said_of,
    state_of,
)
from ghost_jax.runs.cropping import cropping_of

FILE = "README.md"
NEEDED = ("config.json", "environment.json", "data.json")
OF_THE_DATA = ("mixture", "notes", "documents", "duplicates_dropped", "licenses")
BOOKS = ("closed", "open")
SHOWN_LOSSES = 8
_PATH = re.compile(r"(?<![\w:/.…])~?/(?:[^\s/:;,]+/)+([^\s/:;,]*)")
WORTH = {
    "collapsed": "its accuracy measures one letter, and nothing that it knows",
    "chance": "it is not told apart from always answering the same letter",
    "shortcut": "it is not shown that the question has to be read for it",
    "gain": "the question is read, but a baseline without knowledge may score as much",
    "knowledge": "it is above every baseline and control that reads no question",
}


def read_records(workdir: Path) -> dict:
    """Returns a run's records, see `read_run`. Raises UserError where a needed one is absent or broken."""
    if not (workdir / "config.json").is_file():
        raise UserError(
            f"{workdir} holds no records of a run. Name a run directory, such as runs/chat_v5-nano, that "
            "python -m ghost_jax.train or ghost_jax.import_model made."
        )
    for name in NEEDED:
        read_json(workdir / name)
    run = read_run(workdir.resolve())
    if missing := [key for key in OF_THE_DATA if key not in run["data"]]:
        raise UserError(f"{workdir / 'data.json'} lacks {', '.join(missing)}. Train the run anew, and export that.")
    return run


def card_of(run: dict, exported: dict, channel: Channel, present: dict | None) -> str:
    """Returns the model card as Markdown with metadata in front.

    Args:
      run: its records, as `read_records` returns them.
      exported: the config.json that the weights were exported with.
      channel: which the upload is, and why.
      present: the records of the present canonical run, where there is one.
    """
    parts = [
        f"---\n{metadata(run, channel)}\n---",
        f"# {run['name']}",
        f"**{channel.name.capitalize()}.** {channel.reason}",
        *_about(run, exported),
        "## Recipe",
        *_recipe(run),
        "## Data",
        *_data(run),
        *_course(run),
        *(part for book in BOOKS for part in _evaluation(run, book)),
        *_results([present, run] if present else [run]),
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(run)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


# ---- Metadata ----


def metadata(run: dict, channel: Channel) -> str:
    """Returns the card's YAML: what a hub sorts models by, and the scores as a model-index."""
    own = [score for score in _scores(run) if score.get("reader") != "both"]  # of a sum, the model is a part
    results = [result for score in own for result in _eval_results(score)]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["ghost_jax", "cybersecurity", channel.name],
        metrics=["accuracy"] if results else None,
        model_name=run["name"] if results else None,
        eval_results=results or None,
    ).to_yaml(line_break="\n")


def _eval_results(score: dict) -> Iterator[EvalResult]:
    """Yields a score's entries in the model-index, in %. Scores with the book open are of another dataset config."""
    items, headline = score["items"], score["headline"]
    same = {
        "task_type": "multiple-choice",
        "task_name": f"multiple choice, {score['book']} book",
        "dataset_name": items["name"],
        "dataset_type": Path(items.get("file", items["name"])).stem,
        "dataset_config": asked_of(score),
        "dataset_split": score.get("split", "all"),
        "dataset_args": {"n": score["n"], "sha256": items["sha256"]},
        "metric_type": "accuracy",
    }
    verdict = f"verdict {score['verdict']}"
    # A single order comes second and by its name: there a constant letter can look like knowledge.
    if orders_of(score) > 1:
        yield EvalResult(
            **same,
            metric_name=f"accuracy over {orders_of(score)} orders of the options, {verdict}",
            metric_value=_percent(headline["accuracy"]),
            metric_args={"ci95": [_percent(bound) for bound in headline["ci95"]]},
        )
    interval = score.get("single_order_ci95") if orders_of(score) > 1 else headline["ci95"]
    yield EvalResult(
        **same,
        metric_name=f"accuracy in the order {headline['orders'][0]} alone, {verdict}",
        metric_value=_percent(score["single_order"]),
        metric_args={"ci95": [_percent(bound) for bound in interval]} if interval else None,
    )


def _percent(share: float) -> float:
    return round(100 * share, 2)


# ---- What it is and what it was made of ----


def _about(run: dict, exported: dict) -> Iterator[str]:
    made, environment = exported["ghost_jax"], run["environment"]
    imported = run["config"].get("imported")
    weights = (
        f"the weights of `{imported['from']}`, imported"
        if imported
        else f"the weights after update {made['step']:,} of the run `{made['run']}`, which is {state_of(run)}. Trained"
    )
    yield (
        f"A `{exported['architectures'][0]}` of {run['config']['model']['layers']} layers of width "
        f"{run['config']['model']['width']}, {exported['vocab_size']:,} tokens in its vocabulary and a context of "
        f"{run['config']['model']['context']:,}, in {exported['torch_dtype']}. These are {weights} with ghost_jax "
        f"{environment['ghost_jax']} on {environment.get('machine', 'a machine not named')}, exported with ghost_jax "
        f"{made['version']}."
    )
    yield (
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("THIS FOLDER OR REPOSITORY")\n'
        'tokenizer = AutoTokenizer.from_pretrained("THIS FOLDER OR REPOSITORY")\n'
        "```"
    )


def _recipe(run: dict) -> Iterator[str]:
    config, mixture = run["config"], run["data"]["mixture"]
    if config["stage"] == "imported":
        yield f"Imported from `{config['imported']['from']}`. Nothing was trained here."
        return
    yield f"{recipe_of(config)[:1].upper()}{recipe_of(config)[1:]}" + (
        f" (`{config['spec']}`)." if config.get("spec") else "."
    )
    settings = (
        ("updates", f"{config['steps']:,}"),
        ("rows an update", f"{config['batch_size']:,}"),
        ("tokens a row", f"{config['data']['seq_len']:,}"),
        ("optimizer", config["optim"].get("name", "adamw")),
        ("peak rate", f"{config['optim']['peak_lr']:g}"),
        ("schedule", config["optim"].get("schedule", "cosine")),
        ("warm-up updates", f"{config['optim']['warmup_steps']:,}"),
        ("weight decay", f"{config['optim']['weight_decay']:g}"),
        ("seed", str(config["seed"])),
        *([("base", _base(config["base"]))] if "base" in config else []),
    )
    yield markdown([("setting", "value"), *settings])
    header = ("dataset", "multiplier", "records", "tokens", "supervised", "share", "supervised share", "epochs")
    yield markdown([header, *map(_mixed, mixture)])


def _base(base: dict) -> str:
    if "imported" in base:
        return f"imported from {base['imported']['from']}"
    return f"{base['name']}, {base['steps']:,} updates"


def _mixed(share: dict) -> tuple[str, ...]:
    # One multiplier in the oldest records, one a phase since.
    multipliers = share["multiplier"] if isinstance(share["multiplier"], list) else [share["multiplier"]]
    return (
        WORDS.get(share["name"], share["name"]),
        "x" + ", ".join(f"{multiplier:g}" for multiplier in multipliers),
        *(f"{share[key]:,}" for key in ("records", "tokens", "supervised")),
        *(f"{share[key]:.1%}" for key in ("record_share", "supervised_share")),
        f"{share['epochs']:.2f}",
    )


def _data(run: dict) -> Iterator[str]:
    data = run["data"]
    yield "\n".join(f"- {without_folders(note)}" for note in data["notes"])
    if base := run["config"].get("base", {}).get("imported"):
        yield (
            f"Its base was imported from `{base['from']}`. What that one learnt from, and under which licence, is not "
            "in our records: its publisher says, and what holds for it holds for this model as well."
        )
    if data["documents"]:
        dropped = data["duplicates_dropped"]
        yield markdown(
            [
                ("source", "documents", "duplicates dropped", "licence"),
                *(
                    (source, f"{count:,}", str(dropped.get(source, NONE)), data["licenses"].get(source, "not named"))
                    for source, count in data["documents"].items()
                ),
            ]
        )
    if learnt := data.get("trained_on"):
        yield f"Learnt from, its base included: {', '.join(f'`{name}`' for name in learnt)}."
    yield (
        "No licence is named for the weights: the licences above are of what they learnt from, and whoever publishes "
        "the weights chooses theirs."
    )


def without_folders(text: str) -> str:
    """Returns a text in which a file's path is its name: where a user keeps things is not for a hub."""
    return _PATH.sub(r"…/\1", text)


# ---- How the training went ----


def _course(run: dict) -> Iterator[str]:
    lines = run["metrics"]
    if not lines:
        return
    yield "## How it went"
    taken = [line for line in lines if "val_loss" in line]
    last = lines[-1]
    shown = [*taken[:: -(-len(taken) // SHOWN_LOSSES)], taken[-1]] if taken else [lines[0], last]
    keys = ("loss", "val_loss", "val_loss_shared")
    rows = [(f"{line['step']:,}", *(f"{line[key]:.3f}" if key in line else NONE for key in keys)) for line in shown]
    yield markdown([("update", "training loss", "validation loss", "on the shared set"), *dict.fromkeys(rows)])
    if taken:
        best = min(taken, key=lambda line: line["val_loss"])
        lowest = f"The lowest validation loss is {best['val_loss']:.3f}, after update {best['step']:,}"
        end = "the last" if best is taken[-1] else f"and the last {taken[-1]['val_loss']:.3f}: it rose again"
        yield f"Losses are nats a token. {lowest}, {end}."
    if skipped := last.get("skipped"):
        yield f"{skipped:,.0f} updates were skipped: their gradient was not finite."
    if run["stopped"]:
        yield f"The divergence watch stopped it after update {run['stopped']['step']:,}: {run['stopped']['reason']}."


# ---- What it scores ----


def _evaluation(run: dict, book: str) -> Iterator[str]:
    """A book's scores. What a model knows and what it can read off a page are never in one table."""
    yield f"## Evaluation, {book} book"
    scores = [score for score in _scores(run) if score["book"] == book]
    if not scores:
        yield f"It was not scored with the book {book}."
    for score in scores:
        yield f"### {score['items']['name']}, {asked_of(score)}, {score['n']:,} questions"
        yield said_of(score)
        yield markdown(accuracy_table(score))
        yield f"Letters answered: {_letters(score)}. ghost_jax {score['ghost_jax']} scored it."
        yield f"Contamination: {_contamination(score.get('contamination'))}"


def accuracy_table(score: dict) -> list[tuple[str, ...]]:
    """Returns a score among its controls and baselines in %, the header first."""
    headline, several = score["headline"], orders_of(score) > 1
    # Where one order is all there is, a headline over orders would say what was not asked.
    one = score["single_order"], headline["accuracy"] if several else None, headline["ci95"]
    rows = [("accuracy, %", "first order", "over all orders", "95% interval"), (answerer_of(score), *_cells(*one))]
    for name, control in score["controls"].items():
        over = control["accuracy"] if several else None
        rows.append((f"control: {name}", *_cells(control.get("single_order"), over, control.get("ci95"))))
    for name, single in score["baselines"].items():
        over = score["baselines_over_orders"][name] if several else None
        rows.append((name.replace("_", " "), *_cells(single, over, None)))
    return rows


def _cells(single: float | None, over: float | None, interval: Sequence[float] | None) -> tuple[str, str, str]:
    return (
        NONE if single is None else f"{100 * single:.1f}",
        NONE if over is None else f"{100 * over:.1f}",
        f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}" if interval else NONE,
    )


def _letters(score: dict) -> str:
    return ", ".join(f"{letter} {share:.1%}" for letter, share in score["letter_share"].items())


def _contamination(searched: dict | None) -> str:
    if searched is None:
        return "not known: the data were not searched for these questions."
    missing = searched["not_searched"]
    return without_folders(searched["verdict"]) + (f" Not searched: {', '.join(missing)}." if missing else "")


def _results(runs: Sequence[dict]) -> Iterator[str]:
    """The runs as rows of the report, the study's figures beside those that rebuild a row of the study."""
    runs = [run for run in runs if run["config"]["stage"] != "imported"]
    if runs:
        yield "## Beside the study" if any(published_of(run).get("run") for run in runs) else "## In one row"
        yield markdown(result_table(runs))
        yield from notes_of(runs)


# ---- What it is not ----


def _limits(run: dict) -> Iterator[str]:
    yield "It writes what reads well and may be false. Check all it says, identifiers above all, before you act on it."
    for score in _scores(run):
        yield " ".join(_limits_of(score))
    if not run["evals"]:
        yield "It has no score: nothing is known of what it knows."
    studied, done = published_of(run).get("steps"), run["config"]["steps"]
    if studied and done < studied:
        yield f"The study's run did {studied:,} updates; this one was planned with {done:,}."
    if run["environment"].get("git_dirty"):
        yield "The code that trained it had changes that no commit holds."


def _limits_of(score: dict) -> Iterator[str]:
    yield f"{score['items']['name']}, {asked_of(score)}: {score['verdict']}. That is, {WORTH[score['verdict']]}."
    if score["book"] == "open":
        yield "With the book open the pages are scored together with the model: it is no measure of what it knows."
    if gain := gain_of(score):
        yield f"It is the score of the lexical reader with the model beside it, which adds {gain}."
    if orders_of(score) == 1:
        yield "It was asked in one order of the options, where a letter that is often gold looks like knowledge."
    if score.get("controls_missing"):
        yield f"Controls that were not run: {', '.join(score['controls_missing'])}."
    if cropped := cropping_of(score):
        yield cropped
    if score.get("note"):
        yield without_folders(score["note"])


def _scores(run: dict) -> list[dict]:
    """Returns a run's scores, those with the book closed first."""
    return sorted(run["evals"].values(), key=lambda score: BOOKS.index(score["book"]))
