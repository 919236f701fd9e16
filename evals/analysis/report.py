"""Computes the evaluation of answers to items, see docs/scoring.md, and prints it on one screen."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from scipy.special import log_softmax

import ghost_jax
from evals.analysis.baselines import baselines
from evals.analysis.stats import accuracy_of
from evals.analysis.verdict import CONTROLS, judged
from evals.items.answers import Answers
from evals.items.ctibench import doubtful
from ghost_jax.data.items.items import LETTERS, Item, Items, blemishes, clusters_of, order_name, orders_label
from ghost_jax.data.retrieval.mcq_baselines import longest
from ghost_jax.runs.evaluation import (
    Accuracy,
    Bin,
    Calibration,
    Evaluation,
    Headline,
    ItemsFile,
    LetterLogProbs,
    interval,
    percent,
    points,
)

SOURCE_OF_HOST = {"attack.mitre.org": "ATT&CK", "cwe.mitre.org": "CWE", "capec.mitre.org": "CAPEC"}
DOCUMENTS = "documents"
BINS = 15  # of confidence, equally wide
LOWEST_LOG_PROB = -12.0  # lower values are in the histogram's first bin: e^-12 is 6 in a million


def report_of(
    answers: Answers, items: Items, *, book: str = "closed", reader: str = "model", **others: object
) -> Evaluation:
    """Returns the evaluation of answers to items, without controls; `others` are further fields of it.

    `headline` is over all the orders asked, `single_order` over the first of each item. Intervals are clustered by
    `ghost_jax.data.items.items`. None stands for what is unknown: `flip_rate` of one order, the recall of a
    letter that is never gold, `calibration` and `letter_log_probs` where only letters are known.
    """
    rows, clusters = items.items, clusters_of(items.items)
    over_orders = answers.mean_credits(rows)
    single = accuracy_of(answers.first_credits(rows), clusters)
    trivial = baselines(rows, answers.orders)

    def by(group_of: Callable[[Item], str], groups: Sequence[str]) -> dict[str, Accuracy]:
        members = {group: [row for row, item in enumerate(rows) if group_of(item) == group] for group in groups}
        return {
            group: accuracy_of(over_orders[chosen], [clusters[row] for row in chosen], n=len(chosen))
            for group, chosen in members.items()
            if chosen
        }

    first_of_size = {len(asked[0]): asked for asked in reversed(answers.orders)}  # number of options -> orders
    in_doubt = doubtful(items)
    sure = by(lambda item: "in doubt" if item.id in in_doubt else "sure", ("sure",))
    report = Evaluation(
        ghost_jax=ghost_jax.__version__,
        n=len(items),
        items=file_of(items),
        headline=accuracy_of(
            over_orders,
            clusters,
            Headline,
            orders=tuple(order_name(order) for size in sorted(first_of_size) for order in first_of_size[size]),
        ),
        single_order=single.accuracy,
        single_order_ci95=single.ci95,
        **letter_figures(answers, rows),
        flip_rate=flip_rate(answers),
        baselines={name: result["single_order"] for name, result in trivial.items()},
        baselines_over_orders={name: result["all_orders"] for name, result in trivial.items()},
        gold_longest=by(
            lambda item: "longest" if longest(item)[item.answer] else "not longest", ("longest", "not longest")
        ),
        by_source=by(_source_of, (*SOURCE_OF_HOST.values(), DOCUMENTS)),
        without_doubtful_gold=sure.get("sure") if in_doubt else None,
        predicted=tuple(answers.spelled()),
        controls={},
        controls_missing=CONTROLS,
        verdict="",
        verdict_text="",
        book=book,
        reader=reader,
        **others,
    )
    return judged(report)


def file_of(items: Items) -> ItemsFile:
    """Returns which items a record is of."""
    file, blemishes = Path(items.path).name, {"quirks": items.quirks, "left_out": items.left_out}
    return ItemsFile(name=items.name, file=file, sha256=items.sha256, **blemishes)


def flip_rate(answers: Answers) -> float | None:
    """Returns how often two orders of one question get different options, in [0, 1]; None for one order.

    The mean over questions of the share of their pairs of orders. Options that tie share an answer; no answer differs
    from every answer.
    """
    rates = []
    for shares in answers.options():
        count = len(shares)
        if count > 1:
            same = (np.square(shares.sum(axis=0)).sum() - np.square(shares).sum()) / 2  # over pairs
            rates.append(1 - same / (count * (count - 1) / 2))
    return float(np.mean(rates)) if rates else None


def _source_of(item: Item) -> str:
    """The publisher of an item's page: "ATT&CK", "CWE", "CAPEC", or "documents" for any other or none."""
    return SOURCE_OF_HOST.get(item.url.partition("://")[2].partition("/")[0].lower(), DOCUMENTS)


def letter_figures(answers: Answers, rows: Sequence[Item]) -> dict:
    """Returns fields of an evaluation over C cases, each an item in an order; K letters, the most that an item has."""
    counts = np.array([len(asked) for asked in answers.orders])
    weight = np.repeat(np.lcm.reduce(counts) // counts, counts)  # [C] integers have exact sums; items weigh the same
    answered = _padded(answers.said, 0.0)  # [C, K] share of the answer
    gold = np.concatenate(answers.gold_letters(rows))  # [C]
    credit = np.concatenate(answers.credits(rows))  # [C]
    share = [float(each) for each in weight @ answered / weight.sum()]
    of_gold = [weight * (gold == letter) for letter in range(len(share))]
    recall = [float(each @ credit / each.sum()) if each.any() else None for each in of_gold]
    known = [value for value in recall if value is not None]
    calibration = letter_log_probs = None
    named = answered.any(axis=1)  # the other cases have no letter, so no confidence in one
    if answers.log_probs is not None and named.any():
        log_probs = log_softmax(_padded(answers.log_probs, -np.inf), axis=1)  # [C, K]
        sizes = np.repeat([len(item.options) for item in rows], counts)
        calibration = _calibration(np.exp(log_probs.max(axis=1))[named], credit[named], weight[named])
        letter_log_probs = _histogram([log_probs[named & (sizes > letter), letter] for letter in range(len(share))])
    return {
        "letter_share": dict(zip(LETTERS, share, strict=False)),
        "letter_spread": max(share) - min(share),
        "no_letter": float(weight @ ~named / weight.sum()),
        "recall": dict(zip(LETTERS, recall, strict=False)),
        "recall_spread": max(known) - min(known),
        "balanced_accuracy": float(np.mean(known)),
        "calibration": calibration,
        "letter_log_probs": letter_log_probs,
    }


def _padded(of_items: Sequence[np.ndarray], value: float) -> np.ndarray:
    k = max(each.shape[1] for each in of_items)
    return np.concatenate([np.pad(each, ((0, 0), (0, k - each.shape[1])), constant_values=value) for each in of_items])


def _calibration(confidence: np.ndarray, credit: np.ndarray, weight: np.ndarray) -> Calibration:
    """Expected calibration error (Guo et al. 2017, "On Calibration of Modern Neural Networks") of [C] cases."""
    bin_of = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    error, bins = 0.0, []
    for number in range(BINS):
        inside = bin_of == number
        within = weight[inside]
        mean = accuracy = None
        if inside.any():
            mean = float(within @ confidence[inside] / within.sum())
            accuracy = float(within @ credit[inside] / within.sum())
            error += float(within.sum() / weight.sum()) * abs(accuracy - mean)
        low, high = number / BINS, (number + 1) / BINS
        bins.append(Bin(low=low, high=high, n=int(inside.sum()), confidence=mean, accuracy=accuracy))
    return Calibration(ece=error, bins=tuple(bins))


def _histogram(log_probs: Sequence[np.ndarray]) -> LetterLogProbs:
    """The histogram of each letter's log-probabilities; its 40 bins span the values found."""
    values = [np.clip(each, LOWEST_LOG_PROB, None) for each in log_probs]
    low, high = min(map(np.min, values)), max(map(np.max, values))
    edges = np.linspace(low, max(high, low + 0.01), 41)
    counts = [tuple(np.histogram(each, edges)[0].tolist()) for each in values]
    return LetterLogProbs(edges=tuple(edges.tolist()), counts=dict(zip(LETTERS, counts, strict=False)))


# ---- On screen ----


def print_line(console: Console, text: str, style: str = "") -> None:
    """Prints a line as it is."""
    console.print(text, style=style, highlight=False, soft_wrap=True)


def show_blemishes(report: Evaluation, console: Console) -> None:
    """Prints the first blemishes of the items, and those that are left out."""
    for line in blemishes(report.items.file, [*report.items.quirks, *report.items.left_out]):
        print_line(console, line, "dim")


def show(report: Evaluation, console: Console) -> None:
    """Prints the evaluation on one screen."""
    show_blemishes(report, console)
    layout = f", asked as {report.layout}" if report.layout not in (None, "classic") else ""
    print_line(console, f"{report.items.name}: {report.n:,} questions, {report.book} book{layout}")
    console.print(_accuracies(report))
    for line in _lines(report):
        print_line(console, line)
    if cropped := report.cropping:
        print_line(console, cropped, "yellow")
    print_line(console, f"verdict: {report.verdict_text}", "bold")


def _lines(report: Evaluation) -> list[str]:
    """The figures below the table, a line each."""
    no_letter = f"  no letter {report.no_letter:.1%}" if report.no_letter else ""
    lines = [
        f"letters answered: {_per_letter(report.letter_share)}{no_letter}",
        f"recall by letter: {_per_letter(report.recall)}  balanced accuracy {report.balanced_accuracy:.2%}",
    ]
    if report.orders_per_item == 1:
        lines.insert(0, "This is one order alone: there a letter that is often gold looks like knowledge.")
    if report.flip_rate is not None:
        lines.append(f"between two orders of a question another option is chosen: {report.flip_rate:.1%}")
    lines.append(f"the gold option is: {_per_group(report.gold_longest)}")
    if len(report.by_source) > 1:
        lines.append(f"by source: {_per_group(report.by_source)}")
    if sure := report.without_doubtful_gold:
        lines.append(f"without the {report.n - sure.n:,} questions whose gold is in doubt, %: {sure.shown()}")
    if found := report.contextual_calibration:
        lines.append(f"letters with contextual calibration, %: {found.shown()}")
    if cloze := report.cloze:
        ways = {name: getattr(cloze, name) for name in ("sum", "per_token", "pmi", "ranked") if name != cloze.primary}
        rest = [f"{name.replace('_', ' ')} {percent(each.accuracy, digits=2)}" for name, each in ways.items() if each]
        lines.append(f"options not shown (cloze, {cloze.primary}), %: {cloze.found.shown()}  {'  '.join(rest)}")
        for name, control in (cloze.controls or {}).items():
            gained = points(control.gain, control.gain_ci95)
            lines.append(f"the same, {name}, %: {control.shown()}  gain over it {gained}")
    if report.calibration:
        lines.append(f"expected calibration error: {report.calibration.ece:.3f}")
    if behind := report.endpoint:
        how = f"letters by {behind.letters_by}, {behind.unanswered:.1%} of the answers without one"
        lines.append(f"{behind.model} at {behind.host}: {how}")
    if search := report.contamination:
        if missing := ", ".join(search.not_searched):
            lines.append(f"data not searched for the items, because it is not here: {missing}")
        lines.append(f"data: {search.verdict}")
    return lines


def _accuracies(report: Evaluation) -> Table:
    """The headline, the baselines and the controls; one column of accuracies where one order was asked."""
    several, headline = report.orders_per_item > 1, report.headline
    first = [orders_label(headline.orders[:1])] * several
    table = Table("accuracy, %", *right(*first, orders_label(headline.orders), "95% interval", "gain over it"))

    def add(name: str | Text, single: float | None, accuracy: float, ends: str = "", gained: str = "") -> None:
        first = ["" if single is None else percent(single, digits=2)] * several
        table.add_row(name, *first, percent(accuracy, digits=2), ends, gained)

    who = {"lexical": "the lexical reader", "both": "reader and model"}.get(report.reader, "this model")
    add(Text(who, "bold"), report.single_order, headline.accuracy, interval(*headline.ci95, ".2f"))
    for name, single in report.baselines.items():
        accuracy = report.baselines_over_orders[name]
        add(name.replace("_", " "), single, accuracy, gained=points(headline.accuracy - accuracy))
    for name, control in report.controls.items():
        gained = points(headline.accuracy - control.accuracy, control.gain_ci95)
        add(name, control.single_order, control.accuracy, interval(*control.ci95, ".2f"), gained)
    return table


def right(*headers: str, no_wrap: bool = False) -> list[Column]:
    """Returns columns that are aligned to the right."""
    return [Column(header, justify="right", no_wrap=no_wrap) for header in headers]


def _per_letter(values: dict[str, float | None]) -> str:
    return "  ".join(f"{letter} {'—' if value is None else f'{value:.1%}'}" for letter, value in values.items())


def _per_group(groups: dict[str, Accuracy]) -> str:
    return "  ".join(f"{name} {100 * each.accuracy:.1f}% of {each.n:,}" for name, each in groups.items())
