"""Opening what publishers hand out: plain or compressed files, whose every fault names the file and the place."""

import contextlib
import gzip
import io
import itertools
import json
import lzma
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

from ghost_jax.core.atomic_io import without_bom
from ghost_jax.core.errors import UserError

SUFFIXES = ("", ".xz", ".gz", ".zip")
FOLDERS = ("", "raw", "corpus")
MAX_LINE = 32 << 20  # bytes; no document is near it, and a file without line ends must not fill the memory
MAX_WHOLE = 512 << 20  # bytes of JSON parsed at once: ten times the largest catalogue; more is an archive made to burst

_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


def find(folder: Path, stem: str) -> list[Path]:
    """Returns the files `stem` of `folder`, `folder/raw` and `folder/corpus`, plain or compressed, by name.

    A stem may be a glob pattern, for a source that its publisher hands out in pieces. Of the same piece in several
    places or compressions, the first is taken.
    """
    found: dict[str, Path] = {}
    for subfolder, suffix in itertools.product(FOLDERS, SUFFIXES):
        for path in filter(Path.is_file, (folder / subfolder).glob(stem + suffix)):
            found.setdefault(path.name.removesuffix(suffix), path)
    return [found[name] for name in sorted(found)]


def stem(name: str) -> str:
    """Returns the name of a file without the suffix of its compression."""
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if suffix and name.endswith(suffix)), name)


def listed(folder: Path) -> list[Path]:
    """Returns every file in the places in which `find` looks, by name."""
    return [path for subfolder in FOLDERS for path in sorted((folder / subfolder).glob("*")) if path.is_file()]


def open_bytes(path: Path) -> BinaryIO:
    """Opens a plain, `.xz`, `.gz` or `.zip` file as a stream of its uncompressed bytes.

    A zip must hold exactly one regular file, which is read where it lies and never extracted.

    Raises:
      UserError: the file is missing or is not a sound archive. Damage further inside is raised by the read that
        meets it, and names the byte.
    """
    return _opened(path, _Uncompressed)


def open_text(path: Path) -> BinaryIO:
    """Opens a file of UTF-8 text as `open_bytes` does, without its byte order mark.

    Raises UserError as `open_bytes`; the first read raises it for a text in UTF-16.
    """
    return _opened(path, _Text)


def _opened(path: Path, kind: type[io.RawIOBase]) -> BinaryIO:
    path = Path(path)
    opener = {".xz": lzma.open, ".gz": gzip.open, ".zip": _open_zip}.get(path.suffix, open)
    try:
        with _decompression_faults(path, position=0):
            stream = opener(path, "rb")
    except (FileNotFoundError, IsADirectoryError) as fault:
        raise UserError(f"{path} is not a file. Check the path, or fetch the source again.") from fault
    return io.BufferedReader(kind(stream, path), buffer_size=1 << 18)


class _Uncompressed(io.RawIOBase):
    """A stream that turns the faults of any decompressor into `UserError`s and counts bytes to say where they are."""

    def __init__(self, stream: BinaryIO, path: Path):
        self._stream, self._path, self._position = stream, path, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        with _decompression_faults(self._path, self._position):
            chunk = self._stream.read(len(buffer))
        buffer[: len(chunk)] = chunk
        self._position += len(chunk)
        return len(chunk)

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Text(_Uncompressed):
    """Uncompressed text without its byte order mark."""

    def readinto(self, buffer) -> int:
        first = self._position == 0
        count = super().readinto(buffer)
        if not first:
            return count
        text = without_bom(bytes(buffer[:count]), self._path)
        buffer[: len(text)] = text
        return len(text)


@contextlib.contextmanager
def _decompression_faults(path: Path, position: int) -> Iterator[None]:
    try:
        yield
    except (lzma.LZMAError, EOFError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, NotImplementedError) as fault:
        raise UserError(
            f"{path} cannot be decompressed after byte {position:,} of its content ({fault}). The file is damaged or "
            "was cut short: delete it and fetch it again."
        ) from fault


def _open_zip(path: Path, mode: str) -> BinaryIO:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        for member in members:
            if _climbs_out(member.filename):
                raise UserError(
                    f'{path} holds a member named "{member.filename}", which points outside the archive. Do not use '
                    "this file; fetch the source again from its publisher."
                )
        regular = [member for member in members if _is_regular(member)]
        if len(regular) != 1:
            raise UserError(
                f"{path} holds {len(regular)} files and must hold exactly one. Pack the one file that is meant alone."
            )
        if regular[0].flag_bits & 0x1:
            raise UserError(f"{path} is encrypted. Unpack it with its password and give the file inside instead.")
        # The member keeps the archive's file open after the archive object itself is closed.
        return archive.open(regular[0], mode.removesuffix("b"))


def _climbs_out(name: str) -> bool:
    # Zip names are POSIX by the standard, but careless writers leave backslashes and drive letters in them.
    windows = PureWindowsPath(name)
    return bool(PurePosixPath(name).is_absolute() or windows.drive or windows.root or ".." in windows.parts)


def _is_regular(member: zipfile.ZipInfo) -> bool:
    kind = stat.S_IFMT(member.external_attr >> 16)  # zero where the writer was not a Unix
    return not member.is_dir() and kind in (0, stat.S_IFREG)


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields the number, from 1, and the bytes of each line, its end included.

    Raises:
      UserError: the file cannot be read, or a line is over `MAX_LINE` bytes; no more than these are ever held.
    """
    with open_text(path) as stream:
        for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE + 1), b""), start=1):
            if len(line) > MAX_LINE:
                raise UserError(
                    f"{path}, line {number}: longer than {MAX_LINE >> 20} MiB. Split the document, or check that each "
                    "document ends with a line end."
                )
            yield number, line


def read_json(path: Path) -> Any:
    """Returns the one JSON value that a file holds.

    Raises:
      UserError: the file cannot be read, is over `MAX_WHOLE` bytes when uncompressed, or is not strictly JSON.
    """
    with open_text(path) as stream:
        data = stream.read(MAX_WHOLE + 1)
    if len(data) > MAX_WHOLE:
        raise UserError(
            f"{path} holds more than {MAX_WHOLE >> 20} MiB, which no publisher's catalogue does. Fetch the file again."
        )
    return parse_json(data, path)


def decode(data: bytes, path: Path, first_line: int = 1) -> str:
    """Returns the text that `data`, found in `path` from `first_line` on, encodes in UTF-8.

    Raises:
      UserError: the bytes are not UTF-8; names the line and the byte.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as fault:
        line = first_line + data.count(b"\n", 0, fault.start)
        column = fault.start - data.rfind(b"\n", 0, fault.start)
        raise UserError(
            f"{path}, line {line}, byte {column}: not valid UTF-8 ({fault.reason}). Convert the file to UTF-8 or fetch "
            "it again."
        ) from fault


def parse_json(data: bytes, path: Path, first_line: int = 1) -> Any:
    """Returns the JSON value that `data`, found in `path` from `first_line` on, strictly encodes in UTF-8.

    Raises:
      UserError: the bytes are not UTF-8 or not JSON, or the text holds half of a surrogate pair; names the line.
    """
    text = decode(data, path, first_line)
    try:
        value = json.loads(text)
        if _SURROGATE_ESCAPE.search(data):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as fault:
        raise UserError(
            f"{path}, line {first_line}: a \\u escape is half of a surrogate pair and stands for no character. Remove "
            "it or write the whole pair."
        ) from fault
    except json.JSONDecodeError as fault:
        raise UserError(
            f"{path}, line {first_line + fault.lineno - 1}, column {fault.colno}: not valid JSON ({fault.msg}). Mend "
            "the line or fetch the file again."
        ) from fault
    except (ValueError, RecursionError) as fault:  # a number of too many digits, brackets nested too deep
        raise UserError(
            f"{path}, from line {first_line}: JSON beyond what can be read ({fault}). Fetch the file again."
        ) from fault
    return value
