"""Retrieval-augmented fine-tuning (RAFT): multiple choice behind retrieved passages, some of which lack the answer.

Most prompts hold the oracle, the passage with the question's evidence, among others that were retrieved with it. In
some the oracle is replaced, and some have no context, so that a model learns to use evidence and to do without it.
Source: Zhang et al. 2024, arXiv 2403.10131; the shares are the study's.
"""

import dataclasses
import itertools
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

from ghost_jax.data.builders import BOOK, mcq
from ghost_jax.data.corpus import index_store
from ghost_jax.data.examples import BuildInputs, Conversation, Question, Rows, rng_of
from ghost_jax.data.retrieval.bm25 import CONTEXT, Index, Passage, shown, terms
from ghost_jax.text.chat_format import Message
from ghost_jax.text.mcq_format import with_context

VERSION = 3  # raise it, with rank, when the same questions get other passages

ORACLE_SHARE = 0.7
REPLACED_SHARE = 0.2  # the rest carries no context
# The oracle holds at least HOLDS of the evidence's terms. A passage with TELLS of its share gives the answer too.
HOLDS, TELLS = 0.5, 0.75
RANDOM_DRAWS = 100  # far more than are needed, unless nearly every passage gives the answer


def dataset(inputs: BuildInputs) -> Rows:
    """Returns the rows of `build` for the questions of `mcq`."""
    options = inputs.options
    asked = list(mcq.questions(inputs.documents, options.seed))
    return inputs.render(build(asked, index_of(inputs, asked), options.seed, options.layout) if asked else ())


def index_of(inputs: BuildInputs, asked: Iterable[Question]) -> Index:
    """Returns the index of the pages that questions are asked from; a vulnerability's own page holds its oracle."""
    pages_of = {*BOOK, *(q.source for q in asked)}
    return Index.load(index_store(inputs.corpus, pages_of, inputs.say))


def build(asked: Iterable[Question], index: Index, seed: int, layout: str) -> Iterator[Conversation]:
    """Yields the conversations of `mcq.build` with a context in front of most questions, see `with_passages`."""
    for q, context in with_passages(asked, index, seed):
        (plain,) = mcq.build([q], seed, layout)
        user, assistant = plain.messages
        yield dataclasses.replace(plain, messages=(Message("user", with_context(user.content, context)), assistant))


def with_passages(asked: Iterable[Question], index: Index, seed: int) -> Iterator[tuple[Question, list[str]]]:
    """Yields each question with the passages in front of it, as a prompt shows them; a tenth of questions has none.

    The oracle is the passage of the question's page that matches the evidence best. Where it
    was not retrieved, it replaces the last passage. Where it is replaced itself, every passage of its page and every
    passage with as much of the evidence is removed too. A question whose evidence is not in the index is left out.
    """
    asked = list(asked)
    rows_of = rows_by_page(index)
    retrieved = index.context([q.question for q in asked]).tolist()
    for q, found in zip(asked, retrieved, strict=True):
        if not (page := rows_of.get(q.url)):
            continue
        oracle = page[np.argmax(index.scores(q.evidence)[page])]
        if held(index.passages[oracle], q.evidence) < HOLDS:
            continue
        rng = rng_of(seed, "raft", q.id)
        draw = rng.random()
        if draw < ORACLE_SHARE:
            rows = found if oracle in found else [*found[:-1], oracle]
        elif draw < ORACLE_SHARE + REPLACED_SHARE:
            rows = _without(oracle, q, index, rng, len(page))
        else:
            rows = []
        rng.shuffle(rows)  # the oracle's position must not give it away
        yield q, [shown(index.passages[row]) for row in rows]


def rows_by_page(index: Index) -> dict[str, list[int]]:
    """Returns what questions name their page by, see `Record.page` -> the rows of its passages."""
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, passage in enumerate(index.passages):
        rows_of[passage.url or f"{passage.source}/{passage.page}"].append(row)
    return rows_of


def held(passage: Passage, evidence: str) -> float:
    """Returns the share of the evidence's terms that the passage has in its title, section and text."""
    wanted = set(terms(evidence))
    return len(wanted & set(terms(f"{passage.title} {passage.section} {passage.text}"))) / max(1, len(wanted))


def _without(oracle: int, q: Question, index: Index, rng: random.Random, page: int) -> list[int]:
    """Returns the best retrieved rows among those that do not give the answer, and a random one for the oracle.

    Args:
      page: how many passages the question's page has, all of which may be retrieved before any other.
    """
    telling = index.passages[oracle]
    limit = TELLS * held(telling, q.evidence)

    def tells(row: int) -> bool:
        passage = index.passages[row]
        of_its_page = (passage.source, passage.page) == (telling.source, telling.page)
        return of_its_page or held(passage, q.evidence) >= limit

    ranked = index.search([q.question], CONTEXT + page)[0][0].tolist()
    kept = list(itertools.islice(itertools.filterfalse(tells, ranked), CONTEXT - 1))
    drawn = (row for row in rng.sample(range(len(index)), min(RANDOM_DRAWS, len(index))) if row not in kept)
    return kept + list(itertools.islice(itertools.filterfalse(tells, drawn), CONTEXT - len(kept)))
