"""The verdict on the letters of an evaluation, and whether cloze (`evals/answering/cloze.py`) shows more."""

from dataclasses import replace

from ghost_jax.data.retrieval.mcq_baselines import NEAREST
from ghost_jax.runs.evaluation import COLLAPSED, Accuracy, Evaluation, Readings

ROUNDING = 1e-9  # means of thirds do not cancel to the last bit
COLLAPSED_SHARE = 0.6  # share of one letter among all answers and where it is wrong, above which they are collapsed
CONTROLS = ("options only", "question swapped", "trained options-only")
COMPARE_TEXTS = ("question_overlap", "word_part_overlap", NEAREST)
NEEDED = CONTROLS[:2]  # without these, what the options alone give away is unknown, and the verdict is not "knowledge"


def judged(report: Evaluation) -> Evaluation:
    """Returns the evaluation with the verdict that its figures and controls allow, `readings` and `verdict_text`."""
    report = replace(report, verdict=verdict(report))
    if report.cloze:
        report = replace(report, readings=readings_of(report))
    return replace(report, verdict_text=words_of(report))


def verdict(report: Evaluation) -> str:
    """Returns "collapsed", "chance", "knowledge", "gain" or "shortcut", which docs/scoring.md#verdict defines."""
    low = report.headline.ci95[0] - ROUNDING
    if min(_share_of_letters(report), _share_where_wrong(report)) > COLLAPSED_SHARE:
        return COLLAPSED
    if low <= report.best_constant:
        return "chance"
    if not set(NEEDED) & set(report.controls_missing):
        least = min(control.gain_ci95[0] for control in report.controls.values())
        if low > _best_rival(report)[1] and least > _added_by_overlap(report) + ROUNDING:
            return "knowledge"
        if least > ROUNDING:
            return "gain"
    return "shortcut"


def readings_of(report: Evaluation) -> Readings:
    """Returns the accuracy by letters and by cloze, and whether they differ.

    They differ where the letters are collapsed or at chance, and cloze is not: its interval is above chance and above
    the baselines that compare texts, because a model that copies is no better, and its paired gain over its control,
    which must have been run, is above what shared words add.
    """
    cloze = report.cloze
    letters = Accuracy(accuracy=report.headline.accuracy, ci95=report.headline.ci95)
    texts = [report.baselines_over_orders.get(name, 0.0) for name in COMPARE_TEXTS]
    above = cloze.found.ci95[0] > max(cloze.chance, *texts) + ROUNDING
    least = _added_by_overlap(report) + ROUNDING
    gained = bool(cloze.controls) and all(each.gain_ci95[0] > least for each in cloze.controls.values())
    differs = report.verdict in (COLLAPSED, "chance") and above and gained
    return Readings(letters=letters, cloze=cloze.found, differs=differs)


def words_of(report: Evaluation) -> str:
    """Returns the verdict as a sentence, then what cloze shows beside it, then the missing controls."""
    rival, best = _best_rival(report)
    low, high = report.headline.ci95
    missing = f" Controls missing: {', '.join(report.controls_missing)}." if report.controls_missing else ""
    if report.verdict == COLLAPSED:
        letter, _ = report.top_letter
        words = f"COLLAPSED to one letter: {_share_of_letters(report):.1%} of the answers are {letter}; "
        words += f"that letter alone scores {report.baselines_over_orders[f'always_{letter}']:.2%}."
    elif report.verdict == "chance":
        against = "below" if high < report.best_constant else "not told apart from"
        words = f"chance: {against} answering one letter without reading"
        words += f", and below {rival}, which scores {100 * best:.2f}%." if high < best else "."
    elif report.verdict == "knowledge":
        words = f"knowledge: entirely above {rival} ({100 * best:.2f}%), the best of every baseline and control."
    elif report.verdict == "gain":
        against = f"{'below' if high < best else 'not entirely above'} {rival}, which scores {100 * best:.2f}%"
        if low - ROUNDING > best:
            against = f"not by more than the {100 * _added_by_overlap(report):.2f} points that shared words add"
        words = f"gain: shown over every control that was run, but {against}."
    elif low - ROUNDING > best:
        no_gain = [name for name, control in report.controls.items() if control.gain_ci95[0] <= ROUNDING]
        why = f"the gain over {no_gain[0]} is not shown" if no_gain else "controls were not run"
        words = f"shortcut not excluded: above every baseline, but {why}."
    else:
        excluded = " not excluded" if missing else ""
        against = "below" if high < best else "not told apart from"
        words = f"shortcut{excluded}: {against} {rival}, which scores {100 * best:.2f}%."
    if report.readings and report.readings.differs:
        words += f" {_differing(report)}"
    for name, control in report.controls.items():
        if control.no_letter:
            words += f" {name}: {control.no_letter:.1%} have no letter and count as the model's own answers."
    return words + missing


def _differing(report: Evaluation) -> str:
    """What cloze shows and letters do not."""
    found = report.readings.cloze
    low, high = found.ci95
    reading_options = {name: each for name, each in _baselines(report).items() if not name.startswith("always")}
    baseline, best = max(reading_options.items(), key=lambda each: each[1])
    below = "" if low > best else f", {'below' if high < best else 'not entirely above'} {baseline} ({100 * best:.1f}%)"
    return (
        f"It knows by cloze what it cannot say in letters: {100 * found.accuracy:.1f}% "
        f"({100 * low:.1f} to {100 * high:.1f}) against {100 * report.readings.letters.accuracy:.1f}%{below}."
    )


def _best_rival(report: Evaluation) -> tuple[str, float]:
    """The best of the baselines and controls over the orders asked, and its accuracy."""
    rivals = _baselines(report) | {name: control.accuracy for name, control in report.controls.items()}
    return max(rivals.items(), key=lambda each: each[1])


def _baselines(report: Evaluation) -> dict[str, float]:
    return {name.replace("_", " "): accuracy for name, accuracy in report.baselines_over_orders.items()}


def _added_by_overlap(report: Evaluation) -> float:
    """What words shared with the question add to the fit by position, length and popularity.

    A model with better clues than that fit has to gain more than this over its controls, which withhold shared words.
    """
    without = "position_length_popularity"
    fitted = report.baselines_over_orders
    return max(0.0, fitted.get(f"{without}_overlap", 0.0) - fitted.get(without, 0.0))


def _share_of_letters(report: Evaluation) -> float:
    """The share of the most frequent letter among the answers that are letters."""
    return report.top_letter[1] / max(1 - report.no_letter, ROUNDING)


def _share_where_wrong(report: Evaluation) -> float:
    """The share of the most frequent letter among the answers that are letters, where that letter is wrong.

    Right answers are left out: a model that is right in 60% and else says A has more than 60% of A where A is often
    gold.
    """
    letter, share = report.top_letter
    gold = report.baselines_over_orders[f"always_{letter}"]
    wrong = (share - gold * (report.recall[letter] or 0)) / max(1 - gold, ROUNDING)
    return wrong / max(1 - report.no_letter, ROUNDING)
