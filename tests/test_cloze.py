"""evals/answering/cloze.py: log-probabilities of options that are not shown, and their normalisations."""

import jax
import numpy as np
import pytest

from evals.answering import cloze
from evals.items.answers import orders_of
from ghost_jax.data.items.items import Item, Items
from ghost_jax.model.transformer import Transformer
from ghost_jax.text.chat_format import Message, render, render_prompt
from ghost_jax.text.mcq_format import ask, with_context
from tests.test_trees import seen_by

ITEMS = (
    Item("1", "Which tactic is Phishing?", ("initial access", "impact", "a much longer option than that"), 0),
    Item("2", "Which weakness is it?", ("injection", "", "overflow", "race condition"), 2),
    Item("3", "Which of both?", ("impact", "injection"), 1),
)
PASSAGES = (["Phishing: It gives initial access.", "Phishing, Detection: Read the mail."], [], ["CWE-77: Injection."])


@pytest.fixture(scope="module")
def plain(tiny):
    """The log-probability of each token of an option and of the end of its turn, by a plain forward of one shape."""
    forward = jax.jit(lambda ids: jax.nn.log_softmax(Transformer(tiny.config).apply({"params": tiny.params}, ids)))

    def scores(question: str, option: str, passages=()) -> np.ndarray:
        turns = [Message("user", with_context(ask(question, (), "cloze"), passages))]
        start = len(render_prompt(tiny.tokenizer, turns))
        ids, _ = render(tiny.tokenizer, [*turns, Message("assistant", option)])
        padded = np.zeros((1, tiny.config.context), np.int32)
        padded[0, : len(ids)] = ids
        log_probs = np.asarray(forward(padded))[0]
        return np.array([log_probs[at - 1, ids[at]] for at in range(start, len(ids))])

    return scores


def ranked(tiny, items, passages):
    how = {"context": tiny.config.context, "batch_size": 2, "passages": passages}
    return cloze.ranked_answers(tiny.predict, tiny.tokenizer, items, orders_of(items, "cyclic"), **how)


def test_a_score_is_the_log_probability_of_the_text_after_the_prompt(tiny, plain):
    scores = cloze.option_scores(tiny.predict, tiny.tokenizer, ITEMS, context=tiny.config.context, batch_size=2)
    for row, item in enumerate(ITEMS):
        for place, option in enumerate(item.options):
            found = {name: of_items[row][place] for name, of_items in scores.items()}
            if not option:
                assert set(found.values()) == {-np.inf}, "an option without text is never chosen"
                continue
            ended, alone = plain(item.question, option), plain("", option)
            tokens = ended[:-1]
            expected = {"sum": tokens.sum(), "per_token": tokens.mean(), "ranked": ended.mean()}
            assert found == pytest.approx(expected | {"pmi": tokens.sum() - alone[:-1].sum()}, abs=2e-4)


def test_a_ranked_option_scores_its_mean_log_probability_behind_passages_in_every_order(tiny, plain):
    items = [*ITEMS, Item("4", "Which?", ("impact", "impact"), 0)]
    answers, cropped = ranked(tiny, items, [*PASSAGES, []])
    assert cropped == 0
    for item, passages, scores in zip(ITEMS, PASSAGES, answers.log_probs, strict=False):
        for place, option in enumerate(item.options):
            if option:
                assert scores[0][place] == pytest.approx(plain(item.question, option, passages).mean(), abs=2e-4)
            else:
                assert scores[0][place] < np.delete(scores[0], place).min()
    for of_item in answers.options():
        assert (of_item == of_item[0]).all()
    assert answers.options()[3][0].tolist() == [0.5, 0.5]
    assert ranked(tiny, ITEMS, [["word " * tiny.config.context], *PASSAGES[1:]])[1] == 1, "cropped"


def ignores_the_question(tokenizer):
    """A model whose log-probabilities depend on the assistant's turn alone."""
    turn = tokenizer.id("<|ghost_assistant|>")

    def predict(batch, at, targets):
        scores = np.zeros((*at.shape, 1))
        for row, places in enumerate(at):
            for read, place in enumerate(places):
                seen = seen_by(batch, row, place)
                answer = seen[seen.index(turn) :] if turn in seen else seen
                scores[row, read] = -0.1 * len(answer) - 0.01 * (targets[row, read, 0] % 7)
        return scores.astype(np.float32)

    return predict


def test_a_model_that_ignores_the_question_is_at_chance_under_the_primary(tiny):
    predict, items = ignores_the_question(tiny.tokenizer), Items("", "", "", ITEMS)
    report = cloze.evaluate(predict, tiny.tokenizer, items, context=128, batch_size=2)
    assert report.primary == "pmi"
    assert (report.found.accuracy, report.chance) == pytest.approx(((1 / 3 + 1 / 3 + 1 / 2) / 3,) * 2)
    assert report.sum.accuracy != report.pmi.accuracy
    control = report.controls["question swapped"]
    assert (control.accuracy, control.gain) == (report.pmi.accuracy, 0)


def test_a_long_option_of_another_item_changes_no_score(tiny):
    how = {"context": tiny.config.context, "batch_size": 2}
    longer = Item("4", "Which?", ("word " * tiny.config.context, "impact"), 0)
    alone, beside = (
        cloze.option_scores(tiny.predict, tiny.tokenizer, items, **how)["pmi"][0]
        for items in (ITEMS[:1], [ITEMS[0], longer])
    )
    assert beside == pytest.approx(alone, abs=1e-4)
