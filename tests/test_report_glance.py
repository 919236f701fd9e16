"""The first table: who is in it, that open and closed book never share a column, and where each figure is from."""

import copy

import pytest

from ghost_jax.reporting.records import read_run
from ghost_jax.reporting.summary import HEADER, NONE, glance_table, story


@pytest.fixture(scope="module")
def run(tiny_run) -> dict:
    """The tiny run, as if its questions had been the benchmark's."""
    found = read_run(tiny_run.workdir)
    found["evals"]["ctibench"]["items"]["name"] = "CTIBench MCQ"
    return found


OPEN = {
    "book": "open",
    "fits": [{"fitted_on": "nothing", "scored_on": "all", "n": 2500, "accuracy": 0.8, "ci95": [0.78, 0.82]}],
}
AUDIT = {
    "predictions": {
        name: {"items": {"name": "CTIBench MCQ"}, "headline": {"accuracy": accuracy, "ci95": [0.69, 0.73]}}
        for name, accuracy in (("ChatGPT-4", 0.71), ("LLAMA3-8B", 0.6))
    }
}


def test_everyone_stands_in_it_with_an_interval_and_a_command(run):
    header, *rows = glance_table([run], [OPEN, AUDIT])
    assert header == HEADER
    by_name = {row[0]: row[1:] for row in rows}
    score = run["evals"]["ctibench"]
    low, high = (f"{100 * bound:.1f}" for bound in score["headline"]["ci95"])
    assert by_name["the study's best, chat-v5"][:3] == ("34.8", NONE, NONE)
    assert by_name["always C"][:3] == (f"{100 * score['baselines']['always_C']:.1f}", "25.0", NONE)
    assert by_name["GPT-4, published answers"][0] == "71.0 (69.0 to 73.0)"
    assert not any("LLAMA" in name for name in by_name)
    assert f"({low} to {high})" in by_name["ours: chat"][1]
    assert by_name["ours: chat"][3].startswith(
        "`python -m ghost_jax.train --config=configs/chat_v5.py:nano --config.mo"
    )
    assert by_name["ours: chat"][3].endswith(" --config.base.log_every=1`"), "what was changed is part of the command"
    assert by_name["ours: lexical reader, fitted on nothing, scored on all"][2] == "80.0 (78.0 to 82.0)"


def test_open_and_closed_book_never_share_a_column(run):
    reading = copy.deepcopy(run)
    reading["evals"]["ctibench-open-model"] = {**run["evals"]["ctibench"], "book": "open"}
    rows = glance_table([reading], [OPEN, AUDIT])[1:]
    assert any(row[0] == "ours: chat reads" for row in rows)
    for _, *closed, opened, _ in rows:
        assert set(closed) == {NONE} or opened == NONE


def test_of_a_model_beside_the_lexical_reader_its_gain_is_told(run):
    beside = copy.deepcopy(run)
    gain = {"gain_over_lexical": 0.0123, "gain_over_lexical_ci95": [0.0045, 0.0201]}
    score = {**run["evals"]["ctibench"], "book": "open", "reader": "both", **gain}
    beside["evals"]["ctibench-open-both"] = score
    who = "ours: lexical reader with chat, +1.23 points (+0.45 to +2.01) over the lexical reader alone"
    assert who in [row[0] for row in glance_table([beside], [])]


def test_three_numbers_tell_the_story(run):
    score = run["evals"]["ctibench"]
    reader = {**score, "book": "open", "reader": "lexical", "headline": {**score["headline"], "accuracy": 0.8}}
    (model, of_model), (baseline, of_baseline), (_, of_reader) = story([run], [AUDIT, reader])
    assert model.startswith("chat")
    assert of_model.startswith(f"{100 * score['headline']['accuracy']:.1f}")
    assert baseline.startswith("without reading")
    assert of_baseline == f"{100 * max(score['baselines_over_orders'].values()):.1f}"
    assert of_reader.startswith("80.0")
    assert len(story([run], [])) == 2
    assert not story([], [reader])


def test_a_collapsed_run_is_labelled(run):
    collapsed = copy.deepcopy(run)
    collapsed["evals"]["ctibench"]["verdict"] = "collapsed"
    assert glance_table([collapsed], [])[-1][2].endswith(" COLLAPSED")


def test_without_a_score_on_the_benchmark_there_is_no_table(tiny_run):
    assert glance_table([read_run(tiny_run.workdir)], [OPEN, AUDIT]) == []
