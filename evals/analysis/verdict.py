"""The verdict on a report of answers: whether its accuracy shows that the questions are read.

It takes a report as `evals.analysis.report.report_of` makes it, with the controls that were run beside it. The verdict
is on the letters. Where the options' texts were compared as well (`evals/answering/cloze.py`), the report says if the
two differ.
"""

ROUNDING = 1e-9  # means of thirds do not cancel to the last bit
COLLAPSED = 0.6  # share of one letter above which the answers say nothing but that letter
CONTROLS = ("options only", "question swapped", "trained options-only")
# Without these two, what the options alone give away is not known, and nothing is called knowledge.
NEEDED = CONTROLS[:2]


def judged(report: dict) -> dict:
    """Returns the report with the verdict that its figures and controls allow, also in words.

    Of a report with a cloze, also `readings`, see `readings_of`.
    """
    report = {**report, "verdict": verdict(report)}
    if "cloze" in report:
        report["readings"] = readings_of(report)
    return {**report, "verdict_text": words_of(report)}


def verdict(report: dict) -> str:
    """Returns "collapsed", "chance", "knowledge", "gain" or "shortcut"; of a report that controls were added to, anew.

    - collapsed: more than 60% of the letters answered are one letter;
    - chance: the headline's interval is not wholly above the best constant letter over the same orders;
    - knowledge: it is wholly above every baseline and every control, and the controls in `NEEDED` were run;
    - gain: it is not, but those in `NEEDED` were run, and over every control that was run the interval of the paired
      gain is wholly above zero: the question is read, but a baseline that knows nothing may score as much;
    - shortcut: anything else, so also what was not controlled.
    """
    low = report["headline"]["ci95"][0] - ROUNDING
    constants = [accuracy for name, accuracy in report["baselines_over_orders"].items() if name.startswith("always_")]
    if _top_letter(report)[1] > COLLAPSED:
        return "collapsed"
    if low <= max(constants):
        return "chance"
    controlled = not set(NEEDED) & set(report["controls_missing"])
    if controlled and low > max(_rivals(report).values()):
        return "knowledge"
    return "gain" if controlled and _gains_shown(report) else "shortcut"


def readings_of(report: dict) -> dict:
    """Returns of a report with its verdict and a cloze what each reading has: `letters`, `cloze` and `differs`.

    `letters` is the headline and `cloze` its primary normalisation, each accuracy and 95% interval as fractions.
    `differs` is true where the letters are collapsed or at chance, and cloze is not: its interval is wholly above
    chance, and its paired gain over every control that was read in the same way is wholly above zero.
    """
    cloze = report["cloze"]
    found = cloze[cloze["primary"]]
    above = "chance" in cloze and found["ci95"][0] > cloze["chance"] + ROUNDING
    gained = all(control["gain_ci95"][0] > ROUNDING for control in cloze.get("controls", {}).values())
    mute = report["verdict"] in ("collapsed", "chance")
    return {
        "letters": {key: report["headline"][key] for key in ("accuracy", "ci95")},
        "cloze": {key: found[key] for key in ("accuracy", "ci95")},
        "differs": bool(mute and above and gained),
    }


def _differing(report: dict) -> str:
    """What cloze shows and letters do not, as a sentence with a blank before it; empty where that is nothing."""
    readings = report.get("readings")
    if not readings or not readings["differs"]:
        return ""
    accuracy, (low, high) = readings["cloze"]["accuracy"], readings["cloze"]["ci95"]
    unlettered = [each for each in _baselines(report).items() if not each[0].startswith("always")]
    baseline, best = max(unlettered, key=lambda each: each[1])
    below = "" if low > best else f", {'below' if high < best else 'not wholly above'} {baseline} ({100 * best:.1f}%)"
    return (
        f" It knows by cloze what it cannot say in letters: {100 * accuracy:.1f}% "
        f"({100 * low:.1f} to {100 * high:.1f}) against {100 * readings['letters']['accuracy']:.1f}%{below}."
    )


def _gains_shown(report: dict) -> bool:
    """Whether the paired gain over every control that was run is wholly above zero."""
    return all(control.get("gain_ci95", [0.0])[0] > ROUNDING for control in report["controls"].values())


def _rivals(report: dict) -> dict[str, float]:
    """What knowledge has to beat: the accuracy of every baseline and every control over the orders asked."""
    return _baselines(report) | {name: control["accuracy"] for name, control in report["controls"].items()}


def _baselines(report: dict) -> dict[str, float]:
    return {name.replace("_", " "): accuracy for name, accuracy in report["baselines_over_orders"].items()}


def _top_letter(report: dict) -> tuple[str, float]:
    """The letter answered most, and its share of the answers that are letters: however few those are."""
    letter, share = max(report["letter_share"].items(), key=lambda each: each[1])
    return letter, share / max(1 - report["no_letter"], ROUNDING)


def words_of(report: dict) -> str:
    """Returns the verdict as a sentence, and in others what cloze shows beside it and the controls that are missing."""
    letter, share = _top_letter(report)
    rival, best = max(_rivals(report).items(), key=lambda each: each[1])
    missing = report["controls_missing"]
    if report["headline"]["ci95"][0] > best:
        shortcut = "shortcut not excluded: above every baseline that reads no question, but controls were not run."
    else:
        excluded = " not excluded" if missing else ""
        shortcut = f"shortcut{excluded}: not told apart from {rival}, which scores {100 * best:.2f}%."
    below = "below" if report["headline"]["ci95"][1] < best else "not wholly above"
    words = {
        "collapsed": f"COLLAPSED to one letter: {share:.1%} of the answers are {letter}; "
        "the accuracy measures that letter.",
        "chance": "chance: not told apart from answering one letter without reading.",
        "shortcut": shortcut,
        "gain": f"gain: shown over every control that was run, but {below} {rival}, which scores {100 * best:.2f}%.",
        "knowledge": f"knowledge: wholly above {rival} ({100 * best:.2f}%), the best of every baseline and control.",
    }
    said = words[report["verdict"]] + _differing(report)
    return said + (f" Controls missing: {', '.join(missing)}." if missing else "")
