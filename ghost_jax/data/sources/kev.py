"""CISA's catalogue of known exploited vulnerabilities (KEV), from the publisher's JSON."""

from collections.abc import Iterator
from pathlib import Path

from ghost_jax.data.sources.vulnerability import cve_of, product_name, weakness_facts, weaknesses
from ghost_jax.data.storage import files
from ghost_jax.data.storage.schema import Fact, Record
from ghost_jax.data.storage.text_cleaning import clean, listing, paragraphs

VERSION = 1  # raise it when the same file gives other records

LICENSE = "CC0-1.0"

_URL = "https://www.cisa.gov/known-exploited-vulnerabilities-catalog?field_cve="


def read(path: Path) -> Iterator[Record]:
    """Yields a record for each vulnerability, with its product and its weaknesses as facts."""
    yield from map(_record, files.without_nulls(files.read_json(path))["vulnerabilities"])


def _record(entry: dict) -> Record:
    cve, title = cve_of(entry, "cveID"), clean(entry["vulnerabilityName"])
    product = product_name(clean(entry["vendorProject"]), clean(entry["product"]))
    numbers = weaknesses(entry.get("cwes", []))
    text = paragraphs(
        clean(entry["shortDescription"]),
        f"{cve} affects {product}. It has been exploited in the wild: CISA added it to its catalogue of known "
        f"exploited vulnerabilities on {entry['dateAdded']}.",
        f"{cve} is an instance of {listing(numbers)}." if numbers else "",
        "It is known to be used in ransomware campaigns." if entry.get("knownRansomwareCampaignUse") == "Known" else "",
    )
    facts = [*weakness_facts(cve, numbers)]
    if not entry["product"].strip().startswith("Multiple "):  # "Multiple Products" names none
        facts.insert(0, Fact(cve, "vulnerability_product", product, f"{cve} affects {product}."))
    return Record(cve, "kev", title, text, _URL + cve, LICENSE, tuple(facts))
