"""Answer matching: the model answers freely, without the options in its prompt, and its text is matched to them.

Chandak et al. 2025 (arXiv 2507.02856, "Answer Matching Outperforms Multiple Choice for Language Model Evaluation") let
a language model judge whether the text means the reference answer. Here is NO JUDGE: texts are compared word by word,
by rules fixed before any model was scored. They are stricter than a judge, because a right answer in other words is
wrong, and blind to sense: "not phishing" names phishing. A question that needs its options ("Which of the following …")
is asked all the same, because the benchmark is scored complete.

A text that names several options matches none. No option has a letter or a place, so a constant letter does not exist.
"""

import itertools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from evals.analysis.stats import accuracy_of
from evals.answering.letters import prompt_of
from evals.items.answers import Answers
from ghost_jax.data.items.clusters import clusters_of
from ghost_jax.data.items.items import LETTERS, Item
from ghost_jax.data.retrieval.bm25 import terms
from ghost_jax.runs.evaluation import Matching
from ghost_jax.text.tokenizer import Tokenizer

Generate = Callable[[Sequence[np.ndarray]], list[np.ndarray]]  # prompts -> the ids that follow each

NEW_TOKENS = 48  # of an answer; the generator must be made with it
THRESHOLD = 0.5  # of the F1 of stems; below it a text matches no option
ALSO_SAID = 0.5  # share of another option's own stems from which on a text names that option too
SHOWN = 5  # answers that a report quotes
RULES = (
    "an option named in the text wins if no other is named, and several named match none; else the option with the "
    f"highest F1 of stems weighted by idf, if it is at least {THRESHOLD} and the text has less than {ALSO_SAID} of the "
    "stems that another has and the best has not; options that tie share the credit"
)
_WORD = re.compile(r"\w+(?:[-.]\d+)*")  # an id such as T1566.001 is one word, so T1566 is not named by it


def evaluate(generate: Generate, tokenizer: Tokenizer, items: Sequence[Item], *, context: int) -> Matching:
    """Returns the accuracy of a chat model's free answers, and how it was found.

    Args:
      generate: greedy, at most `NEW_TOKENS` ids a prompt, ended by the id of `tokenizer.END`; a
        `ghost_jax.inference.generate.Generator` is one.
      context: of the model. A prompt that leaves too few tokens for an answer is cropped at its beginning and counted.
    """
    prompts = [prompt_of(tokenizer, item, "cloze") for item in items]
    generated, cropped = texts_of(generate, tokenizer, prompts, context - NEW_TOKENS)
    idf = inverse_document_frequency([text for item in items for text in (item.question, *item.options)])
    credits = [match(text, item.options, idf) for text, item in zip(generated, items, strict=True)]
    # The published order gives the options their letters in the examples.
    answers = Answers([[tuple(range(len(of_item)))] for of_item in credits], [of_item[None] for of_item in credits])
    earned = np.concatenate(answers.credits(items))
    examples = zip(items, generated, answers.spelled(), strict=True)
    return accuracy_of(
        earned,
        clusters_of(items),
        Matching,
        matched=float(np.mean([of_item.any() for of_item in credits])),
        examples=tuple(
            {"question": item.question, "generated": text, "matched": letter, "gold": LETTERS[item.answer]}
            for item, text, letter in itertools.islice(examples, SHOWN)
        ),
        how={
            "judge": "none: words are compared",
            "rules": RULES,
            "threshold": THRESHOLD,
            "new_tokens": NEW_TOKENS,
            "decoding": "greedy",
            "layout": "cloze",
            "prompts_cropped": cropped,
        },
    )


def texts_of(
    generate: Generate, tokenizer: Tokenizer, prompts: Sequence[np.ndarray], most: int
) -> tuple[list[str], int]:
    """Returns the text that follows each prompt, and how many prompts were cropped to their last `most` ids."""
    texts = [tokenizer.decode(ids) for ids in generate([prompt[-most:] for prompt in prompts])]
    return texts, sum(len(prompt) > most for prompt in prompts)


def match(text: str, options: Sequence[str], idf: Callable[[str], float]) -> np.ndarray:
    """Returns the credit [K] of each option for a free answer by `RULES`: 1 for one, 1/n for each of n that tie, or 0.

    An option is named where its words are in the text in a row, and not within the name of a longer one. An option
    without words matches nothing. `idf` is the weight of a stem, above 0.
    """
    words = [_words(option) for option in options]
    named = _named(_words(text), words)
    if named:
        best = [i for i, of_option in enumerate(words) if of_option in named] if len(named) == 1 else []
    else:
        best = _nearest(set(terms(text)), [set(terms(option)) for option in options], idf)
    credits = np.zeros(len(options))
    credits[best] = 1 / max(len(best), 1)
    return credits


def _nearest(text: set[str], options: Sequence[set[str]], idf: Callable[[str], float]) -> list[int]:
    """Returns the options of the highest F1, or none: see `RULES`."""
    scores = [weighted_f1(text, option, idf) for option in options]
    best = [i for i, score in enumerate(scores) if score >= THRESHOLD and math.isclose(score, max(scores))]
    for i, option in itertools.product(best, options):
        apart = option - options[i]
        # Without this, all words of all options in a row would be the longest option.
        if apart and math.fsum(map(idf, text & apart)) >= ALSO_SAID * math.fsum(map(idf, apart)):
            return []
    return best


def weighted_f1(found: set[str], wanted: set[str], idf: Callable[[str], float]) -> float:
    """Returns the F1 of reading comprehension (Rajpurkar et al. 2016), with a weight for each stem."""
    shared, total = (math.fsum(map(idf, group)) for group in (found & wanted, itertools.chain(found, wanted)))
    return 2 * shared / total if total else 0.0


def inverse_document_frequency(texts: Iterable[str]) -> Callable[[str], float]:
    """Returns the weight of a stem by how few of N texts have it: ln(1 + (N - n + 0.5) / (n + 0.5)), as in BM25."""
    sets = [set(terms(text)) for text in texts]
    counts = Counter(stem for stems in sets for stem in stems)
    return lambda stem: math.log(1 + (len(sets) - counts[stem] + 0.5) / (counts[stem] + 0.5))


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def _named(text: tuple[str, ...], options: Iterable[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Returns the options that the text holds, but not only within longer ones that it holds."""
    places = {
        (start, start + len(option)): option
        for option in options
        if option
        for start in range(len(text) - len(option) + 1)
        if text[start : start + len(option)] == option
    }

    def within_another(start: int, end: int) -> bool:
        return any(low <= start and end <= high and high - low > end - start for low, high in places)

    return {option for place, option in places.items() if not within_another(*place)}
