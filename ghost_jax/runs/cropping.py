"""The sentence on prompts that did not fit a model's context, for every report that shows a score."""

from ghost_jax.runs.evaluation import Evaluation, from_json


def cropping(cropped: int, prompts: int, lost: str = "") -> str:
    """Returns the sentence on prompts that a model's context did not hold; empty where it held all.

    Args:
      lost: what is at the beginning of such a prompt.
    """
    if not cropped:
        return ""
    what = f": {lost}" if lost else ""
    return f"{cropped:,} of {prompts:,} prompts were longer than the model's context and lost their beginning{what}."


def cropping_of(score: Evaluation | dict) -> str:
    """Returns the sentence on the cropped prompts of an evaluation or its JSON."""
    if isinstance(score, dict):
        score = from_json(score)
    question = "the instruction and the start of the question"
    first = f"lines of the book, then {question}" if score.book != "closed" else question
    # A cloze asks a question once for all its orders.
    prompts = score.n if score.layout == "cloze" else sum(map(len, score.predicted))
    return cropping(score.prompts_cropped or 0, prompts, first)
