"""Where documents come from. `SOURCES` is the one table to extend.

To add a source, write a module here whose `read(path)` yields `Record`s and raises `UserError` for a faulty file, and
give it a row in `SOURCES` under the name that configs will use. Nothing else needs to know of it. `files.open_bytes`
opens every kind of compression; `forms.read` checks a publisher's JSON; `ghost_jax.data.prose.clean` turns markup into
prose.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from ghost_jax.data.records import Record
from ghost_jax.data.sources import attack, capec, cwe, embedded, exploitdb, files, jsonl, kev, nvd


@dataclasses.dataclass(frozen=True)
class Source:
    """A row of `SOURCES`.

    Attributes:
      stems: the names of its files, without the suffix of a compression, or glob patterns of names; () for what comes
        with the package.
      read: yields the records of one file, given its path; takes no argument where there are no stems.
    """

    stems: tuple[str, ...]
    read: Callable[..., Iterator[Record]]


SOURCES = {
    "attack": Source(("enterprise-attack-15.1.json", "mobile-attack-15.1.json", "ics-attack-15.1.json"), attack.read),
    "attack18": Source(("enterprise-attack-18.1.json",), attack.read),
    "capec": Source(("stix-capec-3.9.json",), capec.read),
    "cwe": Source(("cwec_v4.14.xml",), cwe.read),
    "nvd": Source(("nvdcve-2.0-*.json",), nvd.read),
    "kev": Source(("known_exploited_vulnerabilities.json",), kev.read),
    "exploitdb": Source(("files_exploits.csv",), exploitdb.read),
    "cti": Source(("cti.jsonl",), jsonl.read),
    "cve": Source(("cve.jsonl",), jsonl.read),
    "embedded": Source((), embedded.read),
}


def locate(name: str, folders: list[Path]) -> list[Path]:
    """Returns the files of a source in the first of the folders that has any of its first stem; [] if none has.

    Files of one source are never gathered from several folders, whose versions may differ.
    """
    stems = SOURCES[name].stems
    for folder in folders:
        found = [files.find(folder, stem) for stem in stems]
        if found and found[0]:
            return [path for paths in found for path in paths]
    return []
