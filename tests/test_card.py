"""Every figure of a model card is in the records, and only a run that is shown to be better is canonical."""

import dataclasses
import json
import math
import re

import pytest
from huggingface_hub import ModelCard

from ghost_jax.hub.card import card_of, channel_of, read_records
from ghost_jax.runs.run_record import RunRecord
from tests.conftest import ROOT

RECORDS = ROOT / "evals" / "records"
RUNS = ("chat_v3-seed0", "chat_v4_raft-seed0", "chat_v5-36m", "pretrain_v05-nano")
EXPORTED = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 4099,
    "torch_dtype": "bfloat16",
    "ghost_jax": {"version": "0.4.0", "run": "chat", "step": 30},
}
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


def card_text(run: RunRecord) -> str:
    return card_of(run, EXPORTED)


def scored(name: str = "chat_v3-seed0", stem: str = "ctibench", **changes) -> RunRecord:
    """A recorded run with a score that is its closed-book score with changes."""
    run = read_records(RECORDS / name)
    score = dataclasses.replace(run.evals["ctibench"], **changes)
    return dataclasses.replace(run, evals=run.evals | {stem: score})


def strangers(text: str, *records: object) -> list[str]:
    """Returns the numbers of a text that no record has: as they are, rounded as printed, or so in %."""

    def numbers_of(text: str) -> set[str]:
        return {number.strip(",").replace(",", "") for number in NUMBER.findall(text)}

    known = [float(number) for number in numbers_of(json.dumps(records))]

    def is_known(number: str) -> bool:
        decimals = len(number.partition(".")[2])
        rounded = {f"{scale * value:.{decimals}f}" for value in known for scale in (1, 100)}
        return number in rounded or any(math.isclose(float(number), value) for value in known)

    return [number for number in numbers_of(text) if not is_known(number)]


def records_of(run: RunRecord) -> dict:
    """Returns a run's records as JSON, without thousands of figures that no card shows."""
    records = dataclasses.asdict(run) | {"orders": [score.orders_per_item for score in run.evals.values()]}
    for score in records["evals"].values():
        for key in ("predicted", "letter_log_probs", "calibration"):
            del score[key]
    return records


@pytest.fixture(params=RUNS)
def run(request) -> RunRecord:
    return read_records(RECORDS / request.param)


def test_every_number_in_a_card_is_in_the_records_of_its_run(run):
    records = records_of(run), EXPORTED
    assert strangers(card_text(run), *records) == []
    assert strangers("It scores 36.871% of 30.", *records) == ["36.871"]


def test_metadata_are_read_back_by_the_library_of_the_hub(run):
    data = ModelCard(card_text(run)).data
    assert data.tags == ["ghost_jax", "cybersecurity", "experimental"]
    results = data.eval_results or []
    assert data.model_name == (run.name if results else None)
    found = {(each.dataset_config.partition(" ")[0], each.metric_value, each.dataset_name) for each in results}
    scores = run.evals.values()
    assert found == {(each.book, round(100 * each.headline.accuracy, 2), each.items.name) for each in scores}
    assert {each.metric_name.rpartition("verdict ")[2] for each in results} == {each.verdict for each in scores}


def test_the_books_stand_apart_and_a_score_with_the_reader_is_not_the_models():
    gain = {"gain_over_lexical": -0.0009, "gain_over_lexical_ci95": (-0.0031, 0.0014)}
    text = card_text(scored("chat_v4_raft-seed0", "ctibench-open-both", book="open", reader="both", **gain))
    closed, opened = text.split("## Evaluation, ")[1:]
    assert "24.9 to 25.1" in closed
    assert "open book" not in closed
    scores, _, limits = opened.partition("## Beside")
    assert "reader model" in scores
    assert "| lexical reader with this model | " in scores
    assert "adds -0.09 points (-0.31 to +0.14) over the lexical reader alone" in limits
    configs = {result.dataset_config for result in ModelCard(text).data.eval_results}
    assert configs == {"closed book", "open book, reader model"}
    assert "It was not scored with the book open." in card_text(read_records(RECORDS / "chat_v3-seed0"))
    own = card_text(scored("chat_v4_raft-seed0", "ctibench-own-1234-model", book="own")).partition(
        "## Evaluation, own book"
    )[2]
    assert "24.9 to 25.1" in own.partition("## Beside")[0]


def test_a_card_does_not_publish_the_folders_of_a_user():
    run = read_records(RECORDS / "chat_v3-seed0")
    note = "No files of cwe in /home/lovelace/.cache/ghost_jax/data, ~/work/raw: see https://a.org/b/c."
    text = card_text(dataclasses.replace(run, data=dataclasses.replace(run.data, notes=[note])))
    assert "- No files of cwe in …/data, …/raw: see https://a.org/b/c." in text
    assert "lovelace" not in text


def test_a_score_in_one_order_has_no_headline_and_dropped_duplicates_are_counted():
    text = card_text(read_records(RECORDS / "chat_v5-36m"))
    assert "| this model | 15.0 | — | 13.4 to 16.5 |" in text
    assert "asked in one order of the options" in text
    assert "over 1 orders" not in text
    assert "| mitre_d3fend | 3,433 | 157 (id), 3 (near) | " in text
    assert "| attack | 2,007 | — | " in text


def test_a_canonical_card_needs_the_verdict_knowledge():
    for verdict in ("collapsed", "chance", "shortcut", "gain"):
        assert channel_of(scored(verdict=verdict)) == "experimental"
    assert channel_of(read_records(RECORDS / "pretrain_v05-nano")) == "experimental"
    assert "canonical" in ModelCard(card_of(scored(verdict="knowledge"), EXPORTED)).data.tags
    items = dataclasses.replace(scored().evals["ctibench"].items, name="held-out questions, not CTIBench")
    assert channel_of(scored(verdict="knowledge", items=items)) == "experimental"
