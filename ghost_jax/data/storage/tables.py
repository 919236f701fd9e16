"""Tables that people and publishers write: CSV, TSV, JSON lines, JSON and Parquet, plain or compressed.

Every row comes with its place ("line 58", "item 3"), so that an error can name it. `read` gives rows as dicts, `rows`
as the file has them.
"""

import csv
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ghost_jax.data.storage import files
from ghost_jax.data.storage.files import quoted, refusal

Placed = tuple[str, Any]  # "line 58", and the cells or the JSON value there

csv.field_size_limit(files.MAX_LINE)  # of this process; by default a field of 128 KiB is refused
# A table of cells, each in quotation marks with those inside doubled, or without any.
_EXPORTED = re.compile(r'(?:(?:"[^"]*+(?:""[^"]*+)*+"|[^"\t\n]*+)[\t\n])*+')


def suffix_of(path: Path) -> str:
    """Returns the suffix in front of that of a compression: ".jsonl" of "a.jsonl.gz"."""
    return Path(files.stem(path.name)).suffix.lower()


def rows(path: Path) -> Iterator[Placed]:
    """Yields the place and the content of each row: cells, the header first; a JSON value; or a dict of Parquet.

    A file is read by its suffix, of an unknown one as JSON lines. A JSON file is a list of rows, or one row.
    """
    yield from _READERS.get(suffix_of(path), _json_lines)(path)


def read(path: Path, columns: Sequence[str] = ()) -> Iterator[tuple[str, dict]]:
    """Yields the place and the content of each row as a dict: under the header of a table, or by its keys.

    Args:
      columns: those that a header must have.
    """
    found = rows(path)
    if suffix_of(path) in (".csv", ".tsv"):
        found = _under_header(path, found, columns)
    for place, row in found:
        if not isinstance(row, dict):
            raise refusal(path, place, f"a {type(row).__name__} instead of an object", "Write objects alone.")
        yield place, row


def _under_header(path: Path, placed: Iterator[Placed], columns: Sequence[str]) -> Iterator[tuple[str, dict]]:
    first, header = next(placed, ("line 1", []))
    names = [name.strip() for name in header]
    while names and not names[-1]:  # an empty column that a spreadsheet left behind
        names.pop()
    for name in (*columns, *names):
        if names.count(name) != 1:
            listed = quoted(", ".join(names), 200)
            fault = f'the column "{name}" is there {names.count(name)} times and must be there once, in {listed}'
            raise refusal(path, first, fault)
    for place, cells in placed:
        if len(cells) < len(names) or any(cell.strip() for cell in cells[len(names) :]):
            raise refusal(path, place, f"{len(cells)} fields under {len(names)} columns")
        yield place, dict(zip(names, cells, strict=False))


# ---- Each format ----


def _tsv(path: Path) -> Iterator[Placed]:
    """Yields the cells of each row.

    Published files have no quoting: a row is a line, and a quotation mark is a character like any other. A spreadsheet
    puts a cell with a quotation mark, tab or line break between quotation marks and doubles those inside. A file is
    read as such an export if every quotation mark fits that and all rows then have as many cells as the first.
    """
    content = files.read_text(path).rstrip("\r\n")
    lines = [line.removesuffix("\r") for line in content.split("\n")] if content else []
    text = "\n".join([*lines, ""])
    if '"' in text and _EXPORTED.fullmatch(text):
        exported = list(_separated(path, lines, "\t"))
        if len({len(cells) for _, cells in exported}) == 1:
            yield from exported
            return
    yield from ((f"line {number}", line.split("\t")) for number, line in enumerate(lines, start=1))


def _csv(path: Path) -> Iterator[Placed]:
    """Yields the cells of each row.

    Where the first line has no comma outside quotation marks, a semicolon or a tab there is the separator, as
    spreadsheets write it in countries whose decimal mark is the comma.
    """
    lines = (files.decode(line, path, number).rstrip("\r\n") for number, line in files.read_lines(path))
    first = next(lines, "")
    unquoted = re.sub(r'"[^"]*(?:"|$)', "", first)
    separator = next((each for each in ",;\t" if each in unquoted), ",")
    yield from _separated(path, itertools.chain([first], lines), separator)


def _separated(path: Path, lines: Iterable[str], separator: str) -> Iterator[Placed]:
    """Yields the cells of each row of a table with quoting, and the first line of the row."""
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=separator, strict=True)
    place = "line 1"
    try:
        for cells in reader:
            if cells:
                yield place, cells
            place = f"line {reader.line_num + 1}"
    except csv.Error as fault:
        fix = "Put cells with separators, quotation marks or line breaks in quotation marks, and double those inside."
        raise refusal(path, place, f"the row that begins here is not valid CSV ({fault})", fix) from None


def _json_lines(path: Path) -> Iterator[Placed]:
    for number, line in files.read_lines(path):
        if not line.isspace():
            yield f"line {number}", files.parse_json(line.rstrip(), path, number)


def _json(path: Path) -> Iterator[Placed]:
    found = files.read_json(path)
    yield from ((f"item {number}", row) for number, row in enumerate(found if isinstance(found, list) else [found], 1))


def _parquet(path: Path) -> Iterator[Placed]:
    from pyarrow import ArrowException, parquet, types  # not above: few files need it

    number = 0
    with files.open_bytes(path) as stream:
        try:
            file = parquet.ParquetFile(stream)
            # No row needs a time, and Python cannot hold some: nanoseconds, far years.
            columns = [field.name for field in file.schema_arrow if not types.is_temporal(field.type)]
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
        except (ArrowException, OSError, ValueError, OverflowError) as fault:
            raise refusal(path, f"after row {number}", f"not readable as Parquet ({str(fault)[:200]})") from None


_READERS: dict[str, Callable[[Path], Iterator[Placed]]] = {
    ".tsv": _tsv,
    ".csv": _csv,
    ".jsonl": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
}
