"""ghost_jax/data/builders/exposure and evals/recall: facts stated so many times, and how many of them are recalled."""

import json
from collections import Counter
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from evals.tasks import recall
from ghost_jax.core.errors import UserError
from ghost_jax.data.builders import exposure
from ghost_jax.data.storage.schema import Fact, Record
from ghost_jax.data.wordings.surface_forms import FORMS
from ghost_jax.runs.evaluation import to_json
from ghost_jax.text import tokenizer as tokenizer_lib
from tests.conftest import set_all
from tests.test_trees import seen_by

SUBJECTS, TACTICS, SERVICES = 240, 16, 40


def fact(subject: str, relation: str, name: str) -> Fact:
    return Fact(subject, relation, name, f"{subject} has {name}.")


# Pages of one fact each, a page that names both ends of a fact without stating it, and pages without facts.
PAGES = [
    *(
        Record(
            f"T{n}",
            "attack",
            "",
            f"About number {n}.",
            f"page {n}",
            "",
            (fact(f"Act {n}!", "tactic", f"Aim {n % TACTICS}!"),),
        )
        for n in range(SUBJECTS)
    ),
    *(
        Record(
            f"P{n}", "embedded", "", f"Of port {n}.", "", "", (fact(f"TCP port {n}", "port_service", f"Server {n}!"),)
        )
        for n in range(SERVICES)
    ),
    *(Record(f"N{n}", "attack", "", f"Act {n}! is meant for Aim {n % TACTICS}!", "", "", ()) for n in range(SUBJECTS)),
    *(Record(f"D{n}", "attack", "", f"Nothing of note, {n} times.", "", "", ()) for n in range(60)),
]


def documents():
    return iter(PAGES)


@pytest.fixture(scope="module")
def vocabulary():
    return tokenizer_lib.train((f"{page.text} Act Aim TCP port Server" for page in PAGES), 400)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(exposure, "COUNTS", (1, 3, 9))
    monkeypatch.setattr(exposure, "SETS", 4)


def texts_of(vocabulary, seed: int, split: str = "train") -> list[str]:
    """Returns the lines of what is trained on."""
    rows = [row["tokens"] for row in exposure.build(documents, vocabulary, split, 64, seed)]
    ids = np.concatenate([rows[0], *(row[1:] for row in rows[1:])])
    return vocabulary.decode(ids.tolist()).splitlines()


def stated_in(text: str, each: Fact) -> int:
    """Returns how many statements of a fact a text holds: lines with both names in one of its wordings."""
    return sum(text.count(form.format(subject=each.subject, object=each.object)) for form in set(FORMS[each.relation]))


def test_every_fact_is_stated_as_often_as_is_asked_and_by_seeds_in_turn_by_every_number(vocabulary):
    seen = {}
    for seed in range(3):
        text = "\n".join(texts_of(vocabulary, seed))
        groups = exposure.groups(documents, seed)
        assert Counter(count for _, count in groups) == {1: 4, 3: 4, 9: 4}
        for four, count in groups:
            for each in four:
                assert stated_in(text, each) == count or count == 9, "the end of the stream may lose a few"
                seen.setdefault(each, []).append(count)
    assert all(sorted(counts) == [1, 3, 9] for counts in seen.values())


def test_a_set_has_one_number_four_objects_and_no_fact_twice():
    groups = exposure.groups(documents, seed=0)
    assert all(len({each.object for each in four}) == 4 == len({each.subject for each in four}) for four, _ in groups)
    facts = [each for four, _ in groups for each in four]
    assert len(set(facts)) == len(facts) == 4 * 12
    relations = {count: Counter(four[0].relation for four, c in groups if c == count) for count in (1, 3, 9)}
    assert relations[1] == relations[3] == relations[9], "relations are alike in every group"


def test_what_recall_is_measured_in_is_in_no_statement_and_no_page_tells(vocabulary):
    text = "\n".join(texts_of(vocabulary, 0) + texts_of(vocabulary, 0, "validation"))
    asked = list(exposure.items(documents, 0))
    assert len(asked) == 48
    for item in asked:
        named = item["options"][item["answer"]]
        assert f"{item['statement']} {named}" not in text
        assert item["question"].removeprefix("Question: ").removesuffix(" Answer:") not in text
        assert item["url"] in ("", *(page.url for page in PAGES))
    chosen = {each.subject for four, _ in exposure.groups(documents, 0) for each in four}
    told = [n for n in range(SUBJECTS) if f"Act {n}! is meant for" in text]
    assert told
    assert not {f"Act {n}!" for n in told} & chosen, "a page that names both ends of a fact is left out"
    assert "Nothing of note, 7 times." in text


# ---- Recall ----


class Knower:
    """A predict function that finds a fact's object likely where the fact was stated often, and nothing else."""

    def __init__(self, vocabulary, items, from_count: int):
        self._vocabulary = vocabulary
        known = [item for item in items if item["exposures"] >= from_count]
        self._known = {(item[way], item["options"][item["answer"]]) for item in known for way in recall.WAYS}

    def __call__(self, batch, at, targets):
        said = np.full((*at.shape, 1), -3.0, np.float32)
        for row, places in enumerate(at):
            for read, place in enumerate(places):
                if place:
                    ids = [*seen_by(batch, row, place), int(targets[row, read, 0])]
                    before = self._vocabulary.decode(ids[1:])  # without the beginning of the text
                    if any(
                        f"{text} {name}".startswith(before) and len(before) > len(text) for text, name in self._known
                    ):
                        said[row, read] = -0.5
        return said, np.zeros(targets.shape, bool)


def test_recall_is_of_what_was_stated_often_and_a_quarter_of_the_rest(vocabulary, tmp_path):
    items = list(exposure.items(documents, 0))
    (tmp_path / recall.ITEMS).write_text("".join(json.dumps(item) + "\n" for item in items))
    knower = Knower(vocabulary, items, 9)
    report = to_json(recall.evaluate_run(knower, vocabulary, tmp_path, None, context=256, batch_size=4))
    assert {count: found["n"] for count, found in report["by_exposures"].items()} == {"1": 16, "3": 16, "9": 16}
    for way in recall.WAYS:
        assert [report["by_exposures"][count][way]["accuracy"] for count in "139"] == [0.25, 0.25, 1.0]
        assert report[way]["accuracy"] == pytest.approx(0.5)
        low, high = report[way]["ci95"]
        assert low < 0.5 < high
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "recall.json").write_text(json.dumps(report))
    screen = StringIO()
    recall.show_run(tmp_path, Console(file=screen, width=100))
    assert "100.0" in screen.getvalue()


def test_a_run_without_the_dataset_is_told_so(vocabulary, tmp_path):
    with pytest.raises(UserError, match=rf"{recall.ITEMS}.*pretrain_exposure"):
        recall.evaluate_run(None, vocabulary, tmp_path, None, context=64, batch_size=1)


def test_the_command_trains_a_base_and_measures_its_recall(ghost, tmp_path):
    tiny = {"steps": 2, "optim.warmup_steps": 1, "data.validation_records": 8, "model.layers": 1, "eval_every": 2}
    result = ghost(
        *("ghost_jax.train", "--config=configs/pretrain_exposure.py:nano", f"--workdir={tmp_path / 'run'}"),
        *set_all(tiny),
    )
    report = json.loads((tmp_path / "run" / "evals" / "recall.json").read_text())
    assert sum(found["n"] for found in report["by_exposures"].values()) == report["n"] > 100
    assert len({found["n"] for found in report["by_exposures"].values()}) == 1
    assert "recall" in result.stdout
