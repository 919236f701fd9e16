"""What answers to items are worth: the headline, and the signs of a collapse and of a shortcut beside it.

The headline is the accuracy over the cyclic shifts of each question's options, where every constant letter scores
exactly 1/k: a model collapsed to one letter cannot look good on it. Each item counts once in every figure, however many
orders it was asked in. The verdict on it is of `evals/analysis/verdict.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.special import log_softmax

import ghost_jax
from evals.analysis import stats
from evals.analysis.baselines import baselines
from evals.analysis.verdict import CONTROLS, judged, words_of
from evals.items.answers import Answers
from evals.items.clusters import clusters_of
from evals.items.items import LETTERS, Item, Items, order_name
from ghost_jax.runs.cropping import cropping_of

SOURCE_OF_HOST = {"attack.mitre.org": "ATT&CK", "cwe.mitre.org": "CWE", "capec.mitre.org": "CAPEC"}
DOCUMENTS = "documents"
BINS = 15  # of confidence, equally wide
SHOWN_BLEMISHES = 10  # on screen; the report names all
FAINTEST = -12.0  # a letter's log-probability below which the histogram does not look: e^-12 is 6 in a million


def report_of(answers: Answers, items: Items) -> dict:
    """Returns the report of answers to items, ready for JSON; accuracies, shares and recalls are fractions.

    `headline` is over all the orders asked, `single_order` over the first of each item. Intervals are of 95%,
    clustered by the page a question comes from (`evals.items.clusters.clusters_of`). What cannot be said is None:
    `flip_rate` of one order, the recall of a letter that is never gold, `calibration` (of the letters'
    log-probabilities, renormalised over an item's letters) and `letter_log_probs` where only letters are known.
    """
    rows = items.items
    credits = answers.credits(rows)
    over_orders = np.array([each.mean() for each in credits])
    cases = _Cases.of(answers, rows)
    share, recall = cases.letter_share(), cases.recall()
    known = [value for value in recall if value is not None]
    trivial = baselines(rows, answers.orders)
    headline = _accuracy(over_orders, rows, range(len(rows)))
    single = _accuracy(np.array([each[0] for each in credits]), rows, range(len(rows)))
    report = {
        "ghost_jax": ghost_jax.__version__,
        "n": len(items),
        "items": {
            "name": items.name,
            "file": Path(items.path).name,
            "sha256": items.sha256,
            "quirks": list(items.quirks),
            "left_out": list(items.left_out),
        },
        "headline": {
            "accuracy": headline["accuracy"],
            "ci95": headline["ci95"],
            "orders": _names_of_orders(answers),
            "orders_per_item": max(len(asked) for asked in answers.orders),
        },
        "single_order": single["accuracy"],
        "single_order_ci95": single["ci95"],
        "letter_share": dict(zip(LETTERS, share, strict=False)),
        "letter_spread": max(share) - min(share),
        "no_letter": cases.no_letter(),
        "recall": dict(zip(LETTERS, recall, strict=False)),
        "recall_spread": max(known) - min(known),
        "balanced_accuracy": float(np.mean(known)),
        "flip_rate": flip_rate(answers),
        "baselines": {name: result["single_order"] for name, result in trivial.items()},
        "baselines_over_orders": {name: result["all_orders"] for name, result in trivial.items()},
        "gold_longest": _by(_length_of_gold, ("longest", "not longest"), over_orders, rows),
        "by_source": _by(source_of, (*SOURCE_OF_HOST.values(), DOCUMENTS), over_orders, rows),
        "calibration": None if answers.log_probs is None else cases.calibration(),
        "letter_log_probs": None if answers.log_probs is None else cases.histogram(),
        "predicted": answers.spelled(),
        "controls": {},
        "controls_missing": list(CONTROLS),
    }
    return judged(report)


def figures_of(answers: Answers, items: Sequence[Item]) -> tuple[float, list[float]]:
    """Returns the accuracy over the orders asked and the share of each letter, as fractions: a report in short."""
    credits = [each.mean() for each in answers.credits(items)]
    return float(np.mean(credits)), _Cases.of(answers, items).letter_share()


def flip_rate(answers: Answers) -> float | None:
    """Returns how often two orders of one question get different options, in [0, 1]; None for one order.

    The mean over questions of the share of their pairs of orders. Of options that tie each is chosen as often as its
    share says, and no answer differs from every answer.
    """
    rates = []
    for shares in answers.options():
        count = len(shares)
        if count > 1:
            same = (np.square(shares.sum(axis=0)).sum() - np.square(shares).sum()) / 2  # over pairs
            rates.append(1 - same / (count * (count - 1) / 2))
    return float(np.mean(rates)) if rates else None


def source_of(item: Item) -> str:
    """Returns who published the page of an item: ATT&CK, CWE, CAPEC, or "documents", also where no page is named."""
    return SOURCE_OF_HOST.get(item.url.partition("://")[2].partition("/")[0].lower(), DOCUMENTS)


def _length_of_gold(item: Item) -> str:
    lengths = [len(option) for option in item.options]
    return "longest" if lengths[item.answer] == max(lengths) else "not longest"


def _by(group_of: Callable[[Item], str], groups: Sequence[str], credits: np.ndarray, rows: Sequence[Item]) -> dict:
    """The accuracy of each group of items that there are any of."""
    members: dict[str, list[int]] = {group: [] for group in groups}
    for row, item in enumerate(rows):
        members[group_of(item)].append(row)
    return {group: _accuracy(credits, rows, chosen) for group, chosen in members.items() if chosen}


def _accuracy(credits: np.ndarray, rows: Sequence[Item], chosen: Sequence[int]) -> dict:
    clusters = clusters_of(rows)
    mean, low, high = stats.clustered_interval(credits[chosen], [clusters[row] for row in chosen])
    return {"n": len(chosen), "accuracy": mean, "ci95": [low, high]}


def _names_of_orders(answers: Answers) -> list[str]:
    """The orders of the first item, then those of the first item with another number of options, and so on."""
    by_size = {len(asked[0]): asked for asked in reversed(answers.orders)}
    return [order_name(order) for size in sorted(by_size) for order in by_size[size]]


# ---- On screen ----


def show(report: dict, console: Console) -> None:
    """Prints the report on one screen. What only some reports hold (a reader, controls, what the data were searched
    for) is shown where it is there."""

    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    odd = [*report["items"]["quirks"], *report["items"]["left_out"]]
    for blemish in odd[:SHOWN_BLEMISHES]:
        say(f"{report['items']['file']}, {blemish}", style="dim")
    if len(odd) > SHOWN_BLEMISHES:
        say(f"and {len(odd) - SHOWN_BLEMISHES:,} more that the report names", style="dim")
    book = f", {report['book']} book" if "book" in report else ""
    asked = f", asked as {report['layout']}" if report.get("layout", "classic") != "classic" else ""
    say(f"{report['items']['name']}: {report['n']:,} questions{book}{asked}")
    console.print(_accuracies(report))
    if report["headline"]["orders_per_item"] == 1:
        say("This is one order alone: there a letter that is often gold looks like knowledge.")
    say(f"letters answered: {_per_letter(report['letter_share'])}{_no_letter(report)}")
    say(f"recall by letter: {_per_letter(report['recall'])}  balanced accuracy {report['balanced_accuracy']:.2%}")
    if report["flip_rate"] is not None:
        say(f"between two orders of a question another option is chosen: {report['flip_rate']:.1%}")
    say(f"the gold option is: {_per_group(report['gold_longest'])}")
    if len(report["by_source"]) > 1:
        say(f"by source: {_per_group(report['by_source'])}")
    if "contextual_calibration" in report:
        say(f"letters with contextual calibration: {_within(report['contextual_calibration'])}")
    if "cloze" in report:
        beside = ("primary", "chance", "controls")
        ways = {name: each for name, each in report["cloze"].items() if name not in beside}
        primary = ways.pop(report["cloze"]["primary"])
        rest = "  ".join(f"{name.replace('_', ' ')} {100 * each['accuracy']:.2f}%" for name, each in ways.items())
        say(f"options not shown (cloze, {report['cloze']['primary']}): {_within(primary)}  {rest}")
        for name, control in report["cloze"].get("controls", {}).items():
            gain = f"{_gain(control['gain'])} ({' to '.join(map(_gain, control['gain_ci95']))})"
            say(f"the same, {name}: {_within(control)}  gain over it {gain}")
    if "matching" in report:
        found = report["matching"]
        say(f"free answers matched to the options: {_within(found)}; {found['matched']:.1%} match one")
    if report["calibration"]:
        say(f"expected calibration error: {report['calibration']['ece']:.3f}")
    if cropped := cropping_of(report):
        say(cropped, style="yellow")
    if "contamination" in report:
        searched = report["contamination"]
        if searched["not_searched"]:
            say(f"data not searched for the items, because it is not here: {', '.join(searched['not_searched'])}")
        say(f"data: {searched['verdict']}")
    say(f"verdict: {words_of(report)}", style="bold")


def asked_in(report: dict) -> str:
    """Returns what the headline is over: "order CBDA", "over 4 orders", or "over all orders" for items that differ."""
    orders, each = report["headline"]["orders"], report["headline"]["orders_per_item"]
    if len(set(map(len, orders))) > 1:
        return "over all orders" if each > 1 else "one order"
    return f"over {each} orders" if each > 1 else _name_of(orders[0])


def _name_of(order: str) -> str:
    return "published order" if order == LETTERS[: len(order)] else f"order {order}"


def _accuracies(report: dict) -> Table:
    """The headline, what baselines reach and what controls reach; one column where one order is all there is."""
    several = report["headline"]["orders_per_item"] > 1
    table = Table()
    table.add_column("accuracy, %")
    for column in [_name_of(report["headline"]["orders"][0])] * several + [
        asked_in(report),
        "95% interval",
        "gain over it",
    ]:
        table.add_column(column, justify="right")

    def add(name: str, single: float | None, accuracy: float, interval: list[float] | None = None, gain="") -> None:
        first = ["" if single is None else f"{100 * single:.2f}"] * several
        within = f"{100 * interval[0]:.2f} to {100 * interval[1]:.2f}" if interval else ""
        table.add_row(name, *first, f"{100 * accuracy:.2f}", within, gain)

    headline = report["headline"]
    who = {"lexical": "the lexical reader", "both": "reader and model"}.get(report.get("reader", ""), "this model")
    add(f"[bold]{who}[/bold]", report["single_order"], headline["accuracy"], headline["ci95"])
    for name, single in report["baselines"].items():
        accuracy = report["baselines_over_orders"][name]
        add(name.replace("_", " "), single, accuracy, gain=_gain(headline["accuracy"] - accuracy))
    for name, control in report["controls"].items():
        gain = _gain(headline["accuracy"] - control["accuracy"])
        if "gain_ci95" in control:
            gain += f" ({' to '.join(map(_gain, control['gain_ci95']))})"
        add(name, control.get("single_order"), control["accuracy"], control.get("ci95"), gain)
    return table


def _within(found: dict) -> str:
    low, high = found["ci95"]
    return f"{100 * found['accuracy']:.2f}% ({100 * low:.2f} to {100 * high:.2f})"


def _gain(difference: float) -> str:
    return f"{100 * difference:+.2f}"


def _per_letter(values: dict[str, float | None]) -> str:
    return "  ".join(f"{letter} {'—' if value is None else f'{value:.1%}'}" for letter, value in values.items())


def _no_letter(report: dict) -> str:
    return f"  no letter {report['no_letter']:.1%}" if report["no_letter"] else ""


def _per_group(groups: dict[str, dict]) -> str:
    return "  ".join(f"{name} {100 * each['accuracy']:.1f}% of {each['n']:,}" for name, each in groups.items())


# ---- Figures ----


@dataclass(frozen=True)
class _Cases:
    """Every answer in a row of its own: C cases, each one order of one item, K letters, the most that an item has.

    Attributes:
      said: [C, K] the share of the answer that each letter has.
      real: [C, K] whether the item has that letter.
      gold: [C] the index of the gold letter.
      weight: [C] whole numbers, so that sums of them are exact; those of one item come to the same for every item.
      credit: [C] in [0, 1].
      log_probs: [C, K] normalised over the item's letters; None where unknown.
    """

    said: np.ndarray
    real: np.ndarray
    gold: np.ndarray
    weight: np.ndarray
    credit: np.ndarray
    log_probs: np.ndarray | None

    @classmethod
    def of(cls, answers: Answers, rows: Sequence[Item]) -> "_Cases":
        k = max(len(item.options) for item in rows)

        def padded(of_items: Sequence[np.ndarray], value: float) -> np.ndarray:
            return np.concatenate(
                [np.pad(each, ((0, 0), (0, k - each.shape[1])), constant_values=value) for each in of_items]
            )

        counts = np.array([len(asked) for asked in answers.orders])
        scores = answers.log_probs
        return cls(
            said=padded(answers.said, 0.0),
            real=np.arange(k) < np.repeat([len(item.options) for item in rows], counts)[:, None],
            gold=np.concatenate(answers.gold_letters(rows)),
            weight=np.repeat(np.lcm.reduce(counts) // counts, counts),
            credit=np.concatenate(answers.credits(rows)),
            log_probs=None if scores is None else log_softmax(padded(scores, -np.inf), axis=1),
        )

    def letter_share(self) -> list[float]:
        return [float(share) for share in self.weight @ self.said / self.weight.sum()]

    def no_letter(self) -> float:
        return float(self.weight @ ~self.said.any(axis=1) / self.weight.sum())

    def recall(self) -> list[float | None]:
        """Of the cases whose gold is a letter, the share answered with it; None for one that is never gold."""
        weights = [self.weight * (self.gold == letter) for letter in range(self.said.shape[1])]
        return [float(weight @ self.credit / weight.sum()) if weight.any() else None for weight in weights]

    def calibration(self) -> dict:
        """Expected calibration error: how far confidence in the chosen letter is from accuracy, weighted over bins.

        Guo et al. (2017, "On Calibration of Modern Neural Networks"). A bin holds its upper edge, not its lower.
        """
        confidence = np.exp(self.log_probs.max(axis=1))
        bin_of = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
        error, bins = 0.0, []
        for number in range(BINS):
            inside = bin_of == number
            weight = self.weight[inside]
            mean = accuracy = None
            if inside.any():
                mean = float(weight @ confidence[inside] / weight.sum())
                accuracy = float(weight @ self.credit[inside] / weight.sum())
                error += float(weight.sum() / self.weight.sum()) * abs(accuracy - mean)
            edges = {"low": number / BINS, "high": (number + 1) / BINS}
            bins.append(edges | {"n": int(inside.sum()), "confidence": mean, "accuracy": accuracy})
        return {"ece": error, "bins": bins}

    def histogram(self) -> dict:
        """How log-probable each letter was over all cases: in a collapse one letter stands right of the others.

        The bins span what was found, so that a faint preference shows as clearly as a strong one.
        """
        values = [
            np.clip(column[has], FAINTEST, None) for column, has in zip(self.log_probs.T, self.real.T, strict=True)
        ]
        low, high = min(map(np.min, values)), max(map(np.max, values))
        edges = np.linspace(low, max(high, low + 0.01), 41)
        counts = [np.histogram(column, edges)[0].tolist() for column in values]
        return {"edges": edges.tolist(), "counts": dict(zip(LETTERS, counts, strict=False))}
