"""NIST's National Vulnerability Database, JSON 2.0: the feed of a year, or a saved page of the API."""

import re
from collections.abc import Iterator
from pathlib import Path

import ijson

from ghost_jax.data.sources.vulnerability import cve_of, cwe_ids, is_rejected, is_retired, product_name, weakness_facts
from ghost_jax.data.storage import files
from ghost_jax.data.storage.schema import Record
from ghost_jax.data.storage.text_cleaning import clean, paragraphs, with_list

VERSION = 1  # raise it when the same file gives other records

LICENSE = "public domain (NVD)"
MAX_PRODUCTS = 8  # named on a page; some vulnerabilities are in thousands of devices

_CVSS = ("cvssMetricV40", "cvssMetricV31", "cvssMetricV30", "cvssMetricV2")  # the newest one present is stated
# cpe:2.3:<part>:<vendor>:<product>:…, where a backslash quotes the character after it
_CPE = re.compile(r"cpe:2\.3:[^:]+:(?P<vendor>(?:[^:\\]|\\.)+):(?P<product>(?:[^:\\]|\\.)+):")


def read(path: Path) -> Iterator[Record]:
    """Yields a record for each vulnerability that was not rejected, with its weaknesses as facts.

    The file is streamed, one vulnerability at a time.
    """
    with files.open_text(path) as stream:
        # As floats, because ijson fails on an integer of thousands of digits.
        for entry in ijson.items(stream, "vulnerabilities.item", use_float=True):
            cve = files.without_nulls(entry["cve"])
            english = [each.get("value", "") for each in cve["descriptions"] if each.get("lang") == "en"]
            description = clean(english[0]) if english else ""
            if description and not is_retired(cve.get("vulnStatus")) and not is_rejected(description):
                yield _record(cve, description)


def _record(cve: dict, description: str) -> Record:
    number, products = cve_of(cve, "id"), _products(cve)
    entries = _primary_first(cve.get("weaknesses", []))
    numbers = cwe_ids(text.get("value", "") for entry in entries for text in entry.get("description", []))
    unnamed = len(products) - MAX_PRODUCTS
    named = products[:MAX_PRODUCTS] + ([f"{unnamed} more"] if unnamed > 0 else [])
    text = paragraphs(
        description,
        _severity(cve),
        with_list(f"{number} is an instance of", numbers),
        with_list("It affects", named),
    )
    url = f"https://nvd.nist.gov/vuln/detail/{number}"
    return Record(number, "nvd", number, text, url, LICENSE, tuple(weakness_facts(number, numbers)))


def _primary_first(entries: list[dict]) -> list[dict]:
    return sorted(entries, key=lambda entry: entry.get("type") != "Primary")


def _severity(cve: dict) -> str:
    """Returns "Its CVSS 3.1 base score is 9.8 (critical), of the vector …." or nothing."""
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


def _products(cve: dict) -> list[str]:
    """Returns "apache log4j" and the like, each once, without the platforms of the vulnerable products."""
    names: dict[str, None] = {}
    for configuration in cve.get("configurations", []):
        for node in configuration.get("nodes", []):
            for match in node.get("cpeMatch", []):
                cpe = _CPE.match(match.get("criteria", ""))
                if cpe and match.get("vulnerable", True):
                    names[product_name(_plain(cpe["vendor"]), _plain(cpe["product"]))] = None
    return list(names)


def _plain(quoted: str) -> str:
    return re.sub(r"\\(.)", r"\1", quoted).replace("_", " ")
