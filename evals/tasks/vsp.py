"""CTIBench VSP: the description of a vulnerability to its CVSS vector; mean absolute deviation of the base scores."""

import functools
import re

from cvss import CVSS3
from cvss.exceptions import CVSSError

from evals.tasks.baseline_text import vulnerability_baselines
from evals.tasks.open_answers import Task

HIGHEST = 10.0  # base score
_VECTOR = re.compile(r"(CVSS:3\.[01]/)?((?:[A-Z]{1,3}:[A-Z]\b/?){8,})", re.IGNORECASE)
_BASE = ("AV", "AC", "PR", "UI", "S", "C", "I", "A")


def parse(text: str) -> str:
    """Returns the base metrics of the last CVSS 3 vector of a text, "" where there is none or an invalid one."""
    for version, metrics in _VECTOR.findall(text)[-1:]:
        try:
            vector = CVSS3(f"{version or 'CVSS:3.1/'}{metrics.rstrip('/')}".upper())
        except CVSSError:
            return ""
        return "/".join([f"CVSS:3.{vector.minor_version}", *(f"{name}:{vector.metrics[name]}" for name in _BASE)])
    return ""


@functools.cache
def base_score(vector: str) -> float:
    """Returns the base score of a parsed vector, 0 to 10."""
    return float(CVSS3(vector).base_score)


def _credit(gold: str, answer: str) -> float:
    return 1 - abs(base_score(gold) - base_score(answer)) / HIGHEST


def _label(text: str) -> str:
    return parse(text).replace("CVSS:3.0", "CVSS:3.1")  # the base metrics are the same


_baselines = functools.partial(vulnerability_baselines, label_of=_label)
VSP = Task("vsp", "mean absolute deviation", parse, _credit, _baselines, deviation=HIGHEST)
