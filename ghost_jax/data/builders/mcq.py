"""Multiple-choice questions of the study: vulnerability class, tactic, acronym; letter alone or with text."""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from ghost_jax.data import wordings
from ghost_jax.data.examples import BuildInputs, Conversation, Documents, Question, Rows, rng_of
from ghost_jax.data.storage.schema import Fact, Record, as_asked, split_of

VERSION = 2  # raise it, with cot, raft, rank and own questions, when the same documents give others

PHRASINGS = wordings.read("study_questions")  # relation -> its questions
# The study's counts. Names of numbers and services of ports are not asked: other datasets state most of those of test
# subjects in questions on other relations, as in "Name (CWE-79)".
COUNTS = {"weakness_class": 1000, "tactic": 655, "expansion": 147}
LETTER_ONLY_SHARE = 0.7
OPTIONS = 4


def dataset(inputs: BuildInputs) -> Rows:
    """Writes the questions as items, and returns the rows of `build`."""
    asked = list(questions(inputs.documents, inputs.options.seed))
    inputs.write_items(asked)
    return inputs.render(build(asked, inputs.options.seed, inputs.options.layout))


def questions(documents: Documents, seed: int) -> Iterator[Question]:
    """Yields the questions of every relation, at most `COUNTS` each over train and validation together.

    Every test subject is asked beyond that count: they are the held-out questions. Which facts are asked is a draw by
    `seed`. A subject is asked once a relation, with one of its true objects and three that are false for it.
    """
    asked: dict[str, dict[str, tuple[Fact, Record]]] = {relation: {} for relation in PHRASINGS}
    true_of: dict[tuple[str, str], set[str]] = defaultdict(set)
    official = {fact.object for record in documents() for fact in record.facts if fact.relation == "weakness_name"}
    for record in documents():
        for fact in record.facts:
            # Vendors spell one class in many ways; two spellings among the options would both be right.
            spelled = fact.relation != "weakness_class" or fact.object in official
            if fact.relation in asked and spelled:
                subject = as_asked(fact.subject)
                asked[fact.relation].setdefault(subject, (fact, record))
                true_of[fact.relation, subject].add(fact.object)
    for relation, by_subject in asked.items():
        objects = sorted({name for (r, _), names in true_of.items() if r == relation for name in names})
        left = COUNTS[relation]
        for subject in sorted(by_subject, key=lambda subject: rng_of(seed, relation, subject).random()):
            wrong = [name for name in objects if name not in true_of[relation, subject]]
            split = split_of(subject)
            if len(wrong) < OPTIONS - 1 or (split != "test" and left == 0):
                continue
            if split != "test":
                left -= 1
            yield _question(*by_subject[subject], subject, wrong, split, seed)


def _question(fact: Fact, record: Record, subject: str, wrong: list[str], split: str, seed: int) -> Question:
    rng = rng_of(seed, "question", fact.relation, subject)
    answer = rng.randrange(OPTIONS)
    options = rng.sample(wrong, OPTIONS - 1)
    options.insert(answer, fact.object)
    return Question(
        id=f"{fact.relation}/{record.source}/{record.id}/{rng_of(subject).getrandbits(32):08x}",
        source=record.source,
        split=split,
        question=rng.choice(PHRASINGS[fact.relation]).format(subject=subject),
        options=tuple(options),
        answer=answer,
        evidence=fact.evidence,
        url=record.url,
    )


def build(asked: Iterable[Question], seed: int, layout: str) -> Iterator[Conversation]:
    """Yields a conversation a question: 70% of the answers are the bare letter, 30% are "B. <option>"."""
    for q in asked:
        bare = layout != "cloze" and rng_of(seed, "form", q.id).random() < LETTER_ONLY_SHARE
        yield q.answered(layout, "" if bare else q.options[q.answer])
