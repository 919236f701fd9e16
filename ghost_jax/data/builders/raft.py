"""Retrieval-augmented fine-tuning (RAFT): multiple choice behind retrieved passages, some of which do not tell.

Most prompts carry the oracle, the passage that holds the question's evidence, among others that were retrieved with
it; in some it is withheld and in some there is no context, so that a model learns to use what tells and to do without.
Source: Zhang et al. 2024, arXiv 2403.10131; the shares are the study's.
"""

import dataclasses
import itertools
import random
from collections.abc import Iterable, Iterator

from ghost_jax.data.builders import Conversation, Question, mcq, rng_of
from ghost_jax.data.retrieval.bm25 import CONTEXT, Index, Passage, shown, terms
from ghost_jax.text.chat_format import Message
from ghost_jax.text.mcq_format import with_context

VERSION = 1  # raise it when the same questions get other passages

ORACLE_SHARE = 0.7
REPLACED_SHARE = 0.2  # the rest carries no context
# The oracle holds at least this part of the evidence's terms; whatever else holds nearly as much tells the same.
HOLDS, TELLS = 0.5, 0.75
RANDOM_DRAWS = 100  # far more than are needed, unless nearly every passage tells


def build(asked: Iterable[Question], index: Index, seed: int, layout: str) -> Iterator[Conversation]:
    """Yields the conversations of `mcq.build` with a context in front of most questions, see `with_passages`."""
    found = list(with_passages(asked, index, seed))
    for (_, context), plain in zip(found, mcq.build([q for q, _ in found], seed, layout), strict=True):
        user, assistant = plain.messages
        yield dataclasses.replace(plain, messages=(Message("user", with_context(user.content, context)), assistant))


def with_passages(asked: Iterable[Question], index: Index, seed: int) -> Iterator[tuple[Question, list[str]]]:
    """Yields each question with the passages that stand in front of it, as a prompt shows them; a tenth has none.

    The oracle is the passage of the question's page, known by its address, that matches the evidence best. Where it is
    not among the retrieved, it takes the place of the last; where it is replaced, every passage of its page and every
    passage that tells the same goes with it. A question whose evidence is not in the index is left out.
    """
    asked = list(asked)
    retrieved = index.context([q.question for q in asked]).tolist()
    for q, found in zip(asked, retrieved, strict=True):
        page = index.rows_of(q.url)
        if not len(page):
            continue
        oracle = index.best(q.evidence, page)
        if held(index.passage(oracle), q.evidence) < HOLDS:
            continue
        rng = rng_of(seed, "raft", q.id)
        draw = rng.random()
        if draw < ORACLE_SHARE:
            rows = found if oracle in found else [*found[:-1], oracle]
        elif draw < ORACLE_SHARE + REPLACED_SHARE:
            rows = _without(oracle, q, index, rng, len(page))
        else:
            rows = []
        rng.shuffle(rows)  # its place must not give the oracle away
        yield q, [shown(index.passage(row)) for row in rows]


def held(passage: Passage, evidence: str) -> float:
    """Returns the share of the evidence's terms that the passage has in its title, section and text."""
    wanted = set(terms(evidence))
    return len(wanted & set(terms(f"{passage.title} {passage.section} {passage.text}"))) / max(1, len(wanted))


def _without(oracle: int, q: Question, index: Index, rng: random.Random, page: int) -> list[int]:
    """Returns the rows that were retrieved best among those that do not tell, and a random one for the oracle.

    Args:
      page: how many passages the question's page has, all of which may have been retrieved before any other.
    """
    telling = index.passage(oracle)
    limit = TELLS * held(telling, q.evidence)

    def tells(row: int) -> bool:
        passage = index.passage(row)
        of_its_page = (passage.source, passage.page) == (telling.source, telling.page)
        return of_its_page or held(passage, q.evidence) >= limit

    ranked = index.search([q.question], CONTEXT + page)[0][0].tolist()
    kept = list(itertools.islice(itertools.filterfalse(tells, ranked), CONTEXT - 1))
    drawn = (row for row in rng.sample(range(len(index)), min(RANDOM_DRAWS, len(index))) if row not in kept)
    return kept + list(itertools.islice(itertools.filterfalse(tells, drawn), CONTEXT - len(kept)))
