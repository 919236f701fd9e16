"""The published files: their addresses and what identifies their content. `published.toml` is the table."""

import dataclasses
import tomllib
from pathlib import Path

MAX_IN_GIT = 100 << 20  # bytes; a git id holds no size, and GitHub and GitLab accept no larger file


@dataclasses.dataclass(frozen=True, slots=True)
class Proof:
    """What identifies an uncompressed content."""

    digest: str  # its SHA-256 (64 hex digits), or the id of its blob in git (40 hex digits)
    size: int = MAX_IN_GIT  # bytes of the content; of a git id, the most that it may have


@dataclasses.dataclass(frozen=True, slots=True)
class Feed:
    """A file that changes: the publisher's note at `url` states its SHA-256 and size.

    The note is kept at `path` below the data folder, so that the file can be verified offline.
    """

    url: str
    path: str


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """A published file: its address, its place below the data folder, and what identifies its content."""

    url: str
    path: str
    proof: Proof | Feed


@dataclasses.dataclass(frozen=True, slots=True)
class Published:
    """The licence in a few words, and the files of a source."""

    license: str
    files: tuple[File, ...]


def _nvd(year: int) -> File:
    url, path = f"https://nvd.nist.gov/feeds/json/cve/2.0/nvdcve-2.0-{year}", f"raw/nvdcve-2.0-{year}"
    return File(f"{url}.json.gz", f"{path}.json.gz", Feed(f"{url}.meta", f"{path}.meta"))


def _published(row: dict) -> Published:
    if "first_year" in row:
        files = map(_nvd, range(row["first_year"], row["last_year"] + 1))
    else:
        files = (File(f["url"], f["path"], Proof(f["digest"], f.get("size", MAX_IN_GIT))) for f in row["files"])
    return Published(row["license"], tuple(files))


_TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
PUBLISHED = {name: _published(row) for name, row in _TABLE.items()}

# Sources that a config can name and that have no single publisher -> why
UNPUBLISHED = {
    "cti": "gathered from many publishers; put your own texts in corpus/cti.jsonl",
    "cve": "gathered from many publishers; put your own texts in corpus/cve.jsonl, or use nvd",
    "embedded": "comes with the package",
}
