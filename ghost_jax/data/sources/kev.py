"""CISA's catalogue of known exploited vulnerabilities (KEV), from the publisher's JSON."""

from collections.abc import Iterator
from pathlib import Path

from ghost_jax.data.sources.vulnerability import cve_of, cwe_ids, product_name, weakness_facts
from ghost_jax.data.storage import files
from ghost_jax.data.storage.schema import Fact, Record
from ghost_jax.data.storage.text_cleaning import clean, paragraphs, with_list

VERSION = 1  # raise it when the same file gives other records

LICENSE = "CC0-1.0"

_URL = "https://www.cisa.gov/known-exploited-vulnerabilities-catalog?field_cve="


def read(path: Path) -> Iterator[Record]:
    """Yields a record for each vulnerability, with its product and its weaknesses as facts."""
    for entry in files.without_nulls(files.read_json(path))["vulnerabilities"]:
        cve, title = cve_of(entry, "cveID"), clean(entry["vulnerabilityName"])
        product = product_name(clean(entry["vendorProject"]), clean(entry["product"]))
        numbers, is_ransomware = cwe_ids(entry.get("cwes", [])), entry.get("knownRansomwareCampaignUse") == "Known"
        text = paragraphs(
            clean(entry["shortDescription"]),
            f"{cve} affects {product}. It has been exploited in the wild: CISA added it to its catalogue of known "
            f"exploited vulnerabilities on {entry['dateAdded']}.",
            with_list(f"{cve} is an instance of", numbers),
            "It is known to be used in ransomware campaigns." if is_ransomware else "",
        )
        facts = [*weakness_facts(cve, numbers)]
        if not entry["product"].strip().startswith("Multiple "):  # "Multiple Products" names none
            facts.insert(0, Fact(cve, "vulnerability_product", product, f"{cve} affects {product}."))
        yield Record(cve, "kev", title, text, _URL + cve, LICENSE, tuple(facts))
