"""CTIBench ATE: a text about malware to the ids of its main ATT&CK techniques; F1 of the two sets.

The texts restate ATT&CK's pages of software, from which the gold answers are. No baseline reads the page of an asked
software; the answer of that page is reported as `look-up`.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from evals.tasks.baseline_text import Rivals, records_of, vectors
from evals.tasks.open_answers import LOOK_UP, Task, TaskItems
from ghost_jax.core.errors import UserError
from ghost_jax.runs.evaluation import BaselineText

_ID = re.compile(r"\b(T\d{4})(?:\.\d{3})?\b", re.IGNORECASE)
_IDS = re.compile(r"(?:\s*\d+[.)])?(?:[\s,;.*`\[\]-]|\band\b|T\d{4}(?:\.\d{3})?)+", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.!?])\s+")

Page = list[tuple[str, str]]  # the techniques of a software and the lines that state them


def parse(text: str) -> str:
    """Returns the main techniques of the last line with an id, and of lines of ids alone directly above such a line."""
    lines = text.splitlines()
    while lines and not _ID.search(lines[-1]):
        lines.pop()
    start = len(lines) - 1
    while start > 0 and all(_IDS.fullmatch(line) for line in lines[start - 1 : start + 1]):
        start -= 1
    return _joined(_ID.findall("\n".join(lines[max(start, 0) :])))


def _joined(techniques: Sequence[str]) -> str:
    return ", ".join(sorted({each.upper() for each in techniques}))


def _micro(golds: Sequence[str], answers: Sequence[str]) -> float:
    pairs = [(set(_ID.findall(gold)), set(_ID.findall(each))) for gold, each in zip(golds, answers, strict=True)]
    return 2 * sum(len(gold & each) for gold, each in pairs) / sum(len(gold) + len(each) for gold, each in pairs)


def _baselines(items: TaskItems, data_dir: Path | None) -> Rivals:
    records, inputs = records_of("attack", data_dir)
    pages: dict[tuple[str, str], Page] = {}
    # domain -> (name of a technique, its main technique): sub-techniques of several techniques share a name
    names: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for record in records:
        domain, _, number = record.id.partition("/")
        if found := _ID.match(number):
            names[domain].add((record.title.rpartition(": ")[2].casefold(), found[1]))
        facts = [fact for fact in record.facts if fact.relation == "software_technique"]
        if facts:
            pages[domain, number] = [(_ID.findall(fact.object)[-1], fact.evidence) for fact in facts]
    asked = {item.id for item in items}
    others = {where: page for where, page in pages.items() if where[1] not in asked}
    own = [pages.get((item.platform.lower(), item.id), []) for item in items]
    answers = {
        "most frequent": [""] * len(items),
        "nearest lines": [""] * len(items),
        "technique names": [_named(item.text, names[item.platform.lower()]) for item in items],
        LOOK_UP: [_joined([technique for technique, _ in page]) for page in own],
    }
    for platform in {item.platform for item in items}:
        of_domain = [page for (domain, _), page in others.items() if domain == platform.lower()]
        if not of_domain:
            raise UserError(f"{items.path}: ATT&CK has no other software of {platform!r}. Give Enterprise or Mobile.")
        frequent, nearest = _most_frequent(of_domain), _nearest(of_domain)
        for row in (row for row, item in enumerate(items) if item.platform == platform):
            answers["most frequent"][row] = frequent
            answers["nearest lines"][row] = nearest(items.items[row].text)
    return answers, BaselineText(inputs=inputs, records=len(others), left_out_by_id=len(pages) - len(others))


def _most_frequent(pages: Sequence[Page]) -> str:
    """The techniques that most software uses, as many as a software uses on average."""
    sets = [sorted({technique for technique, _ in page}) for page in pages]
    counts = Counter(technique for each in sets for technique in each)
    return _joined([name for name, _ in counts.most_common(round(counts.total() / len(sets)))])


def _nearest(pages: Sequence[Page]) -> Callable[[str], str]:
    """A function that answers a text with the techniques of the lines nearest to its sentences."""
    techniques, lines = zip(*(line for page in pages for line in page), strict=True)
    known, vectorizer = vectors(lines)

    def answer(text: str) -> str:
        near = (vectorizer.transform(_SENTENCE.split(text)) @ known.T).toarray()
        return _joined([techniques[row.argmax()] for row in near if row.max() > 0])

    return answer


def _named(text: str, names: set[tuple[str, str]]) -> str:
    """The techniques that a text names."""
    return _joined([main for name, main in names if re.search(rf"\b{re.escape(name)}\b", text.casefold())])


ATE = Task("ate", "macro F1", parse, lambda gold, answer: _micro([gold], [answer]), _baselines, micro=_micro)
