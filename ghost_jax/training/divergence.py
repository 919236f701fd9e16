"""The divergence watch: whether the validation loss keeps rising, from a run's metrics."""

import itertools
import math
from collections.abc import Mapping, Sequence


def rises(losses: Sequence[float]) -> int:
    """Returns the number of consecutive rises up to the newest loss; a loss that is not finite is a rise."""
    risen = [not math.isfinite(after) or after > before for before, after in itertools.pairwise(losses)]
    return len(list(itertools.takewhile(bool, reversed(risen))))


def verdict(history: Sequence[Mapping[str, float]], evaluations: int) -> str | None:
    """Returns what is wrong with the newest validation loss in a sentence with updates and losses, or None.

    A loss that is not finite is wrong at once; others are after `evaluations` (2 or more) losses, each above the last.

    Args:
      history: the lines of metrics.jsonl. Only those over all validation records count (`val_share` is 1): a sample's
        loss may rise by its size alone.
    """
    evaluated = [line for line in history if "val_loss" in line]
    if evaluated and not math.isfinite(evaluated[-1]["val_loss"]):
        return f"The validation loss after update {evaluated[-1]['step']:,} is {evaluated[-1]['val_loss']}."
    full = [line for line in evaluated if line.get("val_share") == 1]
    if not full or full[-1] is not evaluated[-1] or rises([line["val_loss"] for line in full]) < evaluations - 1:
        return None
    losses = " → ".join(f"{line['val_loss']:.6g}" for line in full[-evaluations:])
    updates = ", ".join(f"{line['step']:,}" for line in full[-evaluations:])
    return f"The validation loss rose over {evaluations} evaluations in a row: {losses} (updates {updates})."
