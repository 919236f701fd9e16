"""What speed is wanted: `ROWS` is the table. A ratio is claimed only where it held in every record of at least two."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from tests.bench.comparisons import GENERATE, OURS, PADDED, TRL
from tests.bench.work import BFLOAT16, FLOAT32, precisions_of

DEFAULT = "default"  # the precision of `model.dtype=auto` on the machine of the record
BEST = "best"  # the faster precision of that side; all of the machine must be in the record
SECONDS = "s"
LEAST_RECORDS = 2  # of different machines or days, for a claim


@dataclasses.dataclass(frozen=True)
class Found:
    """What a record says of a row: its figure, and the rates behind it in words."""

    figure: float
    words: str


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
      work: what is done, in words.
      find: takes a record; returns what it says of this, None where that was not measured.
      least, goal: wanted of the figure; None where it is only reported. Of seconds, that is the most.
      unit: of the figure, "x" for a ratio.
    """

    work: str
    find: Callable[[Mapping], Found | None]
    least: float | None = None
    goal: float | None = None
    unit: str = "x"

    def reaches(self, figure: float, wanted: float) -> bool:
        """Returns whether a figure is at least as good as one that is wanted."""
        return figure <= wanted if self.unit == SECONDS else figure >= wanted

    def worst(self, records: Sequence[Mapping]) -> tuple[Found, list[Mapping]] | None:
        """Returns the worst that the records say, and those that say something; None where none does."""
        found = [(each, record) for record in records if (each := self.find(record))]
        if not found:
            return None
        order = max if self.unit == SECONDS else min
        return order((each for each, _ in found), key=lambda each: each.figure), [record for _, record in found]

    def verdict(self, figure: float, records: int) -> str:
        """Returns in words what the worst figure of so many records allows to say."""
        if self.least is None:
            return "reported"
        if not self.reaches(figure, self.least):
            return "**MISSED**"
        if records < LEAST_RECORDS:
            return f"reached, not claimed: {records} of {LEAST_RECORDS} records"
        return "goal reached" if self.goal is not None and self.reaches(figure, self.goal) else "held"


def ratio(comparison: str, ours: str, peer: tuple[str, str]) -> Callable[[Mapping], Found | None]:
    """Returns a row's `find`: our rate in precision `ours` over the rate of the side and precision `peer`."""

    def find(record: Mapping) -> Found | None:
        sides = record["measured"].get(comparison, {}).get("sides", {})
        names = [fastest(sides, name, precision, record) for name, precision in ((OURS, ours), peer)]
        if None in names or names[0] == names[1]:  # the same twice where float32 is the default
            return None
        mine, theirs = (sides[name] for name in names)
        words = f"{names[0]}: {mine['per_s']:,.1f} {mine['unit']}/s; {names[1]}: {theirs['per_s']:,.1f}"
        return Found(mine["per_s"] / theirs["per_s"], words)

    return find


def fastest(sides: Mapping, name: str, precision: str, record: Mapping) -> str | None:
    """Returns the name of a side in a precision, `BEST` and `DEFAULT` resolved; None where that was not measured."""
    one = record["machine"]["default"] if precision == DEFAULT else precision
    names = [f"{name}, {each}" for each in (precisions_of(record["machine"]) if precision == BEST else (one,))]
    return max(names, key=lambda each: sides[each]["per_s"]) if all(each in sides for each in names) else None


def _loaded(record: Mapping) -> Found | None:
    if "loader" not in record["measured"]:
        return None
    side = record["measured"]["loader"]["sides"][OURS]
    return Found(side["per_s"], f"{min(side['seconds']):.2f} to {max(side['seconds']):.2f} s a turn")


def _started(record: Mapping) -> Found | None:
    if "start" not in record["measured"]:
        return None
    start = record["measured"]["start"]
    return Found(start["median_s"], f"{min(start['seconds']):.2f} to {max(start['seconds']):.2f} s")


OURS_32, COMPILED = (OURS, FLOAT32), "torch.compile"
ROWS = (
    Row("36M step, 8 x 512: our default against our float32", ratio("pretrain", DEFAULT, OURS_32), 1.8, 3),
    Row(
        "36M step: our default against torch.compile under bfloat16 autocast",
        ratio("pretrain", DEFAULT, (COMPILED, BFLOAT16)),
        0.6,
        1,
    ),
    Row("36M step: our default against torch.compile in float32", ratio("pretrain", DEFAULT, (COMPILED, FLOAT32)), 1),
    Row(
        "36M step: our float32 against torch.compile in float32",
        ratio("pretrain", FLOAT32, (COMPILED, FLOAT32)),
        0.9,
        1,
    ),
    Row("mini step, 8 x 512: our default against our float32", ratio("pretrain-mini", DEFAULT, OURS_32), 1.8, 3),
    Row("nano step, 8 x 512: our default against our float32", ratio("pretrain-nano", DEFAULT, OURS_32)),
    Row(
        "letters at 36M, 2,500 questions in 4 orders: against padded transformers, best precision of each",
        ratio("letters", BEST, (PADDED, BEST)),
        2,
        4,
    ),
    Row(
        "chat_v5's real mix, useful tokens: against a padded loop as TRL's defaults, best precision of each",
        ratio("sft", BEST, (TRL, BEST)),
        2,
        3,
    ),
    Row(
        "decoding 128 tokens at batch 1, prompt of 200: against transformers generate, best precision of each",
        ratio("decoding", BEST, (GENERATE, BEST)),
        1.5,
        2.5,
    ),
    Row("loader: chat_v5's packed mix, wall time", _loaded, 500_000, 1_000_000, "tokens/s"),
    Row("start: from the shell to the first update, all prepared", _started, 10, None, SECONDS),
)
