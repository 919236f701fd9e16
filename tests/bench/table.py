"""Records of the benchmark as Markdown: `python -m tests.bench.table` writes those of the repository.

The table goes into docs/performance.md, between two markers.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ghost_jax.core.atomic_io import write_text
from ghost_jax.core.errors import UserError, command
from tests.bench.code import in_words
from tests.bench.wanted import ROWS, Row
from tests.bench.work import BFLOAT16, PRECISIONS

ROOT = Path(__file__).parents[2]
RECORDS, PAGE = ROOT / "tests" / "bench" / "records", ROOT / "docs" / "performance.md"
FILE = "speed.md"
BEGIN, END = "<!-- speed: made by `make bench-table` -->", "<!-- speed: end -->"
LEFT_OUT = "left out: "


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
            markdown({path.name: record})
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
    lines = [*_table(("work", "worst", "rates of the worst", "records", "at least", "goal", "verdict"), rows), ""]
    lines += [f"- {_machine(record)} {_products(record)} {_size(record['work'])}" for record in records]
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


def _products(record: Mapping) -> str:
    rates = {precision: _ceiling(record, precision) for precision in PRECISIONS}
    said = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {precision}" for precision, rate in rates.items() if rate)
    return f"Matrix products: {said or 'not measured'}."


def _ceiling(record: Mapping, precision: str) -> float | None:
    """Returns the FLOP/s that the machine allows: of the data sheet, else of the faster matrix product."""
    if record["machine"]["peak_flops"] and precision == BFLOAT16:
        return record["machine"]["peak_flops"]
    sides = record["measured"].get("product", {}).get("sides", {})
    return max((side["per_s"] for name, side in sides.items() if name.endswith(precision)), default=None)


def _size(work: Mapping) -> str:
    return (
        f"Model {work['size']}, steps of {work['batch_size']} x {work['seq_len']}, {work['questions']:,} questions, "
        f"{work['rounds']} turns."
    )


def _machine(record: Mapping) -> str:
    machine = record["machine"]
    flags = f" ({', '.join(machine['flags'])})" if machine["flags"] else ""
    return f"{record['date']}, {machine['name']}: {machine['processor']}{flags}; default {machine['default']}."


# ---- All that was measured ----


def markdown(records: Mapping[str, Mapping]) -> str:
    """Returns what is wanted and the tables of all that was measured, as a file; records by the names of theirs."""
    lines = ["# Speed", "", summary(list(records.values())), ""]
    sections = {"start": _start, "slices": _slices}
    for file, record in records.items():
        lines += [f"## {file}", "", _head(record), ""]
        for name, measured in record["measured"].items():
            changes = ", ".join(f"{key} {value}" for key, value in measured["changes"].items())
            lines += [f"### {name}", "", measured["about"] + (f" Here {changes}." if changes else ""), ""]
            lines += [*sections.get(name, _sides)(measured, record), ""]
            lines += [f"Measured with {in_words(measured.get('code'))}.", ""]
    return "\n".join(lines)


def _head(record: Mapping) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in record["packages"].items())
    work = ", ".join(f"{name} {value}" for name, value in record["work"].items() if value != "")
    return f"{_machine(record)} {_products(record)} {packages}. {work}. Rates are medians over turns."


def _sides(measured: Mapping, record: Mapping) -> Iterator[str]:
    first = next(iter(measured["sides"].values()))
    rows = []
    for name, side in measured["sides"].items():
        ceiling = _ceiling(record, name.rpartition(", ")[2])
        share = ceiling and "flops_per_token" in measured and side["per_s"] * measured["flops_per_token"] / ceiling
        rows.append(
            (
                name,
                _rate(side["per_s"], side["unit"]),
                f"{side['per_s'] / first['per_s']:.2f} x",
                f"{min(side['seconds']):.3g} to {max(side['seconds']):.3g} s",
                f"{share:.1%}" if share else "",
                f"{side['warm_up_s']:.3g} s",
                f"{side['peak_bytes'] / 2**20:,.0f} MiB",
            )
        )
    header = ("side", "rate", "of the first", "a turn", "of the matrix product", "first call", "memory")
    yield from _table(header, rows)
    for name, difference in measured["largest_difference"].items():
        yield ""
        yield f"{name}: first figures agree with ours to {difference:.1e}."
    for name, why in measured["left_out"].items():
        yield ""
        yield f"{name}: {LEFT_OUT}{why}."


def _start(measured: Mapping, record: Mapping) -> Iterator[str]:
    fastest, slowest = min(measured["seconds"]), max(measured["seconds"])
    row = (measured["config"], f"{measured['median_s']:.2f} s", f"{fastest:.2f} to {slowest:.2f} s")
    yield from _table(("config", "median", "starts", "first of all"), [(*row, f"{measured['first_s']:.1f} s")])


def _slices(measured: Mapping, record: Mapping) -> Iterator[str]:
    if "left_out" in measured:
        yield f"{LEFT_OUT}{measured['left_out']}."
        return
    rows = [
        (
            f"{each['config']} on {each['topology']}",
            f"{each['chips']}",
            *(f"{1e3 * each['seconds'][part]:.3g} ms" for part in ("arithmetic", "memory", "links")),
            f"{each['tokens_per_s']:,.0f} tokens/s, {each['bound_by']}",
        )
        for each in measured["slices"]
    ]
    yield from _table(("slice", "chips", "arithmetic", "memory", "links", "at most, bound by"), rows)
    for generation, chips in measured["links_take_over"].items():
        yield ""
        yield f"{generation}: links are the limit " + (f"from {chips} chips on." if chips else "on no slice above.")


def _rate(per_s: float, unit: str) -> str:
    return f"{per_s / 1e9:,.1f} GFLOP/s" if unit == "FLOP" else f"{per_s:,.1f} {unit}/s"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)


# ---- The page ----


def with_table(text: str, records: Mapping[str, Mapping]) -> str:
    """Returns a page with the table of these records between its two markers."""
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}\n\n{summary(list(records.values()))}\n\n{END}{after}"


@command
def main(argv: Sequence[str]) -> int:
    """Writes the speed table of docs/performance.md, and tests/bench/records/speed.md, from all records."""
    argparse.ArgumentParser(prog="python -m tests.bench.table", description=main.__doc__).parse_args(argv)
    records = read_all(RECORDS)
    write_text(RECORDS / FILE, markdown(records))
    write_text(PAGE, with_table(PAGE.read_text(encoding="utf-8"), records))
    print(summary(list(records.values())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
