"""The model card of an exported run, README.md beside its weights: `card.md` filled from the run's records.

Every number in it is in the run's records or the export's config.json.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ghost_jax.core.errors import UserError
from ghost_jax.reporting import tables
from ghost_jax.runs import run_record
from ghost_jax.runs.evaluation import Evaluation, interval, percent
from ghost_jax.runs.run_record import RunRecord

FILE = "README.md"
TEMPLATE = Path(__file__).with_name("card.md")
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
    scores = tables.benchmark_scores([run]).values()
    return "canonical" if any(score.verdict == "knowledge" for score in scores) else "experimental"


def card_of(run: RunRecord, exported: dict) -> str:
    """Returns the model card as Markdown with metadata in front; `exported` is the config.json beside the weights."""
    scores = sorted(run.evals.values(), key=lambda score: score.book)  # those with the book closed first
    card = ModelCard.from_template(
        metadata(run, exported, scores),
        template_path=str(TEMPLATE),
        run=run,
        config=run.config,
        exported=exported,
        channel=channel_of(run),
        scores=scores,
        books=list(dict.fromkeys(["closed", "open", *(score.book for score in scores)])),
        published=tables.published_of(run),
        tables=tables,
        **{each.__name__: each for each in (without_folders, percent, interval)},
    )
    return re.sub(r"\n{3,}", "\n\n", card.content).rstrip() + "\n"


def metadata(run: RunRecord, exported: dict, scores: Sequence[Evaluation]) -> ModelCardData:
    """Returns the card's metadata: what a hub sorts models by, and the scores as a model-index."""
    # The lexical reader has a part in the scores of both.
    results = [_eval_result(score) for score in scores if score.reader != "both"]
    return ModelCardData(
        library_name=LIBRARIES[exported["ghost_jax"].get("format", "hf")],
        pipeline_tag="text-generation",
        tags=["ghost_jax", "cybersecurity", channel_of(run)],
        metrics=["accuracy"] if results else None,
        model_name=run.name if results else None,
        eval_results=results or None,
    )


def _eval_result(score: Evaluation) -> EvalResult:
    """Returns a score's entry in the model-index, in %. Scores with the book open have another dataset config."""
    value, *ends = (round(100 * each, 2) for each in (score.headline.accuracy, *score.headline.ci95))
    return EvalResult(
        task_type="multiple-choice",
        task_name=f"multiple choice, {score.book} book",
        dataset_name=score.items.name,
        dataset_type=Path(score.items.file).stem,
        dataset_config=tables.asked_of(score),
        dataset_split=score.split or "all",
        dataset_args={"n": score.n, "sha256": score.items.sha256},
        metric_type="accuracy",
        metric_name=f"accuracy, {tables.orders_of(score)}, verdict {score.verdict}",
        metric_value=value,
        metric_args={"ci95": ends},
    )


def without_folders(text: str) -> str:
    """Returns a text in which the path of a file is its name, so that a card does not publish a user's folders."""
    return _PATH.sub(r"…/\1", text)
