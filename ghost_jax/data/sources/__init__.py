"""The table of sources. To add a source, write a module in this folder and add its row to `SOURCES`.

The module has a `VERSION`, and `read(path)` yields the `Record`s of a file. `files.open_text` opens every compression;
`ghost_jax.data.storage.text_cleaning.clean` turns markup into prose. A reader need not check the form of a published
file: what an object of another form raises becomes a refusal of the file. This file imports nothing of the project, so
that `ghost_jax.config` can read it.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Source:
    """A row of `SOURCES`."""

    stems: tuple[str, ...]  # names of its files without a compression's suffix, or patterns; () where in the package
    reader: str  # the module in this folder that reads them


SOURCES = {
    "attack": Source(("enterprise-attack-15.1.json", "mobile-attack-15.1.json", "ics-attack-15.1.json"), "attack"),
    "attack18": Source(("enterprise-attack-18.1.json",), "attack"),
    "capec": Source(("stix-capec-3.9.json",), "capec"),
    "cwe": Source(("cwec_v4.14.xml",), "cwe"),
    "nvd": Source(("nvdcve-2.0-[0-9]*.json",), "nvd"),
    "kev": Source(("known_exploited_vulnerabilities.json",), "kev"),
    "exploitdb": Source(("files_exploits.csv",), "exploitdb"),
    "cti": Source(("cti.jsonl",), "jsonl"),
    "cve": Source(("cve.jsonl",), "jsonl"),
    "embedded": Source((), "embedded"),
}
