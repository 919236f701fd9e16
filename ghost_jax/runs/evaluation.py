"""The records of evaluations, `evals/NAME.json` of a run: their fields, and reading and writing them as JSON.

Accuracies and shares are fractions; `ci95` is a 95% interval. A field with the default None is absent from the JSON of
a record that lacks it; other fields are always written.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from ghost_jax.core.atomic_io import read_json, write_json
from ghost_jax.core.errors import UserError
from ghost_jax.data.items.items import orders_per_item

Interval = tuple[float, float]
Record = TypeVar("Record")

COLLAPSED = "collapsed"
SIGNIFICANT = 0.05  # for p by Holm


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """An accuracy; `n` items where they are a part of the benchmark."""

    n: int | None = None
    accuracy: float
    ci95: Interval

    def shown(self, digits: int = 2) -> str:
        """Returns it in percent with its interval: "25.00 (24.10 to 25.90)"."""
        return percent(self.accuracy, self.ci95, digits)


@dataclass(frozen=True, kw_only=True)
class Headline(Accuracy):
    """The accuracy over all orders of the options that were asked."""

    orders: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Control(Accuracy):
    """The accuracy of a control, and the paired gain of the model over it; `run` names a second run.

    `no_letter` is the share of its answers without a letter, where the model's own count; None for none.
    """

    single_order: float | None = None
    gain: float
    gain_ci95: Interval
    run: str | None = None
    no_letter: float | None = None


@dataclass(frozen=True, kw_only=True)
class ItemsFile:
    name: str
    file: str
    sha256: str
    quirks: tuple[str, ...]  # blemishes of items that were asked
    left_out: tuple[str, ...]  # items of the file that were not asked


@dataclass(frozen=True, kw_only=True)
class Bin:
    low: float  # of the confidence, exclusive
    high: float  # inclusive
    n: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True, kw_only=True)
class Calibration:
    ece: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True, kw_only=True)
class LetterLogProbs:
    edges: tuple[float, ...]  # nats
    counts: dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class ContextualCalibration(Accuracy):
    single_order: float
    content_free: dict[str, tuple[float, ...]]  # log-probabilities of letters by number of options


@dataclass(frozen=True, kw_only=True)
class Cloze:
    """Accuracies with the options not shown, a field a normalisation; older records lack `ranked` and the controls."""

    primary: str
    chance: float | None = None
    controls: dict[str, Control] | None = None
    sum: Accuracy
    per_token: Accuracy
    pmi: Accuracy
    ranked: Accuracy | None = None

    @property
    def found(self) -> Accuracy:
        """The accuracy under the primary normalisation."""
        return getattr(self, self.primary)


@dataclass(frozen=True, kw_only=True)
class Readings:
    letters: Accuracy
    cloze: Accuracy
    differs: bool  # cloze alone shows knowledge


@dataclass(frozen=True, kw_only=True)
class Contamination:
    """What a search of the training data for the items found, and the stores that could not be searched."""

    items: dict[str, str]
    stores: tuple[dict[str, str], ...]
    n: int
    ngram_words: int
    counts: dict[str, int]
    parts: tuple[dict[str, Any], ...]
    contaminated: tuple[dict[str, str], ...]
    verdict: str
    not_searched: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PredictionsFile:
    file: str
    name: str
    lower_case: int


@dataclass(frozen=True, kw_only=True)
class BookIndex:
    lines: int
    inputs: tuple[dict[str, Any], ...]  # the files they are from


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """How often the source page of a question is among the first lines found; `absent` pages are not in the book."""

    n: int
    absent: int
    recall_at: dict[str, float]
    seconds_per_query: float


@dataclass(frozen=True, kw_only=True)
class EndpointModel:
    """The model behind an API; of letters, how they were read, and the share of its answers without one."""

    model: str
    host: str
    letters_by: str | None = None  # "logprobs" or "text"
    unanswered: float | None = None  # of the questions and of the controls, in all orders
    requests: int  # equal ones are one
    max_tokens: int
    drawn: bool = False  # whether the server refuses temperature 0
    prompt_tokens: int | None  # as the server counts; None where it does not
    completion_tokens: int | None


@dataclass(frozen=True, kw_only=True)
class Fit(Accuracy):
    """The accuracy of the lexical reader with fitted weights, and its paired gain over the unfitted reader."""

    fitted_on: str
    scored_on: str
    gain: float
    gain_ci95: Interval


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The answers to multiple-choice items and their worth; docs/scoring.md explains the fields."""

    ghost_jax: str
    n: int
    items: ItemsFile
    headline: Headline
    single_order: float
    single_order_ci95: Interval
    letter_share: dict[str, float]
    letter_spread: float
    no_letter: float
    recall: dict[str, float | None]
    recall_spread: float
    balanced_accuracy: float
    flip_rate: float | None
    baselines: dict[str, float]
    baselines_over_orders: dict[str, float]
    gold_longest: dict[str, Accuracy]
    by_source: dict[str, Accuracy]
    calibration: Calibration | None
    letter_log_probs: LetterLogProbs | None
    predicted: tuple[str, ...]
    controls: dict[str, Control]
    controls_missing: tuple[str, ...]
    verdict: str
    verdict_text: str
    book: str
    reader: str
    without_doubtful_gold: Accuracy | None = None  # docs/gold_audit.md
    layout: str | None = None
    prompts_cropped: int | None = None
    contextual_calibration: ContextualCalibration | None = None
    cloze: Cloze | None = None
    readings: Readings | None = None
    book_index: BookIndex | None = None
    fallbacks: int | None = None
    retrieval: Retrieval | None = None
    fits: tuple[Fit, ...] | None = None
    book_controls: dict[str, Accuracy] | None = None
    model_alone: Accuracy | None = None
    gain_over_lexical: float | None = None
    gain_over_lexical_ci95: Interval | None = None
    predictions_file: PredictionsFile | None = None
    endpoint: EndpointModel | None = None
    note: str | None = None
    split: str | None = None
    contamination: Contamination | None = None
    step: int | None = None
    machine: str | None = None

    def __post_init__(self):
        if len(self.predicted) != self.n:
            raise ValueError(f"predicted has the letters of {len(self.predicted)} items, n is {self.n}")

    @property
    def orders_per_item(self) -> int:
        """In how many orders each question was asked."""
        return orders_per_item(self.headline.orders)

    @property
    def cropping(self) -> str:
        """A sentence on prompts that did not fit the model's context; empty where all did."""
        if not self.prompts_cropped:
            return ""
        lines = "" if self.book == "closed" else "lines of the book, then "
        # A cloze asks a question once for all its orders.
        prompts = self.n if self.layout == "cloze" else sum(map(len, self.predicted))
        return (
            f"{self.prompts_cropped:,} of {prompts:,} prompts were longer than the model's context and lost their "
            f"beginning: {lines}the instruction and the start of the question."
        )

    @property
    def best_constant(self) -> float:
        """The accuracy of the best constant letter over the orders asked."""
        return max(each for name, each in self.baselines_over_orders.items() if name.startswith("always_"))

    @property
    def top_letter(self) -> tuple[str, float]:
        """The letter answered most, and its share."""
        return max(self.letter_share.items(), key=lambda each: each[1])


@dataclass(frozen=True, kw_only=True)
class ExposureRecall:
    n: int
    statement: Accuracy
    question: Accuracy


@dataclass(frozen=True, kw_only=True)
class Recall(ExposureRecall):
    """The recall of a base by exposure (`evals/tasks/recall.py`): by number of statements, and credits of each fact."""

    by_exposures: dict[str, ExposureRecall]
    credits: dict[str, tuple[float, ...]]
    ids: tuple[str, ...]
    exposures: tuple[int, ...]
    sha256: str | None = None  # of the facts and their wordings, because other facts have the same ids
    step: int | None = None
    machine: str | None = None


@dataclass(frozen=True, kw_only=True)
class TaskFigure:
    """A figure in the metric of a task, the micro F1 of sets, and the paired gain of the answers over a baseline."""

    value: float
    ci95: Interval
    micro: float | None = None
    gain: float | None = None  # above zero where the answers are better
    gain_ci95: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class BaselineText:
    """What baselines were made from: files, records, and how many were left out because of test items."""

    inputs: tuple[dict[str, Any], ...]
    records: int
    left_out_by_id: int
    left_out_by_text: int = 0


@dataclass(frozen=True, kw_only=True)
class TaskEvaluation:
    """Free-text answers to a task of CTIBench, or its baselines alone; docs/scoring.md explains the fields."""

    ghost_jax: str
    task: str
    metric: str
    n: int
    items: ItemsFile
    headline: TaskFigure | None = None
    parsed_only: float | None = None  # over the answers that could be parsed
    not_parsed: float | None = None  # share of the answers
    top_answer: str | None = None
    top_share: float | None = None  # of the parsed answers
    baselines: dict[str, TaskFigure]
    baseline_text: BaselineText
    verdict: str
    verdict_text: str
    predicted: tuple[str, ...] | None = None  # the parsed answers, "" for one that could not be
    predictions_file: PredictionsFile | None = None
    endpoint: EndpointModel | None = None
    contamination: Contamination | None = None
    prompts_cropped: int | None = None  # of a run, at their beginning
    step: int | None = None


def percent(accuracy: float, ci95: Interval | None = None, digits: int = 1) -> str:
    """Returns a fraction in percent, with its interval where there is one: "25.0 (24.1 to 25.9)"."""
    return f"{100 * accuracy:.{digits}f}" + (f" ({interval(*ci95, f'.{digits}f')})" if ci95 else "")


def interval(low: float, high: float, form: str = ".1f") -> str:
    """Returns the ends of an interval in percent: "24.1 to 25.9"."""
    return f"{100 * low:{form}} to {100 * high:{form}}"


def points(difference: float, ci95: Interval | None = None, digits: int = 2) -> str:
    """Returns a difference of fractions in points, with its interval where there is one: "+1.20 (+0.10 to +2.30)"."""
    return f"{100 * difference:+.{digits}f}" + (f" ({interval(*ci95, f'+.{digits}f')})" if ci95 else "")


_adapter = functools.cache(TypeAdapter)


def to_json(record: object) -> dict:
    """Returns a record as JSON values. Raises pydantic_core.PydanticSerializationError for a field of another type."""
    return _adapter(type(record)).dump_python(record, mode="json", exclude_defaults=True, warnings="error")


def from_json(
    content: object,
    kind: type[Record] = Evaluation,
    name: object = "The record",
    fix: str = "Score the run again (python -m evals.ctibench or evals.audit).",
) -> Record:
    """Returns JSON values as a record. Raises UserError, which calls them `name`, where they are not one."""
    try:
        return _adapter(kind).validate_python(content)
    except ValidationError as fault:
        first = fault.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{name} is not a complete {kind.__name__.lower()} of this version: {where}: {first['msg']}. {fix}"
        ) from None


def is_evaluation(content: object) -> bool:
    """Returns whether JSON values are an evaluation, possibly an older one, and not another report."""
    return isinstance(content, dict) and content.keys() >= {"items", "headline", "verdict", "baselines", "book"}


def read(path: Path, kind: type[Record] = Evaluation) -> Record:
    """Reads a record. Raises UserError where the file is absent, broken or another record."""
    return from_json(read_json(path), kind, path)


def write(path: Path, record: object) -> None:
    """Writes a record as JSON."""
    write_json(path, to_json(record))


def read_all(workdir: Path) -> dict[str, Evaluation]:
    """Returns the evaluations in the `evals` folder of a run by name; other reports there are left out."""
    contents = {path: read_json(path) for path in sorted((workdir / "evals").glob("*.json"))}
    return {path.stem: from_json(each, name=path) for path, each in contents.items() if is_evaluation(each)}


def only_guesses(workdir: Path) -> bool:
    """Returns whether a run was scored alone, every such score is at chance or collapsed, and cloze shows no more."""
    scores = [score for score in read_all(workdir).values() if score.reader == "model"]  # not with the lexical reader
    knows = any(score.readings and score.readings.differs for score in scores)
    return bool(scores) and not knows and all(score.verdict in (COLLAPSED, "chance") for score in scores)
