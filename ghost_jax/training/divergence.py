"""The divergence watch: whether the validation loss keeps rising, as a pure function of a run's metrics."""

import itertools
import math
from collections.abc import Mapping, Sequence


def rises(losses: Sequence[float]) -> int:
    """Returns how many times in a row, up to the newest, a loss is above the one before it.

    A loss that is no finite number is a rise, whatever came before.
    """
    risen = [not math.isfinite(after) or after > before for before, after in itertools.pairwise(losses)]
    return len(list(itertools.takewhile(bool, reversed(risen))))


def verdict(history: Sequence[Mapping[str, float]], evaluations: int) -> str | None:
    """Returns what is wrong with the newest validation loss in a sentence with updates and losses, or None.

    That is a loss which is no finite number, at once, or `evaluations` losses in a row each above the one before.

    Args:
      history: the lines of metrics.jsonl, those from before a resumed run was cut included. Only those count whose
        `val_loss` is over the whole validation set (`val_share` is 1): a sample's loss may rise by its size alone.
      evaluations: at least 2.
    """
    taken = [line for line in history if "val_loss" in line]
    if taken and not math.isfinite(taken[-1]["val_loss"]):
        return f"The validation loss after update {taken[-1]['step']:,} is {taken[-1]['val_loss']}."
    whole = [line for line in taken if line.get("val_share") == 1]
    if not whole or whole[-1] is not taken[-1] or rises([line["val_loss"] for line in whole]) < evaluations - 1:
        return None
    newest = whole[-evaluations:]
    losses = " → ".join(f"{line['val_loss']:.6g}" for line in newest)
    updates = ", ".join(f"{line['step']:,}" for line in newest)
    return f"The validation loss rose over {evaluations} evaluations in a row: {losses} (updates {updates})."
