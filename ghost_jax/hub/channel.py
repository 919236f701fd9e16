"""The channel of an upload: canonical, the run that others are measured by, or experimental, with the reason.

A run becomes canonical only if `evals.compare` puts it above the present canonical one, asked in several orders and not
collapsed to one letter. The first canonical run needs the verdict "knowledge".
"""

import dataclasses
from pathlib import Path

from evals.analysis.comparison import SIGNIFICANT, compare, rows_of
from evals.analysis.recorded import check_alike, items_of, read_report, read_reports
from ghost_jax.runs.evaluation import COLLAPSED, Evaluation

CANONICAL, EXPERIMENTAL = CHANNELS = ("canonical", "experimental")
SCORE = "ctibench"  # the closed-book score in a run's evals/ that decides


@dataclasses.dataclass(frozen=True)
class Channel:
    """The channel of an upload.

    Attributes:
      name: one of `CHANNELS`.
      reason: a text for the card.
      comparison: with the present canonical run, as `evals.compare` writes it; None where there is none.
      above: run and step of the present canonical run that a canonical one was shown to be above; else None.
    """

    name: str
    reason: str
    comparison: dict | None = None
    above: dict | None = None


def decide(asked: str, workdir: Path, present: Path | None, items: Path | None) -> Channel:
    """Returns the channel of a run for which the channel `asked` is wanted.

    Args:
      present: the run directory of the present canonical run.
      items: the file of the questions that both were scored on, where the data folders do not hold it.

    Raises:
      UsageError: the run is named as the present one.
      UserError: a run that must be compared has no score, or they were asked different questions.
    """
    if asked == EXPERIMENTAL and present is None:
        return Channel(EXPERIMENTAL, "It was not put forward as canonical.")
    stem = items.stem if items else SCORE
    score = read_report(workdir, stem).evaluation
    comparison, text = None, f"Its verdict: {score.verdict_text}"
    if present:
        reports = read_reports([str(present), str(workdir)], stem)
        check_alike(reports)
        questions = items_of(reports, items)
        comparison = compare(rows_of(reports, questions), questions)
        text = _text_of(comparison)
    if asked == EXPERIMENTAL:
        return Channel(EXPERIMENTAL, f"It was not put forward as canonical. {text}", comparison)
    if obstacle := _obstacle(score, comparison):
        return Channel(EXPERIMENTAL, f"Put forward as canonical and not accepted: {obstacle}. {text}", comparison)
    above = {"run": present.resolve().name, "step": reports[0].evaluation.step} if present else None
    return Channel(CANONICAL, text, comparison, above)


def _text_of(comparison: dict) -> str:
    asked = f"on {comparison['n']:,} questions of {comparison['items']['name']}, {comparison['book']} book"
    _, *others = comparison["rows"]
    text = others[0]["against_reference"]["text"] if others else "both are seeds of one recipe, and differ by luck."
    return f"Beside the present canonical run, {comparison['reference']}, {asked}: {text}"


def _obstacle(score: Evaluation, comparison: dict | None) -> str:
    """Returns why a run with this score and comparison cannot become canonical; empty where it can."""
    if score.verdict == COLLAPSED:
        return "its answers collapsed to one letter"
    if score.orders_per_item == 1:
        return "it was asked in one order of the options, where a constant letter can look like knowledge"
    if comparison is None:
        return "" if score.verdict == "knowledge" else 'the first canonical run needs the verdict "knowledge"'
    _, *others = comparison["rows"]
    if not others:
        return "it is another seed of the present canonical run"
    difference = others[0]["against_reference"]
    above = difference["mean"] > 0 and difference["p_holm"] < SIGNIFICANT
    return "" if above else "it is not shown to be above the present canonical run"
