"""The model card of an exported run, README.md beside its weights: `card.md` filled from the run's records.

Every number in it is in the run's records or the export's config.json.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ghost_jax.core.errors import UserError
from ghost_jax.reporting import tables
from ghost_jax.reporting.tables import NONE, Row
from ghost_jax.runs import run_record
from ghost_jax.runs.evaluation import Evaluation, interval, percent
from ghost_jax.runs.run_record import RunRecord

FILE = "README.md"
TEMPLATE = Path(__file__).with_name("card.md")
SHOWN_LOSSES = 8
LIBRARIES = {"hf": "transformers", "gguf": "gguf", "peft": "peft"}
_PATH = re.compile(r"(?<![\w:/.…])~?/(?:[^\s/:;,]+/)+([^\s/:;,]*)")


def read_records(workdir: Path) -> RunRecord:
    """Reads a run's records. Raises UserError where one that a card needs is absent or broken."""
    if not (workdir / run_record.CONFIG).is_file():
        raise UserError(
            f"{workdir} holds no records of a run. Name a run directory, such as runs/chat_v5-nano, that "
            "python -m ghost_jax.train or ghost_jax.import_model made."
        )
    run_record.read_environment(workdir)
    run_record.read_data(workdir)
    return run_record.read(workdir.resolve())


def channel_of(run: RunRecord) -> str:
    """Returns "canonical" where the closed-book score on CTIBench has the verdict "knowledge", else "experimental"."""
    score = run.evals.get("ctibench")
    return "canonical" if score and score.verdict == "knowledge" else "experimental"


def card_of(run: RunRecord, exported: dict) -> str:
    """Returns the model card as Markdown with metadata in front; `exported` is the config.json beside the weights."""
    compared = [run] if run.config["stage"] != "imported" else []
    card = ModelCard.from_template(
        metadata(run, exported),
        template_path=str(TEMPLATE),
        run=run,
        config=run.config,
        exported=exported,
        channel=channel_of(run),
        scores=_scores(run),
        compared=compared,
        studied=any(tables.published_of(each).get("run") for each in compared),
        study_steps=tables.published_of(run).get("steps"),
        tables=tables,
        **{each.__name__: each for each in (loss_table, without_folders, percent, interval)},
    )
    return re.sub(r"\n{3,}", "\n\n", card.content).rstrip() + "\n"


def metadata(run: RunRecord, exported: dict) -> ModelCardData:
    """Returns the card's metadata: what a hub sorts models by, and the scores as a model-index."""
    own = [score for score in _scores(run) if score.reader != "both"]  # the lexical reader has a part in those
    results = [result for score in own for result in _eval_results(score)]
    return ModelCardData(
        library_name=LIBRARIES[exported["ghost_jax"].get("format", "hf")],
        pipeline_tag="text-generation",
        tags=["ghost_jax", "cybersecurity", channel_of(run)],
        metrics=["accuracy"] if results else None,
        model_name=run.name if results else None,
        eval_results=results or None,
    )


def _eval_results(score: Evaluation) -> Iterator[EvalResult]:
    """Yields a score's entries in the model-index, in %. Scores with the book open have another dataset config."""
    common = {
        "task_type": "multiple-choice",
        "task_name": f"multiple choice, {score.book} book",
        "dataset_name": score.items.name,
        "dataset_type": Path(score.items.file).stem,
        "dataset_config": tables.asked_of(score),
        "dataset_split": score.split or "all",
        "dataset_args": {"n": score.n, "sha256": score.items.sha256},
        "metric_type": "accuracy",
    }

    def result(over: str, accuracy: float, ci95: Sequence[float]) -> EvalResult:
        value, *ends = (round(100 * each, 2) for each in (accuracy, *ci95))
        name = f"accuracy {over}, verdict {score.verdict}"
        return EvalResult(**common, metric_name=name, metric_value=value, metric_args={"ci95": ends})

    headline = score.headline
    # The single order comes second and names its order: there a constant letter can look like knowledge.
    if score.orders_per_item > 1:
        over = f"over {score.orders_per_item} orders of the options"
        yield result(over, headline.accuracy, headline.ci95)
    yield result(f"in the order {headline.orders[0]} alone", score.single_order, score.single_order_ci95)


def _scores(run: RunRecord) -> list[Evaluation]:
    """Returns a run's scores, those with the book closed first."""
    return sorted(run.evals.values(), key=lambda score: score.book)


def loss_table(run: RunRecord) -> list[Row]:
    """Returns up to `SHOWN_LOSSES` + 1 lines with a validation loss, else the first and last line, the header first."""
    lines = [line for line in run.metrics if "val_loss" in line]
    shown = [*lines[:: -(-len(lines) // SHOWN_LOSSES)], lines[-1]] if lines else [run.metrics[0], run.metrics[-1]]
    keys = ("loss", "val_loss", "val_loss_shared")
    rows = [(f"{line['step']:,}", *(f"{line[key]:.3f}" if key in line else NONE for key in keys)) for line in shown]
    return [("update", "training loss", "validation loss", "on the shared set"), *dict.fromkeys(rows)]


def without_folders(text: str) -> str:
    """Returns a text in which the path of a file is its name, so that a card does not publish a user's folders."""
    return _PATH.sub(r"…/\1", text)
