"""What a file holds before anyone knows what it means: rows of cells or JSON values, each with the place it stands."""

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from evals.items.formats.row import quoted, refusal
from ghost_jax.core.atomic_io import without_bom
from ghost_jax.core.errors import UserError

MAX_FILE = 64 << 20  # bytes; no published benchmark is near it, and parsed JSON takes many times its size in memory

Placed = tuple[str, Any]  # "line 58", and the cells or the JSON value that stand there


def read(path: Path) -> bytes:
    """Returns the bytes of a file. Raises UserError where there is none, or it is over `MAX_FILE`."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file of test items. Check the path given to --items.")
    with path.open("rb") as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise UserError(f"{path}: over {MAX_FILE >> 20} MiB, which no benchmark is. Give the file of the items alone.")
    return data


# A whole table of cells, each in quotation marks with those inside doubled, or without any.
_EXPORTED = re.compile(r'(?:(?:"[^"]*+(?:""[^"]*+)*+"|[^"\t\n]*+)[\t\n])*+')


def tsv(path: Path, data: bytes) -> Iterator[Placed]:
    """Yields the cells of each row.

    Published files have no quoting: a row is a line, and a quotation mark is a character like any other. A spreadsheet
    puts a cell that holds a quotation mark, tab or line break between quotation marks and doubles those inside. A file
    is read as such an export if every quotation mark in it fits that and all rows then have as many cells as the first.
    """
    lines = _lines(path, data)
    text = "\n".join([*lines, ""])
    if '"' in text and _EXPORTED.fullmatch(text):
        rows = _separated(path, lines, "\t")
        if len({len(cells) for _, cells in rows}) == 1:
            return _without_empty_columns(rows)
    return _without_empty_columns([(f"line {number}", line.split("\t")) for number, line in enumerate(lines, start=1)])


def comma_separated(path: Path, data: bytes) -> Iterator[Placed]:
    """Yields the cells of each row; a row with line breaks in quoted cells stands at its first line.

    Where the first line has no comma outside quotation marks, a semicolon or a tab there is the separator, as
    spreadsheets write it in countries whose decimal mark is the comma.
    """
    lines = _lines(path, data)
    unquoted = re.sub(r'"[^"]*(?:"|$)', "", lines[0])
    separator = next((each for each in ",;\t" if each in unquoted), ",")
    return _without_empty_columns(_separated(path, lines, separator))


def _separated(path: Path, lines: Sequence[str], separator: str) -> list[Placed]:
    """Returns the cells of each row of a table with quoting."""
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=separator, strict=True)
    rows: list[Placed] = []
    limit = csv.field_size_limit(MAX_FILE)  # a limit of the process, by default 131,072 characters
    try:
        while True:
            place = f"line {reader.line_num + 1}"
            rows.append((place, next(reader)))
    except StopIteration:
        return rows
    except csv.Error as fault:
        raise UserError(
            f"{path}, {place}: the row that begins here is no CSV ({fault}). Put cells with separators, quotation "
            f"marks or line breaks between quotation marks, and double those inside."
        ) from None
    finally:
        csv.field_size_limit(limit)


def _without_empty_columns(rows: Sequence[Placed]) -> Iterator[Placed]:
    """Yields the rows without the last columns that are empty in every row, which spreadsheets leave behind."""

    def empty_at_end(cells: list[str]) -> int:
        return sum(1 for _ in itertools.takewhile(lambda cell: not cell.strip(), reversed(cells)))

    empty = min(empty_at_end(cells) for _, cells in rows)
    yield from ((place, cells[: len(cells) - empty]) for place, cells in rows)


def json_lines(path: Path, data: bytes) -> Iterator[Placed]:
    """Yields the JSON value of each line."""
    for number, line in enumerate(_lines(path, data), start=1):
        yield f"line {number}", _parsed(path, line, number)


def json_value(path: Path, data: bytes) -> Iterator[Placed]:
    """Yields the one JSON value of the file."""
    yield "line 1", _parsed(path, "\n".join(_lines(path, data)))


# By suffix, how a file is taken apart; at least one row or value is yielded, or the file is refused.
CONTAINERS: dict[str, Callable[[Path, bytes], Iterator[Placed]]] = {
    ".tsv": tsv,
    ".csv": comma_separated,
    ".jsonl": json_lines,
    ".json": json_value,
}


def under_header(
    path: Path, rows: Iterator[Placed], columns: Sequence[str], shape: str
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields the place and the cells of each row under the names in the first one, which has each of `columns` once.

    Blanks around a name do not matter.

    Raises UserError where it has not, or where a row has more or fewer cells than the header.
    """
    place, header = next(rows)
    header = [name.strip() for name in header]
    for column in columns:
        if header.count(column) != 1:
            found = "is missing" if column not in header else "stands there more than once"
            listed = quoted(", ".join(header), 200)
            raise refusal(path, place, f'the column "{column}" {found}; the columns are: {listed}', shape)
    for place, cells in rows:
        if len(cells) != len(header):
            raise refusal(path, place, f"the header has {len(header)} fields, this row {len(cells)}", shape)
        yield place, dict(zip(header, cells, strict=True))


def _lines(path: Path, data: bytes) -> list[str]:
    """The physical lines without their ends. Only \\n ends a line: U+2028 and the like may stand inside a field."""
    lines = without_bom(data, path).split(b"\n")
    while lines and lines[-1] in (b"", b"\r"):
        lines.pop()
    if not lines:
        raise UserError(f"{path}: the file is empty. Fetch or copy it again.")
    decoded = []
    for number, line in enumerate(lines, start=1):
        if b"\0" in line:
            raise UserError(
                f"{path}, line {number}: byte {line.index(0) + 1} of the line is NUL. Save the file as UTF-8 "
                f"text, or fetch it again if it was damaged on the way."
            )
        try:
            decoded.append(line.removesuffix(b"\r").decode("utf-8"))
        except UnicodeDecodeError as fault:
            raise UserError(
                f"{path}, line {number}: byte {fault.start + 1} of the line (0x{line[fault.start]:02x}) is not UTF-8. "
                f"Save the file as UTF-8, or fetch it again if it was damaged on the way."
            ) from None
    return decoded


def _parsed(path: Path, text: str, line: int | None = None) -> Any:
    """The JSON value of a text: that of one line, or of the whole file, where the parser may know the line."""
    try:
        value = json.loads(text, object_pairs_hook=_object_without_repeats)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair parses, but is no text
    except (ValueError, RecursionError) as fault:
        at = line or getattr(fault, "lineno", None)
        raise UserError(
            f"{path}{f', line {at}' if at else ''}: no JSON object can be read ({getattr(fault, 'msg', fault)}). Mend "
            f"it or fetch the file again; in a .jsonl file each object stands on a line of its own."
        ) from None
    return value


def _object_without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object; of two options under one letter Python would silently keep the second."""
    record: dict[str, object] = {}
    for key, value in pairs:
        if key in record:
            raise ValueError(f"the key {quoted(key)} is repeated in an object")
        record[key] = value
    return record
