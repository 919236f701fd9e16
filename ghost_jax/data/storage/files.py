"""Publishers' files, plain or compressed. Every error names the file and the place in it."""

import contextlib
import gzip
import itertools
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ghost_jax.core.atomic_io import without_bom
from ghost_jax.core.errors import UserError

SUFFIXES = ("", ".xz", ".gz", ".zip")
FOLDERS = ("", "raw", "corpus")
MAX_LINE = 32 << 20  # bytes; bounds the memory that a file without line ends takes
MAX_TEXT = 512 << 20  # bytes read at once: ten times the largest catalogue, so more is a decompression bomb

_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_UNREADABLE = (
    *(EOFError, lzma.LZMAError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error),
    NotImplementedError,  # of zipfile, for a method of compression that it does not know
)


def refusal(path: Path, place: str, fault: str, fix: str = "Correct it, or fetch the file again.") -> UserError:
    """Returns the error of a file at one place, such as "line 58"."""
    return UserError(f"{path}, {place}: {fault}. {fix}")


def quoted(text: str, most: int = 40) -> str:
    """Returns the beginning of a text for a message: in quotation marks, line breaks escaped."""
    return json.dumps(text[:most], ensure_ascii=False)


def find(folder: Path, stem: str) -> list[Path]:
    """Returns the files `stem`, a name or glob pattern, of `folder`, `folder/raw` and `folder/corpus`, by name.

    Of one file in several places or compressions, the first is returned.
    """
    found: dict[str, Path] = {}
    for subfolder, suffix in itertools.product(FOLDERS, SUFFIXES):
        for path in filter(Path.is_file, (folder / subfolder).glob(stem + suffix)):
            found.setdefault(path.name.removesuffix(suffix), path)
    return [found[name] for name in sorted(found)]


def stem(name: str) -> str:
    """Returns a file's name without the suffix of its compression."""
    return next((name[: -len(suffix)] for suffix in SUFFIXES if suffix and name.lower().endswith(suffix)), name)


@contextlib.contextmanager
def open_bytes(path: Path, suffix: str | None = None) -> Iterator[BinaryIO]:
    """Opens a plain, `.xz`, `.gz` or `.zip` file as a stream of its uncompressed bytes.

    A zip must hold exactly one file; nothing is extracted, so its name does not matter. `suffix` names the compression
    where the path's own does not. Raises UserError where the file is missing or its compressed data is damaged, even if
    a read in the `with` block finds it.
    """
    plain = type(path).open  # of an object store as well
    opener = {".xz": lzma.open, ".gz": gzip.open, ".zip": _open_zip}.get((suffix or path.suffix).lower(), plain)
    try:
        with opener(path, "rb") as stream:
            yield stream
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, and a file is needed. Name the file.") from None
    except FileNotFoundError:
        raise UserError(f"There is no file {path}. Correct its name.") from None
    except _UNREADABLE as fault:
        raise UserError(
            f"{path} cannot be read ({fault}). It is damaged or incomplete: delete it and fetch it again."
        ) from fault


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[BinaryIO]:
    """Opens a file of UTF-8 text as `open_bytes` does, after its byte order mark. Raises UserError for UTF-16 too."""
    with open_bytes(path) as stream:
        start = stream.read(3)
        stream.seek(len(start) - len(without_bom(start, path)))
        yield stream


def _open_zip(path: Path, mode: str) -> BinaryIO:
    with zipfile.ZipFile(path) as archive:
        files = [member for member in archive.infolist() if not member.is_dir()]
        if len(files) != 1 or files[0].flag_bits & 0x1:
            raise UserError(
                f"{path} must hold exactly one file, not encrypted. Fetch it again, or give the file inside."
            )
        return archive.open(files[0])  # the open member keeps the archive's file open


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields the number, from 1, and the bytes of each line. Raises UserError for a line over `MAX_LINE` bytes."""
    with open_text(path) as stream:
        for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE + 1), b""), start=1):
            if len(line) > MAX_LINE:
                raise refusal(path, f"line {number}", f"longer than {MAX_LINE >> 20} MiB", "Split the document.")
            yield number, line


def read_text(path: Path) -> str:
    """Returns the text of a file. Raises UserError where it is not UTF-8 or over `MAX_TEXT` bytes."""
    return decode(_content(path), path)


def read_json(path: Path) -> Any:
    """Returns the JSON value of a file. Raises UserError where it is invalid or over `MAX_TEXT` bytes."""
    return parse_json(_content(path), path)


def _content(path: Path) -> bytes:
    with open_text(path) as stream:
        data = stream.read(MAX_TEXT + 1)
    if len(data) > MAX_TEXT:
        raise UserError(
            f"{path} holds more than {MAX_TEXT >> 20} MiB. Write a list as JSON Lines, a row a line, or cut it."
        )
    return data


def decode(data: bytes, path: Path, first_line: int = 1) -> str:
    """Returns `data`, found in `path` from `first_line` on, as text. Raises UserError for NUL and where not UTF-8."""
    try:
        if (nul := data.find(b"\0")) >= 0:
            raise UnicodeDecodeError("utf-8", data, nul, nul + 1, "NUL byte")
        return data.decode("utf-8")
    except UnicodeDecodeError as fault:
        line = first_line + data.count(b"\n", 0, fault.start)
        raise refusal(path, f"line {line}", f"not valid UTF-8 ({fault})", "Convert it, or fetch it again.") from fault


def parse_json(data: bytes, path: Path, first_line: int = 1) -> Any:
    """Returns the JSON value of `data`, found in `path` from `first_line` on.

    Raises UserError where it is not JSON in UTF-8, an object repeats a key, or an escape is half a surrogate pair.
    """
    text = decode(data, path, first_line)
    try:
        value = json.loads(text, object_pairs_hook=_object)
        if _SURROGATE_ESCAPE.search(data):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as fault:
        place = f"line {first_line + getattr(fault, 'lineno', 1) - 1}, column {getattr(fault, 'colno', 1)}"
        raise refusal(path, place, f"not valid JSON ({getattr(fault, 'msg', fault)})") from fault
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # of two options under one letter, Python would keep the second
        raise ValueError("a key is repeated in an object")
    return found


def without_nulls(value: Any) -> Any:
    """Returns a JSON value in which keys that hold null are absent, at any depth."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value
