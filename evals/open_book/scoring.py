"""CTIBench with the book open: the score of the lexical reader, and of a model that reads the lines it finds.

An open-book figure is of the reader and its book together, and is always marked as one.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.special import log_softmax

from evals.analysis import conditional_logit, stats
from evals.analysis.report import print_line, report_of, right
from evals.analysis.verdict import judged
from evals.answering.controls import TRAINED, controls_of, with_controls, without_questions
from evals.answering.evaluate import Put
from evals.items.answers import Answers, orders_of
from evals.items.ctibench import development_split
from evals.open_book import retrieval
from evals.open_book.lexical import FEATURES, NOTHING_FITTED, WITH_ALL_OF_THEM, LexicalReader, Read, Weights, answers_of
from evals.overlap.contamination import check, refuse
from ghost_jax.data.corpus import book_corpus, index_store
from ghost_jax.data.items.formats import CTIBENCH_MCQ_SHA256
from ghost_jax.data.items.items import Item, Items, clusters_of
from ghost_jax.data.retrieval.bm25 import LINE, PARAGRAPH, Index, shown
from ghost_jax.data.storage import artifact_cache
from ghost_jax.runs import run_dir
from ghost_jax.runs.evaluation import Accuracy, BookIndex, Contamination, Evaluation, Fit, from_json, points

FIGURE = "accuracy, % (95% interval)"
RIDGE = 30.0  # of the squared weights of standardised features; 10 and 100 were no different on the development split
ALL_OF_THEM = "nothing, all of the above where it stands"  # a rule of format, and not of the headline
SOURCE_NAMES = {"attack": "ATT&CK", "capec": "CAPEC", "cwe": "CWE"}


@dataclass(frozen=True)
class Book:
    """The pages that questions are answered from: the store of their text, and their reader."""

    name: str  # "open" for ATT&CK, CAPEC and CWE, "own" for any other
    corpus: Path
    sources: tuple[str, ...]  # as documents name them
    reader: LexicalReader

    @classmethod
    def open(cls, named: str, data_dir: Path | None) -> "Book":
        """Finds or builds the book that `book_corpus` describes. Raises UserError where a source is missing."""
        return cls.of(named, book_corpus(data_dir, run_dir.say, named))

    @classmethod
    def of(cls, named: str, corpus: Path, leave_out: str = "") -> "Book":
        """Returns the book of a corpus, without one of its sources where that is named."""
        sources = tuple(name for name in artifact_cache.manifest(corpus).documents if name != leave_out)
        indexes = [Index.load(index_store(corpus, sources, run_dir.say, words)) for words in (LINE, PARAGRAPH)]
        return cls("open" if named == "open" else "own", corpus, sources, LexicalReader(*indexes))

    def searched(self, items: Items) -> Contamination | None:
        """Returns what a book of one's own holds of the items; None of the publishers' pages.

        Raises UserError where it holds an item together with its answer.
        """
        if self.name == "open":
            return None
        result = check(items, [self.corpus], ())
        refuse(result)
        return from_json(result | {"not_searched": []}, Contamination)

    def described(self) -> BookIndex:
        """Returns the identity of the book: the number of its lines and the files they are from."""
        inputs = artifact_cache.manifest(self.corpus).made_from["inputs"]
        return BookIndex(lines=len(self.reader.index), inputs=tuple(inputs))

    def passages(self, questions: Sequence[str]) -> list[list[str]]:
        """Returns what a prompt shows in front of each question, as in training; nothing for a blank one."""
        index = self.reader.index
        rows = index.context(questions).tolist()
        return [
            [shown(index.passages[row]) for row in found] if question.strip() else []
            for question, found in zip(questions, rows, strict=True)
        ]


# ---- The lexical reader ----


def lexical_report(items: Items, book: Book, split: str, *, controls: bool) -> tuple[Evaluation, list[Read]]:
    """Returns the report of the lexical reader with nothing fitted, and what it read of each item, those of `split`.

    With `controls`, its controls are run, and `book_controls` has the same reader on other lines.
    """
    reads = book.reader.read_all(items.items)
    orders = orders_of(items.items, "cyclic")
    answers = answers_of(reads, orders)
    report = report_of(
        answers,
        items,
        book=book.name,
        reader="lexical",
        book_index=book.described(),
        contamination=book.searched(items),
        split=split,
        fallbacks=sum(not read.known for read in reads),
        retrieval=retrieval.recall(book.reader.index, items.items),
        fits=tuple(fits_of(items, reads)) if split == "all" else None,
        book_controls=_book_controls(items, book) if controls else None,
    )
    # Scores of BM25 are not log-probabilities, so they have no calibration.
    report = replace(report, calibration=None, letter_log_probs=None)
    if controls:
        asked = without_questions(items).items()
        without = {name: answers_of(book.reader.read_all(those), orders) for name, those in asked}
        report = with_controls(report, controls_of(without, answers, items))
    # Without training there is no control trained without questions.
    missing = tuple(name for name in report.controls_missing if name != TRAINED)
    return judged(replace(report, controls_missing=missing)), reads


def fits_of(items: Items, reads: Sequence[Read]) -> list[Fit]:
    """Returns accuracies by what the weights were fitted on, always of questions that the fit has not seen."""
    unfitted = _credits(reads, items)
    with_rule = _credits(reads, items, WITH_ALL_OF_THEM)

    def fit_of(fitted_on: str, scored_on: str, rows: np.ndarray, credits: np.ndarray) -> Fit:
        clusters = clusters_of([items.items[row] for row in rows])
        gain = stats.paired_difference(credits[rows], unfitted[rows], clusters)
        more = {"n": len(rows), "gain": gain.mean, "gain_ci95": gain.ci95}
        return stats.accuracy_of(credits[rows], clusters, Fit, fitted_on=fitted_on, scored_on=scored_on, **more)

    every = np.arange(len(items))
    fits = [fit_of("nothing", "all", every, unfitted), fit_of(ALL_OF_THEM, "all", every, with_rule)]
    if items.sha256 != CTIBENCH_MCQ_SHA256:
        return fits
    dev, test = development_split(items)
    by_dev = _credits(reads, items, fitted([reads[row] for row in dev], [items.items[row].answer for row in dev]))
    pages = {items.items[row].url for row in dev} - {""}
    apart = np.array([row for row in test if items.items[row].url not in pages])
    # The features were chosen with the development split in view: the other questions are the stricter test.
    others = "the other 2,000"
    return [
        *fits,
        fit_of("nothing", others, test, unfitted),
        fit_of(ALL_OF_THEM, others, test, with_rule),
        fit_of("development split", others, test, by_dev),
        fit_of("development split", f"the {len(apart):,} of other pages", apart, by_dev),
    ]


def fitted(reads: Sequence[Read], answers: Sequence[int]) -> Weights:
    """Returns the weights of `FEATURES` under which the answers to questions [N] with K options are most likely."""
    features = np.stack([read.features for read in reads])  # [N, K, FEATURES]
    spread = (features - features.mean(axis=1, keepdims=True)).std(axis=(0, 1))  # within a question
    spread[spread == 0] = 1
    real, counts_as = np.ones(features.shape[:2], bool), np.ones(len(answers))
    weights = conditional_logit.fit(features / spread, real, np.array(answers), counts_as, RIDGE) / spread
    return dict(zip(FEATURES, weights.tolist(), strict=True))


def _credits(reads: Sequence[Read], items: Items, weights: Weights = NOTHING_FITTED) -> np.ndarray:
    """Returns the credit [N] of each item, which is the same in every order."""
    return answers_of(reads, orders_of(items.items, "published"), weights).first_credits(items.items)


def _book_controls(items: Items, book: Book) -> dict[str, Accuracy]:
    """Returns accuracies of the unfitted reader by the lines it was given."""
    reads = {}
    for name, control in retrieval.CONTROLS.items():
        run_dir.say(f"reading with {name}")
        reads[name] = control(book.reader, items.items)
    for source, title in SOURCE_NAMES.items():
        if {source} < set(book.sources):
            run_dir.say(f"reading without {title}")
            fewer = Book.of(book.name, book.corpus, leave_out=source)
            reads[f"without {title}"] = fewer.reader.read_all(items.items)
    clusters = clusters_of(items.items)
    return {name: stats.accuracy_of(_credits(each, items), clusters) for name, each in reads.items()}


# ---- A model beside the lexical reader ----


def both_report(put: Put, orders: str, items: Items, book: Book) -> Evaluation:
    """Returns the report of a model and the lexical reader together, see docs/scoring.md#open-book.

    Args:
      put: asks the model, see `evals.answering.evaluate.putting`.
      orders: a name in `evals.items.answers.ORDERS`; "published" asks in one order, without controls.
    """

    def ask(those: Sequence[Item], doing: str) -> tuple[Answers, int]:
        passages = book.passages([item.question for item in those])
        return put(those, orders_of(those, orders), passages=passages, doing=doing)

    answers, cropped = ask(items.items, "scoring")
    reads = book.reader.read_all(items.items)
    both = _together(reads, answers)
    clusters = clusters_of(items.items)
    gain = stats.paired_difference(both.mean_credits(items.items), _credits(reads, items), clusters)
    report = report_of(
        both,
        items,
        book=book.name,
        reader="both",
        book_index=book.described(),
        fallbacks=sum(not read.known for read in reads),
        prompts_cropped=cropped,
        model_alone=stats.accuracy_of(answers.mean_credits(items.items), clusters),
        gain_over_lexical=gain.mean,
        gain_over_lexical_ci95=gain.ci95,
    )
    report = replace(report, calibration=None, letter_log_probs=None)  # the reader's part is no log-probability
    if orders == "published":
        return report
    without = {
        name: _together(book.reader.read_all(those), ask(those, f"scoring, {name}")[0])
        for name, those in without_questions(items).items()
    }
    return with_controls(report, controls_of(without, both, items))


def _together(reads: Sequence[Read], answers: Answers) -> Answers:
    """Returns the answers by the sum of the reader's score and the model's mean log-probability of each option."""
    scores = []
    for read, log_probs, asked in zip(reads, answers.log_probs, answers.orders, strict=True):
        of_options = np.take_along_axis(log_softmax(log_probs, axis=1), np.array(asked), axis=1)  # [O, K]
        scores.append(read.without_empty(read.scores() + of_options.mean(axis=0)))
    return Answers.from_options(answers.orders, scores)


# ---- On screen ----


def show_open(report: Evaluation, console: Console) -> None:
    """Prints the open-book part of a report."""
    say = functools.partial(print_line, console)
    if report.book_index:
        files = ", ".join(Path(read["file"]).name for read in report.book_index.inputs if "file" in read)
        say(f"the book: {report.book_index.lines:,} lines of {files}")
    if report.fallbacks:
        say(f"questions of which the book has no word: {report.fallbacks:,}; their options tie", "yellow")
    if report.fits:
        columns = right("n", FIGURE, "gain over nothing")
        table = Table("fitted on", "scored on", *columns, title="open book, the weights fitted on")
        for fit in report.fits:
            gained = "" if fit.fitted_on == "nothing" else points(fit.gain, fit.gain_ci95)
            table.add_row(fit.fitted_on, fit.scored_on, f"{fit.n:,}", fit.shown(), gained)
        console.print(table)
    if report.book_controls:
        table = Table("lines", *right(FIGURE), title="open book, the lines that are read")
        for name, found in report.book_controls.items():
            table.add_row(name, found.shown())
        console.print(table)
    if report.retrieval:
        found = report.retrieval
        at = "  ".join(f"recall@{depth} {100 * share:.1f}%" for depth, share in found.recall_at.items())
        say(
            f"retrieval of the source page: {at} of {found.n:,} questions whose page is in the book "
            f"({found.absent:,} are not); {1000 * found.seconds_per_query:.1f} ms a query"
        )
    if alone := report.model_alone:
        say(f"the model alone, reading the same lines, %: {alone.shown()}")
    if report.gain_over_lexical is not None:
        gained = points(report.gain_over_lexical, report.gain_over_lexical_ci95)
        say(f"gain over the lexical reader alone: {gained} points")


def show_evidence(items: Items, reads: Sequence[Read], book: Book, console: Console) -> None:
    """Prints each item, its answer, and the lines that support it with their addresses."""
    say = functools.partial(print_line, console)
    for item, read in zip(items, reads, strict=True):
        say(f"{item.id}: {item.question}", "bold")
        if not read.known:
            say("  no answer: the book has no word of this question, and its options tie")
            continue
        say(f"  answer: {item.options[int(read.scores().argmax())]}")
        for passage in book.reader.evidence(read):
            say(f"  {shown(passage)}")
            say(f"    {passage.url or passage.source}", "dim")
