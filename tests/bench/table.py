"""Records of the benchmark as Markdown: `python -m tests.bench.table` writes those of the repository.

The table goes into docs/performance.md, between two markers.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ghost_jax.core.atomic_io import write_text
from ghost_jax.core.errors import UserError, command
from tests.bench.wanted import ROWS, Row
from tests.bench.work import PRECISIONS

ROOT = Path(__file__).parents[2]
RECORDS, PAGE = ROOT / "tests" / "bench" / "records", ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- speed: made by `make bench-table` -->", "<!-- speed: end -->"


# ---- Records ----


def file_name(record: Mapping) -> str:
    """Returns the name of a record's file: "speed-2026-11-26-amd-epyc-cpu-family-25-model-17.json"."""
    processor = re.sub("[^a-z0-9]+", "-", record["machine"]["processor"].lower()).strip("-")
    return f"speed-{record['date']}-{processor}.json"


def read_all(folder: Path) -> dict[str, dict]:
    """Returns file name -> record, of all in a folder. Raises UserError where no table can be made of one."""
    found = {}
    for path in sorted(folder.glob("speed-*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            summary([record])
            dict(record["measured"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as fault:
            raise UserError(
                f"{path} is no record of this benchmark, or a corrupt one ({type(fault).__name__}: {fault}). Delete "
                "it, or give another --out: comparisons are added to the record that is there."
            ) from None
        found[path.name] = record
    return found


# ---- What is wanted ----


def summary(records: Sequence[Mapping]) -> str:
    """Returns the table of `ROWS`, the worst that CPU records say, and what each record is of."""
    records = [record for record in records if record["machine"]["platform"] == "cpu"]
    rows = [_wanted(row, records) for row in ROWS]
    header = ("work", "worst", "rates of the worst", "records", "at least", "goal", "verdict")
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", *(f"| {' | '.join(row)} |" for row in rows), ""]
    lines += [f"- {_about(record)}" for record in records]
    return "\n".join(lines)


def _wanted(row: Row, records: Sequence[Mapping]) -> tuple[str, ...]:
    wanted = [_figure(figure, row.unit) if figure is not None else "" for figure in (row.least, row.goal)]
    worst = row.worst(records)
    if worst is None:
        return (row.work, "", "", "0", *wanted, "not measured")
    found, of = worst
    processors = len({record["machine"]["processor"] for record in of})
    count = f"{len(of)} on {processors} processor{'s' if processors > 1 else ''}"
    return row.work, _figure(found.figure, row.unit), found.words, count, *wanted, row.verdict(found.figure, len(of))


def _figure(figure: float, unit: str) -> str:
    return f"{figure:,.0f} {unit}" if unit == "tokens/s" else f"{figure:.2f} {unit}"


def _about(record: Mapping) -> str:
    """Returns what a record is of: the machine, the FLOP/s that it allows, by its faster matrix product, the sizes."""
    machine, work = record["machine"], record["work"]
    sides = record["measured"].get("product", {}).get("sides", {})
    rates = {
        precision: max((side["per_s"] for name, side in sides.items() if name.endswith(precision)), default=0)
        for precision in PRECISIONS
    }
    products = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {precision}" for precision, rate in rates.items() if rate)
    flags = f" ({', '.join(machine['flags'])})" if machine["flags"] else ""
    return (
        f"{record['date']}, {machine['name']}: {machine['processor']}{flags}; default {machine['default']}. "
        f"Matrix products: {products or 'not measured'}. Model {work['size']}, steps of {work['batch_size']} x "
        f"{work['seq_len']}, {work['questions']:,} questions, {work['rounds']} turns."
    )


# ---- The page ----


def with_table(text: str, records: Mapping[str, Mapping]) -> str:
    """Returns a page with the table of these records between its two markers."""
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}\n\n{summary(list(records.values()))}\n\n{END}{after}"


@command
def main(argv: Sequence[str]) -> int:
    """Writes the speed table of docs/performance.md from all records."""
    argparse.ArgumentParser(prog="python -m tests.bench.table", description=main.__doc__).parse_args(argv)
    records = read_all(RECORDS)
    write_text(PAGE, with_table(PAGE.read_text(encoding="utf-8"), records))
    print(summary(list(records.values())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
