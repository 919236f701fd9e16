"""`python -m evals.ctibench` on real runs and files, and its arithmetic on models whose answers are known."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from evals.ctibench import evaluate
from evals.items import Item, Items, cyclic_orders, permute, read_items
from evals.score import letter_scores, prompt_of
from ghost_jax.checkpoint import load_model
from ghost_jax.errors import UserError
from ghost_jax.parallel.mesh import AXES
from ghost_jax.step import make_predict
from ghost_jax.text import tokenizer as tokenizer_lib
from tests.conftest import paragraph_of

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
    asked = {
        "held out": ([chat], {}),
        "own items": ([chat, f"--items={own}"], {}),
        "own items on eight devices": ([chat, f"--items={own}", "--batch_size=7"], eight),
        "a base": ([f"--workdir={tiny_run.base}"], {}),
        "no run": ([f"--workdir={folder / 'nowhere'}"], {}),
        "broken items": ([chat, f"--items={broken}"], {}),
        "mixed items": ([chat, f"--items={write_items(folder / 'mixed.jsonl', [ITEMS[0], TWO_OPTIONS])}"], {}),
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
    expected = "n book reader headline single_order letter_share recall policies controls verdict note"
    assert set(expected.split()) <= report.keys()
    assert (report["book"], report["reader"]) == ("closed", "model")
    assert list(report["policies"]) == [*(f"always_{letter}" for letter in "ABCD"), "longest"]
    low, high = report["headline"]["ci95"]
    assert 0 <= low <= report["headline"]["accuracy"] <= high <= 1
    fractions = [report["single_order"], *report["letter_share"].values(), *report["recall"].values()]
    fractions += [*report["policies"].values(), *report["policies_over_orders"].values()]
    assert all(0 <= fraction <= 1 for fraction in fractions)
    assert sum(report["letter_share"].values()) == pytest.approx(1)
    assert all(report["policies_over_orders"][f"always_{letter}"] == 0.25 for letter in "ABCD")
    assert report["verdict"] in ("latched", "chance", "shortcut")
    assert len(report["predicted"]) == report["n"]
    for number in ("single_order", "headline"):
        value = report[number]["accuracy"] if number == "headline" else report[number]
        assert f"{100 * value:.2f}" in result.stdout


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
    assert [report["policies"][f"always_{letter}"] for letter in "ABCD"] == [gold.count(x) / 12 for x in "ABCD"]
    published = [answers[0] for answers in report["predicted"]]
    assert report["single_order"] == sum(map(str.__eq__, published, gold)) / 12
    assert commands["own items on eight devices"][1]["predicted"] == report["predicted"]


@pytest.mark.parametrize(
    ("name", "code", "parts"),
    [
        ("a base", 1, ["is a base model without a chat format"]),
        ("no run", 1, ["nowhere holds no run"]),
        ("broken items", 1, ["broken.jsonl, line 2: "]),
        ("mixed items", 1, ["mixed.jsonl: its items differ in their number of options"]),
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
    percent = {name: f"{100 * value:.2f}" for name, value in report["policies"].items()}
    expected = {"always_A": "14.96", "always_B": "32.52", "always_C": "37.12", "always_D": "15.40", "longest": "42.65"}
    assert percent == expected
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
    return make_predict(model, params, mesh), tokenizer, model.context


@pytest.fixture(scope="module")
def items(tmp_path_factory) -> Items:
    return read_items(write_items(tmp_path_factory.mktemp("items") / "own.jsonl", ITEMS))


def knowing(tokenizer, items, choose):
    """Returns a predict function that finds the question by its prompt and answers with `choose(permuted item)`."""
    permuted = [permute(item, order) for item in items for order in cyclic_orders(4)]
    answers = {prompt_of(tokenizer, item).tobytes(): choose(item) for item in permuted}

    def predict(tokens, last, ids):
        rows = [row[: end + 1].tobytes() for row, end in zip(tokens, last, strict=True)]
        return np.eye(len(ids))[[answers.get(row, 0) for row in rows]]

    return predict


def test_an_oracle_is_right_everywhere(tiny, items):
    _, tokenizer, _ = tiny
    oracle = knowing(tokenizer, items, lambda item: item.answer)
    report = evaluate(oracle, tokenizer, items, context=2048, batch_size=5)
    assert report["headline"]["accuracy"] == report["single_order"] == 1
    assert report["headline"]["ci95"] == [1, 1]
    assert report["recall"] == dict.fromkeys("ABCD", 1.0)
    assert report["letter_share"] == dict.fromkeys("ABCD", 0.25)
    assert report["verdict"] == "shortcut"  # "knowledge" takes controls


@pytest.mark.parametrize("letter", range(4))
def test_a_constant_letter_is_latched_at_exactly_a_quarter(tiny, items, letter):
    _, tokenizer, _ = tiny
    constant = knowing(tokenizer, items, lambda item: letter)
    report = evaluate(constant, tokenizer, items, context=2048, batch_size=48)
    assert report["headline"]["accuracy"] == 0.25
    assert report["single_order"] == report["policies"][f"always_{'ABCD'[letter]}"]
    assert report["recall"] == dict(zip("ABCD", np.eye(4)[letter], strict=True))
    assert report["verdict"] == "latched"


def test_guessing_is_chance(tiny):
    _, tokenizer, _ = tiny
    guess = np.random.default_rng(0)
    many = tuple(Item(str(n), f"Question {n}?", ("a", "b", "c", "d"), n % 4) for n in range(300))
    report = evaluate(
        lambda tokens, last, ids: guess.random((len(tokens), len(ids))),
        tokenizer,
        Items("made here", "", "", many),
        context=2048,
        batch_size=64,
    )
    assert report["headline"]["accuracy"] == pytest.approx(0.25, abs=0.05)
    assert report["verdict"] == "chance"


def test_scores_do_not_depend_on_batch_size_or_padding(tiny, items, monkeypatch):
    predict, tokenizer, context = tiny
    scores = functools.partial(letter_scores, predict, tokenizer, items.items, cyclic_orders(4), context=context)
    expected, _ = scores(batch_size=64)
    assert np.ptp(expected) > 1e-3, "the scores differ at all"
    for batch_size in (1, 7):
        np.testing.assert_allclose(scores(batch_size=batch_size)[0], expected, atol=1e-6)
    monkeypatch.setattr("evals.score.BUCKETS", (120, context))
    np.testing.assert_allclose(scores(batch_size=64)[0], expected, atol=1e-6)


def test_a_prompt_over_the_context_is_cropped_and_counted(tiny, items):
    predict, tokenizer, context = tiny
    long = dataclasses.replace(items.items[0], question="A very long question. " * context)
    short = dataclasses.replace(items.items[1], question="Q?", options=("1", "2", "3", "4"))
    report = evaluate(predict, tokenizer, Items("", "", "", (long, short)), context=context)
    assert report["prompts_cropped"] == 4
    seen = []
    evaluate(lambda tokens, last, ids: seen.append(last) or np.zeros((len(last), 4)), tokenizer, items, context=64)
    assert max(map(np.max, seen)) == 63, "the end of the prompt, where the letter is read, is kept"


def test_options_of_mixed_number_are_refused(tiny, items):
    predict, tokenizer, context = tiny
    mixed = dataclasses.replace(items, items=(*items, Item("two", "Is it?", ("yes", "no"), 0)))
    with pytest.raises(UserError, match="differ in their number of options"):
        evaluate(predict, tokenizer, mixed, context=context)
