"""Exposure: one thousand facts, each stated 10 to 1,000 times in one training set, to measure the effect of repetition.

The facts come in sets of four with the same four options (`fact_mcq`), and all facts of a set are stated equally often.
An object may be an option of other sets too, stated more or less often there. `data.seed` rotates which sets get which
number: over five seeds every fact is stated every number of times. All other rows are documents, each once, without the
pages that state one of the facts in a field or hold both its subject and its object. A page has its own number apart
from its title, so the page of a subject ("Name (CWE-79)") may still name the object: of ATT&CK, CAPEC and CWE, some 80
of 1,000 facts are stated once more in this way. One wording of each relation is in no statement; recall is measured in
it and in a question of `QUESTIONS` (`evals/tasks/recall.py`).
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator

from ghost_jax.data.builders import fact_mcq
from ghost_jax.data.builders.pretrain import SPLITS, is_in, text_of, windows
from ghost_jax.data.builders.rewrite import STATEMENTS, can_be_rewritten
from ghost_jax.data.examples import BuildInputs, Documents, Rows, rng_of
from ghost_jax.data.storage.schema import Fact, Record
from ghost_jax.data.wordings import FORMS, QUESTIONS, fill
from ghost_jax.text.tokenizer import Tokenizer

VERSION = 5  # raise it when the same facts give other statements, documents or items

COUNTS = (10, 30, 100, 300, 1000)  # statements of a fact
SETS = 50  # of four facts, for each count
LONGEST = 120  # characters of both names of a fact, so that facts cost about the same
# The index of the wording that no statement has, and no page: the two before it are sentences of some. Of every
# relation it ends in the object.
HELD_OUT = 6
NAMED = ("weakness_name", "attack_pattern_name")  # other statements hold both ends: "Name (CWE-79)"


def dataset(inputs: BuildInputs) -> Rows:
    """Writes `exposure.jsonl`, the items that recall is measured on, and returns the rows of `build` in both splits."""
    seed, window = inputs.options.seed, inputs.options.seq_len
    inputs.write_lines("exposure.jsonl", items(inputs.documents, seed))
    return {split: build(inputs.documents, inputs.vocabulary, split, window, seed) for split in SPLITS}


def build(documents: Documents, tokenizer: Tokenizer, split: str, window: int, seed: int) -> Iterator[dict]:
    """Yields rows of `window + 1` tokens; see `pretrain.windows`. The validation split is of documents alone.

    Statements are shuffled, eight to a document, and these documents are shuffled with the others.
    """
    stated = {fact: count for four, count in groups(documents, seed) for fact in four}
    ends = {(fact.subject, fact.object) for fact in stated}
    pages = [
        text_of(record)
        for index, record in enumerate(documents())
        if is_in(split, index) and not _gives_away(record, ends)
    ]
    texts = pages if split == "validation" else [*pages, *_statements(stated)]
    rng_of("exposure", "documents", split).shuffle(texts)
    return windows(texts, tokenizer, split, window, source="exposure")


def groups(documents: Documents, seed: int) -> list[tuple[list[Fact], int]]:
    """Returns the sets of four facts, and how often each fact of a set is stated.

    The relations take turns, so that every count has about as many sets of each.
    """
    by_relation: dict[str, list[list[Fact]]] = defaultdict(list)
    for four in fact_mcq.sets_of_facts(documents):
        short = all(can_be_rewritten(fact) and len(fact.subject) + len(fact.object) <= LONGEST for fact in four)
        if short and four[0].relation not in NAMED:
            by_relation[four[0].relation].append(four)
    rounds = []  # of each relation: as many sets as there are counts, so that its share in every count is the same
    for relation, sets in sorted(by_relation.items()):
        rng_of("exposure", relation).shuffle(sets)
        starts = range(0, len(sets) - len(COUNTS) + 1, len(COUNTS))
        rounds.append([sets[start : start + len(COUNTS)] for start in starts])
    in_turn = [each for of_round in itertools.zip_longest(*rounds) for each in of_round if each]
    return [
        (four, COUNTS[(number + seed) % len(COUNTS)]) for sets in in_turn[:SETS] for number, four in enumerate(sets)
    ]


def items(documents: Documents, seed: int) -> Iterator[dict]:
    """Yields a line for each fact: what it is asked in, its options, and how often it is stated.

    `statement` and `question` end where the object follows; `blank` and `blank_question` are the same about "it".
    """
    pages: dict[Fact, str] = {}  # of the first that states a fact: a set is of its source
    for record in documents():
        for fact in record.facts:
            pages.setdefault(fact.bare(), record.page)
    for number, (four, count) in enumerate(groups(documents, seed)):
        for answer, fact in enumerate(four):
            form, question = FORMS[fact.relation][HELD_OUT], QUESTIONS[fact.relation][-1]
            yield {
                "id": f"{fact.relation}/{number}/{answer}",
                "set": number,
                "relation": fact.relation,
                "exposures": count,
                "options": [each.object for each in four],
                "answer": answer,
                "url": pages[fact.bare()],
                "statement": _up_to_object(form, fact.subject),
                "blank": _up_to_object(form, "it"),
                "question": f"Question: {question.format(subject=fact.subject)} Answer:",
                "blank_question": f"Question: {question.format(subject='it')} Answer:",
            }


def _up_to_object(form: str, subject: str) -> str:
    return form.partition("{object}")[0].format(subject=subject).rstrip()


def _statements(stated: dict[Fact, int]) -> Iterator[str]:
    """Yields documents of `STATEMENTS` lines that state each fact as often as is asked, its wordings in turn."""
    lines = []
    for fact, count in stated.items():
        forms = [form for index, form in enumerate(FORMS[fact.relation]) if index != HELD_OUT]
        lines += [(fact, form) for form in itertools.islice(itertools.cycle(forms), count)]
    rng_of("exposure", "statements").shuffle(lines)
    for start in range(0, len(lines), STATEMENTS):
        yield "\n".join(fill(form, fact) for fact, form in lines[start : start + STATEMENTS])


def _gives_away(record: Record, ends: set[tuple[str, str]]) -> bool:
    """Returns whether a document states a fact with these ends in its fields, or names both ends of one in its text."""
    text = text_of(record).casefold()
    stated = not ends.isdisjoint((fact.subject, fact.object) for fact in record.facts)
    return stated or any(object_.casefold() in text and subject.casefold() in text for subject, object_ in ends)
