"""ghost_jax/data/builders/exposure.py and evals/tasks/recall.py: facts stated so many times, and their recall."""

import functools
import json
from collections import Counter
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from evals.tasks import recall
from ghost_jax.core.errors import UserError
from ghost_jax.data.builders import exposure
from ghost_jax.data.sources import embedded
from ghost_jax.data.storage.schema import Fact, Record
from ghost_jax.data.wordings import FORMS, fill
from ghost_jax.runs import evaluation
from ghost_jax.text import tokenizer as tokenizer_lib
from tests.conftest import set_all
from tests.test_trees import seen_by

SUBJECTS, TACTICS, SERVICES = 240, 16, 40


def page(number: str, text: str, *facts: Fact) -> Record:
    return Record(number, "attack", "", text, f"page {number}", "", facts)


# Pages of one fact each, pages that name both ends of a fact without stating it, and pages without facts.
PAGES = [page(f"T{n}", "A.", Fact(f"Act {n}!", "tactic", f"Aim {n % TACTICS}!", "It is.")) for n in range(SUBJECTS)]
PAGES += [page(f"P{n}", "A.", Fact(f"TCP port {n}", "port_service", f"Server {n}!", "It is.")) for n in range(SERVICES)]
PAGES += [page(f"N{n}", f"Act {n}! is meant for Aim {n % TACTICS}!") for n in range(SUBJECTS)]
PAGES += [page(f"D{n}", f"Nothing of note, {n} times.") for n in range(60)]


def documents() -> list[Record]:
    return PAGES


@pytest.fixture(scope="module")
def vocabulary():
    return tokenizer_lib.train((f"{page.text} Act Aim TCP port Server" for page in PAGES), 400)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(exposure, "COUNTS", (1, 3, 9))
    monkeypatch.setattr(exposure, "SETS", 4)


def text_of(vocabulary, seed: int, split: str = "train") -> str:
    rows = [row["tokens"] for row in exposure.build(documents, vocabulary, split, 64, seed)]
    return vocabulary.decode(np.concatenate([rows[0], *(row[1:] for row in rows[1:])]).tolist())


def test_every_fact_is_stated_as_often_as_its_set_and_over_seeds_by_every_number(vocabulary):
    seen: dict[Fact, list[int]] = {}
    for seed in range(3):
        text, groups = text_of(vocabulary, seed), exposure.groups(documents, seed)
        assert Counter(count for _, count in groups) == {1: 4, 3: 4, 9: 4}
        relations = {count: Counter(four[0].relation for four, c in groups if c == count) for count in (1, 3, 9)}
        assert relations[1] == relations[3] == relations[9]
        for four, count in groups:
            assert len({each.object for each in four}) == 4 == len({each.subject for each in four})
            for each in four:
                stated = sum(text.count(fill(form, each)) for form in set(FORMS[each.relation]))
                assert 0 <= count - stated <= 3 * (count == 9), "the end of the stream may lose a few"
                seen.setdefault(each, []).append(count)
    assert len(seen) == 4 * 12
    assert all(sorted(counts) == [1, 3, 9] for counts in seen.values())


def test_no_page_of_the_pack_has_the_wording_that_recall_is_measured_in():
    stated = [(page.text, fact) for page in embedded.read() for fact in page.facts]
    of_pages = [index for index in (4, 5) for text, fact in stated if fill(FORMS[fact.relation][index], fact) in text]
    assert set(of_pages) == {4, 5}
    assert not [fact for text, fact in stated if fill(FORMS[fact.relation][exposure.HELD_OUT], fact) in text]


def test_no_statement_and_no_page_has_the_wording_that_recall_is_measured_in(vocabulary):
    text = text_of(vocabulary, 0) + text_of(vocabulary, 0, "validation")
    asked = list(exposure.items(documents, 0))
    assert len(asked) == 48
    for item in asked:
        assert f"{item['statement']} {item['options'][item['answer']]}" not in text
        assert item["question"].removeprefix("Question: ").removesuffix(" Answer:") not in text
        assert item["url"] in {page.url for page in PAGES if page.facts}
    chosen = {each.subject for four, _ in exposure.groups(documents, 0) for each in four}
    told = {f"Act {n}!" for n in range(SUBJECTS) if f"Act {n}! is meant for" in text}
    assert told
    assert not told & chosen, "a page that names both ends of a fact is left out"
    assert "Nothing of note, 7 times." in text


def test_recall_is_of_what_was_stated_often_and_a_quarter_of_the_rest(vocabulary, tmp_path):
    items = list(exposure.items(documents, 0))
    often = [item for item in items if item["exposures"] == 9]
    known = {(item[way], item["options"][item["answer"]]) for item in often for way in recall.WAYS}

    def predict(batch, at, targets):
        """Finds the object of a fact that was stated often likely, and nothing else."""
        scores = np.full((*at.shape, 1), -3.0, np.float32)
        for row, read in np.argwhere(at):
            ids = [*seen_by(batch, row, at[row, read]), int(targets[row, read, 0])]
            before = vocabulary.decode(ids[1:])  # without the beginning of the text
            if any(f"{text} {name}".startswith(before) and len(before) > len(text) for text, name in known):
                scores[row, read] = -0.5
        return scores

    how = {"tokenizer": vocabulary, "workdir": tmp_path, "data_dir": None, "context": 256, "batch_size": 4}
    evaluated = functools.partial(recall.evaluate_run, predict=predict, **how)
    with pytest.raises(UserError, match=recall.ITEMS):
        evaluated()
    (tmp_path / recall.ITEMS).write_text("".join(json.dumps(item) + "\n" for item in items))
    report = evaluated()
    assert {count: found.n for count, found in report.by_exposures.items()} == {"1": 16, "3": 16, "9": 16}
    for way in recall.WAYS:
        of_counts = [getattr(report.by_exposures[count], way).accuracy for count in "139"]
        assert of_counts == [0.25, 0.25, 1.0]
        low, high = getattr(report, way).ci95
        assert low < np.mean(of_counts) == getattr(report, way).accuracy < high
    with pytest.raises(UserError, match="not finite"):
        evaluated(predict=lambda batch, at, targets: np.full(targets.shape, np.nan))
    evaluation.write(tmp_path / "evals" / "recall.json", report)
    screen = StringIO()
    recall.show_run(tmp_path, Console(file=screen, width=100))
    assert "100.0" in screen.getvalue()


@pytest.mark.slow
def test_the_command_trains_a_base_and_measures_its_recall(ghost, tmp_path):
    tiny = {"steps": 2, "optim.warmup_steps": 1, "data.validation_records": 8, "model.layers": 1, "eval_every": 2}
    ghost("ghost_jax.train", "--config=configs/pretrain_exposure.py:nano", f"--workdir={tmp_path}", *set_all(tiny))
    report = json.loads((tmp_path / "evals" / "recall.json").read_text())
    counts = [found["n"] for found in report["by_exposures"].values()]
    assert sum(counts) == report["n"] > 100
    assert len(set(counts)) == 1
