"""The tasks of CTIBench with answers in free text: their items, answers, score and verdict."""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import ghost_jax
from evals.analysis.predictions import GOLD_COLUMNS, ID_COLUMN, check_gold, matched, read_rows
from evals.analysis.report import file_of, print_line, right
from evals.analysis.stats import clustered_interval, paired_difference
from evals.analysis.verdict import COLLAPSED_SHARE, ROUNDING
from evals.items.answers import without_thoughts
from evals.tasks.baseline_text import Rivals, copy_key, task_file
from ghost_jax.core.errors import UserError, did_you_mean
from ghost_jax.data.items.items import Item, Items
from ghost_jax.data.storage import tables
from ghost_jax.data.storage.artifact_cache import sha256_of
from ghost_jax.data.storage.files import quoted, refusal
from ghost_jax.runs.evaluation import COLLAPSED, PredictionsFile, TaskEvaluation, TaskFigure

COLUMNS = ("URL", "Description", "Prompt", "GT")
NOT_ANSWERS = (ID_COLUMN, *GOLD_COLUMNS, "url", "platform", "description", "prompt")  # columns of a sheet, lower case
CONSTANT, LOOK_UP = "best constant", "look-up"


@dataclass(frozen=True)
class TaskItem:
    """A text and its parsed gold answer; `id` is the last part of its URL, such as "CVE-2024-23848"."""

    id: str
    text: str
    prompt: str
    gold: str
    platform: str


@dataclass(frozen=True)
class TaskItems(Items):
    items: tuple[TaskItem, ...]


@dataclass(frozen=True)
class Task:
    """A row of `TASKS`; its file is `ctibench/cti-NAME.tsv`."""

    name: str
    metric: str  # in words
    parse: Callable[[str], str]  # the answer in a text in its one spelling, or ""
    credit: Callable[[str, str], float]  # (gold, parsed answer) -> [0, 1]
    baselines: Callable[[TaskItems, Path | None], Rivals]  # (items, data_dir) -> parsed answers by name
    micro: Callable[[Sequence[str], Sequence[str]], float] | None = None  # (golds, answers) -> micro F1 of sets
    deviation: float | None = None  # that of credit 0, where the figure is a deviation and lower is better

    def value(self, credit: float) -> float:
        """Returns the figure of a mean credit."""
        return float(credit if self.deviation is None else self.deviation * (1 - credit))


def read_task(task: Task, path: Path | None, data_dir: Path | None) -> TaskItems:
    """Reads the items of a task, by default those of a data folder. Raises UserError for an invalid file."""
    path = path or task_file(task.name, data_dir)
    items: dict[str, TaskItem] = {}
    for place, cells in tables.read(path, COLUMNS):
        name, gold = cells["URL"].strip().rstrip("/").rpartition("/")[2], task.parse(cells["GT"])
        if not name or name in items:
            raise refusal(path, place, f"the id {quoted(name)} is empty or repeated")
        if not gold:
            raise refusal(path, place, f"GT {quoted(cells['GT'])} is no answer of {task.name}")
        items[name] = TaskItem(name, cells["Description"], cells["Prompt"], gold, cells.get("Platform", ""))
    if not items:
        raise UserError(f"{path}: the file has a header but no items. Give the complete benchmark file.")
    return TaskItems(path.name, str(path), sha256_of(path), tuple(items.values()))


def as_questions(items: TaskItems) -> Items:
    """Returns the items as questions with their gold answer alone, for the search of training data.

    Of several techniques each is an option: a record may have them in any order.
    """
    asked = tuple(Item(item.id, item.text, tuple(item.gold.split(", ")), 0) for item in items)
    return Items(items.name, items.path, items.sha256, asked)


def read_answers(task: Task, items: TaskItems, path: Path, column: str | None) -> tuple[list[str], PredictionsFile]:
    """Reads the answers in a column of a sheet, by id or in the order of the items.

    Raises UserError where the rows are not those of the items, or the column is absent or not the only one.
    """
    rows = read_rows(path, lists_by_letter=False)
    header = list(rows[0][1])
    rows = matched(path, rows, items)
    check_gold(path, rows, items, [item.gold for item in items], task.parse, column)
    if column and column not in header:
        raise UserError(f'{path}: there is no column "{column}".{did_you_mean(column, header)}')
    found = [column] if column else [name for name in header if name.lower() not in NOT_ANSWERS]
    if len(found) != 1:
        raise UserError(f"{path}: not one column but {len(found)} may hold answers. Name one with --column.")
    return [cells[found[0]] for _, cells in rows], PredictionsFile(file=path.name, name=found[0], lower_case=0)


def score(
    task: Task, items: TaskItems, answers: Sequence[str] | None, rivals: Rivals, **others: object
) -> TaskEvaluation:
    """Returns the evaluation of one text an item, or of the baselines alone; `others` are further fields of it.

    `rivals` are what `task.baselines` returns. Thoughts are left out. A text without an answer has the credit 0, or for
    a deviation that of the best constant: the gold answer that scores best if given to every item. Intervals are
    clustered by near copies of a text.
    """
    golds, clusters = [item.gold for item in items], [copy_key(item.text) or item.id for item in items]
    of_constant = {each: np.array([task.credit(gold, each) for gold in golds]) for each in sorted(set(golds))}
    constant = max(of_constant, key=lambda each: of_constant[each].mean())
    unanswered = np.zeros(len(golds)) if task.deviation is None else of_constant[constant]

    def credits_of(parsed: Sequence[str]) -> np.ndarray:
        pairs = zip(golds, parsed, unanswered, strict=True)
        return np.array([task.credit(gold, each) if each else otherwise for gold, each, otherwise in pairs])

    def figure(parsed: Sequence[str], own: np.ndarray | None = None) -> TaskFigure:
        credits, gain = credits_of(parsed), {}
        if own is not None:
            found, scale = paired_difference(own, credits, clusters), task.deviation or 1.0
            gain = {"gain": scale * found.mean, "gain_ci95": tuple(scale * end for end in found.ci95)}
        value, *ends = map(task.value, clustered_interval(credits, clusters))
        micro = task.micro(golds, parsed) if task.micro else None
        return TaskFigure(value=value, ci95=tuple(sorted(ends)), micro=micro, **gain)

    fields, own, collapsed = {}, None, False
    if answers is not None:
        parsed = tuple(task.parse(without_thoughts(text)) for text in answers)
        own, answered = credits_of(parsed), np.array([bool(each) for each in parsed])
        top, count = Counter(filter(None, parsed)).most_common(1)[0] if answered.any() else ("", 0)
        fields = {"headline": figure(parsed), "predicted": parsed, "not_parsed": float(1 - answered.mean())}
        fields |= {"top_answer": top, "top_share": count / max(1, int(answered.sum()))}
        where_wrong = [each for gold, each in zip(golds, parsed, strict=True) if each and gold != top]
        collapsed = min(fields["top_share"], where_wrong.count(top) / max(1, len(where_wrong))) > COLLAPSED_SHARE
        fields["parsed_only"] = task.value(own[answered].mean()) if answered.any() else None
    by_name, text = rivals
    baselines = {name: figure(each, own) for name, each in ({CONSTANT: [constant] * len(golds)} | by_name).items()}
    verdict, words = _verdict(baselines, fields, collapsed)
    fields |= {"ghost_jax": ghost_jax.__version__, "task": task.name, "metric": task.metric, "n": len(items)}
    fields |= {"items": file_of(items), "baselines": baselines, "baseline_text": text, "verdict": verdict}
    return TaskEvaluation(**fields, verdict_text=f"{verdict}: {words}.", **others)


def _verdict(baselines: dict[str, TaskFigure], fields: dict, collapsed: bool) -> tuple[str, str]:
    """The verdict and its reason, see docs/scoring.md."""
    if not fields:
        return "none", "the baselines alone were scored"
    not_shown = [name for name, each in baselines.items() if each.gain_ci95[0] <= ROUNDING and name != LOOK_UP]
    if collapsed:
        return COLLAPSED, f"{fields['top_share']:.1%} of the parsed answers are {fields['top_answer']}"
    if CONSTANT in not_shown:
        return "chance", "not shown to be better than one answer to every item"
    if not_shown:
        return "shortcut", f"not shown to be better than {', '.join(not_shown)}"
    return "gain", "better than every baseline on the same items"


def show(report: TaskEvaluation, console: Console) -> None:
    """Prints the evaluation on one screen."""
    say = functools.partial(print_line, console)
    say(f"{report.items.name} ({report.items.sha256[:12]}): {report.n:,} items")
    has_micro = report.baselines[CONSTANT].micro is not None
    table = Table("", *right(report.metric, "95% interval", *["micro F1"] * has_micro, "gain over it"))
    for name, each in (({"the answers": report.headline} if report.headline else {}) | report.baselines).items():
        low, high = each.ci95
        gain = f"{each.gain:+.3f} ({each.gain_ci95[0]:+.3f} to {each.gain_ci95[1]:+.3f})" if each.gain_ci95 else ""
        micro = [f"{each.micro:.3f}"] if has_micro else []
        table.add_row(name, f"{each.value:.3f}", f"{low:.3f} to {high:.3f}", *micro, gain)
    console.print(table)
    if LOOK_UP in report.baselines:
        say(f"{LOOK_UP}: the pages that the gold answers are from, so it is no baseline")
    text = report.baseline_text
    left_out = f"{text.left_out_by_id:,} test items by id and {text.left_out_by_text:,} by text"
    say(f"baselines: made from {text.records:,} records; left out: {left_out}")
    if report.contamination:
        say(f"training data: {report.contamination.verdict}")
    if report.prompts_cropped:
        say(f"prompts cropped at their beginning, because the context is short: {report.prompts_cropped:,}")
    if report.headline:
        alone = "" if report.parsed_only is None else f"; {report.metric} over the others: {report.parsed_only:.3f}"
        say(f"answers that could not be parsed: {report.not_parsed:.1%}{alone}")
        say(f"most frequent answer: {report.top_answer or 'none'}, {report.top_share:.1%} of the parsed ones")
    say(f"verdict: {report.verdict_text}", "bold")
