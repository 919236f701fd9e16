"""Fact rewriting for pretraining: every typed fact in all its surface forms, and how often each fact is stated.

The facts of all subjects are stated, those of the test split of multiple choice too. A fact cannot be inferred from
other facts, so a question about one that was never stated measures nothing. A held-out subject measures whether a fact
that was read can be recalled in a wording and a task that were not trained on for this subject.

One document in fifty is validation, as with plain documents. Its facts are in training under their other forms. A
fact's exposures in a run are its forms in the train split (`facts_of`) times the epochs.
"""

import itertools
from collections.abc import Iterator, Sequence

from ghost_jax.data.builders import pretrain
from ghost_jax.data.examples import BuildInputs, Documents, Rows, rng_of
from ghost_jax.data.storage.schema import Fact
from ghost_jax.data.wordings import FORMS, fill
from ghost_jax.text.tokenizer import Tokenizer

VERSION = 1  # raise it, with exposure, when the same facts give other statements

LONGEST_NAME = 300  # characters; twice the longest name of a weakness
STATEMENTS = 8  # a document
PARTS = 4  # of the facts, each shuffled in itself


def dataset(inputs: BuildInputs) -> Rows:
    """Writes `facts.jsonl` with the exposures of each fact, and returns the rows of `build` in both splits."""
    inputs.write_lines("facts.jsonl", facts_of(inputs.documents))
    window = inputs.options.seq_len
    return {split: build(inputs.documents, inputs.vocabulary, split, window) for split in pretrain.SPLITS}


def can_be_rewritten(fact: Fact) -> bool:
    """Returns whether both ends of the fact are names that a sentence can hold.

    Long prose, as "weakness_class" has from vulnerabilities, is no name: repeated twenty times it would outweigh all
    names. A name that stands for itself states nothing.
    """
    return fact.subject != fact.object and all(0 < len(name) <= LONGEST_NAME for name in (fact.subject, fact.object))


def build(documents: Documents, tokenizer: Tokenizer, split: str, window: int) -> Iterator[dict]:
    """Yields rows of `window + 1` tokens of the rewritten facts that are in `split`; see `pretrain.windows`."""
    facts = list(_sources(documents))
    texts = (
        "\n".join(fill(FORMS[facts[i].relation][form], facts[i]) for i, form in stated)
        for index, stated in enumerate(_arrangement(facts))
        if pretrain.is_in(split, index)
    )
    return pretrain.windows(texts, tokenizer, split, window, source="facts")


def facts_of(documents: Documents) -> Iterator[dict]:
    """Yields a line for each fact: subject, relation, object, source, and `forms`, its statements in the train split.

    The source of a fact is the one that states it first.
    """
    sources = _sources(documents)
    facts = list(sources)
    forms = [0] * len(facts)
    for index, stated in enumerate(_arrangement(facts)):
        if pretrain.is_in("train", index):
            for i, _ in stated:
                forms[i] += 1
    for fact, count in zip(facts, forms, strict=True):
        named = {"subject": fact.subject, "relation": fact.relation, "object": fact.object}
        yield named | {"source": sources[fact], "forms": count}


def _sources(documents: Documents) -> dict[Fact, str]:
    """Returns each fact that can be rewritten, without its evidence, and the source that states it first."""
    sources: dict[Fact, str] = {}
    for record in documents():
        for fact in filter(can_be_rewritten, record.facts):
            sources.setdefault(fact.bare(), record.source)
    return sources


def _arrangement(facts: Sequence[Fact]) -> Iterator[tuple[tuple[int, int], ...]]:
    """Yields documents: for each statement the index of its fact and of the form.

    A turn states every fact once, and facts that follow one another have different forms. The facts are dealt into
    `PARTS`, which come in the same order each turn while each is shuffled: a fact gets other neighbours each time, and
    at least all facts but one part lie between two statements of it.
    """
    order = list(range(len(facts)))
    rng_of("rewrite", "parts").shuffle(order)
    parts = [order[part::PARTS] for part in range(PARTS)]
    counts = [len(FORMS[fact.relation]) for fact in facts]

    def stated() -> Iterator[tuple[int, int]]:
        for turn in range(max(counts, default=0)):
            for number, part in enumerate(parts):
                rng_of("rewrite", turn, number).shuffle(part)
                yield from ((i, (i + turn) % counts[i]) for i in part if turn < counts[i])

    stream = stated()
    while document := tuple(itertools.islice(stream, STATEMENTS)):
        yield document
