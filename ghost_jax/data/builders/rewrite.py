"""Fact rewriting for pretraining: every typed fact in all its surface forms, and how often each fact is met.

The rewritten facts are study material, as the documents are: they cover the facts of every subject, those of the test
split of multiple choice too. A fact cannot be inferred from other facts, so a question about one that was never stated
measures nothing. What a held-out subject measures is whether a fact that was read can be asked for, in a wording and a
task that were not trained on for this subject.

One document in fifty is validation, as with plain documents. Its facts are in training under their other forms, so its
loss tells how well facts are known and not only how well sentences are.

A fact's exposures in a run are its forms in the train split (`facts_of`) times the epochs. At most one window at the
very end of the stream is cut off (`pretrain.windows`), which costs a few of the last facts one exposure.
"""

import itertools
from collections.abc import Iterator, Sequence

from ghost_jax.data.builders import Documents, rng_of
from ghost_jax.data.builders.pretrain import is_in, windows
from ghost_jax.data.storage.schema import Fact
from ghost_jax.data.wordings.surface_forms import FORMS, fill
from ghost_jax.text.tokenizer import Tokenizer

VERSION = 1  # raise it when the same facts give other statements, also by a change of `surface_forms`

LONGEST_NAME = 300  # characters; twice the longest name of a weakness
STATEMENTS = 8  # a document
PARTS = 4  # of the facts, each shuffled in itself


def can_be_rewritten(fact: Fact) -> bool:
    """Returns whether both ends of the fact can be named in a sentence.

    A long prose description, as "weakness_class" has from vulnerabilities, is no entity: repeated twenty times it
    would outweigh all names and teach one text by heart. A name that stands for itself states nothing.
    """
    return fact.subject != fact.object and all(0 < len(name) <= LONGEST_NAME for name in (fact.subject, fact.object))


def statements(fact: Fact) -> tuple[str, ...]:
    """Returns the fact in every form of its relation: pairwise distinct lines, each with both names unaltered."""
    return tuple(fill(form, fact) for form in FORMS[fact.relation])


def build(documents: Documents, tokenizer: Tokenizer, split: str, window: int) -> Iterator[dict]:
    """Yields rows of `window + 1` tokens of the rewritten facts that are in `split`; see `pretrain.windows`.

    The facts are held, their statements are not. The order depends on the facts alone.
    """
    facts = list(_sources(documents))
    texts = (
        "\n".join(fill(FORMS[facts[i].relation][form], facts[i]) for i, form in stated)
        for index, stated in enumerate(_arrangement(facts))
        if is_in(split, index)
    )
    return windows(texts, tokenizer, split, window, source="facts")


def facts_of(documents: Documents) -> Iterator[dict]:
    """Yields a line for each fact: subject, relation, object, source, and `forms`, its statements in the train split.

    A fact that several documents state is one fact, of the source that states it first.
    """
    sources = _sources(documents)
    facts = list(sources)
    forms = [0] * len(facts)
    for index, stated in enumerate(_arrangement(facts)):
        if is_in("train", index):
            for i, _ in stated:
                forms[i] += 1
    for fact, count in zip(facts, forms, strict=True):
        yield {
            "subject": fact.subject,
            "relation": fact.relation,
            "object": fact.object,
            "source": sources[fact],
            "forms": count,
        }


def summary(documents: Documents) -> dict:
    """Returns for the manifest how many facts there are, their forms in the train split, and the same by relation."""
    by_relation: dict[str, list[int]] = {}
    for line in facts_of(documents):
        by_relation.setdefault(line["relation"], []).append(line["forms"])
    return {
        **_counts([forms for each in by_relation.values() for forms in each]),
        "relations": {relation: _counts(forms) for relation, forms in sorted(by_relation.items())},
    }


def _counts(forms: list[int]) -> dict[str, int]:
    return {
        "facts": len(forms),
        "forms": sum(forms),
        "least_forms": min(forms, default=0),
        "most_forms": max(forms, default=0),
    }


def _sources(documents: Documents) -> dict[Fact, str]:
    """Returns each fact that can be rewritten, without its evidence, and the source that states it first."""
    sources: dict[Fact, str] = {}
    for record in documents():
        for fact in filter(can_be_rewritten, record.facts):
            sources.setdefault(Fact(fact.subject, fact.relation, fact.object, evidence=""), record.source)
    return sources


def _arrangement(facts: Sequence[Fact]) -> Iterator[tuple[tuple[int, int], ...]]:
    """Yields documents: for each statement the index of its fact and of the form.

    A turn states every fact once, and facts that follow one another stand in different forms. The facts are dealt into
    `PARTS`, which come in the same order each turn while their own order changes: so a fact meets other neighbours each
    time, and at least all facts but one part lie between two statements of it.
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
