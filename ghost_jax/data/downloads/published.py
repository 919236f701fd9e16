"""What the publishers hand out and how to know that it arrived as they made it: the one table of pinned files.

Every proof is of a file's content, uncompressed: a publisher may pack the same content anew, and a reader may keep it
packed in another way. Where a publisher's files lie in git, the address names a commit.
"""

import dataclasses

MOST_IN_GIT = 100 << 20  # bytes; git's id of a content says no size, and GitHub and GitLab take no file above this


@dataclasses.dataclass(frozen=True, slots=True)
class Sha256:
    """The SHA-256 (hex) and the size in bytes of a content."""

    digest: str
    size: int

    @property
    def most(self) -> int:
        """The most bytes that the content has."""
        return self.size

    def __str__(self) -> str:
        return f"SHA-256 {self.digest} of {self.size:,} bytes"


@dataclasses.dataclass(frozen=True, slots=True)
class GitBlob:
    """The id (hex) that git gives a content: SHA-1 over `blob <size>`, a zero byte and the content."""

    digest: str

    @property
    def most(self) -> int:
        """The most bytes that the content has."""
        return MOST_IN_GIT

    def __str__(self) -> str:
        return f"git blob {self.digest}"


@dataclasses.dataclass(frozen=True, slots=True)
class Feed:
    """A living file, of which no hash can be pinned: the publisher's own note at `url` states its SHA-256 and size.

    The note is kept at `path` below the data folder, so that what lies there can be checked without a connection.
    """

    url: str
    path: str


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """A published file: its address, its place below the data folder, and the proof of its content."""

    url: str
    path: str
    proof: Sha256 | GitBlob | Feed


@dataclasses.dataclass(frozen=True, slots=True)
class Published:
    """A row of `PUBLISHED`: the licence in a few words, and the files of a source."""

    license: str
    files: tuple[File, ...]


_GITHUB = "https://raw.githubusercontent.com"
_ATTACK_15 = f"{_GITHUB}/mitre/cti/f0e09403b9b5372a13ff03733004de4efdc83b03"  # tag ATT&CK-v15.1
_ATTACK_18 = f"{_GITHUB}/mitre/cti/421deacb77191b38bdd1bf63268954e93da91365"  # tag ATT&CK-v18.1, with CAPEC 3.9
_ATTACK_LICENSE = "ATT&CK terms of use: free use with MITRE's copyright notice"
_NVD = "https://nvd.nist.gov/feeds/json/cve/2.0"
_NVD_YEARS = range(2002, 2027)  # the first feed holds all earlier years as well; each January opens a new one


def _nvd(year: int) -> File:
    name = f"nvdcve-2.0-{year}"
    return File(f"{_NVD}/{name}.json.gz", f"raw/{name}.json.gz", Feed(f"{_NVD}/{name}.meta", f"raw/{name}.meta"))


PUBLISHED = {
    "attack": Published(
        _ATTACK_LICENSE,
        (
            File(
                f"{_ATTACK_15}/enterprise-attack/enterprise-attack.json",
                "raw/enterprise-attack-15.1.json",
                GitBlob("a7046d2d3372f53967f06cb335591882c84c3efa"),
            ),
            File(
                f"{_ATTACK_15}/mobile-attack/mobile-attack.json",
                "raw/mobile-attack-15.1.json",
                Sha256("9aaafb3b351941d35a38b02baa8ac175ff6c0ecf95eea91b6fa53de9db32432b", 2_493_231),
            ),
            File(
                f"{_ATTACK_15}/ics-attack/ics-attack.json",
                "raw/ics-attack-15.1.json",
                Sha256("5afe7fa3cabbae4686ce034b196d2a82ec8667ec86fee1d6fb58a7fb9eaeb857", 1_859_133),
            ),
        ),
    ),
    "attack18": Published(
        _ATTACK_LICENSE,
        (
            File(
                f"{_ATTACK_18}/enterprise-attack/enterprise-attack.json",
                "raw/enterprise-attack-18.1.json",
                GitBlob("a5ba6d72ab7371ca752110224aa7fe062f82da11"),
            ),
        ),
    ),
    "capec": Published(
        "CAPEC terms of use: free use with MITRE's copyright notice",
        (
            File(
                f"{_ATTACK_18}/capec/2.1/stix-capec.json",
                "raw/stix-capec-3.9.json",
                GitBlob("a1871324f3cc61ebfb2ad9bba67c43351adf9c38"),
            ),
        ),
    ),
    "cwe": Published(
        "CWE terms of use: free use with MITRE's copyright notice",
        (
            File(
                "https://cwe.mitre.org/data/xml/cwec_v4.14.xml.zip",
                "raw/cwec_v4.14.xml.zip",
                Sha256("828d4c1a2ad2c28e5c2e107f7385793f280722bfb335bae4b44beb866cd09de1", 14_668_203),
            ),
        ),
    ),
    "nvd": Published("public domain, a work of the US government", tuple(map(_nvd, _NVD_YEARS))),
    "kev": Published(
        "CC0 1.0",
        (
            File(
                f"{_GITHUB}/cisagov/kev-data/eacf03ec6637cc7be6d3d4ed50785493da5126a2/known_exploited_vulnerabilities.json",
                "raw/known_exploited_vulnerabilities.json",
                Sha256("901b1f227941a3879a3e39fcb857bb6f7252bf9d71b63ef08d50a836d5ab1bd2", 1_257_565),
            ),
        ),
    ),
    "exploitdb": Published(
        "GPL-2.0",
        (
            File(
                "https://gitlab.com/exploit-database/exploitdb/-/raw/094f6f9304e853dc52fa71f2cec8423ea3ccb3cd/files_exploits.csv",
                "raw/files_exploits.csv",
                GitBlob("184944956ae9cff115a79ddb8918d1f8201dcced"),
            ),
        ),
    ),
    "ctibench": Published(
        "CC BY-NC-SA 4.0; for scoring only",
        (
            File(
                f"{_GITHUB}/xashru/cti-bench/57ce8c246e5fc66a16c6cef743f3a983831b90f0/data/cti-mcq.tsv",
                "ctibench/cti-mcq.tsv",
                Sha256("11e0af8db2dae9706c6e79901d2390bcdf9746e8feccbd9ba10682df649bcc6a", 2_394_094),
            ),
        ),
    ),
}

# Sources that a config can name and nobody publishes as one file -> why, in a few words
UNPUBLISHED = {
    "cti": "gathered from many publishers; put your own texts in corpus/cti.jsonl",
    "cve": "gathered from many publishers; put your own texts in corpus/cve.jsonl, or take nvd",
    "embedded": "comes with the package",
}
