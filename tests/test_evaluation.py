"""ghost_jax/runs/evaluation.py: the records of evaluations are read and written without a change."""

import json

import pytest

from ghost_jax.core.errors import UserError
from ghost_jax.runs.evaluation import Evaluation, Recall, from_json, is_evaluation, only_guesses, read, to_json, write
from tests.conftest import ROOT

RECORDS = ROOT / "evals" / "records"
RECORDED = [*sorted(RECORDS.glob("**/evals/*.json")), RECORDS / "open_book.json"]
REMOVED, REMOVED_OF_SEARCH = {"weights"}, {"shares", "sources", "examples"}  # fields of older versions


def kept(content: dict) -> dict:
    """Returns the JSON of a record without the fields that no version reads any more."""
    found = {key: value for key, value in content.items() if key not in REMOVED}
    if headline := found.get("headline"):
        found["headline"] = {key: value for key, value in headline.items() if key != "orders_per_item"}
    if search := found.get("contamination"):
        found["contamination"] = {key: value for key, value in search.items() if key not in REMOVED_OF_SEARCH}
    return found


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: str(path.relative_to(RECORDS)))
def test_a_recorded_evaluation_keeps_every_key_and_value(path, tmp_path):
    content = json.loads(path.read_text())
    record = read(path, Evaluation if is_evaluation(content) else Recall)
    write(tmp_path / "again.json", record)
    assert json.loads((tmp_path / "again.json").read_text()) == kept(content)


def test_the_recorded_audit_keeps_every_key_and_value():
    for content in json.loads((RECORDS / "published_models.json").read_text())["predictions"].values():
        assert to_json(from_json(content)) == kept(content)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"baselines": 3}, "baselines"),
        ({"headline": {"accuracy": 0.5, "ci95": [0, 1]}}, "headline.orders"),
        ({"n": 2}, "predicted"),
        ({"predicted": [1] * 2500}, "predicted.0"),
    ],
)
def test_a_broken_record_is_refused_by_file_and_key(tmp_path, change, key):
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(json.loads((RECORDS / "open_book.json").read_text()) | change))
    with pytest.raises(UserError, match=f"{path}.*{key}"):
        read(path)


def test_a_score_beside_the_lexical_reader_does_not_say_that_a_run_knows():
    both = read(RECORDS / "chat_reader-mini" / "evals" / "ctibench-open-both.json")
    assert (both.reader, both.verdict) == ("both", "knowledge")
    assert only_guesses(RECORDS / "chat_reader-mini")


def test_a_run_that_knows_by_cloze_does_not_only_guess():
    run = RECORDS / "campaign" / "facts-mini" / "knowledge-seed0"
    assert read(run / "evals" / "facts.json").readings.differs
    assert not only_guesses(run)
