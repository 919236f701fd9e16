"""A user's own text: an entry of `data.sources` that is a path to a file or folder, a glob pattern, or `hf:DATASET`.

A row of JSON lines, CSV or Parquet is a document; only its text is required. A Markdown or text file is a document.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ghost_jax.config.keys import TEXT_FILES
from ghost_jax.core.errors import UserError
from ghost_jax.data.own import rows
from ghost_jax.data.storage import files, tables
from ghost_jax.data.storage.schema import Record

VERSION = 3  # raise it when the same files give other records

PAGES = (".md", ".txt")  # a file is a document
_HIDDEN = re.compile(r"(^|/)\.")
# A heading of Markdown; or what may hold a line like one: the front matter, a block of code that may have no end
_HEADING = re.compile(
    r"\A---[ \t]*$.*?^(?:---|\.\.\.)[ \t]*$|^(```|~~~).*?(?:^\1|\Z)|^#{1,6}[ \t]+(\S[^\n]*)", re.MULTILINE | re.DOTALL
)


def find(entry: str) -> tuple[str, Path, list[Path], str, list[Path]]:
    """Returns the name of an entry's documents, the folder that its files are in, these files in order, and the key.

    The name is that of the file without suffixes, or of the folder. The key of a row's text stands behind a `#`:
    "notes.jsonl#body". Of one file in several compressions, the first is returned. Hidden files are left out; last are
    the others that cannot be read.

    Raises UserError where there is no file that can be read.
    """
    named, mark, key = entry.rpartition("#")
    if not mark or not key or "/" in key or os.path.exists(os.path.expanduser(entry)):
        named, key = entry, "text"
    path = rows.located(named)
    if path.is_file():
        folder, found, name = path.parent, [path], Path(files.stem(path.name)).stem
    else:
        parts = path.parts
        is_wild = (set("*?[") & set(part) and not Path(*parts[: i + 1]).is_dir() for i, part in enumerate(parts))
        fixed = next((i for i, wild in enumerate(is_wild) if wild), len(parts))
        folder, pattern = Path(*parts[:fixed]), "/".join(parts[fixed:])
        try:
            matches = sorted(folder.glob(pattern) if pattern else _below(folder) if folder.is_dir() else ())
        except ValueError as fault:  # "a**"
            raise UserError(f"{entry} is no pattern of files ({fault}). Correct it.") from None
        firsts: dict[str, Path] = {}
        for each in filter(Path.is_file, matches):
            firsts.setdefault(place_of(each, folder), each)
        found = [each for place, each in firsts.items() if not _HIDDEN.search(place)]
        name = folder.resolve().name or "files"
    readable = [each for each in found if tables.suffix_of(each) in TEXT_FILES]
    unread = [each for each in found if tables.suffix_of(each) not in TEXT_FILES]
    if not readable:
        absent = "the folder is empty" if path.is_dir() else "there is no such file"
        what = f"{found[0]} is none of them" if found else absent
        raise UserError(
            f"No file of {entry} can be read: {what}. Name a file, a folder or a pattern of {', '.join(TEXT_FILES)}, "
            "plain or as .gz, .xz or .zip."
        )
    return re.sub(r"[\s,()]+", "_", name), folder, readable, key, unread


def _below(folder: Path) -> Iterator[Path]:
    """Yields every file below a folder, also behind links to folders, each of which is entered once.

    Raises OSError for a folder that cannot be read.
    """

    def stop(fault: OSError) -> None:
        raise fault

    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=stop):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in names)


def place_of(path: Path, folder: Path) -> str:
    """Returns where a file is in its folder, the same whatever its compression."""
    return files.stem(name_in(path, folder))


def name_in(path: Path, folder: Path) -> str:
    """Returns the place of a file in its folder."""
    return _printable(path.relative_to(folder).as_posix())


def _printable(name: str) -> str:
    """Returns the name of a file with its bytes that are not UTF-8 as escapes, so that two files have two names."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def read(name: str, folder: Path, paths: Sequence[Path], key: str = "text") -> Iterator[Record]:
    """Yields the documents of files in `folder`; their source is `name` unless a row has its own.

    Args:
      key: of a row's text.

    An empty page is left out. Raises UserError for a row that is invalid, and for a page that is not UTF-8.
    """
    for path in paths:
        if tables.suffix_of(path) in PAGES:
            yield from _page(name, folder, path)
            continue
        seen: dict[str, str] = {}
        for place, row in tables.read(path, (key,)):
            where, number = f"{path}, {place}", place.partition(" ")[2]
            content = rows.string(row, key, where, needed=True).strip()
            own_id = rows.id_of(row, where, f"{place_of(path, folder)}/{number}", seen)
            stated = {k: " ".join(rows.string(row, k, where).split()) for k in ("source", "title", "url", "license")}
            yield Record(**stated | {"id": own_id, "source": stated["source"] or name, "text": content})


def _page(name: str, folder: Path, path: Path) -> Iterator[Record]:
    with files.open_text(path) as stream:
        data = stream.read(files.MAX_LINE + 1)
    if len(data) > files.MAX_LINE:
        raise UserError(f"{path} is longer than {files.MAX_LINE >> 20} MiB. Split the document.")
    text = rows.string({"text": files.decode(data, path)}, "text", str(path)).strip()
    title = _printable(Path(files.stem(path.name)).stem)
    headings = _HEADING.finditer(text) if tables.suffix_of(path) == ".md" else ()
    if heading := next((found for found in headings if found[2]), None):
        title = heading[2].strip()
        text = text.removeprefix(heading[0]).strip() or title  # the title stands in front of the text already
    if text:
        yield Record(f"{name}/{place_of(path, folder)}", name, title, text, url="", license="")
