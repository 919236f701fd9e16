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


def card_text(run: RunRecord | str) -> str:
    run = read_records(RECORDS / run) if isinstance(run, str) else run
    return card_of(run, EXPORTED)


def scored(name: str = "chat_v3-seed0", stem: str = "ctibench", **changes) -> RunRecord:
    """A recorded run with a score that is its closed-book score with changes."""
    run = read_records(RECORDS / name)
    score = dataclasses.replace(run.evals["ctibench"], **changes)
    return dataclasses.replace(run, evals=run.evals | {stem: score})


def strangers(text: str, *records: object) -> list[str]:
    """Returns the numbers of a text that no record has: rounded as printed, as a share or in %."""

    def numbers_of(text: str) -> set[str]:
        return {number.strip(",").replace(",", "") for number in NUMBER.findall(text)}

    spelt = numbers_of(json.dumps(records))
    known = [float(number) for number in spelt]
    found = []
    for number in numbers_of(text) - spelt:
        decimals = len(number.partition(".")[2])
        if "e" in number:
            is_known = any(math.isclose(float(number), value) for value in known)
        else:
            is_known = any(f"{scale * value:.{decimals}f}" == number for value in known for scale in (1, 100))
        found += [] if is_known else [number]
    return found


def records_of(run: RunRecord) -> dict:
    """Returns a run's records as JSON, without thousands of figures that no card shows."""
    records = dataclasses.asdict(run) | {"orders": [score.orders_per_item for score in run.evals.values()]}
    for score in records["evals"].values():
        for key in ("predicted", "letter_log_probs", "calibration"):
            del score[key]
    return records


@pytest.mark.parametrize("name", RUNS)
def test_every_number_in_a_card_is_in_the_records_of_its_run(name):
    records = records_of(read_records(RECORDS / name)), EXPORTED
    assert strangers(card_text(name), *records) == []
    assert strangers("It scores 36.871% of 30.", *records) == ["36.871"]


@pytest.mark.parametrize("name", RUNS)
def test_metadata_are_read_back_by_the_library_of_the_hub(name):
    run = read_records(RECORDS / name)
    data = ModelCard(card_text(run)).data
    assert data.tags == ["ghost_jax", "cybersecurity", "experimental"]
    if not run.evals:
        assert data.eval_results is None
        return
    assert data.model_name == name
    found = [(result.dataset_config.partition(" ")[0], result.metric_value) for result in data.eval_results]
    for score in run.evals.values():
        assert (score.book, round(100 * score.headline.accuracy, 2)) in found
        assert all(result.dataset_name == score.items.name for result in data.eval_results)
        assert all(f"verdict {score.verdict}" in result.metric_name for result in data.eval_results)


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
    assert "It was not scored with the book open." in card_text("chat_v3-seed0")


def test_a_card_does_not_publish_the_folders_of_a_user():
    run = read_records(RECORDS / "chat_v3-seed0")
    note = "No files of cwe in /home/lovelace/.cache/ghost_jax/data, ~/work/raw: see https://a.org/b/c."
    text = card_text(dataclasses.replace(run, data=dataclasses.replace(run.data, notes=[note])))
    assert "- No files of cwe in …/data, …/raw: see https://a.org/b/c." in text
    assert "lovelace" not in text


def test_a_score_in_one_order_has_no_headline():
    text = card_text("chat_v5-36m")
    assert "| this model | 15.0 | — | 13.4 to 16.5 |" in text
    assert "asked in one order of the options" in text
    assert "over 1 orders" not in text
    table = text.partition("| accuracy, % |")[2].partition("\n\n")[0]
    assert {row.split(" | ")[2] for row in table.splitlines()[2:]} == {"—"}


def test_a_canonical_card_needs_the_verdict_knowledge():
    for verdict in ("collapsed", "chance", "shortcut", "gain"):
        assert channel_of(scored(verdict=verdict)) == "experimental"
    assert channel_of(read_records(RECORDS / "pretrain_v05-nano")) == "experimental"
    assert "canonical" in ModelCard(card_of(scored(verdict="knowledge"), EXPORTED)).data.tags
