"""CTIBench's cti-mcq.tsv (xashru/cti-bench): tab-separated, published without quoting, other columns ignored."""

from collections.abc import Iterator
from pathlib import Path

from evals.items.formats.raw import Placed, under_header
from evals.items.formats.row import Row

OPTIONS = ("Option A", "Option B", "Option C", "Option D")
COLUMNS = ("URL", "Question", *OPTIONS, "GT")
SHAPE = f"the columns {', '.join(COLUMNS)}, a tab between fields, without quoting or as a spreadsheet exports it"


def recognises(header: list[str]) -> bool:
    """Any of the columns will do, so that a missing one is named."""
    return not set(COLUMNS).isdisjoint(map(str.strip, header))


def rows(path: Path, cells: Iterator[Placed]) -> Iterator[Row]:
    """Yields what the file says about each item. Raises UserError for one of another shape."""
    for place, row in under_header(path, cells, COLUMNS, SHAPE):
        yield Row(place, place, row["Question"], tuple(row[column] for column in OPTIONS), row["GT"], row["URL"])
