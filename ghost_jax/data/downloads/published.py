"""The table of published files: their addresses and what identifies their content.

Hashes are of the uncompressed content, because publishers and readers compress the same content in several ways. Where
a publisher's files are in git, the address names a commit.
"""

import dataclasses

MAX_IN_GIT = 100 << 20  # bytes; a git id holds no size, and GitHub and GitLab accept no larger file


@dataclasses.dataclass(frozen=True, slots=True)
class Proof:
    """What identifies a content.

    Attributes:
      digest: its SHA-256 (64 hex digits), or the id of its blob in git (40 hex digits).
      size: bytes of the content; of a git id, the most that it may have.
    """

    digest: str
    size: int = MAX_IN_GIT


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
    """A row of `PUBLISHED`: the licence in a few words, and the files of a source."""

    license: str
    files: tuple[File, ...]


_GITHUB = "https://raw.githubusercontent.com"
_ATTACK_15 = f"{_GITHUB}/mitre/cti/f0e09403b9b5372a13ff03733004de4efdc83b03"  # tag ATT&CK-v15.1
_ATTACK_18 = f"{_GITHUB}/mitre/cti/421deacb77191b38bdd1bf63268954e93da91365"  # tag ATT&CK-v18.1, with CAPEC 3.9
_ATTACK_LICENSE = "ATT&CK terms of use: free use with MITRE's copyright notice"
_KEV = "known_exploited_vulnerabilities.json"
_NVD = "https://nvd.nist.gov/feeds/json/cve/2.0"
_NVD_YEARS = range(2002, 2027)  # the first feed holds all earlier years; each January opens a new one


def _pinned(url: str, path: str, digest: str, size: int = MAX_IN_GIT) -> File:
    return File(url, path, Proof(digest, size))


def _attack(bundles: str, domain: str, version: str, digest: str, size: int = MAX_IN_GIT) -> File:
    return _pinned(f"{bundles}/{domain}/{domain}.json", f"raw/{domain}-{version}.json", digest, size)


def _nvd(year: int) -> File:
    name = f"nvdcve-2.0-{year}"
    return File(f"{_NVD}/{name}.json.gz", f"raw/{name}.json.gz", Feed(f"{_NVD}/{name}.meta", f"raw/{name}.meta"))


_MOBILE = "9aaafb3b351941d35a38b02baa8ac175ff6c0ecf95eea91b6fa53de9db32432b"
_ICS = "5afe7fa3cabbae4686ce034b196d2a82ec8667ec86fee1d6fb58a7fb9eaeb857"
_ATTACK_FILES = (
    _attack(_ATTACK_15, "enterprise-attack", "15.1", "a7046d2d3372f53967f06cb335591882c84c3efa"),
    _attack(_ATTACK_15, "mobile-attack", "15.1", _MOBILE, 2_493_231),
    _attack(_ATTACK_15, "ics-attack", "15.1", _ICS, 1_859_133),
)
_ATTACK_18_FILE = _attack(_ATTACK_18, "enterprise-attack", "18.1", "a5ba6d72ab7371ca752110224aa7fe062f82da11")
_CAPEC_FILE = _pinned(
    f"{_ATTACK_18}/capec/2.1/stix-capec.json", "raw/stix-capec-3.9.json", "a1871324f3cc61ebfb2ad9bba67c43351adf9c38"
)
_CWE_FILE = _pinned(
    "https://cwe.mitre.org/data/xml/cwec_v4.14.xml.zip",
    "raw/cwec_v4.14.xml.zip",
    "828d4c1a2ad2c28e5c2e107f7385793f280722bfb335bae4b44beb866cd09de1",
    14_668_203,
)
_KEV_FILE = _pinned(
    f"{_GITHUB}/cisagov/kev-data/eacf03ec6637cc7be6d3d4ed50785493da5126a2/{_KEV}",
    f"raw/{_KEV}",
    "901b1f227941a3879a3e39fcb857bb6f7252bf9d71b63ef08d50a836d5ab1bd2",
    1_257_565,
)
_EXPLOITDB_FILE = _pinned(
    "https://gitlab.com/exploit-database/exploitdb/-/raw/094f6f9304e853dc52fa71f2cec8423ea3ccb3cd/files_exploits.csv",
    "raw/files_exploits.csv",
    "184944956ae9cff115a79ddb8918d1f8201dcced",
)
_CTIBENCH_FILE = _pinned(
    f"{_GITHUB}/xashru/cti-bench/57ce8c246e5fc66a16c6cef743f3a983831b90f0/data/cti-mcq.tsv",
    "ctibench/cti-mcq.tsv",
    "11e0af8db2dae9706c6e79901d2390bcdf9746e8feccbd9ba10682df649bcc6a",
    2_394_094,
)
PUBLISHED = {
    "attack": Published(_ATTACK_LICENSE, _ATTACK_FILES),
    "attack18": Published(_ATTACK_LICENSE, (_ATTACK_18_FILE,)),
    "capec": Published("CAPEC terms of use: free use with MITRE's copyright notice", (_CAPEC_FILE,)),
    "cwe": Published("CWE terms of use: free use with MITRE's copyright notice", (_CWE_FILE,)),
    "nvd": Published("public domain, a work of the US government", tuple(map(_nvd, _NVD_YEARS))),
    "kev": Published("CC0 1.0", (_KEV_FILE,)),
    "exploitdb": Published("GPL-2.0", (_EXPLOITDB_FILE,)),
    "ctibench": Published("CC BY-NC-SA 4.0; for scoring only", (_CTIBENCH_FILE,)),
}

# Sources that a config can name and that have no single publisher -> why
UNPUBLISHED = {
    "cti": "gathered from many publishers; put your own texts in corpus/cti.jsonl",
    "cve": "gathered from many publishers; put your own texts in corpus/cve.jsonl, or use nvd",
    "embedded": "comes with the package",
}
