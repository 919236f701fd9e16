"""card.py and channel.py: what a card says is in the records, what is canonical was shown to be better."""

import copy
import dataclasses
import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from ghost_jax.core.errors import UsageError, UserError
from ghost_jax.hub.card import accuracy_table, card_of, read_records
from ghost_jax.hub.channel import CANONICAL, EXPERIMENTAL, Channel, decide
from ghost_jax.reporting.tables import notes_of, said_of
from ghost_jax.runs.cropping import cropping_of
from tests.conftest import ROOT
from tests.test_compare import CONFIG, report, write_items, write_run

RECORDS = ROOT / "evals" / "records"
RUNS = sorted(path.parent.name for path in RECORDS.glob("*/config.json"))
EXPORTED = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 4099,
    "torch_dtype": "bfloat16",
    "ghost_jax": {"version": "0.4.0", "run": "chat", "step": 30},
}
CHANNEL = Channel(EXPERIMENTAL, "It was not put forward as canonical.")
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


def card_text(name: str, channel: Channel = CHANNEL, present: dict | None = None) -> str:
    return card_of(read_records(RECORDS / name), EXPORTED, channel, present)


def test_every_table_of_a_score_says_how_many_prompts_were_cropped():
    run = read_records(RECORDS / "chat_v3-seed0")
    score = run["evals"]["ctibench"]
    assert "lost their beginning" not in card_of(run, EXPORTED, CHANNEL, None) + " ".join(notes_of([run]))
    said = f"3 of {4 * score['n']:,} prompts"
    score["prompts_cropped"] = 3
    assert card_of(run, EXPORTED, CHANNEL, None).partition("## Limits")[2].count(said) == 1
    assert said in said_of(score)
    assert said in " ".join(notes_of([run]))
    free = {"accuracy": 0.1, "ci95": [0.0, 0.2], "matched": 0.5, "examples": []}
    score["matching"] = free | {"how": {"prompts_cropped": 2}}
    assert f"2 of {score['n']:,} prompts" in cropping_of(score | {"prompts_cropped": 0})
    assert f"3 of {score['n']:,} prompts" in cropping_of(score | {"layout": "cloze"}), "asked once for all orders"


# ---- Every number is in the records ----


def numbers_of(record: object) -> Iterator[float | str]:
    """Yields the numbers of a record, and those that its keys and texts spell."""
    if isinstance(record, dict):
        for key, value in record.items():
            yield from NUMBER.findall(key)
            # Thousands of figures that no card shows, among which any number would be found.
            if key not in ("predicted", "letter_log_probs", "calibration"):
                yield from numbers_of(value)
    elif isinstance(record, list):
        for value in record:
            yield from numbers_of(value)
    elif isinstance(record, str):
        yield from NUMBER.findall(record)
    elif isinstance(record, int | float) and not isinstance(record, bool):
        yield record


def strangers(text: str, records: list) -> list[str]:
    """Returns the numbers of a text that no record holds: rounded as printed, as a share or in %."""
    known = list(numbers_of(records))
    spelt = {number for number in known if isinstance(number, str)}
    values = [number for number in known if not isinstance(number, str)]

    def is_known(printed: str) -> bool:
        plain = printed.replace(",", "")
        decimals = len(plain.partition(".")[2])
        if printed in spelt or plain in spelt:
            return True
        if "e" in plain:
            return any(math.isclose(float(plain), value) for value in values)
        return any(f"{scale * abs(value):.{decimals}f}" == plain for value in values for scale in (1, 100))

    numbers = {number.rstrip(",") for number in NUMBER.findall(text)}
    return sorted(number for number in numbers if not is_known(number))


@pytest.mark.parametrize("name", RUNS)
def test_every_number_in_a_card_is_in_the_records_of_its_run(name):
    # How many orders there were is how many the record lists.
    run = read_records(RECORDS / name)
    orders = [len(score["headline"]["orders"]) for score in run["evals"].values()]
    assert strangers(card_text(name), [run, EXPORTED, orders]) == []


def test_a_number_that_no_record_holds_is_found():
    records = [read_records(RECORDS / "chat_v3-seed0"), EXPORTED]
    assert strangers("It scores 36.87% on 2,500 questions.", records) == ["36.87"]


def test_a_card_follows_the_records():
    run = read_records(RECORDS / "chat_v3-seed0")
    changed = copy.deepcopy(run)
    score = changed["evals"]["ctibench"]
    score["headline"] |= {"accuracy": 0.6137, "ci95": [0.5941, 0.6333]}
    score["baselines_over_orders"]["longest"] = 0.5519
    before, after = (card_of(each, EXPORTED, CHANNEL, None) for each in (run, changed))
    for said in ("| this model | 15.0 | 61.4 | 59.4 to 63.3 |", "| longest | 42.6 | 55.2 |", "value: 61.37"):
        assert said in after
        assert said not in before


# ---- What a card holds ----


@pytest.mark.parametrize("name", RUNS)
def test_metadata_are_read_back_by_the_library_of_the_hub(name):
    run = read_records(RECORDS / name)
    data = ModelCard(card_text(name)).data
    assert data.tags == ["ghost_jax", "cybersecurity", "experimental"]
    if not run["evals"]:
        assert data.eval_results is None
        return
    assert data.model_name == name
    found = {(result.dataset_config, result.metric_name): result for result in data.eval_results}
    assert len(found) == len(data.eval_results)
    for score in run["evals"].values():
        percent = round(100 * score["single_order"], 2)
        mine = [result for result in data.eval_results if result.dataset_config.startswith(score["book"])]
        if score["reader"] == "both":
            assert percent not in [result.metric_value for result in mine], "what two readers score is not the model's"
            continue
        assert percent in [result.metric_value for result in mine]
        assert all(result.dataset_name == score["items"]["name"] for result in mine)
        assert all(f"verdict {score['verdict']}" in result.metric_name for result in mine)


def test_the_books_stand_apart():
    text = card_text("chat_v4_raft-seed0")
    closed, open_ = text.split("## Evaluation, ")[1:]
    open_ = open_.split("\n## ")[0]
    assert "24.9 to 25.1" in closed
    assert "open book" not in closed
    assert "reader model" in open_
    assert "24.9 to 25.1" not in open_.split("always A")[0].split("control")[0]
    data = ModelCard(text).data
    assert [result.dataset_config for result in data.eval_results] == ["closed book"] * 2 + [
        "open book, reader model"
    ] * 2
    assert "It was not scored with the book open." in card_text("chat_v3-seed0")


def test_a_card_holds_recipe_mixture_data_baselines_verdict_contamination_study_and_limits():
    text = card_text("chat_v3-seed0")
    for said in (
        "Q&A x1 + raw MCQ x5",
        "| raw MCQ | x5 |",
        "| attack | 2,007 | — | MITRE ATT&CK terms of use |",
        "| always C | 37.1 | 25.0 |",
        "| control: question swapped |",
        "Verdict: COLLAPSED to one letter: 100.0% of the answers are A",
        "Contamination: not contaminated: no record asks an item and answers it.",
        "| chat-v3 (canonical) | 1,500 | 5e-5 | — | 36.9% |",
        "its accuracy measures one letter, and nothing that it knows",
        "The study's run did 1,500 updates; this one was planned with 30.",
        "exported with ghost_jax 0.4.0",
    ):
        assert said in text, said


def test_a_sum_of_reader_and_model_is_not_called_the_models():
    run = read_records(RECORDS / "chat_v3-seed0")
    gain = {"gain_over_lexical": -0.0009, "gain_over_lexical_ci95": [-0.0031, 0.0014]}
    run["evals"]["ctibench-open-both"] = run["evals"]["ctibench"] | {"book": "open", "reader": "both"} | gain
    text = card_of(run, EXPORTED, CHANNEL, None)
    open_ = text.partition("## Evaluation, open book")[2]
    assert "| lexical reader with this model | " in open_
    assert "| this model |" not in open_.partition("## Beside")[0]
    assert "adds -0.09 points (-0.31 to +0.14) over the lexical reader alone" in open_.partition("## Limits")[2]
    assert {result.dataset_config for result in ModelCard(text).data.eval_results} == {"closed book"}


def test_a_card_tells_that_its_base_was_imported():
    run = read_records(RECORDS / "chat_v5-seed0")
    run["config"]["base"] |= {"name": "smollm2", "imported": {"from": "SmolLM2-135M", "fingerprint": "0"}}
    text = card_of(run, EXPORTED, CHANNEL, None)
    assert "| base | imported from SmolLM2-135M |" in text
    assert "Its base was imported from `SmolLM2-135M`" in text
    assert "34.8" not in text, "it rebuilds no row of the study"
    imported = {"stage": "imported", "imported": {"from": "SmolLM2-135M", "fingerprint": "0"}}
    run["config"] = {**run["config"], **imported}
    assert "the weights of `SmolLM2-135M`, imported with ghost_jax" in card_of(run, EXPORTED, CHANNEL, None)


def test_a_card_tells_how_the_training_went():
    run = read_records(RECORDS / "chat_v3-seed0")
    taken = [line for line in run["metrics"] if "val_loss" in line]
    text = card_of(run, EXPORTED, CHANNEL, None)
    assert f"| {taken[0]['step']} | {taken[0]['loss']:.3f} | {taken[0]['val_loss']:.3f} |" in text
    assert f"after update {taken[-1]['step']}, the last." in text
    taken[-1]["val_loss"] = 99.5
    assert "and the last 99.500: it rose again." in card_of(run, EXPORTED, CHANNEL, None)


def test_a_card_does_not_tell_where_a_user_keeps_things():
    run = read_records(RECORDS / "chat_v3-seed0")
    run["data"]["notes"] = [
        "No files of cwe in /home/lovelace/.cache/ghost_jax/data, ~/work/raw: see https://a.org/b/c."
    ]
    text = card_of(run, EXPORTED, CHANNEL, None)
    assert "No files of cwe in …/data, …/raw: see https://a.org/b/c." in text
    assert "lovelace" not in text


def test_a_score_in_one_order_has_no_headline():
    text = card_text("chat_v5-36m")
    assert "| this model | 15.0 | — | 13.4 to 16.5 |" in text
    assert "asked in one order of the options" in text
    assert "over 1 orders" not in text
    score = read_records(RECORDS / "chat_v5-36m")["evals"]["ctibench"]
    assert all(row[2] == "—" for row in accuracy_table(score)[1:])


def test_the_present_run_stands_in_the_table_above_it():
    present = read_records(RECORDS / "chat_v3-seed0")
    table = card_text("chat_v5-seed0", present=present).split("## Beside the study")[1]
    assert table.index("| chat_v3-seed0 |") < table.index("| chat_v5-seed0 |")


def test_a_run_that_the_watch_stopped_says_so(tmp_path):
    shutil.copytree(RECORDS / "chat_v4_failed-seed0", tmp_path / "run")
    (tmp_path / "run" / "status.json").unlink()
    (tmp_path / "run" / "stopped.json").write_text(json.dumps({"step": 20, "reason": "three losses in a row"}))
    text = card_of(read_records(tmp_path / "run"), EXPORTED, CHANNEL, None)
    assert "stopped at 20: three losses in a row" in text
    assert "The divergence watch stopped it after update 20: three losses in a row." in text


@pytest.mark.parametrize("name", ["environment.json", "data.json", "evals/ctibench.json"])
def test_a_half_written_record_is_refused_by_its_name(name, tmp_path):
    shutil.copytree(RECORDS / "chat_v3-seed0", tmp_path / "run")
    whole = (tmp_path / "run" / name).read_text()
    (tmp_path / "run" / name).write_text(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=re.escape(name)):
        read_records(tmp_path / "run")


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no records of a run"):
        read_records(tmp_path)


# ---- The channel ----


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    return write_items(tmp_path_factory.mktemp("items") / "own.jsonl")


@dataclasses.dataclass(frozen=True)
class Scored:
    """Writes runs that were scored on the same items."""

    folder: Path
    items: object

    def __call__(self, name: str, knows: int, **how) -> Path:
        """A run of a recipe of its own that knows the first items and answers the others with letters in turn."""
        write_run(
            self.folder / name, report(self.items, range(knows), **how), self.items, steps=CONFIG["steps"] + knows
        )
        return self.folder / name


@pytest.fixture
def scored(items, tmp_path):
    return Scored(tmp_path, items)


def verdict_of(workdir: Path, verdict: str) -> Path:
    path = workdir / "evals" / "ctibench.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"verdict": verdict, "verdict_text": verdict}))
    return workdir


def test_what_is_shown_to_be_above_becomes_canonical(scored):
    better, present = scored("better", 180), scored("present", 120)
    path = present / "evals" / "ctibench.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"step": 220}))
    channel = decide(CANONICAL, better, present, None)
    assert channel.name == CANONICAL
    assert "Beside the present canonical run, present, on 200 questions" in channel.reason
    assert "better is better than present by 22.5 points" in channel.reason
    assert channel.comparison["reference"] == "present"
    assert channel.above == {"run": "present", "step": 220}
    experimental = decide(EXPERIMENTAL, better, present, None)
    assert (experimental.name, experimental.above) == (EXPERIMENTAL, None)


@pytest.mark.parametrize(
    ("knows", "said"), [(122, "not told apart from present"), (110, "is worse than present"), (120, "earns the same")]
)
def test_what_is_not_shown_to_be_above_ships_as_experimental_with_the_numbers(knows, said, scored):
    channel = decide(CANONICAL, scored("run", knows), scored("present", 120), None)
    assert channel.name == EXPERIMENTAL
    assert "Put forward as canonical and not accepted: it is not shown to be above" in channel.reason
    assert said in channel.reason


def test_the_first_canonical_run_must_know_something(scored):
    run = scored("run", 150)
    for verdict in ("chance", "shortcut", "gain"):
        channel = decide(CANONICAL, verdict_of(run, verdict), None, None)
        assert channel.name == EXPERIMENTAL
        assert f'needs the verdict "knowledge". Its verdict: {verdict}' in channel.reason
    assert decide(CANONICAL, verdict_of(run, "knowledge"), None, None).name == CANONICAL
    assert decide(EXPERIMENTAL, run, None, None) == CHANNEL


def test_a_collapsed_run_is_never_canonical(scored):
    collapsed, worse = scored("collapsed", 0), scored("worse", 0, letter=-1)
    channel = decide(CANONICAL, collapsed, worse, None)
    assert channel.comparison["rows"][1]["against_reference"]["mean"] > 0.2, "it is above the present run"
    assert channel.name == EXPERIMENTAL
    assert "collapsed to one letter" in channel.reason


def test_one_order_makes_nothing_canonical(scored):
    better, present = scored("better", 180, orders="published"), scored("present", 120, orders="published")
    channel = decide(CANONICAL, better, present, None)
    assert channel.name == EXPERIMENTAL
    assert "one order of the options" in channel.reason


def test_another_seed_of_the_canonical_run_does_not_replace_it(items, tmp_path):
    for name, seed, knows in (("present", 0, 120), ("run", 1, 180)):
        write_run(tmp_path / name, report(items, range(knows)), items, seed=seed)
    channel = decide(CANONICAL, tmp_path / "run", tmp_path / "present", None)
    assert channel.name == EXPERIMENTAL
    assert "another seed of the present canonical run" in channel.reason


def test_what_cannot_be_compared_is_refused(scored, tmp_path):
    run = scored("run", 120)
    with pytest.raises(UsageError, match="twice"):
        decide(CANONICAL, run, run, None)
    with pytest.raises(UserError, match="there is no such report"):
        decide(CANONICAL, tmp_path / "nowhere", None, None)
    with pytest.raises(UserError, match="their orders differ"):
        decide(CANONICAL, run, scored("other", 100, orders="published"), None)


def test_a_reason_stands_in_the_card_with_numbers_of_the_comparison(scored):
    channel = decide(CANONICAL, scored("run", 122), scored("present", 120), None)
    text = card_text("chat_v3-seed0", channel)
    assert channel.reason in text
    run = read_records(RECORDS / "chat_v3-seed0")
    assert strangers(text, [run, EXPORTED, [4], channel.comparison]) == []
