"""Publishers' markup as prose: tags removed, sentences found, paragraphs joined."""

import html
import itertools
import re
from collections.abc import Iterable, Iterator
from xml.etree.ElementTree import Element

# Only tags that format text are markup: other words in angle brackets are placeholders such as <username>, or exploits.
_FORMATTING = "b|br|code|div|em|h[1-6]|i|li|ol|p|pre|span|strong|sub|sup|table|tbody|td|th|thead|tr|u|ul"
_TAG = re.compile(rf"<(?P<close>/?)(?:xhtml:(?P<xhtml>\w+)|(?P<html>{_FORMATTING}))(?:\s[^<>]*)?/?>", re.IGNORECASE)
_LINE_TAGS = {"br": "\n", "li": "\n- ", "tr": "\n", "td": " ", "th": " "}
_BLOCK_TAGS = {"div", "h1", "h2", "h3", "h4", "h5", "h6", "ol", "p", "pre", "table", "ul"}
_EMPTY_ITEM = re.compile(r"\n- \s+")  # what <li><p> leaves
# The look-behind makes the match start at the first blank: tried from each one, a long run takes quadratic time.
_CITATION = re.compile(r"(?<![^\S\n])[^\S\n]*\(Citation:(?:[^()]|\([^()]*\))*\)")
_LINK = re.compile(r"\[([^\[\]]*)\]\((?:https?://|/)[^()\s]*(?:\([^()\s]*\)[^()\s]*)*\)")
_HEADING = re.compile(r"^#{1,6} +", re.MULTILINE)


def clean(text: str) -> str:
    """Returns the text without citations, links, tags, heading marks and backticks; their content stays."""
    text = _LINK.sub(r"\1", _CITATION.sub("", text))
    if "<xhtml:" in text:
        text = text.replace("\n", " ")  # a line break is a blank in XHTML, unlike in Markdown
    text = html.unescape(_TAG.sub(_as_break, text)).replace("`", "")
    return tidy(_HEADING.sub("", _EMPTY_ITEM.sub("\n- ", text)))


def _as_break(tag: re.Match) -> str:
    name = (tag["xhtml"] or tag["html"]).lower()
    if name in _BLOCK_TAGS:
        return "\n\n"
    return "" if tag["close"] else _LINE_TAGS.get(name, "")


def prose(element: Element | None) -> str:
    """Returns the text of an element that may hold XHTML, its paragraphs separated by a blank line."""
    return tidy(_text_of(element)) if element is not None else ""


def _text_of(element: Element) -> str:
    name = element.tag.rpartition("}")[2]
    inner = "".join(_text_of(child) + _on_one_line(child.tail) for child in element)
    around = "\n\n" if name in _BLOCK_TAGS else ""
    return around + _LINE_TAGS.get(name, "") + _on_one_line(element.text) + inner + around


def _on_one_line(text: str | None) -> str:
    return (text or "").replace("\n", " ")


# A reference at the end of a clause is a footnote; elsewhere it is a word of its sentence and stays.
_FOOTNOTE = re.compile(r"(?<!\s)\s*\[REF-\d+\](?=\s*(?:[.,;:)]|\[REF-|$))")


def tidy(text: str) -> str:
    """Returns the text without footnotes, with single blanks and with one blank line between paragraphs."""
    text = re.sub(r"[^\S\n]+", " ", _FOOTNOTE.sub("", text))
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" ?\n ?", "\n", text)).strip()


def flat(text: str) -> str:
    """Returns the text on one line."""
    return " ".join(text.split())


# A full stop ends no sentence after a single capital ("U.S. banks") or after these abbreviations.
_SENTENCE_END = re.compile(
    r"""(?<!\b[A-Z])(?<!\be\.g)(?<!\bi\.e)(?<!\betc)(?<!\bvs)(?<!\bex)[.!?]['")\]]*(?=\s+["'(\[]?[A-Z0-9])"""
)


def sentences(text: str) -> Iterator[str]:
    """Yields the sentences of the first paragraph, each on one line."""
    paragraph, start = flat(text.split("\n\n", 1)[0]), 0
    for end in _SENTENCE_END.finditer(paragraph):
        yield paragraph[start : end.end()].strip()
        start = end.end()
    if paragraph[start:].strip():
        yield paragraph[start:].strip()


def first_sentence(text: str) -> str:
    """Returns the first sentence of the first paragraph, "" where there is none."""
    return next(sentences(text), "")


def first_sentences(text: str, count: int, limit: int) -> str:
    """Returns the first `count` sentences of the first paragraph, cut between words to about `limit` characters."""
    kept = " ".join(itertools.islice(sentences(text), count))
    return kept if len(kept) <= limit else kept[:limit].rsplit(" ", 1)[0].rstrip(",;:") + " …"


def listing(items: Iterable[str], before: str = "", after: str = "") -> str:
    """Returns "A", "A and B" or "A, B and C" between two texts, or nothing where there is no item."""
    *front, last = [*items] or [""]
    named = f"{', '.join(front)} and {last}" if front else last
    return f"{before}{named}{after}" if named else ""


def with_list(beginning: str, items: Iterable[str]) -> str:
    """Returns the sentence "beginning A, B and C.", or nothing where there is no item."""
    return listing(items, f"{beginning} ", ".")


def labelled(label: str, content: str) -> str:
    """Returns the paragraph "label: content", or nothing where there is no content."""
    return f"{label}: {flat(content)}" if content else ""


def headed(label: str, content: str) -> str:
    """Returns the paragraph "label: content", or the sentence "label." where there is no content."""
    return labelled(label, content) or f"{label}."


def paragraphs(*parts: str) -> str:
    """Joins the parts that are not empty by blank lines."""
    return "\n\n".join(part for part in parts if part)
