"""cloze.py: log-probabilities of options that are not shown, and what each normalisation makes of them."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from rich.console import Console

from evals.analysis.report import show
from evals.answering import cloze
from evals.answering.evaluate import evaluate
from evals.answering.prefix_tree import Predict
from evals.items.answers import orders_of
from evals.items.items import Item, Items
from ghost_jax.model.transformer import Transformer
from ghost_jax.parallel.mesh import AXES
from ghost_jax.reporting.tables import score_cells
from ghost_jax.runs.evaluation import from_json, to_json
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.text.chat_format import Message, render, render_prompt
from ghost_jax.text.mcq_format import ask, with_context
from ghost_jax.training.checkpoint import load_model
from ghost_jax.training.step import make_predict
from tests.test_trees import seen_by

ITEMS = Items(
    "made here",
    "",
    "",
    (
        Item("1", "Which tactic is Phishing?", ("initial access", "impact", "a much longer option than that"), 0),
        Item("2", "Which weakness is it?", ("injection", "", "overflow", "race condition"), 2),
        Item("3", "Which of both?", ("impact", "injection"), 1),
    ),
)


@pytest.fixture(scope="module")
def tiny(tiny_run):
    mesh = jax.make_mesh((1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:1])
    model, params, _ = load_model(tiny_run.workdir, mesh)
    tokenizer = tokenizer_lib.load(tiny_run.workdir / "tokenizer.json")
    return functools.partial(make_predict(model, params, mesh), params), tokenizer, model, params


def test_a_score_is_the_log_probability_of_the_text_after_the_prompt(tiny):
    predict, tokenizer, model, params = tiny
    scores = cloze.option_scores(predict, tokenizer, ITEMS.items, context=model.context, batch_size=2)

    forward = jax.jit(Transformer(model).apply)

    def by_plain_forward(question: str, option: str) -> np.ndarray:
        turns = [Message("user", ask(question, (), "cloze"))]
        prompt = render_prompt(tokenizer, turns)
        whole, _ = render(tokenizer, [*turns, Message("assistant", option)])
        padded = np.pad(whole, (0, model.context - len(whole)))[None]  # one shape, so one compilation
        logits = jax.nn.log_softmax(forward({"params": params}, padded)[0])
        return np.array([logits[place - 1, whole[place]] for place in range(len(prompt), len(whole))])

    for row, item in enumerate(ITEMS):
        for place, option in enumerate(item.options):
            if option:
                ended, alone = by_plain_forward(item.question, option), by_plain_forward("", option)[:-1]
                tokens = ended[:-1]  # without the end of the turn
                assert scores["sum"][row][place] == pytest.approx(tokens.sum(), abs=1e-4)
                assert scores["per_token"][row][place] == pytest.approx(tokens.mean(), abs=1e-4)
                assert scores["ranked"][row][place] == pytest.approx(ended.mean(), abs=1e-4)
                assert scores["pmi"][row][place] == pytest.approx(tokens.sum() - alone.sum(), abs=2e-4)
            else:
                assert all(scores[name][row][place] == -np.inf for name in scores), "no text is never chosen"


def deaf(tokenizer) -> Predict:
    """A model that hears the answer but never the question: what follows depends on the assistant's turn alone."""
    turn = tokenizer.id("<|ghost_assistant|>")

    def predict(batch, at, targets):
        said = np.zeros((*at.shape, 1))
        for row, places in enumerate(at):
            for read, place in enumerate(places):
                seen = seen_by(batch, row, place)
                answer = seen[seen.index(turn) :] if turn in seen else seen
                said[row, read] = -0.1 * len(answer) - 0.01 * (targets[row, read, 0] % 7)
        return said.astype(np.float32), np.zeros(targets.shape, bool)

    return predict


def test_a_model_that_does_not_read_the_question_is_at_chance_under_the_primary(tiny):
    _, tokenizer, model, _ = tiny
    report = to_json(cloze.evaluate(deaf(tokenizer), tokenizer, ITEMS, context=model.context, batch_size=2))
    assert report["primary"] == "pmi"
    assert report["pmi"]["accuracy"] == pytest.approx((1 / 3 + 1 / 3 + 1 / 2) / 3)
    assert report["sum"]["accuracy"] != report["pmi"]["accuracy"]
    assert all(set(report[name]) == {"accuracy", "ci95"} for name in ("sum", "per_token", "pmi", "ranked"))
    assert report["chance"] == pytest.approx((1 / 3 + 1 / 3 + 1 / 2) / 3)
    control = report["controls"]["question swapped"]
    assert (control["accuracy"], control["gain"]) == (report["pmi"]["accuracy"], 0)


# ---- Two readings side by side ----

KINDS = ("Execution", "Impact", "Discovery", "Collection")
SETS = Items(
    "made here",
    "",
    "",
    tuple(
        Item(
            f"{row}",
            f"Which kind has number {row}?",
            tuple(f"{row // 4:02} {kind}" for kind in KINDS),
            row % 4,
            f"page {row}",
        )
        for row in range(48)
    ),
)


def mute(tokenizer, knows) -> Predict:
    """A model that answers every letter with A, and finds the text probable that `knows(question)` says."""
    turn = tokenizer.id("<|ghost_assistant|>")
    said_of = {item.question: knows(item) for item in SETS}

    def predict(batch, at, targets):
        found = np.zeros(targets.shape)
        for row, places in enumerate(at):
            for read, place in enumerate(places):
                if targets.shape[2] > 1:
                    found[row, read, 0] = 1
                    continue
                seen = list(seen_by(batch, row, place))
                if turn in seen:
                    start = seen.index(turn) + 1
                    text = tokenizer.decode([*seen[start:], int(targets[row, read, 0])]).strip()
                    asked = tokenizer.decode(seen[:start])
                    wanted = [text_of for question, text_of in said_of.items() if question in asked]
                    found[row, read] = -0.1 if any(each.startswith(text) for each in wanted) else -2
        return found.astype(np.float32), np.zeros(targets.shape, bool)

    return predict


def asked_both_ways(tiny, knows, **how) -> dict:
    _, tokenizer, *_ = tiny
    return to_json(evaluate(mute(tokenizer, knows), tokenizer, SETS, context=2048, batch_size=16, **how)[0])


def test_what_is_known_by_cloze_and_not_said_in_letters_is_named(tiny):
    report = asked_both_ways(tiny, lambda item: item.options[item.answer])
    assert (report["verdict"], report["headline"]["accuracy"]) == ("collapsed", 0.25)
    assert report["readings"] == {
        "letters": {"accuracy": 0.25, "ci95": report["headline"]["ci95"]},
        "cloze": {"accuracy": 1, "ci95": [pytest.approx(0.025 ** (1 / 12)), 1]},
        "differs": True,
    }, "twelve sets of four are twelve clusters"
    words = "It knows by cloze what it cannot say in letters: 100.0% (73.5 to 100.0) against 25.0%. Controls missing: "
    assert words in report["verdict_text"]
    control = report["cloze"]["controls"]["question swapped"]
    assert control["accuracy"] == 0.25, "another set's question says nothing of these options"
    assert control["gain_ci95"][0] > 0.5
    assert score_cells(report)[-1] == "COLLAPSED, cloze 100.0"
    console = Console(width=200)
    with console.capture() as text:
        show(from_json(report), console)
    assert "the same, question swapped: 25.00% (25.00 to 25.00)  gain over it +75.00" in text.get()


def test_who_does_not_read_the_question_knows_nothing_by_cloze(tiny):
    report = asked_both_ways(tiny, lambda item: f"{int(item.id) // 4:02} Impact")
    assert report["cloze"]["pmi"]["accuracy"] == 0.25
    assert report["readings"]["differs"] is False
    assert "by cloze" not in report["verdict_text"]


def test_a_quick_look_has_no_control_of_cloze(tiny):
    report = asked_both_ways(tiny, lambda item: item.options[item.answer], orders="published")
    assert report["cloze"]["controls"] == {}


# ---- Ranked behind passages ----

PASSAGES = (
    ["Phishing: It gives initial access.", "Phishing, Detection: Read the mail."],
    [],
    ["CWE-77: It is injection."],
)


def ranked(tiny, items, **how):
    predict, tokenizer, model, _ = tiny
    how = {"context": model.context, "batch_size": 2, "passages": PASSAGES} | how
    return cloze.ranked_answers(predict, tokenizer, items, orders_of(items, "cyclic"), **how)


def test_a_ranked_option_is_worth_its_log_probability_a_token_behind_question_and_passages(tiny):
    _, tokenizer, model, params = tiny
    answers, cropped = ranked(tiny, ITEMS.items)
    assert cropped == 0
    forward = jax.jit(Transformer(model).apply)
    for item, passages, scores in zip(ITEMS, PASSAGES, answers.log_probs, strict=True):
        turns = [Message("user", with_context(ask(item.question, (), "cloze"), passages))]
        start = len(render_prompt(tokenizer, turns))
        for place, option in enumerate(item.options):
            if not option:
                assert scores[0][place] < np.delete(scores[0], place).min(), "no text is never chosen"
                continue
            whole, _ = render(tokenizer, [*turns, Message("assistant", option)])
            padded = np.pad(whole, (0, model.context - len(whole)))[None]
            logits = jax.nn.log_softmax(forward({"params": params}, padded)[0])
            expected = np.mean([float(logits[at - 1, whole[at]]) for at in range(start, len(whole))])
            assert scores[0][place] == pytest.approx(expected, abs=2e-4)


def test_a_ranked_answer_is_the_same_option_in_every_order_and_equal_texts_tie(tiny):
    items = [*ITEMS.items[:2], Item("4", "Which?", ("impact", "impact"), 0)]
    answers, _ = ranked(tiny, items)
    for of_item in answers.options():
        assert (of_item == of_item[0]).all()
    assert answers.options()[2][0].tolist() == [0.5, 0.5]


def test_prompts_over_the_context_are_counted_and_lose_their_beginning(tiny):
    *_, model, _ = tiny
    long = [["word " * model.context], [], []]
    answers, cropped = ranked(tiny, ITEMS.items, passages=long)
    assert cropped == 1
    whole, _ = ranked(tiny, ITEMS.items)
    assert not np.allclose(answers.log_probs[0], whole.log_probs[0])
    np.testing.assert_allclose(answers.log_probs[1], whole.log_probs[1], atol=1e-4)
