"""The records that every source yields and every builder reads: documents and the typed facts stated in them."""

import dataclasses
import hashlib
import re

from ghost_jax.data.storage.text_cleaning import first_sentences

# Of all that several readers or builders share: records and splits, cleaning, duplicates, the vocabulary, renderers,
# passages and their index, wordings, STIX, the rows on disk. Raise it when one of them gives other content.
VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Fact:
    """One statement that a source makes in a structured field, so that a question about it has a certain answer."""

    subject: str  # what the fact is about ("Phishing", "CWE-79")
    relation: str  # one of `RELATIONS`
    object: str  # the answer ("Initial Access")
    evidence: str  # the source's own sentence, or one that restates its structured field; the offline teacher quotes it

    def bare(self) -> "Fact":
        """Returns the fact without its evidence, the same wherever it is stated."""
        return dataclasses.replace(self, evidence="")


RELATIONS = (
    *("tactic", "mitigation", "detection", "group_technique", "software_technique", "campaign_technique"),
    *("group_software", "weakness_name", "weakness_class", "parent_weakness", "consequence", "weakness_mitigation"),
    *("attack_pattern_name", "related_weakness", "vulnerability_weakness", "vulnerability_product"),
    *("exploited_vulnerability", "expansion", "port_service"),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One document of one source."""

    id: str  # unique and stable within the source
    source: str  # the adapter's or corpus's short name ("attack", "cve_trickest")
    title: str  # what the document is about, without its id ("Phishing: Spearphishing Link")
    text: str  # plain text; paragraphs are separated by a blank line
    url: str  # where a person can read it, or empty
    license: str  # the publisher's terms, in a few words
    facts: tuple[Fact, ...] = ()  # the typed facts that the document states; one with a blank part is left out

    @property
    def page(self) -> str:
        """What questions name their page by: the address, or the source and id of a document without one."""
        return self.url or f"{self.source}/{self.id}"

    def __post_init__(self):
        complete = tuple(f for f in self.facts if f.subject.strip() and f.object.strip() and f.evidence.strip())
        object.__setattr__(self, "facts", complete)


SPLITS = ("train", "validation", "test")
_TECHNIQUE = re.compile(r"\((T\d{4})(?:\.\d{3})?\)$")  # behind a name


def as_asked(subject: str) -> str:
    """Returns a subject as questions show it: a name unchanged, a long description as its first two sentences."""
    return first_sentences(subject, count=2, limit=350)


def split_of(subject: str) -> str:
    """Returns the split of all questions about `subject`: 80% train, 10% validation, 10% test.

    It is drawn from the subject as asked, so no subject is trained on in one phrasing and tested in another. A
    technique of ATT&CK and its sub-techniques have one split: they share tactics and much else.
    """
    technique = _TECHNIQUE.search(subject)
    return drawn_split(technique[1] if technique else as_asked(subject))


def drawn_split(text: str) -> str:
    """Returns the split drawn from a hash of a text, whatever its case, with the shares of `split_of`."""
    digest = hashlib.blake2b(text.lower().encode("utf-8", "surrogatepass"), digest_size=4).digest()
    draw = int.from_bytes(digest) % 10
    return "validation" if draw == 0 else "test" if draw == 1 else "train"
