"""evals/answering/cloze.py: log-probabilities of options that are not shown, and their normalisations."""

import numpy as np
import pytest

from evals.answering import cloze
from evals.answering.evaluate import evaluate
from evals.answering.prefix_tree import Predict
from evals.items.answers import orders_of
from evals.items.items import Item, Items
from ghost_jax.reporting.tables import score_cells
from ghost_jax.text.chat_format import Message, render, render_prompt
from ghost_jax.text.mcq_format import ask, with_context
from tests.test_trees import seen_by

ITEMS = (
    Item("1", "Which tactic is Phishing?", ("initial access", "impact", "a much longer option than that"), 0),
    Item("2", "Which weakness is it?", ("injection", "", "overflow", "race condition"), 2),
    Item("3", "Which of both?", ("impact", "injection"), 1),
)
CHANCE = (1 / 3 + 1 / 3 + 1 / 2) / 3
PASSAGES = (["Phishing: It gives initial access.", "Phishing, Detection: Read the mail."], [], ["CWE-77: Injection."])


class Tiny:
    """The tiny run's model, and a plain forward of it."""

    def __init__(self, workdir: Path):
        mesh = jax.make_mesh((1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:1])
        self.config, params, _ = load_model(workdir, mesh)
        self.tokenizer = tokenizer_lib.load(workdir / "tokenizer.json")
        self.predict = functools.partial(make_predict(self.config, params, mesh), params)
        self._forward = jax.jit(lambda ids: jax.nn.log_softmax(Transformer(self.config).apply({"params": params}, ids)))

    def log_probs(self, ids) -> np.ndarray:
        """[T, V] of at most `context` ids, in one shape, so with one compilation."""
        padded = np.zeros((1, self.config.context), np.int32)
        padded[0, : len(ids)] = ids
        return np.asarray(self._forward(padded))[0, : len(ids)]


@pytest.fixture(scope="module")
def tiny(tiny_run) -> Tiny:
    return Tiny(tiny_run.workdir)


def plain(tiny: Tiny, question: str, option: str, passages=()) -> np.ndarray:
    """Returns the log-probability of each token of an option and of the end of the turn, by a plain forward."""
    turns = [Message("user", with_context(ask(question, (), "cloze"), passages))]
    start = len(render_prompt(tiny.tokenizer, turns))
    ids, _ = render(tiny.tokenizer, [*turns, Message("assistant", option)])
    log_probs = tiny.log_probs(ids)
    return np.array([log_probs[at - 1, ids[at]] for at in range(start, len(ids))])


def ranked(tiny: Tiny, items, passages):
    how = {"context": tiny.config.context, "batch_size": 2, "passages": passages}
    return cloze.ranked_answers(tiny.predict, tiny.tokenizer, items, orders_of(items, "cyclic"), **how)


def test_a_score_is_the_log_probability_of_the_text_after_the_prompt(tiny):
    scores = cloze.option_scores(tiny.predict, tiny.tokenizer, ITEMS, context=tiny.config.context, batch_size=2)
    for row, item in enumerate(ITEMS):
        for place, option in enumerate(item.options):
            found = {name: of_items[row][place] for name, of_items in scores.items()}
            if not option:
                assert set(found.values()) == {-np.inf}, "an option without text is never chosen"
                continue
            ended, alone = plain(tiny, item.question, option), plain(tiny, "", option)
            tokens = ended[:-1]
            expected = {"sum": tokens.sum(), "per_token": tokens.mean(), "ranked": ended.mean()}
            assert found == pytest.approx(expected | {"pmi": tokens.sum() - alone[:-1].sum()}, abs=2e-4)


def test_a_ranked_option_scores_its_mean_log_probability_behind_passages_in_every_order(tiny):
    items = [*ITEMS, Item("4", "Which?", ("impact", "impact"), 0)]
    answers, cropped = ranked(tiny, items, [*PASSAGES, []])
    assert cropped == 0
    for item, passages, scores in zip(ITEMS, PASSAGES, answers.log_probs, strict=False):
        for place, option in enumerate(item.options):
            if option:
                assert scores[0][place] == pytest.approx(plain(tiny, item.question, option, passages).mean(), abs=2e-4)
            else:
                assert scores[0][place] < np.delete(scores[0], place).min()
    for of_item in answers.options():
        assert (of_item == of_item[0]).all()
    assert answers.options()[3][0].tolist() == [0.5, 0.5]

    answers_cropped, cropped = ranked(tiny, ITEMS, [["word " * tiny.config.context], *PASSAGES[1:]])
    assert cropped == 1
    assert not np.allclose(answers_cropped.log_probs[0], answers.log_probs[0])
    np.testing.assert_allclose(answers_cropped.log_probs[1], answers.log_probs[1], atol=1e-4)


def ignores_the_question(tokenizer) -> Predict:
    """A model whose log-probabilities depend on the assistant's turn alone."""
    turn = tokenizer.id("<|ghost_assistant|>")

    def predict(batch, at, targets):
        scores = np.zeros((*at.shape, 1))
        for row, places in enumerate(at):
            for read, place in enumerate(places):
                seen = seen_by(batch, row, place)
                answer = seen[seen.index(turn) :] if turn in seen else seen
                scores[row, read] = -0.1 * len(answer) - 0.01 * (targets[row, read, 0] % 7)
        return scores.astype(np.float32), np.zeros(targets.shape, bool)

    return predict


def test_a_model_that_ignores_the_question_is_at_chance_under_the_primary(tiny):
    report = cloze.evaluate(
        ignores_the_question(tiny.tokenizer), tiny.tokenizer, Items("", "", "", ITEMS), context=128, batch_size=2
    )
    assert report.primary == "pmi"
    assert report.found.accuracy == pytest.approx(CHANCE)
    assert report.chance == pytest.approx(CHANCE)
    assert report.sum.accuracy != report.pmi.accuracy
    control = report.controls["question swapped"]
    assert (control.accuracy, control.gain) == (report.pmi.accuracy, 0)


# ---- Letters and cloze side by side ----

KINDS = ("Execution", "Impact", "Discovery", "Collection")
SETS = tuple(
    Item(
        f"{row}",
        f"Which kind has number {row}?",
        tuple(f"{row // 4:02} {kind}" for kind in KINDS),
        row % 4,
        f"page {row}",
    )
    for row in range(48)
)


def answers_a(tokenizer, known) -> Predict:
    """A model that answers every letter with A, and gives the text `known(item)` a high probability."""
    turn = tokenizer.id("<|ghost_assistant|>")
    text_of = {item.question: known(item) for item in SETS}

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
                    wanted = [known for question, known in text_of.items() if question in asked]
                    found[row, read] = -0.1 if any(each.startswith(text) for each in wanted) else -2
        return found.astype(np.float32), np.zeros(targets.shape, bool)

    return predict


def asked_both_ways(tokenizer, known, **how):
    items = Items("made here", "", "", SETS)
    return evaluate(answers_a(tokenizer, known), tokenizer, items, context=2048, batch_size=16, **how)[0]


def test_knowledge_in_cloze_and_not_in_letters_is_named(tiny):
    report = asked_both_ways(tiny.tokenizer, lambda item: item.options[item.answer])
    assert (report.verdict, report.headline.accuracy) == ("collapsed", 0.25)
    assert (report.readings.letters.accuracy, report.readings.cloze.accuracy) == (0.25, 1)
    assert report.readings.cloze.ci95 == (pytest.approx(0.025 ** (1 / 12)), 1), "twelve sets of four: twelve clusters"
    assert report.readings.differs
    assert all(part in report.verdict_text for part in ("cloze", "100.0%", " 25.0%"))
    control = report.cloze.controls["question swapped"]
    assert control.accuracy == 0.25, "the question of another set does not name these options"
    assert control.gain_ci95[0] > 0.5
    assert "cloze 100.0" in score_cells(report)[-1]


def test_nothing_is_named_where_cloze_is_at_chance_and_one_order_has_no_control(tiny):
    report = asked_both_ways(tiny.tokenizer, lambda item: f"{int(item.id) // 4:02} Impact", orders="published")
    assert report.cloze.found.accuracy == 0.25
    assert report.readings.differs is False
    assert "cloze" not in report.verdict_text
    assert report.cloze.controls == {}
