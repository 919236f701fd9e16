"""The sentence on prompts that did not fit a model's context, for every report that shows a score."""

from ghost_jax.runs.evaluation import Evaluation


def cropping_of(score: Evaluation) -> str:
    """Returns the sentence on the cropped prompts of an evaluation; empty where the context held all."""
    if not score.prompts_cropped:
        return ""
    lost = "the instruction and the start of the question"
    if score.book != "closed":
        lost = f"lines of the book, then {lost}"
    # A cloze asks a question once for all its orders.
    prompts = score.n if score.layout == "cloze" else sum(map(len, score.predicted))
    return (
        f"{score.prompts_cropped:,} of {prompts:,} prompts were longer than the model's context and lost their "
        f"beginning: {lost}."
    )
