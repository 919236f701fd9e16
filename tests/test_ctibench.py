"""`python -m evals.ctibench` on real runs and files, and its arithmetic on models whose answers are known."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from rich.console import Console

from evals.analysis.report import show
from evals.answering.evaluate import evaluate
from evals.answering.letters import letter_answers, prompt_of
from evals.items.answers import orders_of
from evals.items.formats import read_items
from evals.items.items import Item, Items, cyclic_orders, permute
from ghost_jax.parallel.mesh import AXES
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.text.mcq_format import letter_ids
from ghost_jax.training.checkpoint import load_model
from ghost_jax.training.step import make_predict
from tests.conftest import paragraph_of, score_of
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
TWO_OPTIONS = {"question": "Is it?", "options": {"A": "yes", "B": "no"}, "answer": "A"}


def write_items(path, items) -> str:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return str(path)


# ---- The command ----


@pytest.fixture(scope="module")
def commands(ghost, tiny_run, tmp_path_factory):
    """What each command said, run two at a time: `name -> (process, report or None, folder)`."""
    folder = tmp_path_factory.mktemp("ctibench")
    chat, eight = f"--workdir={tiny_run.workdir}", {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    broken = folder / "broken.jsonl"
    broken.write_text(json.dumps(ITEMS[0]) + '\n{"question": 7}\n')
    own = write_items(folder / "own.jsonl", ITEMS)
    control = shutil.copytree(tiny_run.workdir, folder / "control", ignore=shutil.ignore_patterns("checkpoints"))
    config = json.loads((control / "config.json").read_text())
    config["data"]["layout"] = "options_only"
    (control / "config.json").write_text(json.dumps(config))
    asked = {
        "held out": ([chat, f"--options_only={control}", "--matching"], {}),
        "its own control": ([chat, f"--options_only={tiny_run.workdir}"], {}),
        "own items": ([chat, f"--items={own}"], {}),
        "own items on eight devices": ([chat, f"--items={own}", "--batch_size=7"], eight),
        "a base": ([f"--workdir={tiny_run.base}"], {}),
        "no run": ([f"--workdir={folder / 'nowhere'}"], {}),
        "broken items": ([chat, f"--items={broken}"], {}),
        "mixed items": ([chat, f"--items={write_items(folder / 'mixed.jsonl', [ITEMS[0], TWO_OPTIONS])}"], {}),
        "all orders": ([chat, f"--items={own}", "--orders=all"], {}),
        "no batch": ([chat, "--batch_size=0"], {}),
        "no items": ([chat, "--items=nowhere.jsonl"], {}),
    }

    def run(name, flags, env):
        out = folder / f"{name.replace(' ', '-')}.json"
        result = ghost("evals.ctibench", *flags, f"--out={out}", env=env, check=False)
        return result, json.loads(out.read_text()) if out.exists() else None

    return ghost.together({name: functools.partial(run, name, *each) for name, each in asked.items()})


@pytest.mark.parametrize("name", ["held out", "own items", "own items on eight devices"])
def test_the_report_holds_what_is_promised(commands, name):
    result, report = commands[name]
    assert result.returncode == 0, result.stderr
    expected = "n book reader headline single_order letter_share recall baselines controls verdict note"
    assert set(expected.split()) <= report.keys()
    assert (report["book"], report["reader"]) == ("closed", "model")
    assert list(report["baselines"])[:5] == [*(f"always_{letter}" for letter in "ABCD"), "longest"]
    assert {"options only", "question swapped"} <= set(report["controls"])
    assert report["cloze"][report["cloze"]["primary"]]["ci95"]
    assert set(report["cloze"]["controls"]) == {"question swapped"}
    assert set(report["readings"]) == {"letters", "cloze", "differs"}
    assert report["readings"]["letters"]["accuracy"] == report["headline"]["accuracy"]
    assert f"the same, question swapped: {100 * report['cloze']['controls']['question swapped']['accuracy']:.2f}%" in (
        result.stdout
    )
    low, high = report["headline"]["ci95"]
    assert 0 <= low <= report["headline"]["accuracy"] <= high <= 1
    fractions = [report["single_order"], *report["letter_share"].values(), *report["recall"].values()]
    fractions += [*report["baselines"].values(), *report["baselines_over_orders"].values()]
    assert all(0 <= fraction <= 1 for fraction in fractions)
    assert sum(report["letter_share"].values()) == pytest.approx(1)
    assert all(report["baselines_over_orders"][f"always_{letter}"] == 0.25 for letter in "ABCD")
    assert report["verdict"] in ("collapsed", "chance", "shortcut", "gain", "knowledge")
    missing = [] if name == "held out" else ["trained options-only"]
    assert report["controls_missing"] == missing
    assert ("Controls missing: trained options-only." in result.stdout) == bool(missing)
    assert len(report["predicted"]) == report["n"]
    for number in ("single_order", "headline"):
        value = report[number]["accuracy"] if number == "headline" else report[number]
        assert f"{100 * value:.2f}" in result.stdout


def test_a_run_trained_without_questions_is_the_third_control(commands, tiny_run):
    result, report = commands["held out"]
    before = score_of(tiny_run.workdir)["headline"]["accuracy"]
    found = report["controls"]["trained options-only"]
    assert (found["run"], found["accuracy"], found["gain"]) == ("control", pytest.approx(before), pytest.approx(0))
    assert "trained options-only" in result.stdout
    assert report["matching"]["ci95"][0] <= report["matching"]["accuracy"] <= report["matching"]["ci95"][1]
    assert "free answers matched" in result.stdout


def test_without_ctibench_it_is_said_on_screen_and_in_the_report(commands):
    result, report = commands["held out"]
    for text in (result.stdout, report["note"]):
        assert text.startswith("THIS IS NOT CTIBENCH: ctibench/cti-mcq.tsv was not found")
    assert report["items"]["name"] == "held-out questions of this project, not CTIBench"


def test_own_items_are_scored_as_they_stand(commands):
    result, report = commands["own items"]
    assert "own.jsonl: 12 questions, closed book" in result.stdout
    assert (report["n"], report["items"]["name"], report["note"]) == (12, "own.jsonl", "")
    gold = "".join("ABBC"[number % 4] for number in range(12))
    assert [report["baselines"][f"always_{letter}"] for letter in "ABCD"] == [gold.count(x) / 12 for x in "ABCD"]
    published = [answers[0] for answers in report["predicted"]]
    assert report["single_order"] == sum(map(str.__eq__, published, gold)) / 12
    assert commands["own items on eight devices"][1]["predicted"] == report["predicted"]


def test_all_24_orders_may_be_asked(commands):
    result, report = commands["all orders"]
    assert result.returncode == 0, result.stderr
    assert len(report["headline"]["orders"]) == len(set(report["headline"]["orders"])) == 24
    assert all(len(letters) == 24 for letters in report["predicted"])
    assert "over 24 orders" in result.stdout


def test_items_with_other_numbers_of_options_are_asked_in_their_own_orders(commands):
    result, report = commands["mixed items"]
    assert result.returncode == 0, result.stderr
    assert [len(letters) for letters in report["predicted"]] == [4, 2]
    assert report["baselines_over_orders"]["always_A"] == pytest.approx((1 / 4 + 1 / 2) / 2)


@pytest.mark.parametrize(
    ("name", "code", "parts"),
    [
        ("a base", 1, ["is a base model without a chat format"]),
        ("its own control", 1, ["was trained with its questions"]),
        ("no run", 1, ["nowhere holds no run"]),
        ("broken items", 1, ["broken.jsonl, line 2: "]),
        ("no batch", 2, ["batch size of an evaluation is 0"]),
        ("no items", 1, ["nowhere.jsonl: there is no such file"]),
    ],
)
def test_what_cannot_be_scored_is_refused(commands, name, code, parts):
    result, report = commands[name]
    said = paragraph_of(result, code)
    assert all(part in said for part in parts), said
    assert report is None


def test_ctibench_as_published(ghost, ghost_data, tiny_run, tmp_path):
    out = tmp_path / "out.json"
    flags = [f"--workdir={tiny_run.workdir}", "--orders=published", f"--out={out}"]
    said = ghost("evals.ctibench", *flags, env={"GHOST_DATA": str(ghost_data)}).stdout
    report = json.loads(out.read_text())
    assert (report["n"], report["items"]["name"], report["note"]) == (2500, "CTIBench MCQ", "")
    assert report["headline"]["orders"] == ["ABCD"]
    percent = {name: f"{100 * value:.2f}" for name, value in report["baselines"].items()}
    expected = {"always_A": "14.96", "always_B": "32.52", "always_C": "37.12", "always_D": "15.40", "longest": "42.65"}
    assert percent.items() >= expected.items()
    assert report["controls_missing"] == ["options only", "question swapped", "trained options-only"]
    for name, value in expected.items():
        assert any(name.replace("_", " ") in line and value in line for line in said.splitlines())
    lines = {int(quirk.removeprefix("line ").partition(":")[0]) for quirk in report["items"]["quirks"]}
    assert lines == {58, 110, 832, 1032, 1311, 1409, 2237}
    assert all(f"cti-mcq.tsv, line {line}: " in said for line in lines)


# ---- The arithmetic, on models whose answers are known ----


@pytest.fixture(scope="module")
def tiny(tiny_run):
    """The tiny run's own predict function on one device, its tokenizer, and its context."""
    mesh = jax.make_mesh((1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:1])
    model, params, _ = load_model(tiny_run.workdir, mesh)
    tokenizer = tokenizer_lib.load(tiny_run.workdir / "tokenizer.json")
    return functools.partial(make_predict(model, params, mesh), params), tokenizer, model.context


@pytest.fixture(scope="module")
def items(tmp_path_factory) -> Items:
    return read_items(write_items(tmp_path_factory.mktemp("items") / "own.jsonl", ITEMS))


def knowing(tokenizer, items, choose):
    """Returns a predict function that finds the question by what a place sees and answers `choose(permuted item)`."""
    permuted = [permute(item, order) for item in items for order in cyclic_orders(4)]
    answers = {tuple(prompt_of(tokenizer, item)): choose(item) for item in permuted}

    def predict(batch, at, targets):
        said = np.zeros(targets.shape, np.float32)
        for row, places in enumerate(at):
            for read, place in enumerate(places):
                said[row, read, answers.get(tuple(seen_by(batch, row, place)), 0) % targets.shape[2]] = 1
        return said, np.zeros(targets.shape, bool)

    return predict


def test_an_oracle_is_right_everywhere(tiny, items):
    _, tokenizer, _ = tiny
    oracle = knowing(tokenizer, items, lambda item: item.answer)
    report, _ = evaluate(oracle, tokenizer, items, context=2048, batch_size=5)
    assert report["headline"]["accuracy"] == report["single_order"] == 1
    assert report["headline"]["ci95"] == [pytest.approx(0.025 ** (1 / 6)), 1], "all six pages right may be luck"
    assert report["recall"] == dict.fromkeys("ABCD", 1.0)
    assert report["letter_share"] == dict.fromkeys("ABCD", 0.25)
    assert report["flip_rate"] == 0
    # Prompts that it does not know, it answers with A.
    assert {name: control["accuracy"] for name, control in report["controls"].items()} == {
        "options only": 0.25,
        "question swapped": 0.25,
    }
    assert report["verdict"] == "knowledge"
    assert report["controls_missing"] == ["trained options-only"]


@pytest.mark.parametrize("letter", range(4))
def test_a_constant_letter_is_collapsed_at_exactly_a_quarter(tiny, items, letter):
    _, tokenizer, _ = tiny
    constant = knowing(tokenizer, items, lambda item: letter)
    report, _ = evaluate(constant, tokenizer, items, context=2048, batch_size=48)
    assert report["headline"]["accuracy"] == 0.25
    assert report["single_order"] == report["baselines"][f"always_{'ABCD'[letter]}"]
    assert report["recall"] == dict(zip("ABCD", np.eye(4)[letter], strict=True))
    assert report["flip_rate"] == 1
    assert report["verdict"] == "collapsed"


def test_guessing_is_chance(tiny):
    _, tokenizer, _ = tiny
    guess = np.random.default_rng(0)
    many = tuple(Item(str(n), f"Question {n}?", ("a", "b", "c", "d"), n % 4) for n in range(300))
    report, _ = evaluate(
        lambda batch, at, targets: (guess.random(targets.shape), np.zeros(targets.shape, bool)),
        tokenizer,
        Items("made here", "", "", many),
        context=2048,
        batch_size=64,
    )
    assert report["headline"]["accuracy"] == pytest.approx(0.25, abs=0.05)
    assert report["verdict"] == "chance"


def test_scores_do_not_depend_on_the_batch_size(tiny, items):
    predict, tokenizer, context = tiny
    orders = orders_of(items.items, "all")
    scores = functools.partial(letter_answers, predict, tokenizer, items.items, orders, context=context)
    expected = np.concatenate(scores(batch_size=16)[0].log_probs)
    assert expected.shape == (12 * 24, 4)
    assert np.ptp(expected) > 1e-3, "the scores differ at all"
    for batch_size in (1, 7):
        np.testing.assert_allclose(np.concatenate(scores(batch_size=batch_size)[0].log_probs), expected, atol=1e-5)


def test_a_prompt_over_the_context_is_cropped_and_counted(tiny, items):
    predict, tokenizer, context = tiny
    long = dataclasses.replace(items.items[0], question="A very long question. " * context)
    short = dataclasses.replace(items.items[1], question="Q?", options=("1", "2", "3", "4"))
    report, answers = evaluate(predict, tokenizer, Items("", "", "", (long, short)), context=context)
    assert report["prompts_cropped"] == 4
    console = Console(width=200)
    with console.capture() as text:
        show(report, console)
    assert "4 of 8 prompts" in text.get(), "the printed report counts them"
    cut = prompt_of(tokenizer, long)[-context:]
    batch = {key: np.zeros((1, context), np.int32) for key in ("segments", "branches")}
    batch |= {"tokens": cut[None], "positions": np.arange(context, dtype=np.int32)[None]}
    ids = np.broadcast_to(letter_ids(tokenizer), (1, 8, 4))
    whole, _ = predict(batch, np.full((1, 8), context - 1, np.int32), ids)
    np.testing.assert_allclose(answers.log_probs[0][0], whole[0, 0], atol=1e-5)


def test_items_may_differ_in_their_number_of_options(tiny, items):
    predict, tokenizer, context = tiny
    mixed = dataclasses.replace(items, items=(*items, Item("two", "Is it?", ("yes", "no"), 0)))
    report, answers = evaluate(predict, tokenizer, mixed, context=context)
    alone, _ = evaluate(predict, tokenizer, items, context=context)
    assert report["predicted"][:-1] == alone["predicted"]
    assert [len(asked) for asked in answers.orders[-2:]] == [4, 2]
    assert set(report["predicted"][-1]) <= {"A", "B"}
