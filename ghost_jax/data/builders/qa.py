"""Questions and answers from templates, for every source: what a thing is, and what its typed facts state."""

from collections import Counter
from collections.abc import Iterator, Sequence

from ghost_jax.config.keys import QA_SOURCES
from ghost_jax.core.errors import UsageError, did_you_mean
from ghost_jax.data import wordings
from ghost_jax.data.examples import BuildInputs, Conversation, Documents, Rows, rng_of
from ghost_jax.data.storage import artifact_cache
from ghost_jax.data.storage.schema import SPLITS, Record, as_asked, split_of
from ghost_jax.data.storage.text_cleaning import first_sentences, flat
from ghost_jax.text.chat_format import Message

VERSION = 3  # raise it when the same documents give other conversations

ABOUT = ("What is {title}?", "Explain {title}.", "Tell me about {title}.", "Describe {title} in a few sentences.")
FACTS = wordings.read("answers")  # relation -> question and answer
# Pages that begin with their name and what their facts state, in a paragraph of its own; what a thing is comes below.
STATED_FIRST = ("embedded", "exploitdb")


def dataset(inputs: BuildInputs) -> Rows:
    """Returns the rows of `build`. Raises UsageError for a name in `data.qa_sources` that no document has."""
    options = inputs.options
    known = {*artifact_cache.manifest(inputs.corpus).documents, *QA_SOURCES}
    for name in options.qa_sources:
        if name not in known:
            raise UsageError(f"data.qa_sources names {name}, which no document has.{did_you_mean(name, list(known))}")
    return inputs.render(build(inputs.documents, options.qa_sources, options.qa_per_source, options.seed))


def build(documents: Documents, asked_of: Sequence[str], per_source: int, seed: int) -> Iterator[Conversation]:
    """Yields conversations about the documents of the sources `asked_of`, and about their facts.

    About `per_source` of either kind are drawn by `seed` where a source has more.
    """

    def read() -> Iterator[Record]:
        return (record for record in documents() if record.source in asked_of)

    sizes, facts = Counter[str](), Counter[str]()
    splits: dict[str, str] = {}  # title -> split
    for record in read():
        sizes[record.source] += 1
        facts[record.source] += sum(fact.relation in FACTS for fact in record.facts)
        # A fact is held out with its subject, a document that states such a fact with it, and with that the pages of
        # the same title, of other sources and domains: they are asked about in the same words.
        title = record.title.casefold()
        drawn = map(split_of, (title, *(fact.subject for fact in record.facts)))
        splits[title] = max(splits.get(title, "train"), *drawn, key=SPLITS.index)
    asked: set[tuple[str, str]] = set()  # facts that several pages state are asked once
    for record in read():
        rng = rng_of(seed, "qa", record.source, record.id)
        split = splits[record.title.casefold()]
        text = flat(record.text) if record.source in STATED_FIRST else record.text
        answer = first_sentences(text, count=3, limit=480)
        if record.title and len(answer) > 40 and rng.random() * sizes[record.source] < per_source:
            yield _conversation(record, "about", rng.choice(ABOUT).format(title=record.title), answer, split)
        for i, fact in enumerate(record.facts):
            if fact.relation in FACTS and rng.random() * facts[record.source] < per_source:
                question, answer_form = FACTS[fact.relation]
                values = {
                    "subject": as_asked(fact.subject),
                    "object": fact.object,
                    "evidence": first_sentences(fact.evidence, count=1, limit=300),
                }
                turns = question.format(**values), answer_form.format(**values)
                if turns not in asked:
                    yield _conversation(record, f"fact{i}", *turns, split_of(fact.subject))
                asked.add(turns)


def _conversation(record: Record, kind: str, question: str, answer: str, split: str) -> Conversation:
    turns = (Message("user", question), Message("assistant", answer))
    return Conversation(f"{record.source}/{record.id}/{kind}", record.source, turns, split)
