"""The published files: their addresses and what identifies their content. `published.toml` is the table."""

import dataclasses
import tomllib
from collections.abc import Iterator
from pathlib import Path

MAX_IN_GIT = 100 << 20  # bytes; a git id holds no size, and GitHub and GitLab accept no larger file


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """A published file: its address, its place below the data folder, and what identifies its uncompressed content.

    A feed changes, so the table has no digest of it: the publisher's note states its SHA-256 and size. The note is kept
    beside the feed, so that it can be verified offline.
    """

    url: str
    path: str
    digest: str = ""  # the SHA-256 (64 hex digits), or the id of the blob in git (40 hex digits); "" of a feed
    size: int = MAX_IN_GIT  # bytes of the content; of a git id, the most that it may have

    @property
    def note(self) -> "File":
        """The note of a feed."""
        return File(self.url.replace(".json.gz", ".meta"), self.path.replace(".json.gz", ".meta"))


@dataclasses.dataclass(frozen=True, slots=True)
class Published:
    """The licence in a few words, and the files of a source."""

    license: str
    files: tuple[File, ...]


def _files(rows: list[dict]) -> Iterator[File]:
    for row in rows:
        first, last = row.pop("years", (0, 0))
        for year in range(first, last + 1):
            yield File(**row | {key: row[key].format(year=year) for key in ("url", "path")})


_TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
PUBLISHED = {name: Published(row["license"], tuple(_files(row["files"]))) for name, row in _TABLE.items()}

# Sources that a config can name and that have no single publisher -> why
UNPUBLISHED = {
    "cti": "gathered from many publishers; put your own texts in corpus/cti.jsonl",
    "cve": "gathered from many publishers; put your own texts in corpus/cve.jsonl, or use nvd",
    "embedded": "comes with the package",
}
