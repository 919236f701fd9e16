"""Scores a chat run on facts of subjects that it was not tuned on, see docs/scoring.md#held-out-facts."""

from pathlib import Path

from rich.console import Console

from evals.analysis.report import show
from evals.answering.prefix_tree import Predict
from evals.tasks import mcq
from ghost_jax.core.errors import UserError
from ghost_jax.data.items.formats import read_items
from ghost_jax.data.items.items import Items
from ghost_jax.runs import evaluation
from ghost_jax.runs.evaluation import Evaluation
from ghost_jax.text.tokenizer import Tokenizer


def check_data(workdir: Path, data_dir: Path | None) -> None:
    """Raises UserError where the run's data hold the questions, or the sources give none."""
    if (workdir / mcq.FACTS).is_file():  # a base has no questions of its own
        mcq.contamination_of(items_of(workdir), workdir)


def evaluate_run(
    predict: Predict, tokenizer: Tokenizer, workdir: Path, data_dir: Path | None, **size: int
) -> Evaluation:
    """Returns the evaluation on the run's held-out fact questions; `size` is `context` and `batch_size`."""
    path = _path_of(workdir)
    return mcq.evaluate_run(predict, tokenizer, workdir, data_dir, orders="cyclic", path=path, **size)


def show_run(workdir: Path, console: Console) -> None:
    """Prints the report that a run's directory holds."""
    show(evaluation.read(workdir / "evals" / "facts.json"), console)


def items_of(workdir: Path) -> Items:
    """Returns the run's held-out fact questions. Raises UserError where it has none."""
    return read_items(_path_of(workdir))


def _path_of(workdir: Path) -> Path:
    path = workdir / mcq.FACTS
    if not path.is_file() or not path.read_bytes():
        raise UserError(
            f"{path} holds no question: the sources of the run state too few facts. Add capec, cwe or attack to "
            "--config.data.sources, or take facts out of the config's evals."
        )
    return path
