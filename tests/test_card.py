"""Every figure of a model card is in the records, and only a run that is shown to be better is canonical."""

import dataclasses
import json
import math
import re

import pytest
from huggingface_hub import ModelCard

from ghost_jax.hub.card import card_of, read_records
from ghost_jax.hub.channel import CANONICAL, EXPERIMENTAL, Channel, decide
from ghost_jax.runs.run_record import RunRecord
from tests.conftest import ROOT
from tests.test_compare import CONFIG, report, write_items, write_run

RECORDS = ROOT / "evals" / "records"
RUNS = ("chat_v3-seed0", "chat_v4_raft-seed0", "chat_v5-36m", "pretrain_v05-nano")
EXPORTED = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 4099,
    "torch_dtype": "bfloat16",
    "ghost_jax": {"version": "0.4.0", "run": "chat", "step": 30},
}
CHANNEL = Channel(EXPERIMENTAL, "It was not put forward as canonical.")
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


def card_text(run: RunRecord | str, channel: Channel = CHANNEL, present: RunRecord | None = None) -> str:
    run = read_records(RECORDS / run) if isinstance(run, str) else run
    return card_of(run, EXPORTED, channel, present)


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
        assert (score.book, round(100 * score.single_order, 2)) in found
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


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    return write_items(tmp_path_factory.mktemp("items") / "own.jsonl")


@pytest.fixture
def run_of(items, tmp_path):
    """Writes a run that knows the first items and answers the others with letters in turn; returns its directory."""

    def write(name: str, knows: int, steps: int | None = None, seed: int = 0, **how):
        steps = CONFIG["steps"] + knows if steps is None else steps
        write_run(tmp_path / name, report(items, range(knows), **how), items, steps=steps, seed=seed)
        return tmp_path / name

    return write


def change(workdir, **changes):
    path = workdir / "evals" / "ctibench.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return workdir


def test_a_run_that_is_shown_to_be_better_becomes_canonical(run_of):
    better, present = run_of("better", 180), change(run_of("present", 120), step=220)
    channel = decide(CANONICAL, better, present, None)
    assert channel.name == CANONICAL
    assert "present, on 200 questions" in channel.reason
    assert "better is better than present by 22.5 points" in channel.reason
    assert channel.comparison["reference"] == "present"
    assert channel.above == {"run": "present", "step": 220}
    experimental = decide(EXPERIMENTAL, better, present, None)
    assert (experimental.name, experimental.above) == (EXPERIMENTAL, None)


@pytest.mark.parametrize(
    ("knows", "found"), [(122, "not told apart from present"), (110, "is worse than present"), (120, "earns the same")]
)
def test_other_runs_are_experimental_with_the_numbers_in_the_card(knows, found, run_of):
    channel = decide(CANONICAL, run_of("run", knows), run_of("present", 120), None)
    assert channel.name == EXPERIMENTAL
    assert found in channel.reason
    run, present = (read_records(RECORDS / name) for name in ("chat_v3-seed0", "chat_v2-seed0"))
    text = card_text(run, channel, present)
    assert channel.reason in text
    assert text.index("| chat_v2-seed0 |") < text.index("| chat_v3-seed0 |"), "the present run is compared with"
    assert strangers(text, *map(records_of, (run, present)), EXPORTED, channel.comparison) == []


def test_the_first_canonical_run_must_know_something(run_of):
    run = run_of("run", 150)
    for verdict in ("chance", "shortcut", "gain", "knowledge"):
        change(run, verdict=verdict, verdict_text=verdict)
        channel = decide(CANONICAL, run, None, None)
        assert channel.name == (CANONICAL if verdict == "knowledge" else EXPERIMENTAL)
        assert verdict in channel.reason
    assert decide(EXPERIMENTAL, run, None, None) == CHANNEL


def test_collapsed_runs_single_orders_and_other_seeds_are_never_canonical(run_of):
    collapsed = decide(CANONICAL, run_of("collapsed", 0), run_of("worse", 0, letter=-1, steps=9), None)
    assert collapsed.comparison["rows"][1]["against_reference"]["mean"] > 0.2, "it is better than the present run"
    in_one_order = [run_of(f"one-{knows}", knows, orders="published") for knows in (180, 120)]
    one_order = decide(CANONICAL, *in_one_order, None)
    other_seed = decide(CANONICAL, run_of("seed", 180, steps=7, seed=1), run_of("present", 120, steps=7), None)
    for channel, why in ((collapsed, "collapsed"), (one_order, "one order"), (other_seed, "another seed")):
        assert channel.name == EXPERIMENTAL
        assert why in channel.reason
