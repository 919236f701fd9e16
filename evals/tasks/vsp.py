"""CTIBench VSP: the description of a vulnerability to its CVSS vector; mean absolute deviation of the base scores."""

import functools
import re
from collections.abc import Sequence
from pathlib import Path

from cvss import CVSS3
from cvss.exceptions import CVSSError

from evals.tasks.baseline_text import Rivals, vulnerability_baselines
from evals.tasks.open_answers import Task, TaskItems

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


def by_rules(text: str) -> str:
    """Returns the vector of a description by keywords: the first row of each table that the text has counts.

    The rules are from the specification of CVSS 3.1 and the usual wordings, and were written before they were scored.
    """
    text = text.lower()

    def first(table: Sequence[tuple[str, str]], otherwise: str) -> str:
        return next((value for value, pattern in table if re.search(pattern, text)), otherwise)

    interaction, scope, *impacts = first(_IMPACTS, "NUHNN")
    in_browser = interaction == "R"  # a page or link of the attacker in a victim's browser
    if not in_browser and re.search(_INTERACTION, text):
        interaction = "R"
    vector = "N" if in_browser else first(_ACCESS, "N")
    alone = vector == "L" and interaction == "N"  # who has no victim needs an account on the machine
    privileges = first(_PRIVILEGES, "L" if alone else "N")
    complexity = "H" if re.search(_HARD, text) else "L"
    privileges = "L" if alone and privileges == "N" else "N" if in_browser and scope == "U" else privileges
    values = (vector, complexity, privileges, interaction, scope, *impacts)
    return "/".join(["CVSS:3.1", *(f"{name}:{value}" for name, value in zip(_BASE, values, strict=True))])


# UI, S, C, I and A of a kind of weakness
_IMPACTS = (
    (
        "RCLLN",
        r"cross[- ]site scripting|\bxss\b|open redirect|url redirection|(?:web script|javascript|html) injection",
    ),
    ("RUHHH", r"cross[- ]site request forgery|\bcsrf\b|forged request"),
    (
        "NUHHH",
        r"arbitrary (?:code|command|sql|file (?:upload|writ|delet))|(?:code|command) execution|sql command|deserializ|"
        r"(?:command|code|sql|template) injection|unrestricted upload|dangerous type|upload arbitrary|hard-?coded|"
        r"default (?:password|credential)|take ?over|(?:elevation|escalation) of privilege|privilege escalation|"
        r"escalate|elevate privilege|gain (?:root|elevated|full)|authentication bypass|bypass (?:the )?authentication",
    ),
    (
        "NUNNH",
        r"denial[- ]of[- ]service|\bdos\b|crash|null pointer|divide by zero|infinite loop|memory leak|assertion|\bhang|"
        r"(?:resource|memory) (?:consumption|exhaustion)|kernel panic|unresponsive|deadlock|uncontrolled recursion",
    ),
    (
        "NUHHH",
        r"overflow|write out[- ]of[- ]bounds|out[- ]of[- ]bounds? write|use[- ]after[- ]free|double free|"
        r"type confusion|(?:heap|memory) corruption|improper authentication",
    ),
    ("NUNLN", r"capability check|unauthorized (?:modification|loss)"),
)
_ACCESS = (
    ("P", r"physical(?:ly)? (?:access|proxim|attack|present)"),
    ("A", r"adjacent|bluetooth|local network|same network|wi-?fi range|radio range"),
    (
        "L",
        r"\blocal(?:ly)?\b(?! file inclusion)|linux kernel|elevation of privilege|an app may|file parsing|"
        r"memory corruption (?:in|while|when)|(?:windows|kernel|gpu) driver|execution privileges? needed|"
        r"crafted(?: \w+){0,2} (?:file|image|font|document)|malicious (?:file|image|font|document)",
    ),
)
_PRIVILEGES = (
    ("N", r"unauthenticated|without (?:any )?(?:prior )?authentication|forged request"),
    (
        "H",
        r"(?<![/\w])admin(?:istrator)?s?\b(?![/\w]|\.\w)|high[- ]privilege|system execution privileges|"
        r"(?<!low[- ])\bprivileged (?:user|attacker)",
    ),
    (
        "L",
        r"authenticated|logged[- ]in|subscriber|contributor|\bauthor\b|low[- ]privilege|with (?:an? )?account|stored",
    ),
)
_INTERACTION = (
    r"user interaction(?! is not)|google chrome|firefox|victim|crafted (?:html|web) ?(?:page|site)|web content|trick|"
    r"persuad|convinc|click|malicious (?:file|web|link)|crafted (?:\w+ )?(?:file|image|pdf|document)|an app may|"
    r"open(?:s|ing)? (?:an? )?(?:malicious|crafted|specially)"
)
_HARD = r"race condition|m(?:an|achine)[- ]in[- ]the[- ]middle|\bmitm\b|timing attack|side[- ]channel"


def _baselines(items: TaskItems, data_dir: Path | None) -> Rivals:
    fitted, text = vulnerability_baselines(items, data_dir, label_of=_label)
    return fitted | {"keyword rules": [by_rules(item.text) for item in items]}, text


VSP = Task("vsp", "mean absolute deviation", parse, _credit, _baselines, deviation=HIGHEST)
