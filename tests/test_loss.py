"""ghost_jax/training/loss.py: each objective by its definition, for any packing and micro-batches."""

import functools

import jax
import numpy as np
import pytest

from ghost_jax.data.packing import Example, fill
from ghost_jax.model.config import ModelConfig
from ghost_jax.model.transformer import Transformer
from ghost_jax.training.loss import denominators, loss, loss_sum
from tests.models import drawn

TINY = ModelConfig(layers=2, width=32, heads=2, mlp_dim=48, vocab_size=97, context=64)
MODEL = Transformer(TINY)
LETTER_IDS = np.array([5, 6, 7, 8], np.int32)
ROW = 48
MIXED = {"lm": 1.0, "letter": 0.5, "ranking": 2.0}
PARAMS = drawn(TINY, 0.15)  # initial ones are smaller: every token is then about as likely as every other


def draw(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(9, TINY.vocab_size, count).astype(np.int32)


def conversation(seed: int, length: int, learnt: int, gold: int = 0) -> Example:
    """`length` + 1 tokens, the last `learnt` of them supervised; the first of these is the gold letter's id."""
    ids = draw(seed, length + 1)
    if gold:
        ids[-learnt] = LETTER_IDS[gold - 1]
    return Example(ids, np.arange(length + 1) > length - learnt, gold)


def question(seed: int, prompt: int, options: tuple[int, ...], gold: int) -> Example:
    """A ranked question: a prompt of so many tokens, options of these lengths, their end included."""
    head, *texts = np.split(draw(seed, prompt + sum(options)), np.cumsum((prompt, *options[:-1])))
    # The last token of the prompt begins each option: it predicts the option's first token.
    ids = np.concatenate([head[:-1], *(np.append(head[-1], text) for text in texts)])
    branches = np.repeat(np.arange(len(options) + 1), [prompt - 1, *(length + 1 for length in options)])
    starts = np.diff(branches, prepend=0) > 0
    return Example(ids, (branches > 0) & ~starts, gold, branches.astype(np.uint8))


CONVERSATIONS = [conversation(1, 9, 3), conversation(2, 12, 1, gold=3), conversation(3, 7, 5, gold=1)]
QUESTIONS = [question(4, 5, (3, 1, 4, 2), gold=2), question(5, 3, (2, 2, 5), gold=1)]
APART = [[example] for example in CONVERSATIONS + QUESTIONS]
TOGETHER = [[CONVERSATIONS[1], QUESTIONS[0], CONVERSATIONS[0]], [QUESTIONS[1], CONVERSATIONS[2]]]


def batch_of(rows: list[list[Example]], loss_norm: str = "token_mean") -> dict:
    """Six rows, the last ones empty, so that all batches are one compiled program."""
    return fill(rows + [[]] * (6 - len(rows)), ROW, loss_norm)


_apply = jax.jit(lambda params, tokens: MODEL.apply({"params": params}, tokens))


@functools.cache
def logits_alone(ids: tuple[int, ...]) -> np.ndarray:
    """The logits of one text alone in its row, float64."""
    tokens = np.zeros((1, ROW), np.int32)
    tokens[0, : len(ids)] = ids
    return np.asarray(_apply(PARAMS, tokens)[0, : len(ids), : TINY.vocab_size], np.float64)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def token_losses(ids: np.ndarray) -> np.ndarray:
    return -log_softmax(logits_alone(tuple(ids[:-1].tolist())))[np.arange(len(ids) - 1), ids[1:]]


def option_log_probs(example: Example) -> np.ndarray:
    """The log-probability a token of each option of a ranked question, by a pass of its own for each."""
    prompt = example.ids[example.branches == 0]
    options = [example.ids[example.branches == branch] for branch in range(1, example.branches.max() + 1)]
    return np.array([-token_losses(np.concatenate([prompt, option]))[len(prompt) :].mean() for option in options])


@jax.jit
def mixed(params: dict, batch: dict, over: dict) -> tuple:
    return loss(MODEL, params, batch, over, MIXED, LETTER_IDS)


with_gradient = jax.jit(jax.value_and_grad(mixed, has_aux=True))


def parts_of(batch: dict) -> dict[str, float]:
    _, parts = mixed(PARAMS, batch, denominators(batch))
    return {name: float(part) for name, part in parts.items()}


def grad_of(batch: dict) -> tuple:
    return with_gradient(PARAMS, batch, denominators(batch))


def assert_close(tree, other) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), tree, other)


@pytest.mark.parametrize("rows", [APART, TOGETHER], ids=["padded", "packed"])
def test_each_objective_is_the_mean_of_its_definition(rows):
    by_record = [token_losses(each.ids)[each.mask[1:]] for each in CONVERSATIONS]
    letters = []
    for each in CONVERSATIONS[1:]:
        place = int(np.flatnonzero(each.mask)[0]) - 1
        scores = logits_alone(tuple(each.ids[:-1].tolist()))[place, LETTER_IDS]
        letters.append(-log_softmax(scores)[each.gold - 1])
    ranked = [-log_softmax(option_log_probs(each))[each.gold - 1] for each in QUESTIONS]
    expected = {"lm": np.concatenate(by_record).mean(), "letter": np.mean(letters), "ranking": np.mean(ranked)}
    assert parts_of(batch_of(rows)) == pytest.approx(expected, rel=1e-4)
    by_mean = parts_of(batch_of(rows, "record_mean"))["lm"]
    assert by_mean == pytest.approx(np.mean([losses.mean() for losses in by_record]), rel=1e-5)
    assert by_mean != pytest.approx(expected["lm"], rel=1e-2)


@pytest.mark.parametrize("loss_norm", ["token_mean", "record_mean"])
def test_packing_changes_neither_the_loss_nor_its_gradient(loss_norm):
    (padded, _), padded_gradient = grad_of(batch_of(APART, loss_norm))
    (packed, _), packed_gradient = grad_of(batch_of(TOGETHER, loss_norm))
    assert float(packed) == pytest.approx(float(padded), rel=1e-5)
    assert_close(packed_gradient, padded_gradient)
    alone = batch_of([[QUESTIONS[0]]])
    unsegmented = {key: value for key, value in alone.items() if key != "segments"}
    assert parts_of(unsegmented)["ranking"] == pytest.approx(parts_of(alone)["ranking"], rel=1e-5)


def test_micro_batches_add_up_to_the_batch():
    batch = batch_of([*APART, TOGETHER[0]])  # most of these rows hold nothing of two objectives
    rows = [{key: value[i : i + 1] for key, value in batch.items()} for i in range(6)]
    parts = (with_gradient(PARAMS, row, denominators(batch)) for row in rows)
    assert_close(jax.tree.map(lambda *xs: sum(xs), *parts), grad_of(batch))


def test_an_objective_without_a_record_is_zero_with_a_finite_gradient():
    (total, parts), gradient = grad_of(batch_of([[CONVERSATIONS[0]]]))
    assert (float(parts["letter"]), float(parts["ranking"])) == (0.0, 0.0)
    assert float(total) == pytest.approx(float(parts["lm"]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    total, weights = jax.jit(functools.partial(loss_sum, MODEL))(PARAMS, batch_of([[each] for each in QUESTIONS]))
    assert (float(total), float(weights)) == (0.0, 0.0), "a ranked question has no language-model loss"


def program(batch: dict, **objective: float) -> str:
    over = denominators(batch)
    return str(jax.make_jaxpr(lambda params: loss(MODEL, params, batch, over, objective, LETTER_IDS))(PARAMS))


def test_what_is_not_asked_for_is_not_computed_and_all_objectives_share_one_pass_of_logits():
    batch = batch_of(TOGETHER)
    plain = {key: batch[key] for key in ("tokens", "targets", "weights", "positions", "segments")}
    assert program(plain, lm=1.0, letter=0.0, ranking=0.0) == program(plain, lm=1.0)
    for name in ("letter", "ranking"):
        with pytest.raises(KeyError):
            program(plain, lm=1.0, **{name: 1.0})
    logits = f"f32[{TINY.padded_vocab},{6 * ROW}] = dot_general"
    assert program(batch, **MIXED).count(logits) == 1
    assert program(batch, letter=1.0).count(logits) == 0
