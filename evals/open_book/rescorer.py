"""The fitted open-book reader: a conditional logit over the features of each option.

Its weights come from generated questions, so that nothing of the benchmark tunes them, or from the development split of
CTIBench, and then only the other questions may be scored.

A question from a template is answered by the very line it was made from, whatever the weights are. To learn which
features hold when people ask in other words, generated questions are made from a fact and the source's sentence behind
it, and half the words of question and options are struck out, of each option by its own draw, as in a paraphrase.

The model is McFadden's (1974, "Conditional logit analysis of qualitative choice behavior").
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random

import numpy as np
from scipy.optimize import minimize

from evals.open_book import lexical
from evals.open_book.lexical import EVIDENCE, LexicalReader, Weights
from ghost_jax.core.errors import UserError
from ghost_jax.data.corpus import documents_of
from ghost_jax.data.items.items import Item
from ghost_jax.data.retrieval.bm25 import Index
from ghost_jax.data.storage import artifact_cache
from ghost_jax.data.storage.schema import Fact, Record, split_of
from ghost_jax.data.wordings import QUESTIONS

VERSION = 2  # raise it when the same book gives other questions or weights

# Relations whose facts have the source's own sentence, and not one that restates a field.
ASKED = ("mitigation", "detection", "group_technique", "software_technique", "campaign_technique")
PER_RELATION = 300
OPTIONS = 4
STRUCK = 0.5  # share of the words that a paraphrase changes
NAMED = 0.7  # share of the questions by a sentence that name the fact's other side as well
SAME_PAGE = 1 / 3  # share of the wrong sentences that are about the same subject
LONGEST = 40  # words of a sentence as an option
RIDGE = 30.0  # of the squared weights of standardised features; 10 and 100 were no different on the development split
SEED = 0

_ID = re.compile(r" \([A-Z]+-?\d[\d.]*\)$")


class TooFewFacts(UserError):
    """A book from which no questions can be made."""


def fit(blocks: Sequence[np.ndarray], answers: Sequence[int], names: Sequence[str], ridge: float = RIDGE) -> Weights:
    """Returns the weights of the named features under which the answers are most likely, shrunk towards 0.

    Args:
      blocks: of each of N questions [K, names] the features of its options; K may differ.
      answers: [N] the index of each gold option.
      ridge: penalty on half the squared weights of the features in units of their spread within a question.
    """
    features = np.concatenate([block - block.mean(axis=0) for block in blocks])  # [options of all questions, names]
    spread = features.std(axis=0)
    spread[spread == 0] = 1
    features /= spread
    sizes = np.array([len(block) for block in blocks])
    starts = np.cumsum(sizes) - sizes
    gold = starts + np.asarray(answers)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits = features @ weights
        logits -= np.repeat(np.maximum.reduceat(logits, starts), sizes)
        likely = np.exp(logits)
        totals = np.add.reduceat(likely, starts)
        probabilities = likely / np.repeat(totals, sizes)
        value = (np.log(totals) - logits[gold]).sum() + ridge * weights @ weights / 2
        return value, probabilities @ features - features[gold].sum(axis=0) + ridge * weights

    found = minimize(loss, np.zeros(len(names)), jac=True, method="L-BFGS-B").x / spread
    return dict(zip(names, found.tolist(), strict=True))


# ---- Weights from generated questions ----


def generated_weights(corpus: Path, indexes: Sequence[Path], say: Callable[[str], None]) -> Weights:
    """Returns the weights of `EVIDENCE` fitted on questions generated from a corpus, kept as a store.

    `indexes` are the stores of the corpus's indexes. Raises TooFewFacts where the corpus holds too few to ask about.
    """

    def write(folder: Path) -> dict:
        items = enough(generated(documents_of(corpus)()))
        say(f"fitting the reader to {len(items):,} generated questions")
        reads = LexicalReader(*map(Index.load, indexes)).read_all(items)
        answers = [item.answer for item in items]
        right = [read.scores().argmax() == answer for read, answer in zip(reads, answers, strict=True)]
        return {
            "weights": fit([read.features(EVIDENCE) for read in reads], answers, EVIDENCE),
            "questions": len(items),
            "right_unfitted": float(np.mean(right)),
        }

    made_from = {"corpus": corpus.name, "indexes": [index.name for index in indexes]}
    versions = {"rescorer": VERSION, "lexical": lexical.VERSION}
    return artifact_cache.manifest(artifact_cache.build("reader", versions, made_from, write)).model_extra["weights"]


def enough(items: list[Item]) -> list[Item]:
    """Returns generated questions. Raises TooFewFacts where they are fewer than the weights to fit."""
    if len(items) < len(EVIDENCE):
        raise TooFewFacts(
            "The open book holds too few facts to generate questions from, so that no weights can be fitted. Use the "
            "reader with nothing fitted, or give the sources attack, capec and cwe in full."
        )
    return items


def generated(documents: Iterable[Record]) -> list[Item]:
    """Returns questions made from the facts of the train split and their sentences, a fixed draw."""
    by_relation: dict[str, list[tuple[Fact, str]]] = defaultdict(list)
    for record in documents:
        for fact in record.facts:
            if fact.relation in ASKED and split_of(fact.subject) == "train":
                by_relation[fact.relation].append((fact, record.url))
    items = []
    for relation in ASKED:
        stated = by_relation[relation]
        rng = Random(f"{SEED}/{relation}")
        facts = [fact for fact, _ in stated]
        for fact, url in rng.sample(stated, min(PER_RELATION, len(stated))):
            made = (_by_sentence if rng.random() < 0.5 else _for_sentence)(fact, facts, rng)
            if made:
                question, options = made
                order = rng.sample(range(OPTIONS), OPTIONS)
                shuffled = tuple(options[i] for i in order)
                items.append(Item(f"{relation}/{len(items)}", question, shuffled, order.index(0), url))
    return items


def _by_sentence(fact: Fact, facts: Sequence[Fact], rng: Random) -> tuple[str, list[str]] | None:
    """Returns a question that states the sentence and asks for one side of the fact, and the options, gold first."""
    asks_subject = fact.relation.endswith("_technique") and rng.random() < 0.5
    gold, named = (fact.subject, fact.object) if asks_subject else (fact.object, fact.subject)
    true = {(each.object, each.subject)[asks_subject] for each in facts if named in (each.subject, each.object)}
    others = sorted({(each.object, each.subject)[asks_subject] for each in facts} - true)
    if len(others) < OPTIONS - 1:
        return None
    told = _struck(fact.evidence.replace(_ID.sub("", gold), ""), rng)
    kind = f"Which {fact.relation.split('_')[0]}" if rng.random() < 0.5 else ""
    question = " ".join(filter(None, (kind, told, named if rng.random() < NAMED else "")))
    options = [gold, *rng.sample(others, OPTIONS - 1)]
    return question, [_ID.sub("", option) for option in options] if rng.random() < 0.5 else options


def _for_sentence(fact: Fact, facts: Sequence[Fact], rng: Random) -> tuple[str, list[str]] | None:
    """Returns a question that names both sides of the fact and asks for the sentence, and the options, gold first."""
    wording = rng.choice(QUESTIONS[fact.relation]).format(subject=fact.subject) if rng.random() < 0.5 else fact.subject
    near = sorted({each.evidence for each in facts if each.subject == fact.subject} - {fact.evidence})
    far = sorted({each.evidence for each in facts if each.subject != fact.subject} - {fact.evidence})
    if len(far) < OPTIONS - 1:
        return None
    wrong = rng.sample(far, OPTIONS - 1)
    for i, sentence in enumerate(rng.sample(near, min(len(near), OPTIONS - 1))):
        if rng.random() < SAME_PAGE:
            wrong[i] = sentence
    return f"{wording} {fact.object}", [_struck(sentence, rng) for sentence in (fact.evidence, *wrong)]


def _struck(sentence: str, rng: Random) -> str:
    """Returns a sentence with a share of its words struck out, and cut at `LONGEST`."""
    words = sentence.split()[:LONGEST]
    return " ".join([word for word in words if rng.random() >= STRUCK] or words[:1])
