"""NIST's National Vulnerability Database, JSON 2.0: the feed of a year, or a saved page of the API."""

import re
from collections.abc import Iterator
from pathlib import Path

import ijson

from ghost_jax.core.errors import UserError
from ghost_jax.data.sources import forms
from ghost_jax.data.sources.vulnerability import is_cve, is_rejected, product_name, weakness_facts, weaknesses
from ghost_jax.data.storage import files
from ghost_jax.data.storage.schema import Record
from ghost_jax.data.storage.text_cleaning import clean, listing, paragraphs

VERSION = 1  # raise it when the same file gives other records

LICENSE = "public domain (NVD)"
MAX_PRODUCTS = 8  # named on a page; some vulnerabilities are in thousands of devices

_CVSS = ("cvssMetricV40", "cvssMetricV31", "cvssMetricV30", "cvssMetricV2")  # the first that is there is told
_SCORE = {"version": str, "vectorString": str, "baseScore": (int, float), "baseSeverity": str}
_FORM = {
    "id": str,
    "vulnStatus": str,
    "descriptions": [{"lang": str, "value": str}],
    "metrics": {key: [{"type": str, "baseSeverity": str, "cvssData": _SCORE}] for key in _CVSS},
    "weaknesses": [{"type": str, "description": [{"value": str}]}],
    "configurations": [{"nodes": [{"cpeMatch": [{"vulnerable": bool, "criteria": str}]}]}],
}
# cpe:2.3:<part>:<vendor>:<product>:…, where a backslash quotes the character after it
_CPE = re.compile(r"cpe:2\.3:[^:]+:(?P<vendor>(?:[^:\\]|\\.)+):(?P<product>(?:[^:\\]|\\.)+):")


def read(path: Path) -> Iterator[Record]:
    """Yields a record for each vulnerability that was not rejected, with its weaknesses as facts.

    The file is streamed: no more than one vulnerability is held at a time.

    Raises:
      UserError: the file cannot be read, is not JSON, or has not the form of NVD's version 2.0; names the place.
    """
    for where, cve in _vulnerabilities(path):
        cve = forms.read(cve, _FORM, where)
        forms.require(cve, ("id", "descriptions"), where)
        if not is_cve(cve["id"]):
            raise UserError(f'{where}: "id" is no CVE id. Mend it or fetch the file again.')
        description = clean(
            next((text.get("value", "") for text in cve["descriptions"] if text.get("lang") == "en"), "")
        )
        if description and not forms.is_retired(cve.get("vulnStatus")) and not is_rejected(description):
            yield _record(cve, description)


def _vulnerabilities(path: Path) -> Iterator[tuple[str, dict]]:
    """Yields each entry's place, for messages, and its "cve"."""
    position = -1
    with files.open_text(path) as stream:
        try:
            # As floats, because the parser does not survive an integer of thousands of digits otherwise.
            for position, entry in enumerate(ijson.items(stream, "vulnerabilities.item", use_float=True)):
                where = f"{path}, vulnerabilities[{position}]"
                entry = forms.read(entry, {"cve": dict}, where)
                forms.require(entry, ("cve",), where)
                yield where, entry["cve"]
        except (ijson.JSONError, UnicodeDecodeError) as fault:
            raise UserError(
                f"{path}, vulnerabilities[{position + 1}]: not valid JSON in UTF-8 from here on, or cut short. Fetch "
                "the file again."
            ) from fault
    if position < 0:
        raise UserError(f'{path} has no "vulnerabilities", so it is not a file of NVD JSON 2.0. Fetch the file again.')


def _record(cve: dict, description: str) -> Record:
    number, numbers, products = cve["id"], _weaknesses(cve), _products(cve)
    unnamed = len(products) - MAX_PRODUCTS
    named = products[:MAX_PRODUCTS] + ([f"{unnamed} more"] if unnamed > 0 else [])
    text = paragraphs(
        description,
        _severity(cve),
        f"{number} is an instance of {listing(numbers)}." if numbers else "",
        f"It affects {listing(named)}." if named else "",
    )
    url = f"https://nvd.nist.gov/vuln/detail/{number}"
    return Record(number, "nvd", number, text, url, LICENSE, tuple(weakness_facts(number, numbers)))


def _primary_first(entries: list[dict]) -> list[dict]:
    return sorted(entries, key=lambda entry: entry.get("type") != "Primary")


def _severity(cve: dict) -> str:
    """Returns "Its CVSS 3.1 base score is 9.8 (critical), of the vector …." by the newest version that was scored."""
    metrics = cve.get("metrics", {})
    for metric in (metric for key in _CVSS for metric in _primary_first(metrics.get(key, []))):
        score = metric.get("cvssData", {})
        if "version" in score and "baseScore" in score:
            # Version 2 keeps its severity outside the data.
            severity = score.get("baseSeverity", metric.get("baseSeverity", "")).lower()
            rating = f" ({severity})" if severity else ""
            vector = f", of the vector {score['vectorString']}" if "vectorString" in score else ""
            return f"Its CVSS {score['version']} base score is {score['baseScore']:.1f}{rating}{vector}."
    return ""


def _weaknesses(cve: dict) -> list[str]:
    entries = _primary_first(cve.get("weaknesses", []))
    return weaknesses(text.get("value", "") for entry in entries for text in entry.get("description", []))


def _products(cve: dict) -> list[str]:
    """Returns "apache log4j" and the like, each once, without what is only the platform of the vulnerable product."""
    matches = (
        _CPE.match(match.get("criteria", ""))
        for configuration in cve.get("configurations", [])
        for node in configuration.get("nodes", [])
        for match in node.get("cpeMatch", [])
        if match.get("vulnerable", True)
    )
    return list(dict.fromkeys(product_name(_plain(cpe["vendor"]), _plain(cpe["product"])) for cpe in matches if cpe))


def _plain(quoted: str) -> str:
    return re.sub(r"\\(.)", r"\1", quoted).replace("_", " ")
