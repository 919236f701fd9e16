"""`python -m evals.ctibench` on a tiny run, and its arithmetic on models whose answers are known."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from evals import ctibench
from evals.answering.evaluate import evaluate
from evals.answering.letters import make_probe, prompt_of
from evals.items.ctibench import NoItems, find_items
from evals.tasks.mcq import with_nearest_trained
from ghost_jax.core.atomic_io import write_text
from ghost_jax.core.errors import UserError
from ghost_jax.data.items.formats import read_items
from ghost_jax.data.items.items import Items, cyclic_orders, permute
from ghost_jax.runs import evaluation
from tests.conftest import ROOT, score_of, tiny_chat
from tests.test_trees import seen_by

ITEMS = [
    {
        "id": str(number),
        "question": f"Which weakness is number {number}?" + " It is long." * (number % 3),
        "options": {letter: f"weakness {(number + place) % 7}" + "!" * place for place, letter in enumerate("ABCD")},
        "answer": "ABBC"[number % 4],
        "url": f"https://example.org/{number // 2}",
    }
    for number in range(12)
]


def write_items(path, items) -> str:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return str(path)


def test_the_report_on_held_out_questions_holds_every_control(ghost, tiny_run, tmp_path):
    control = shutil.copytree(tiny_run.workdir, tmp_path / "control", ignore=shutil.ignore_patterns("checkpoints"))
    config = json.loads((control / "config.json").read_text())
    config["data"]["layout"] = "options_only"
    (control / "config.json").write_text(json.dumps(config))
    out = tmp_path / "report.json"
    flags = [f"--workdir={tiny_run.workdir}", f"--options_only={control}", f"--out={out}"]
    screen = ghost.here("evals.ctibench", *flags).stdout
    report = json.loads(out.read_text())
    expected = "n book reader headline single_order letter_share recall baselines controls verdict note step machine"
    assert set(expected.split()) <= report.keys()
    assert (report["book"], report["reader"]) == ("closed", "model")
    assert 0 < report["baselines"]["nearest_trained_question"] < 1
    assert list(report["baselines"])[:5] == [*(f"always_{letter}" for letter in "ABCD"), "longest"]
    assert set(report["controls"]) == {"options only", "question swapped", "trained options-only"}
    found = report["controls"]["trained options-only"]
    before = score_of(tiny_run.workdir)["headline"]["accuracy"]
    assert (found["run"], found["accuracy"], found["gain"]) == ("control", pytest.approx(before), pytest.approx(0))
    assert set(report["cloze"]["controls"]) == {"question swapped"}
    assert len(report["predicted"]) == report["n"]
    assert "NOT CTIBENCH" in report["note"]
    assert "not CTIBench" in report["items"]["name"]
    shown = (report["headline"], found, report["cloze"]["controls"]["question swapped"])
    assert all(f"{100 * each['accuracy']:.2f}" in screen for each in shown)
    assert report["note"] in screen
    assert report["verdict_text"] in screen


def test_own_items_are_scored_in_their_own_orders_on_any_number_of_devices(ghost, tiny_run, tiny, tmp_path):
    two_options = {"question": "Is it?", "options": {"A": "yes", "B": "no"}, "answer": "A"}
    path, out = write_items(tmp_path / "own.jsonl", [*ITEMS, two_options]), tmp_path / "report.json"
    ghost.here("evals.ctibench", f"--workdir={tiny_run.workdir}", f"--items={path}", "--batch_size=7", f"--out={out}")
    report = json.loads(out.read_text())
    assert (report["n"], report["items"]["name"], report["note"]) == (13, "own.jsonl", "")
    assert report["controls_missing"] == ["trained options-only"]
    gold = "".join("ABBC"[number % 4] for number in range(12)) + "A"
    published = [letters[0] for letters in report["predicted"]]
    assert report["single_order"] == sum(map(str.__eq__, published, gold)) / 13
    assert [len(letters) for letters in report["predicted"]] == [4] * 12 + [2]
    alone, _ = evaluate(tiny.predict, tiny.tokenizer, read_items(path), context=tiny.config.context)
    assert tuple(report["predicted"]) == alone.predicted


@pytest.mark.parametrize(
    ("flags", "code", "named"),
    [
        (["--workdir={base}"], 1, "{base}"),
        (["--workdir={chat}", "--options_only={chat}"], 1, "data.layout"),
        (["--workdir={folder}/nowhere"], 1, "{folder}/nowhere"),
        (["--workdir={chat}", "--items={folder}/broken.jsonl"], 1, "broken.jsonl, line 2"),
        (["--workdir={chat}", "--batch_size=0"], 2, "batch_size"),
        (["--workdir={chat}", "--reader=both"], 2, "--book=open"),
        ([], 2, "--workdir"),
        (["--workdir={chat}", "--evidence"], 2, "--evidence"),
        (["--workdir={chat}", "--out={folder}"], 2, "--out={folder}"),
    ],
)
def test_what_cannot_be_scored_is_refused(ghost, tiny_run, tmp_path, flags, code, named):
    (tmp_path / "broken.jsonl").write_text(json.dumps(ITEMS[0]) + '\n{"question": 7}\n')
    places = {"base": tiny_run.base, "chat": tiny_run.workdir, "folder": tmp_path}
    out = tmp_path / "report.json"
    words = [f"--out={out}", *(flag.format(**places) for flag in flags)]
    assert named.format(**places) in ghost.refused_here("evals.ctibench", *words, code=code)
    assert not out.exists()


@pytest.fixture(scope="module")
def items(tmp_path_factory) -> Items:
    return read_items(write_items(tmp_path_factory.mktemp("items") / "own.jsonl", ITEMS))


def knowing(tokenizer, items, otherwise=0):
    """Returns a predict function that finds the question by what a place sees and answers it, else with a letter."""
    permuted = [permute(item, order) for item in items for order in cyclic_orders(4)]
    answers = {tuple(prompt_of(tokenizer, item)): item.answer for item in permuted}

    def predict(batch, at, targets):
        scores = np.zeros(targets.shape, np.float32)
        for row, places in enumerate(at):
            for read, place in enumerate(places):
                answer = answers.get(tuple(seen_by(batch, row, place)), otherwise)
                scores[row, read, answer % targets.shape[2]] = 1
        return scores

    return predict


def test_an_oracle_is_right_everywhere_and_knows_nothing_without_the_question(tiny, items):
    oracle = knowing(tiny.tokenizer, items)
    report, _ = evaluate(oracle, tiny.tokenizer, items, context=2048, batch_size=5)
    assert report.headline.accuracy == report.single_order == 1
    assert report.headline.ci95 == (pytest.approx(0.025 ** (1 / 6)), 1), "all six pages right may be luck"
    controls = {name: control.accuracy for name, control in report.controls.items()}
    assert controls == {"options only": 0.25, "question swapped": 0.25}, "unknown prompts are answered with A"
    assert report.verdict == "knowledge"


def test_contextual_calibration_takes_away_what_is_preferred_anyway(tiny, items):
    knows = knowing(tiny.tokenizer, items, otherwise=3)

    def biased(batch, at, targets):
        return knows(batch, at, targets) + 3 * (np.arange(targets.shape[2]) == 0)

    without_d = dataclasses.replace(items, items=tuple(item for item in items if item.answer != 3))
    report, _ = evaluate(biased, tiny.tokenizer, without_d, context=2048)
    assert (report.headline.accuracy, report.letter_share["A"]) == (0.25, 1)
    assert report.contextual_calibration.single_order == 1


def test_a_probe_of_all_held_out_questions_is_the_score(tiny, tiny_run):
    probe = make_probe(tiny_run.workdir, tiny.tokenizer, "classic", questions=10**6, context=tiny.config.context)
    found = probe(tiny.predict)["held_out_accuracy"]
    assert found == pytest.approx(score_of(tiny_run.workdir)["headline"]["accuracy"])


def test_without_the_stores_of_its_questions_a_run_has_no_baseline_by_them(tiny_run, monkeypatch):
    report = evaluation.read(tiny_run.workdir / "evals" / "ctibench.json")
    monkeypatch.setattr("ghost_jax.data.storage.artifact_cache.find", lambda _: None)
    found = with_nearest_trained(report, read_items(tiny_run.workdir / "heldout.jsonl"), tiny_run.workdir)
    assert "mcq" in found.note
    assert "small_talk" not in found.note
    assert found.baselines == report.baselines


def test_a_prompt_over_the_context_is_counted(tiny, items):
    context = tiny.config.context
    long = dataclasses.replace(items.items[0], question="A very long question. " * context)
    short = dataclasses.replace(items.items[1], question="Q?", options=("1", "2", "3", "4"))
    report, _ = evaluate(tiny.predict, tiny.tokenizer, Items("", "", "", (long, short)), context=context)
    assert report.prompts_cropped == 4
    assert "4 of 8 prompts" in report.cropping


def test_a_report_on_other_items_of_the_same_name_is_not_replaced(tmp_path):
    place, path = tmp_path / "evals" / "own-published.json", write_items(tmp_path / "own.jsonl", ITEMS)
    flags = ctibench.parse([f"--workdir={tmp_path}", f"--items={path}", "--orders=published"])
    assert ctibench.place_of(flags) == place
    before = evaluation.read(ROOT / "evals" / "records" / "open_book.json")
    evaluation.write(place, before)
    with pytest.raises(UserError, match=r"own-published.json.*--out"):
        ctibench.place_of(flags)
    same = dataclasses.replace(before.items, sha256=read_items(path).sha256)
    evaluation.write(place, dataclasses.replace(before, items=same))
    assert ctibench.place_of(flags) == place
    (tmp_path / "own.jsonl").unlink()
    with pytest.raises(UserError, match=r"no file .*own.jsonl"):
        ctibench.place_of(flags)


def test_reports_on_several_books_are_several_files(tmp_path):
    books = [[f"--workdir={tmp_path}", f"--book={book}"] for book in ("open", "A", "B")]
    assert len({ctibench.place_of(ctibench.parse(flags)) for flags in books}) == 3


def test_held_out_questions_do_not_replace_a_report_on_ctibench_and_it_replaces_theirs(tmp_path, monkeypatch):
    monkeypatch.delenv("GHOST_DATA", raising=False)
    flags = [f"--workdir={tmp_path}", f"--data_dir={tmp_path}"]
    write_items(tmp_path / "heldout.jsonl", ITEMS)
    shutil.copytree(ROOT / "evals" / "records" / "chat_v5-seed0" / "evals", tmp_path / "evals")
    with pytest.raises(UserError, match=r"ctibench.json.*GHOST_DATA"):
        ctibench.place_of(ctibench.parse(flags))
    cells = {"Question": "Which?", **{f"Option {letter}": letter for letter in "ABCD"}, "GT": "A", "URL": ""}
    write_text(tmp_path / "ctibench" / "cti-mcq.tsv", "".join("\t".join(row) + "\n" for row in (cells, cells.values())))
    assert ctibench.place_of(ctibench.parse(flags)) == tmp_path / "evals" / "ctibench.json"


def test_a_run_is_neither_trained_nor_scored_where_its_data_hold_ctibench(ghost, tiny_run, tmp_path):
    stores = json.loads((tiny_run.workdir / "data.json").read_text())["stores"]
    with (ghost.cache / "ghost_jax" / "stores" / stores["mcq"] / "items-train.jsonl").open() as lines:
        trained = json.loads(next(lines))
    cells = {"Question": trained["question"], "GT": trained["answer"], "URL": ""}
    cells |= {f"Option {letter}": trained["options"][letter] for letter in "ABCD"}
    write_text(tmp_path / "ctibench" / "cti-mcq.tsv", "".join("\t".join(row) + "\n" for row in (cells, cells.values())))
    data, workdir = f"--data_dir={tmp_path}", tiny_run.beside_base(tmp_path)
    for command in (tiny_chat(workdir, data), ["evals.ctibench", f"--workdir={tiny_run.workdir}", data]):
        assert "together with an answer" in ghost.refused_here(*command)
    assert not (workdir / "metrics.jsonl").exists()


def test_without_a_run_no_other_questions_take_the_place_of_ctibench(tiny_run, tmp_path, monkeypatch):
    monkeypatch.delenv("GHOST_DATA", raising=False)
    monkeypatch.chdir(tiny_run.workdir)
    assert find_items(tmp_path, tiny_run.workdir)[1]
    with pytest.raises(NoItems, match=str(tmp_path)):
        find_items(tmp_path, None)
