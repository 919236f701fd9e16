"""The formats of published benchmarks and of your own items. `FORMATS` is the one table to extend.

Where a format is recognised by its keys or columns, any of them is enough, so that a missing one is named.
"""

from collections.abc import Callable
from typing import Any

from ghost_jax.data.items.formats.row import Format, Row, by_letter, fields
from ghost_jax.data.storage.files import quoted
from ghost_jax.text.mcq_format import LETTERS

CTIBENCH_OPTIONS = ("Option A", "Option B", "Option C", "Option D")
CTIBENCH_COLUMNS = ("URL", "Question", *CTIBENCH_OPTIONS, "GT")
SECQA_COLUMNS = ("Question", "A", "B", "C", "D", "Answer")
SECEVAL_KEYS = ("id", "question", "choices", "answer")
OWN_KEYS = ("question", "options", "answer")
MMLU_FIELDS = 6


def ctibench(place: str, cells: dict[str, str]) -> Row:
    """CTIBench's cti-mcq.tsv (xashru/cti-bench): published without quoting; other columns are ignored."""
    options = tuple(cells[column] for column in CTIBENCH_OPTIONS)
    return Row(place, cells["Question"], options, cells["GT"], cells["URL"])


def secqa(place: str, record: Any) -> Row:
    """SecQA (zefang-liu/secqa): CSV with a header as published, or the same columns as keys of JSON lines."""
    question, *options, answer = fields(record, dict.fromkeys(SECQA_COLUMNS, str))
    return Row(place, question, tuple(options), answer)


def mmlu(place: str, cells: list[str]) -> Row:
    """MMLU's CSV files (hendrycks/test), which have no header."""
    if len(cells) != MMLU_FIELDS:
        raise ValueError(f"the row has {len(cells)} fields")
    question, *options, answer = cells
    return Row(place, question, tuple(options), answer)


def cybermetric(place: str, record: Any) -> Row:
    """CyberMetric's JSON files (cybermetric/CyberMetric): one object with a list of questions without ids."""
    question, answers, solution = fields(record, {"question": str, "answers": dict, "solution": str})
    return Row(place, question, by_letter(answers), solution)


def seceval(place: str, record: Any) -> Row:
    """SecEval's questions.json (XuanwuAI/SecEval): a list of questions, of which several options may be right.

    Of the 2,189 published questions, 934 have several letters, the same letter twice or none. These are left out.
    """
    # "source" names a textbook or catalogue and not a page, so it is not the url that makes items dependent.
    name, question, choices, answer = fields(record, dict(zip(SECEVAL_KEYS, (str, str, list, str), strict=True)))
    texts = [str(choice)[2:] for choice in choices]
    if choices != [f"{letter}:{text}" for letter, text in zip(LETTERS, texts, strict=False)]:
        raise ValueError(f'"choices" must be texts that begin with their letters, A: and so on, at most {len(LETTERS)}')
    several = len(answer) != 1 and set(answer) <= set(LETTERS[: len(choices)])
    left_out = f"the answer of {quoted(name)} is {quoted(answer)}, not one letter" if several else ""
    return Row(name, question, tuple(text.removeprefix(" ") for text in texts), answer, left_out=left_out)


def own_items(place: str, record: Any) -> Row:
    """Your own items, with 2 to 10 options each; items of different numbers of options may be in one file."""
    question, options, answer = fields(record, dict(zip(OWN_KEYS, (str, dict, str), strict=True)))
    name = record.get("id")
    return Row(place if name is None else str(name), question, by_letter(options), answer, str(record.get("url") or ""))


def names_any(*keys: str) -> Callable[[Any], bool]:
    """Returns whether a header or a JSON object has any of these names, as a function of it."""

    def recognises(first: Any) -> bool:
        return isinstance(first, list | dict) and any(str(name).strip() in keys for name in first)

    return recognises


SECQA_SHAPE = f"the columns {', '.join(SECQA_COLUMNS)}, named in the header of the CSV or as keys of an object a line"

FORMATS = (
    Format(
        "CTIBench MCQ",
        ".tsv",
        f"the columns {', '.join(CTIBENCH_COLUMNS)}, tab-separated, without quoting or as a spreadsheet exports it",
        names_any(*CTIBENCH_COLUMNS),
        ctibench,
        CTIBENCH_COLUMNS,
    ),
    Format("SecQA", ".csv", SECQA_SHAPE, names_any("Question", "Answer"), secqa, SECQA_COLUMNS),
    Format("SecQA", ".jsonl", SECQA_SHAPE, names_any("Question", "Answer"), secqa),
    Format(
        "MMLU",
        ".csv",
        "rows without a header of six fields: the question, the options A to D, the letter of the right one",
        lambda first: len(first) == MMLU_FIELDS and first[-1].strip().upper() in tuple(LETTERS),
        mmlu,
    ),
    Format(
        "CyberMetric",
        ".json",
        'one object {"questions": [{"question": "…", "answers": {"A": "…", "B": "…"}, "solution": "B"}, …]}',
        lambda value: isinstance(value, dict) and isinstance(value.get("questions"), list),
        cybermetric,
    ),
    Format(
        "SecEval",
        ".json",
        'a list [{"id": "…", "question": "…", "choices": ["A: …", "B: …"], "answer": "B"}, …] with 2 to 10 choices',
        lambda value: isinstance(value, dict) and names_any(*SECEVAL_KEYS)(value),
        seceval,
    ),
    Format(
        "your own items",
        ".jsonl",
        'an object a line, {"id": "1", "question": "…", "options": {"A": "…", "B": "…"}, "answer": "B", "url": "…"}, '
        "with 2 to 10 options; id and url may be left out",
        names_any(*OWN_KEYS),
        own_items,
    ),
)
