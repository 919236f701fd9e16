"""CTIBench RCM: the description of a vulnerability to the id of its weakness; accuracy."""

import functools
import re

from evals.tasks.baseline_text import vulnerability_baselines
from evals.tasks.open_answers import Task

_ID = re.compile(r"\bCWE[-_ ]?0*(\d+)", re.IGNORECASE)
_LABEL = re.compile(r"\bWeakness: (CWE-\d+)")


def parse(text: str) -> str:
    """Returns the id in the last line that has one; "" where that line has several different ones, or no line has."""
    found = next((found for line in reversed(text.splitlines()) if (found := set(_ID.findall(line)))), set())
    return f"CWE-{found.pop()}" if len(found) == 1 else ""


def _label(text: str) -> str:
    return "".join(_LABEL.findall(text)[:1])


_baselines = functools.partial(vulnerability_baselines, label_of=_label)
RCM = Task("rcm", "accuracy", parse, lambda gold, answer: float(gold == answer), _baselines)
