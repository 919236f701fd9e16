"""NVD, KEV and Exploit-DB from small files, written by hand to the published schemas."""

import csv
import gzip
import io
import json
import tracemalloc

import pytest

from ghost_jax.core.errors import UserError
from ghost_jax.data.sources import exploitdb, kev, nvd
from ghost_jax.data.storage.schema import Fact, Record
from tests.test_sources import COMPRESSIONS, check_facts, write


def name_of(value: object) -> str:
    return value if isinstance(value, str) else "data"


# --- NVD


def cpe(vendor: str, product: str, vulnerable: bool = True) -> dict:
    return {
        "vulnerable": vulnerable,
        "criteria": f"cpe:2.3:a:{vendor}:{product}:*:*:*:*:*:*:*:*",
        "matchCriteriaId": "1",
    }


def node(*matches: dict) -> dict:
    return {"operator": "OR", "negate": False, "cpeMatch": matches}


def weakness(kind: str, *values: str) -> dict:
    return {"source": "a", "type": kind, "description": [{"lang": "en", "value": value} for value in values]}


def metric(kind: str, version: str, score: float, severity: str) -> dict:
    data = {"version": version, "vectorString": f"CVSS:{version}/AV:N", "baseScore": score, "baseSeverity": severity}
    return {"source": "a", "type": kind, "cvssData": data, "exploitabilityScore": 3.9, "impactScore": 6}


CVE = {
    "id": "CVE-2021-44228",
    "sourceIdentifier": "security@apache.org",
    "published": "2021-12-10T10:15:09.143",
    "vulnStatus": "Analyzed",
    "descriptions": [{"lang": "es", "value": "Apache Log4j."}, {"lang": "en", "value": "JNDI lookups\nload code."}],
    "metrics": {
        "cvssMetricV31": [metric("Secondary", "3.1", 9, "CRITICAL"), metric("Primary", "3.1", 10.0, "CRITICAL")],
        "cvssMetricV2": [metric("Primary", "2.0", 9.3, "HIGH")],
        "ssvcV203": [{"source": "cisa", "ssvcData": {"role": "CISA Coordinator"}}],
    },
    "weaknesses": [
        weakness("Secondary", "CWE-20", "CWE-400", "CWE-502"),
        weakness("Primary", "CWE-502", "NVD-CWE-noinfo", "NVD-CWE-Other"),
    ],
    "configurations": [
        {
            "operator": "AND",
            "nodes": [
                node(cpe("apache", "log4j"), cpe("apache", "log4j")),
                node(cpe("intel", "cpu", vulnerable=False)),
            ],
        },
        {"nodes": [node(cpe("c\\:d\\&e", "\\@f\\/net_x"), cpe("git", "git"))]},
    ],
    "references": [{"url": "https://example.org/advisory", "source": "a", "tags": ["Patch"]}],
}


def page(*cves: dict) -> bytes:
    head = {"resultsPerPage": len(cves), "startIndex": 0, "totalResults": len(cves), "format": "NVD_CVE"}
    return json.dumps(head | {"version": "2.0", "vulnerabilities": [{"cve": cve} for cve in cves]}).encode()


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_nvd_reads(tmp_path, suffix):
    (record,) = nvd.read(write(tmp_path / f"nvdcve-2.0-2021.json{suffix}", page(CVE)))
    text = (
        "JNDI lookups\nload code.",
        "Its CVSS 3.1 base score is 10.0 (critical), of the vector CVSS:3.1/AV:N.",
        "CVE-2021-44228 is an instance of CWE-502, CWE-20 and CWE-400.",
        "It affects apache log4j, c:d&e @f/net x and git.",
    )
    facts = tuple(
        Fact(CVE["id"], "vulnerability_weakness", number, f"CVE-2021-44228 is an instance of the weakness {number}.")
        for number in ("CWE-502", "CWE-20", "CWE-400")
    )
    url = "https://nvd.nist.gov/vuln/detail/CVE-2021-44228"
    assert record == Record(CVE["id"], "nvd", CVE["id"], "\n\n".join(text), url, nvd.LICENSE, facts)


def test_nvd_finds_the_severity_of_cvss_2_beside_the_data(tmp_path):
    old = metric("Primary", "2.0", 7.5, "HIGH") | {"baseSeverity": "HIGH"}
    del old["cvssData"]["baseSeverity"]
    (record,) = nvd.read(write(tmp_path / "n.json", page(CVE | {"metrics": {"cvssMetricV2": [old]}})))
    assert "Its CVSS 2.0 base score is 7.5 (high), of the vector CVSS:2.0/AV:N." in record.text


def test_nvd_names_a_bounded_number_of_products(tmp_path):
    matches = [cpe("cisco", f"router_{i}") for i in range(nvd.MAX_PRODUCTS + 30)]
    cve = CVE | {"configurations": [{"nodes": [node(*matches)]}]}
    (record,) = nvd.read(write(tmp_path / "n.json", page(cve)))
    assert record.text.endswith("cisco router 7 and 30 more.")


def described(text: str) -> dict:
    return CVE | {"descriptions": [{"lang": "en", "value": text}]}


@pytest.mark.parametrize(
    "left_out",
    [
        CVE | {"vulnStatus": "Rejected"},
        described("** REJECT ** DO NOT USE THIS CANDIDATE NUMBER."),
        described("Rejected reason: a duplicate."),
        CVE | {"descriptions": [{"lang": "es", "value": "Nada."}]},
        CVE | {"descriptions": [{"lang": "en", "value": None}]},
    ],
    ids=["status", "old", "new", "no English", "null"],
)
def test_what_was_rejected_or_is_not_told_is_left_out(tmp_path, left_out):
    other = {"id": "CVE-2024-1234567", "descriptions": [{"lang": "en", "value": "It fails."}]}
    (record,) = nvd.read(write(tmp_path / "n.json", page(left_out, other)))
    assert (record.id, record.text, record.facts) == ("CVE-2024-1234567", "It fails.", ())


@pytest.mark.parametrize(
    "null",
    [
        {"vulnStatus": None, "configurations": None, "weaknesses": None, "metrics": None},
        {"metrics": {"cvssMetricV31": None}, "weaknesses": [{"type": None, "description": None}]},
        {"metrics": {"cvssMetricV31": [{"cvssData": {"version": "3.1", "baseScore": None}}]}},
        {"configurations": [{"nodes": None}, {"nodes": [{"cpeMatch": [{"vulnerable": None, "criteria": None}]}]}]},
    ],
)
def test_null_in_an_optional_field_of_nvd_is_absence(tmp_path, null):
    cve = {"id": "CVE-2024-1234", "descriptions": [{"lang": "en", "value": "It fails."}]}
    (record,) = nvd.read(write(tmp_path / "n.json", page(cve | null)))
    assert (record.text, record.facts) == ("It fails.", ())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (page(CVE)[:-40], r"n\.json, vulnerabilities\[0\]: not valid JSON"),
        (page(CVE, CVE)[:-40], r"n\.json, vulnerabilities\[1\]: not valid JSON"),
        (page(CVE, described("X")).replace(b'"X"', b'"\xff"'), r"vulnerabilities\[1\]: not valid JSON in UTF-8"),
        (page(CVE, CVE | {"x": 0}).replace(b'"x": 0', b'"x": ' + b"9" * 5000), r"vulnerabilities\[1\]: not valid JSON"),
        (page(CVE, CVE | {"metrics": []}), r'n\.json, vulnerabilities\[1\]: "metrics" has not the form'),
        (page(CVE | {"descriptions": "x"}), r'vulnerabilities\[0\]: "descriptions" has not the form'),
        (page({"id": "CVE-2021-44228"}), r'vulnerabilities\[0\] has no "descriptions"'),
        (page(CVE | {"id": "2021-44228"}), r'vulnerabilities\[0\]: "id" is no CVE id'),
        (b'{"vulnerabilities": [null]}', r"vulnerabilities\[0\] is a NoneType"),
        (b'{"vulnerabilities": [{"id": "CVE-2021-44228"}]}', r'vulnerabilities\[0\] has no "cve"'),
        (b'{"CVE_Items": []}', r'n\.json has no "vulnerabilities"'),
        (b"", r"n\.json, vulnerabilities\[0\]: not valid JSON"),
        (b"<html/>", r"n\.json, vulnerabilities\[0\]: not valid JSON"),
    ],
    ids=name_of,
)
def test_a_faulty_feed_names_the_file_and_the_entry(tmp_path, data, message):
    with pytest.raises(UserError, match=message):
        list(nvd.read(write(tmp_path / "n.json", data)))


def test_a_feed_cut_short_names_the_file_and_the_byte(tmp_path):
    path = write(tmp_path / "n.json.gz", page(*[CVE] * 100))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"n\.json\.gz cannot be decompressed after byte [\d,]+"):
        list(nvd.read(path))


def test_a_feed_is_never_held_whole(tmp_path):
    data = page(*[described("It fails.") | {"references": [{"url": "https://example.org/" + "x" * 20_000}]}] * 500)
    path = tmp_path / "n.json.gz"
    path.write_bytes(gzip.compress(data, compresslevel=1))
    tracemalloc.start()
    try:
        assert sum(1 for _ in nvd.read(path)) == 500
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < len(data) / 5


# --- KEV

EXPLOITED = {
    "cveID": "CVE-2024-3400",
    "vendorProject": "Palo Alto Networks",
    "product": "PAN-OS ",
    "vulnerabilityName": " Palo Alto Networks PAN-OS Command Injection Vulnerability",
    "dateAdded": "2024-04-12",
    "shortDescription": "PAN-OS contains a command injection vulnerability. ",
    "requiredAction": "Apply mitigations.",
    "dueDate": "2024-04-19",
    "knownRansomwareCampaignUse": "Known",
    "notes": "https://example.org",
    "cwes": ["CWE-77", "CWE-20", "CWE-77"],
}


def catalogue(*entries: dict) -> bytes:
    head = {"title": "CISA Catalog of Known Exploited Vulnerabilities", "catalogVersion": "2024.04.12"}
    return json.dumps(head | {"count": len(entries), "vulnerabilities": entries}).encode()


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_kev_reads(tmp_path, suffix):
    (record,) = kev.read(write(tmp_path / f"kev.json{suffix}", catalogue(EXPLOITED)))
    assert (record.id, record.source, record.license) == ("CVE-2024-3400", "kev", "CC0-1.0")
    assert record.title == "Palo Alto Networks PAN-OS Command Injection Vulnerability"
    assert record.url == "https://www.cisa.gov/known-exploited-vulnerabilities-catalog?field_cve=CVE-2024-3400"
    assert record.text.split("\n\n") == [
        "PAN-OS contains a command injection vulnerability.",
        "CVE-2024-3400 affects Palo Alto Networks PAN-OS. It has been exploited in the wild: CISA added it to its "
        "catalogue of known exploited vulnerabilities on 2024-04-12.",
        "CVE-2024-3400 is an instance of CWE-77 and CWE-20.",
        "It is known to be used in ransomware campaigns.",
    ]
    assert [(fact.subject, fact.relation, fact.object) for fact in record.facts] == [
        ("CVE-2024-3400", "vulnerability_product", "Palo Alto Networks PAN-OS"),
        ("CVE-2024-3400", "vulnerability_weakness", "CWE-77"),
        ("CVE-2024-3400", "vulnerability_weakness", "CWE-20"),
    ]
    check_facts([record])


@pytest.mark.parametrize(
    ("vendor", "product", "objects"),
    [
        ("Craft CMS", "Craft CMS", ["Craft CMS"]),
        ("Cisco", "Cisco IOS XE", ["Cisco IOS XE"]),
        ("Apple", "Multiple Products", []),
    ],
)
def test_a_product_is_named_once_or_not_at_all(tmp_path, vendor, product, objects):
    entry = EXPLOITED | {"vendorProject": vendor, "product": product, "cwes": []}
    (record,) = kev.read(write(tmp_path / "kev.json", catalogue(entry)))
    assert [fact.object for fact in record.facts] == objects


def test_null_in_an_optional_field_of_kev_is_absence(tmp_path):
    optional = ("cwes", "knownRansomwareCampaignUse", "notes")
    null, absent = EXPLOITED | dict.fromkeys(optional), {k: v for k, v in EXPLOITED.items() if k not in optional}
    first, second = kev.read(write(tmp_path / "kev.json", catalogue(null, absent)))
    assert first == second


def test_an_empty_cwe_id_of_kev_is_no_weakness(tmp_path):
    (record,) = kev.read(write(tmp_path / "kev.json", catalogue(EXPLOITED | {"cwes": ["", "CWE-77"]})))
    assert [fact.object for fact in record.facts] == ["Palo Alto Networks PAN-OS", "CWE-77"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[]", r'kev\.json has no list of "vulnerabilities"'),
        (catalogue(EXPLOITED)[:-3], r"kev\.json, line 1, column \d+: not valid JSON"),
        (catalogue(EXPLOITED, EXPLOITED | {"cwes": "CWE-77"}), r'kev\.json, vulnerabilities\[1\]: "cwes" has not'),
        (catalogue({k: v for k, v in EXPLOITED.items() if k != "product"}), r'vulnerabilities\[0\] has no "product"'),
        (catalogue(EXPLOITED | {"product": None}), r'vulnerabilities\[0\] has no "product"'),
        (catalogue(EXPLOITED | {"product": " "}), r'vulnerabilities\[0\] has no "product"'),
        (catalogue(EXPLOITED | {"cveID": "CVE-X"}), r'vulnerabilities\[0\]: "cveID" is no CVE id'),
    ],
    ids=name_of,
)
def test_a_faulty_catalogue_names_the_file_and_the_entry(tmp_path, data, message):
    with pytest.raises(UserError, match=message):
        list(kev.read(write(tmp_path / "kev.json", data)))


# --- Exploit-DB

COLUMNS = (
    *("id", "file", "description", "date_published", "author", "type", "platform", "port", "date_added"),
    *("date_updated", "verified", "codes", "tags", "aliases", "screenshot_url", "application_url", "source_url"),
)
EXPLOIT = {
    "id": "16929",
    "file": "exploits/aix/dos/16929.rb",
    "description": 'Calendar "Manager", Service - Buffer Overflow (Metasploit)',
    "date_published": "2010-11-11",
    "author": "Metasploit",
    "type": "dos",
    "platform": "aix",
    "port": "8080",
    "date_added": "2010-11-11",
    "verified": "1",
    "codes": "CVE-2009-3699;OSVDB-58726;cve-2009-3700;CVE-2009-3699;CVE-X",
}


def table(*rows: dict, columns: tuple[str, ...] = COLUMNS) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_exploitdb_reads(tmp_path, suffix):
    plain = {"id": "9306", "description": "Two\nlines", "type": "local", "platform": "aix"}
    first, second = exploitdb.read(write(tmp_path / f"e.csv{suffix}", table(EXPLOIT, plain) + b"\n"))
    title = EXPLOIT["description"]
    assert (first.id, first.source, first.title) == ("EDB-16929", "exploitdb", title)
    assert (first.url, first.license) == ("https://www.exploit-db.com/exploits/16929", "GPL-2.0-or-later")
    assert first.text.split("\n\n") == [
        f"{title}.",
        "EDB-16929 is a denial-of-service exploit for the platform aix by Metasploit, published on 2010-11-11.",
        "It attacks port 8080.",
        "It targets CVE-2009-3699 and CVE-2009-3700.",
    ]
    subject = f"{title} (EDB-16929)"
    assert first.facts == tuple(
        Fact(subject, "exploited_vulnerability", cve, f"{subject} targets {cve}.")
        for cve in ("CVE-2009-3699", "CVE-2009-3700")
    )
    assert second.text == "Two lines.\n\nEDB-9306 is a local exploit for the platform aix."
    assert second.facts == ()


WHOLE = table(EXPLOIT, EXPLOIT)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (table(EXPLOIT, columns=COLUMNS[:11]), r"e\.csv, line 1: the column codes is missing"),
        (b"", r"e\.csv, line 1: the column id is missing"),
        (WHOLE + b"1,a.txt,Bug\n", r"e\.csv, line 4: 3 fields under 17 columns"),
        (WHOLE + b"1" + b"," * 17 + b"\n", r"e\.csv, line 4: 18 fields under 17 columns"),
        (table(EXPLOIT, EXPLOIT | {"author": "AB"}).replace(b"AB", b"A\nB"), r"e\.csv, line 3: 5 fields under 17"),
        (WHOLE + b'1,"a"b\n', r"e\.csv, line 4: not valid CSV"),
        (WHOLE + b'1,"' + b"x,\n" * 9, r"e\.csv, line 12: not valid CSV \(unexpected end of data\)"),
        (WHOLE + b'1,"' + b"x,\n" * 90_000, r"e\.csv, line \d+: not valid CSV \(field larger than field limit"),
        (WHOLE + b"1,\xff\n", r"e\.csv, line 4, byte 3: not valid UTF-8"),
        (table(EXPLOIT, EXPLOIT | {"id": "x"}), r"e\.csv, line 3: an exploit without a number"),
        (table(EXPLOIT | {"description": " "}), r"e\.csv, line 2: an exploit without a number or a description"),
    ],
    ids=name_of,
)
def test_a_faulty_table_names_the_file_and_the_line(tmp_path, data, message):
    with pytest.raises(UserError, match=message):
        list(exploitdb.read(write(tmp_path / "e.csv", data)))
