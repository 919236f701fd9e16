"""CTIBench with the book open: what the lexical reader scores, and a model that reads the lines it finds.

An open-book figure is of the reader and its book together, and never stands beside a closed-book one without saying so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.special import log_softmax

from evals.analysis import stats
from evals.analysis.report import gain_shown, interval_of, percent, print_line, report_of
from evals.analysis.verdict import CONTROLS, judged
from evals.answering.controls import controls_of, with_controls
from evals.answering.evaluate import Put
from evals.items.answers import Answers, orders_of
from evals.items.clusters import clusters_of
from evals.items.formats import CTIBENCH_MCQ_SHA256
from evals.items.items import Item, Items
from evals.items.splits import development_split, part_of
from evals.open_book import retrieval
from evals.open_book.lexical import APPEARANCE, EVIDENCE, NOTHING_FITTED, LexicalReader, Read, Weights, answers_of
from evals.open_book.rescorer import TooFewFacts, enough, fit, generated, generated_weights
from ghost_jax.data.corpus import PUBLISHED_BOOK, book_corpus, documents_of, index_store
from ghost_jax.data.retrieval.bm25 import Index, Passage, shown
from ghost_jax.data.storage import artifact_cache
from ghost_jax.runs.evaluation import Accuracy, BookIndex, Evaluation, Fit, Retrieval

SOURCE_NAMES = {"attack": "ATT&CK", "capec": "CAPEC", "cwe": "CWE"}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Book:
    """The reference pages that questions are answered from: the stores of their text and index, and their reader."""

    corpus: Path
    index: Path
    reader: LexicalReader

    @classmethod
    def open(cls, data_dir: Path | None, say: Say) -> "Book":
        """Finds or builds the book over ATT&CK, CAPEC and CWE. Raises UserError where a source cannot be had."""
        corpus = book_corpus(data_dir, say)
        return cls.of(corpus, PUBLISHED_BOOK, say)

    @classmethod
    def of(cls, corpus: Path, sources: Sequence[str], say: Say) -> "Book":
        """Returns the book of some of a corpus's sources."""
        index = index_store(corpus, sources, say)
        return cls(corpus, index, LexicalReader(Index.load(index)))

    def described(self) -> BookIndex:
        """Returns what tells this book from another: how many lines it has, and which files they are from."""
        inputs = artifact_cache.manifest(self.corpus).made_from["inputs"]
        return BookIndex(lines=len(self.reader.index), inputs=tuple(inputs))

    def passages(self, questions: Sequence[str]) -> list[list[str]]:
        """Returns what a prompt shows in front of each question, as in training; nothing for a blank one."""
        index = self.reader.index
        rows = index.context(questions)
        return [
            [shown(index.passage(row)) for row in found] if question.strip() else []
            for question, found in zip(questions, rows.tolist(), strict=True)
        ]


# ---- The lexical reader ----


def lexical_report(items: Items, book: Book, split: str, say: Say, *, controls: bool) -> tuple[Evaluation, list[Read]]:
    """Returns the report of the lexical reader with nothing fitted, and what it read of each item of the split.

    `fits` has the same reader with fitted weights, each on the questions that its fit has not seen; `retrieval` how
    well pages are found; with `controls`, `book_controls` has the same reader on other lines.
    """
    part = part_of(items, split)
    reads = book.reader.read_all(part.items)
    orders = orders_of(part.items, "cyclic")
    answers = answers_of(reads, orders)
    report = report_of(
        answers,
        part,
        book="open",
        reader="lexical",
        book_index=book.described(),
        split=split,
        fallbacks=sum(not read.known for read in reads),
        retrieval=_recall(book, part),
    )
    # Scores of BM25 are no log-probabilities, so that confidence cannot be read off them.
    report = replace(report, calibration=None, letter_log_probs=None)
    if split == "all":
        report = replace(report, fits=tuple(fits_of(part, reads, book, say)))
    if controls:

        def ask(others: Sequence[Item], doing: str) -> Answers:
            return answers_of(book.reader.read_all(others), orders)

        report = with_controls(report, controls_of(ask, answers, part))
        report = replace(report, book_controls=_book_controls(part, book, say))
    # Nothing is trained that could be trained without questions.
    missing = tuple(name for name in report.controls_missing if name != CONTROLS[2])
    return judged(replace(report, controls_missing=missing)), reads


def fits_of(items: Items, reads: Sequence[Read], book: Book, say: Say) -> list[Fit]:
    """Returns accuracies by what the weights were fitted on, always of questions that the fit has not seen."""
    every = np.arange(len(items))
    plain = _credits(reads, items, NOTHING_FITTED)
    rows = [_fit("nothing", "all", every, plain, plain, items)]
    try:
        generated_for = _credits(reads, items, generated_weights(book.corpus, book.index, say))
    except TooFewFacts as fault:
        say(str(fault))
        return rows
    rows.append(_fit("generated questions", "all", every, generated_for, plain, items))
    if items.sha256 != CTIBENCH_MCQ_SHA256:
        return rows
    dev, test = development_split(items)
    names = (*EVIDENCE, *APPEARANCE)
    fitted = fit([reads[row].features(names) for row in dev], [items.items[row].answer for row in dev], names)
    pages = {items.items[row].url for row in dev} - {""}
    apart = np.array([row for row in test if items.items[row].url not in pages])
    # What is read, and how, was chosen with an eye on the development split: the other questions saw none of it.
    others = "the other 2,000"
    rows.append(_fit("nothing", others, test, plain, plain, items))
    rows.append(_fit("generated questions", others, test, generated_for, plain, items))
    credits = _credits(reads, items, fitted)
    rows.append(_fit("development split", others, test, credits, plain, items))
    rows.append(_fit("development split", f"the {len(apart):,} of other pages", apart, credits, plain, items))
    return rows


def _fit(on: str, scored_on: str, rows: np.ndarray, credits: np.ndarray, plain: np.ndarray, items: Items) -> Fit:
    urls = clusters_of([items.items[row] for row in rows])
    accuracy, low, high = stats.clustered_interval(credits[rows], urls)
    gain = stats.paired_difference(credits[rows], plain[rows], urls)
    return Fit(
        fitted_on=on,
        scored_on=scored_on,
        n=len(rows),
        accuracy=accuracy,
        ci95=(low, high),
        gain=gain.mean,
        gain_ci95=gain.ci95,
    )


def _credits(reads: Sequence[Read], items: Items, weights: Weights) -> np.ndarray:
    """Returns the credit [N] of each item; an order changes nothing that the reader reads."""
    answers = answers_of(reads, orders_of(items.items, "published"), weights)
    return np.concatenate(answers.credits(items.items))


def _recall(book: Book, items: Items) -> Retrieval:
    found = retrieval.recall(book.reader.index, items.items)
    at = dict(zip(map(str, retrieval.DEPTHS), found.hits.mean(axis=0).tolist(), strict=True)) if len(found.rows) else {}
    return Retrieval(n=len(found.rows), absent=found.absent, recall_at=at, seconds_per_query=found.seconds)


def _book_controls(items: Items, book: Book, say: Say) -> dict[str, Accuracy]:
    """Returns accuracies of the unfitted reader by the lines it was given."""
    urls = clusters_of(items.items)

    def scored(reads: Sequence[Read]) -> Accuracy:
        return stats.accuracy_of(_credits(reads, items, NOTHING_FITTED), urls)

    found = {}
    for name, control in retrieval.CONTROLS.items():
        say(f"reading with {name}")
        found[name] = scored(control(book.reader, items.items))
    for left_out in PUBLISHED_BOOK:
        say(f"reading without {SOURCE_NAMES[left_out]}")
        fewer = Book.of(book.corpus, [name for name in PUBLISHED_BOOK if name != left_out], say)
        found[f"without {SOURCE_NAMES[left_out]}"] = scored(fewer.reader.read_all(items.items))
    return found


# ---- A model beside the lexical reader ----


def both_report(put: Put, orders: str, part: Items, book: Book, say: Say) -> Evaluation:
    """Returns the report of a model and the lexical reader together.

    The model's mean log-probability of each option over the orders is one more feature; all weights are fitted on
    generated questions, and the gain is over the same fit without the model. Controls are those of the sum.

    Args:
      put: how questions are put to the model, see `evals.answering.evaluate.putting`.
      orders: a name in `evals.items.answers.ORDERS`; "published" is a quick look, without controls.
    """
    items = enough(generated(documents_of(book.corpus)()))
    cropped = 0

    def ask(those: Sequence[Item], doing: str) -> tuple[Answers, list[Read]]:
        nonlocal cropped
        passages = book.passages([item.question for item in those])
        answers, too_long = put(those, orders_of(those, orders), passages, doing)
        cropped += too_long
        return answers, book.reader.read_all(those)

    say(f"fitting reader and model to {len(items):,} generated questions")
    asked, reads = ask(items, "scoring generated questions")
    gold = [item.answer for item in items]
    alone = fit([read.features(EVIDENCE) for read in reads], gold, EVIDENCE)
    weights = fit(_with_model(reads, asked), gold, (*EVIDENCE, "model"))

    def together(answers: Answers, reads: Sequence[Read]) -> Answers:
        blocks = zip(reads, _with_model(reads, answers), strict=True)
        scores = [read.without_empty(block @ list(weights.values())) for read, block in blocks]
        return Answers.from_options(answers.orders, scores)

    cropped = 0
    answers, reads = ask(part.items, "scoring")
    both = together(answers, reads)
    report = report_of(
        both,
        part,
        book="open",
        reader="both",
        book_index=book.described(),
        fallbacks=sum(not read.known for read in reads),
        prompts_cropped=cropped,
        weights=weights,
        model_alone=_accuracy(answers, part),
    )
    if orders != "published":
        report = with_controls(report, controls_of(lambda those, doing: together(*ask(those, doing)), both, part))
    lexical = _credits(reads, part, alone)
    credits = np.array([each.mean() for each in both.credits(part.items)])
    gain = stats.paired_difference(credits, lexical, clusters_of(part.items))
    return replace(report, gain_over_lexical=gain.mean, gain_over_lexical_ci95=gain.ci95)


def _accuracy(answers: Answers, items: Items) -> Accuracy:
    credits = np.array([each.mean() for each in answers.credits(items.items)])
    return stats.accuracy_of(credits, clusters_of(items.items))


def _with_model(reads: Sequence[Read], answers: Answers) -> list[np.ndarray]:
    """Returns the features [K, EVIDENCE + 1] of each item's options, the model's log-probability last."""
    blocks = []
    for read, scores, asked in zip(reads, answers.log_probs, answers.orders, strict=True):
        of_option = np.take_along_axis(log_softmax(scores, axis=1), np.array(asked), axis=1).mean(axis=0)
        blocks.append(np.column_stack([read.features(EVIDENCE), of_option]))
    return blocks


# ---- On screen ----


def show_open(report: Evaluation, console: Console) -> None:
    """Prints what an open-book report has beside the diagnosis."""
    if report.book_index:
        files = ", ".join(Path(read["file"]).name for read in report.book_index.inputs if "file" in read)
        print_line(console, f"the book: {report.book_index.lines:,} lines of {files}")
    if report.fallbacks:
        print_line(
            console, f"questions of which the book has no word: {report.fallbacks:,}; their options tie", "yellow"
        )
    if report.fits:
        table = Table("fitted on", "scored on", title="open book, the weights fitted on")
        for column in ("n", "accuracy, %", "95% interval", "gain over nothing fitted"):
            table.add_column(column, justify="right")
        for fit in report.fits:
            gained = "" if fit.fitted_on == "nothing" else gain_shown(fit.gain, fit.gain_ci95)
            accuracy = f"{100 * fit.accuracy:.2f}"
            table.add_row(fit.fitted_on, fit.scored_on, f"{fit.n:,}", accuracy, interval_of(fit), gained)
        console.print(table)
    if report.book_controls:
        table = Table("lines", title="open book, the lines that are read")
        for column in ("accuracy, %", "95% interval"):
            table.add_column(column, justify="right")
        for name, found in report.book_controls.items():
            table.add_row(name, f"{100 * found.accuracy:.2f}", interval_of(found))
        console.print(table)
    if report.retrieval:
        found = report.retrieval
        at = "  ".join(f"recall@{depth} {100 * share:.1f}%" for depth, share in found.recall_at.items())
        print_line(
            console,
            f"retrieval of the source page: {at} of {found.n:,} questions whose page is in the book "
            f"({found.absent:,} are not); {1000 * found.seconds_per_query:.1f} ms a query",
        )
    if report.model_alone:
        print_line(console, f"the model alone, reading the same lines: {percent(report.model_alone)}")
    if report.gain_over_lexical is not None:
        gained = gain_shown(report.gain_over_lexical, report.gain_over_lexical_ci95)
        print_line(
            console, f"gain of the model over the lexical reader, both fitted on generated questions: {gained} points"
        )


def show_evidence(items: Items, reads: Sequence[Read], book: Book, console: Console) -> None:
    """Prints for each item its answer and the lines that it rests on, with their addresses."""
    for item, read in zip(items, reads, strict=True):
        console.print(f"{item.id}: {item.question}", markup=False, highlight=False, soft_wrap=True, style="bold")
        if not read.known:
            console.print("  no answer: the book has no word of this question, and its options tie")
            continue
        chosen = int(read.scores().argmax())
        console.print(f"  answer: {item.options[chosen]}", markup=False, highlight=False, soft_wrap=True)
        for passage in book.reader.evidence(read):
            _show_line(passage, console)


def _show_line(passage: Passage, console: Console) -> None:
    console.print(f"  {shown(passage)}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"    {passage.url or passage.source}", markup=False, highlight=False, soft_wrap=True, style="dim")
