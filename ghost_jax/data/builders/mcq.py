"""Multiple choice: the study's questions (vulnerability class, tactic, acronym), and phrases to be found among options.

A question of the second kind needs no knowledge: its answer stands in it. What it teaches is which letter belongs to a
text, the symbol binding of Robinson et al. (ICLR 2023, arXiv 2210.12353).
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from ghost_jax.data import wordings
from ghost_jax.data.examples import BuildInputs, Conversation, Documents, Question, Rows, rng_of
from ghost_jax.data.storage.schema import Fact, Record, as_asked, split_of

VERSION = 3  # raise it, with cot, raft, rank and own questions, when the same documents give others

PHRASINGS = wordings.read("study_questions")  # relation -> its questions
# The study's counts. Names of numbers and services of ports are not asked: other datasets state most of those of test
# subjects in questions on other relations, as in "Name (CWE-79)".
COUNTS = {"weakness_class": 1000, "tactic": 655, "expansion": 147}
LETTER_ONLY_SHARE = 0.7
OPTIONS = 4

MATCHING = (
    'Which of these options is "{phrase}", exactly?',
    "Which option reads {phrase}, word for word?",
    "Find {phrase} among the options.",
    "Which letter stands for {phrase} in this list?",
    "Pick the option that says {phrase} and nothing else.",
)
MOST_MATCHING = 40_000  # questions
PHRASES, LONGEST, SHORTEST = 4, 5, 5  # of a sentence; words of a phrase; characters of a phrase


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
        url=record.page,
    )


def matching_dataset(inputs: BuildInputs) -> Rows:
    """Returns the rows of the questions of `matching`."""
    return inputs.render(
        build(matching(inputs.documents, inputs.options.seed), inputs.options.seed, inputs.options.layout)
    )


def matching(documents: Documents, seed: int) -> Iterator[Question]:
    """Yields questions that quote one of their options; these are phrases of documents, each in one question.

    The phrases are of the first documents, as many as `MOST_MATCHING` questions need.
    """
    source_of: dict[str, tuple[str, str]] = {}  # phrase in lower case -> as it stands, and the source of its document
    for record in documents():
        if len(source_of) >= MOST_MATCHING * OPTIONS:
            break
        rng = rng_of(seed, "phrases", record.source, record.id)
        for sentence in re.split(r"[.;:\n]", record.text):
            words = re.findall(r"[A-Za-z][A-Za-z'-]+", sentence)
            for length in (rng.randint(1, LONGEST) for _ in range(PHRASES) if len(words) > LONGEST):
                start = rng.randrange(len(words) - length + 1)
                phrase = " ".join(words[start : start + length])
                if len(phrase) >= SHORTEST:
                    source_of.setdefault(phrase.lower(), (phrase, record.source))
    phrases = sorted(source_of.values())
    rng_of(seed, "matching").shuffle(phrases)
    for number in range(min(len(phrases) // OPTIONS, MOST_MATCHING)):
        rng = rng_of(seed, "question", number)
        four = phrases[OPTIONS * number : OPTIONS * (number + 1)]
        answer = rng.randrange(OPTIONS)
        phrase, source = four[answer]
        text = rng.choice(MATCHING).format(phrase=phrase)
        about = {"source": source, "split": split_of(phrase.lower()), "evidence": ""}
        yield Question(f"matching/{number}", text, tuple(each for each, _ in four), answer, **about)


def build(asked: Iterable[Question], seed: int, layout: str) -> Iterator[Conversation]:
    """Yields a conversation a question: 70% of the answers are the bare letter, 30% are "B. <option>"."""
    for q in asked:
        bare = layout != "cloze" and rng_of(seed, "form", q.id).random() < LETTER_ONLY_SHARE
        yield q.answered(layout, "" if bare else q.options[q.answer])
