"""Multiple choice from typed facts, in sets of four questions that the options alone do not answer.

Four facts of one relation are asked together with the same four options: the objects of the four. Every option is gold
once and a distractor three times, so a choice by the options alone (the longest, the most popular, or any property that
a model can learn of them) is right in exactly one question of four, in each split. Questions that share words with
their answer are left out until counting common words is at chance as well. `measure` reports the baselines.

Complementary questions balance VQA v2 in the same way: Goyal et al., "Making the V in VQA Matter", CVPR 2017.
"""

import dataclasses
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from random import Random

from ghost_jax.data.builders.mcq import LETTER_ONLY_SHARE
from ghost_jax.data.examples import BuildInputs, Conversation, Documents, Question, Rows, rng_of
from ghost_jax.data.items.items import cyclic_orders, order_name, permute
from ghost_jax.data.retrieval import mcq_baselines
from ghost_jax.data.retrieval.mcq_baselines import credits_of
from ghost_jax.data.storage.schema import SPLITS, Fact, split_of
from ghost_jax.data.wordings import QUESTIONS
from ghost_jax.text.mcq_format import LETTERS

VERSION = 5  # raise it, with exposure and rank, when the same documents give other questions

MOST = 4000  # facts asked a relation, so that none dominates
CONSIDERED = 3 * MOST  # facts drawn a relation, of which the ones asked remain
OPTIONS = 4
LONGEST = 350  # characters of a subject that is asked about
FEWEST = 12  # words of a description that is asked about
HELD_OUT_FORMS = 2  # wordings of each relation that no question of the train split has, and all other questions have
NEAR = 12  # a set is completed from so many objects, the nearest in length: options that look alike are harder

# Facts whose two ends stand together in questions on other subjects: "Name (CWE-79)", a port's other protocol, "malware
# used by APT28" on the software's page, "APT28 used it to …" of another fact. They are no measure of what was not
# trained on, and are not among the held-out items.
LINKED = (
    *("weakness_name", "attack_pattern_name", "port_service"),
    *("group_software", "group_technique", "software_technique", "campaign_technique"),
)

_ID = re.compile(r" \([A-Z]+-?[\d.]+\)$")  # behind a name
_NUMBER = re.compile(r"(?:^|\()(?P<id>CWE-\d+|(?P<technique>T\d{4})(?:\.\d{3})?)\)?$")


Asked = Mapping[Fact, Question]  # facts, and the question of each without options


def dataset(inputs: BuildInputs) -> Rows:
    """Writes the questions as items, prints and records their baselines, and returns the rows of `build`."""
    asked = questions(inputs.documents, inputs.options.seed)
    inputs.write_items(q for q in asked if q.split == "train" or q.id.partition("/")[0] not in LINKED)
    inputs.recorded["baselines"] = measure(asked)
    for name, accuracies in inputs.recorded["baselines"].items():
        inputs.say(f"{name:28}" + "".join(f"  {where} {100 * each:5.2f}%" for where, each in accuracies.items()))
    return inputs.render(build(asked, inputs.options.layout))


def questions(documents: Documents, seed: int) -> list[Question]:
    """Returns the questions of every relation, set by set: four with the same options, whose golds are A, B, C and D.

    A fact is asked at most once, and of a relation at most `MOST` facts; facts, sets and wordings are a draw by `seed`.
    A set stays within one relation, source and split.
    """
    stated, truths = _read(documents, seed)
    asked: list[Question] = []
    for relation in QUESTIONS:
        facts = _drawn(stated[relation], CONSIDERED, seed)
        # First single facts that give themselves away are left out, the others of their sets kept; then whole sets.
        given_away = _one_sided([[q] for four in _in_sets(facts, truths, seed) for q in four])
        facts = _drawn({fact: q for fact, q in facts.items() if q.id not in given_away}, MOST, seed)
        sets = _in_sets(facts, truths, seed)
        given_away = _one_sided(sets)
        asked += [q for four in sets for q in four if q.id not in given_away]
    return asked


def sets_of_facts(documents: Documents) -> Iterator[list[Fact]]:
    """Yields sets of four facts of one relation, source and split, each object false for the three other subjects."""
    stated, truths = _read(documents, seed=0)
    for facts in stated.values():
        yield from _facts_in_sets(facts, truths, seed=0)


def build(asked: Iterable[Question], layout: str) -> Iterator[Conversation]:
    """Yields each question in its four cyclic orders, so that every letter is gold equally often; in a cloze once.

    70% of the answers are the bare letter, the others "B. <option>", as in `mcq`.
    """
    for q in asked:
        for order in cyclic_orders(OPTIONS)[: 1 if layout == "cloze" else OPTIONS]:
            name = order_name(order)
            moved = dataclasses.replace(permute(q, order), id=f"{q.id}/{name}")
            bare = layout != "cloze" and rng_of("form", q.id, name).random() < LETTER_ONLY_SHARE
            yield moved.answered(layout, "" if bare else q.options[q.answer])


def measure(asked: Sequence[Question]) -> dict[str, dict[str, float]]:
    """Returns the accuracy of each baseline, over all questions and in each split that has some.

    Popularity is counted in the train split.
    """
    parts = {"all": asked} | {split: [q for q in asked if q.split == split] for split in SPLITS}
    baselines = {f"always {letter}": mcq_baselines.always(i) for i, letter in enumerate(LETTERS[:OPTIONS])} | {
        "longest option": mcq_baselines.longest,
        "shortest option": mcq_baselines.shortest,
        "most words of the question": mcq_baselines.overlapping,
        "most often offered in train": mcq_baselines.popular(mcq_baselines.times_offered(parts["train"])),
        "most often gold in train": mcq_baselines.popular(mcq_baselines.times_gold(parts["train"])),
    }
    return {
        name: {where: float(credits_of(baseline, part).mean()) for where, part in parts.items() if part}
        for name, baseline in baselines.items()
    }


class _Truths:
    """What is true of each subject, and which entries of a catalogue are broader than others."""

    def __init__(self, facts: Sequence[Fact]) -> None:
        self.weaknesses = {fact.object for fact in facts if fact.relation == "weakness_name"}  # as a catalogue has them
        self._number = {fact.object.casefold(): fact.subject for fact in facts if fact.relation == "weakness_name"}
        self._entry = {name: self._entry_of(name) for fact in facts for name in (fact.subject, fact.object)}
        self._words = {fact.object: _words_of(fact.object) for fact in facts}
        parents: dict[str, set[str]] = defaultdict(set)
        for fact in facts:
            if fact.relation == "parent_weakness":
                parents[self._entry[fact.subject]].add(self._entry[fact.object])
        self._broader = {entry: _all_broader(entry, parents) for entry in set(self._entry.values())}
        self._true: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._implied: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._named: dict[tuple[str, str], set[str]] = defaultdict(set)
        for fact in facts:
            key, entry = (fact.relation, fact.subject.casefold()), self._entry[fact.object]
            self._true[key].add(entry)
            self._implied[key] |= {entry} | self._broader[entry]
            self._named[key].add(self._words[fact.object])

    def exclude(self, fact: Fact, option: str) -> bool:
        """Returns whether an option is false for the fact's subject: not even broader or narrower than a true one.

        Nor is its name that of a true one, or a part of it: ATT&CK has "Audio Capture" as T1123 and as T1429.
        """
        key, entry, words = (fact.relation, fact.subject.casefold()), self._entry[option], self._words[option]
        if entry in self._implied[key] or not self._broader[entry].isdisjoint(self._true[key]):
            return False
        return not any(words in true or true in words for true in self._named[key])

    def _entry_of(self, text: str) -> str:
        """Returns the id that the text ends in or is the name of, else the text in lower case."""
        number = _NUMBER.search(text)
        return number["id"] if number else self._number.get(text.casefold(), text.casefold())


def _words_of(name: str) -> str:
    """Returns the words of a name without its id, between blanks: " audio capture " of "Audio Capture (T1123)"."""
    words = re.findall(r"\w+", _ID.sub("", name).casefold())
    return f" {' '.join(words)} "


def _all_broader(entry: str, parents: Mapping[str, set[str]]) -> set[str]:
    """Returns the ids of all broader entries: a sub-technique's technique, a weakness's ancestors."""
    number = _NUMBER.search(entry)
    found = {number["technique"]} - {entry, None} if number else set()
    queue = [entry]
    while queue:
        new = parents.get(queue.pop(), set()) - found
        found |= new
        queue += new
    return found


def _read(documents: Documents, seed: int) -> tuple[dict[str, dict[Fact, Question]], _Truths]:
    """Returns the distinct facts that can be asked, by relation, and what is true by all of them."""
    found: dict[tuple[str, str, str], tuple[Fact, Question]] = {}
    turns: Counter[tuple[str, str]] = Counter()
    for record in documents():
        for fact in record.facts:
            relation, subject, _ = key = fact.relation, fact.subject.casefold(), fact.object.casefold()
            if key not in found:
                number = f"{relation}/{record.source}/{record.id}/{rng_of(*key).getrandbits(48):012x}"
                split = split_of(fact.subject)
                text = _question(fact, split, turns[relation, subject], seed)
                of_fact = {"source": record.source, "split": split, "evidence": fact.evidence}
                found[key] = fact, Question(number, text, (), 0, record.page, **of_fact)
                turns[relation, subject] += 1
    truths = _Truths([fact for fact, _ in found.values()])
    by_relation: dict[str, dict[Fact, Question]] = defaultdict(dict)
    for fact, question in found.values():
        if _can_be_asked(fact, truths):
            by_relation[fact.relation][fact] = question
    return by_relation, truths


def _can_be_asked(fact: Fact, truths: _Truths) -> bool:
    # "Remote code execution in Paint 3D" tells nothing of the cause, and vendors spell one class in many ways.
    described = len(fact.subject.split()) >= FEWEST and fact.object in truths.weaknesses
    # Cut short, a description may lose what it is asked about.
    return len(fact.subject) <= LONGEST and (described or fact.relation != "weakness_class")


def _question(fact: Fact, split: str, turn: int, seed: int) -> str:
    """Returns the question of a subject's fact number `turn`; the wordings of its split take turns."""
    forms = QUESTIONS[fact.relation]
    forms = forms[:-HELD_OUT_FORMS] if split == "train" else forms[-HELD_OUT_FORMS:]
    first = rng_of(seed, "wording", fact.relation, fact.subject).randrange(len(forms))
    return forms[(first + turn) % len(forms)].format(subject=fact.subject)


def _drawn(facts: Asked, count: int, seed: int) -> Asked:
    """Returns at most `count` facts, drawn by `seed`: every object's first before any object's second, and so on."""
    times: Counter[str] = Counter()
    rank: dict[Fact, int] = {}
    shuffled = sorted(facts, key=lambda fact: rng_of(seed, facts[fact].id).random())
    for fact in shuffled:
        rank[fact] = times[fact.object]
        times[fact.object] += 1
    return {fact: facts[fact] for fact in sorted(shuffled, key=rank.__getitem__)[:count]}


def _in_sets(facts: Asked, truths: _Truths, seed: int) -> list[list[Question]]:
    """Returns sets of four questions with the same options, question i having option i as its gold."""
    sets = []
    for four in _facts_in_sets(facts, truths, seed):
        options = tuple(fact.object for fact in four)
        sets.append([dataclasses.replace(facts[fact], options=options, answer=i) for i, fact in enumerate(four)])
    return sets


def _facts_in_sets(facts: Asked, truths: _Truths, seed: int) -> Iterator[list[Fact]]:
    """Yields the sets of four of each relation, split and source."""
    strata: dict[tuple[str, str, str], list[Fact]] = defaultdict(list)
    for fact, question in facts.items():
        strata[fact.relation, question.split, question.source].append(fact)
    for key, stratum in sorted(strata.items()):
        yield from _sets_of_four(stratum, truths, rng_of(seed, "sets of four", *key))


def _sets_of_four(facts: Iterable[Fact], truths: _Truths, rng: Random) -> Iterator[list[Fact]]:
    """Yields disjoint sets of four facts, in random order; each object is false for the three other subjects."""
    piles: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        piles[fact.object].append(fact)
    while len(piles) >= OPTIONS:
        # Beginning with the largest pile leaves the fewest facts without a set.
        first = max(piles, key=lambda name: len(piles[name]))
        four = [piles[first].pop()]
        others = [name for _, name in sorted((abs(len(name) - len(first)), name) for name in piles if name != first)]
        # A draw without replacement by the piles' sizes: Efraimidis and Spirakis, Information Processing Letters 97.
        near = sorted(others[:NEAR], key=lambda name: rng.random() ** (1 / len(piles[name])), reverse=True)
        for name in near + others[NEAR:]:
            if all(truths.exclude(fact, name) for fact in four):
                names = [fact.object for fact in four]
                fitting = (fact for fact in piles[name] if all(truths.exclude(fact, other) for other in names))
                four += itertools.islice(fitting, 1)
            if len(four) == OPTIONS:
                break
        if len(four) == OPTIONS:
            for fact in four[1:]:
                piles[fact.object].remove(fact)
            rng.shuffle(four)
            yield four
        for name in {first, *(fact.object for fact in four)}:
            if not piles[name]:
                del piles[name]


def _one_sided(groups: Iterable[list[Question]]) -> set[str]:
    """Returns the ids of questions to leave out so that counting common words is at chance in each split.

    The most one-sided groups are left out first, since that leaves out the fewest.
    """
    surplus: dict[str, list[tuple[float, list[str]]]] = {split: [] for split in SPLITS}
    for group in groups:
        credit = float(credits_of(mcq_baselines.overlapping, group).sum())
        surplus[group[0].split].append((credit - len(group) / OPTIONS, [q.id for q in group]))
    out: set[str] = set()
    for of_split in surplus.values():
        left = sum(each for each, _ in of_split)
        for each, ids in sorted(of_split, reverse=left > 0):
            if abs(left - each) < abs(left):
                left -= each
                out.update(ids)
    return out
