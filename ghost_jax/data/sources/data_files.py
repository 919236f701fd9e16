"""The files of sources: where they are in data folders, and their records."""

import fnmatch
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import ijson

from ghost_jax.core.errors import UserError
from ghost_jax.data.downloads.published import PUBLISHED
from ghost_jax.data.sources import SOURCES
from ghost_jax.data.storage import files
from ghost_jax.data.storage.schema import Record

# Files of a data folder that are expected and no data: papers, notes of feeds, unfinished downloads
_IGNORED = ("README*", "LICEN[CS]E*", "COPYING*", "NOTICE*", ".*", "*.META", "*.PARTIAL", "*.ETAG", "*.PART")
# What a reader raises for a file of another form; ElementTree's errors are SyntaxErrors, defusedxml's ValueErrors
_MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, SyntaxError)


def reader_of(name: str) -> ModuleType:
    """Returns the module that reads the files of a source."""
    return importlib.import_module(f"ghost_jax.data.sources.{SOURCES[name].reader}")


def read(name: str, path: Path | None) -> Iterator[Record]:
    """Yields the records of one file of a source, None for the package's. Raises UserError for another file."""
    reader = reader_of(name)
    try:
        yield from reader.read(path) if path else reader.read()
    except (*_MALFORMED, ijson.JSONError) as fault:
        found = f"{type(fault).__name__}: {str(fault)[:200]}"
        raise UserError(f"{path} has not the form of its publisher ({found}). Fetch it again.") from fault


def locate(name: str, folders: Sequence[Path]) -> list[Path]:
    """Returns the files of a source in the first folder that has them all, else in the first that has any.

    Files of one source are not gathered from several folders, whose versions may differ.
    """
    found = [[path for stem in SOURCES[name].stems for path in files.find(folder, stem)] for folder in folders]
    return next((paths for paths in found if not absent(name, paths)), next(filter(None, found), []))


def absent(name: str, paths: Sequence[Path]) -> list[str]:
    """Returns the names of the files of a source that are not among `paths`: of those published, or of its stems."""
    published = [files.stem(Path(file.path).name) for file in PUBLISHED[name].files] if name in PUBLISHED else ()
    present = {files.stem(path.name) for path in paths}
    return [stem for stem in published or SOURCES[name].stems if stem not in present]


def unclaimed(folders: Sequence[Path]) -> list[Path]:
    """Returns the files of data folders that no source reads and that are not expected beside data."""
    stems = [stem for source in SOURCES.values() for stem in source.stems]

    def is_known(name: str) -> bool:
        ignored = any(fnmatch.fnmatchcase(name.upper(), pattern) for pattern in _IGNORED)
        return ignored or any(fnmatch.fnmatchcase(files.stem(name), stem) for stem in stems)

    places = (folder / subfolder for folder in folders for subfolder in files.FOLDERS)
    found = (path for place in places for path in sorted(place.glob("*")))
    return [path for path in found if path.is_file() and not is_known(path.name)]
