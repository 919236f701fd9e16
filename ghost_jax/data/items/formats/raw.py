"""What a file holds before its format is known: rows of cells or JSON values, each with its place."""

import csv
import itertools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ghost_jax.core.atomic_io import without_bom
from ghost_jax.core.errors import UserError
from ghost_jax.data.items.formats.row import quoted
from ghost_jax.data.storage.files import decode

MAX_FILE = 64 << 20  # bytes; no published benchmark is near it, and parsed JSON takes many times its size in memory

Placed = tuple[str, Any]  # "line 58", and the cells or the JSON value there

# A table of cells, each in quotation marks with those inside doubled, or without any.
_EXPORTED = re.compile(r'(?:(?:"[^"]*+(?:""[^"]*+)*+"|[^"\t\n]*+)[\t\n])*+')


def read(path: Path) -> bytes:
    """Returns the bytes of a file. Raises UserError where it is absent or over `MAX_FILE`."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file of test items. Check the path given to --items.")
    with path.open("rb") as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise UserError(f"{path}: over {MAX_FILE >> 20} MiB, which no benchmark is. Give the file of the items alone.")
    return data


def tsv(path: Path, data: bytes) -> list[Placed]:
    """Returns the cells of each row.

    Published files have no quoting: a row is a line, and a quotation mark is a character like any other. A spreadsheet
    puts a cell with a quotation mark, tab or line break between quotation marks and doubles those inside. A file is
    read as such an export if every quotation mark fits that and all rows then have as many cells as the first.
    """
    lines = _lines(path, data)
    text = "\n".join([*lines, ""])
    if '"' in text and _EXPORTED.fullmatch(text):
        rows = _separated(path, lines, "\t")
        if len({len(cells) for _, cells in rows}) == 1:
            return _without_empty_columns(rows)
    return _without_empty_columns([(f"line {number}", line.split("\t")) for number, line in enumerate(lines, start=1)])


def comma_separated(path: Path, data: bytes) -> list[Placed]:
    """Returns the cells of each row; the place of a row with line breaks in quoted cells is its first line.

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
    place = "line 1"
    limit = csv.field_size_limit(MAX_FILE)  # a limit of the process, by default 131,072 characters
    try:
        for cells in reader:
            rows.append((place, cells))
            place = f"line {reader.line_num + 1}"
    except csv.Error as fault:
        raise UserError(
            f"{path}, {place}: the row that begins here is not valid CSV ({fault}). Put cells with separators, "
            f"quotation marks or line breaks between quotation marks, and double those inside."
        ) from None
    finally:
        csv.field_size_limit(limit)
    return rows


def _without_empty_columns(rows: Sequence[Placed]) -> list[Placed]:
    """Returns the rows without the last columns that are empty in every row, which spreadsheets leave behind."""

    def empty_at_end(cells: list[str]) -> int:
        return sum(1 for _ in itertools.takewhile(lambda cell: not cell.strip(), reversed(cells)))

    empty = min(empty_at_end(cells) for _, cells in rows)
    return [(place, cells[: len(cells) - empty]) for place, cells in rows]


def json_lines(path: Path, data: bytes) -> list[Placed]:
    """Returns the JSON value of each line."""
    return [(f"line {number}", _parsed(path, line, number)) for number, line in enumerate(_lines(path, data), start=1)]


def json_value(path: Path, data: bytes) -> list[Placed]:
    """Returns the one JSON value of the file."""
    return [("line 1", _parsed(path, "\n".join(_lines(path, data))))]


# By suffix, how a file is read; each returns at least one row or value, or refuses the file.
CONTAINERS: dict[str, Callable[[Path, bytes], list[Placed]]] = {
    ".tsv": tsv,
    ".csv": comma_separated,
    ".jsonl": json_lines,
    ".json": json_value,
}


def under_header(
    path: Path, rows: Sequence[Placed], columns: Sequence[str], shape: str
) -> list[tuple[str, dict[str, str]]]:
    """Returns the place and the cells of each row under the names in the first one, without blanks around them.

    Raises UserError where the header lacks one of `columns` or has it twice, or a row has more or fewer cells.
    """
    (first, header), *others = rows
    header = [name.strip() for name in header]
    for column in columns:
        if header.count(column) != 1:
            listed = quoted(", ".join(header), 200)
            raise UserError(
                f'{path}, {first}: the column "{column}" is there {header.count(column)} times and must be there once; '
                f"the columns are: {listed}. Give {shape}."
            )
    for place, cells in others:
        if len(cells) != len(header):
            raise UserError(
                f"{path}, {place}: the header has {len(header)} fields, this row {len(cells)}. Give {shape}."
            )
    return [(place, dict(zip(header, cells, strict=True))) for place, cells in others]


def _lines(path: Path, data: bytes) -> list[str]:
    """Returns the lines without their ends. Only \\n ends a line: U+2028 and the like may be inside a field."""
    text = decode(without_bom(data, path), path)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{path}, line {line}: there is a NUL byte. Save the file as UTF-8 text, or fetch it again.")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise UserError(f"{path}: the file is empty. Fetch or copy it again.")
    return lines


def _parsed(path: Path, text: str, line: int | None = None) -> Any:
    """Returns the JSON value of a text: of one line, or of the file, where the parser may know the line."""
    try:
        value = json.loads(text, object_pairs_hook=_object_without_repeats)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair parses, but is not text
    except (ValueError, RecursionError) as fault:
        at = line or getattr(fault, "lineno", None)
        raise UserError(
            f"{path}{f', line {at}' if at else ''}: no JSON value can be read ({getattr(fault, 'msg', fault)}). "
            "Correct it or fetch the file again; in a .jsonl file each object is on a line of its own."
        ) from None
    return value


def _object_without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Returns a JSON object; of two options under one letter, Python would keep the second."""
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a key is repeated in an object")
    return record
