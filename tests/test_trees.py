"""prefix_tree.py: what each prompt sees in a row that it shares, and that the numbers are those of a plain forward."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh

from evals.answering import prefix_tree as trees_lib
from evals.answering.prefix_tree import Branch, Tree, cropped, read, shared_beginning
from ghost_jax.model.transformer import Transformer
from ghost_jax.parallel.mesh import AXES
from ghost_jax.training.step import make_predict
from tests.test_model import V04, V05, build, numpy_forward

pytestmark = pytest.mark.usefixtures("compile_quickly")
TARGETS = np.array([[3, 99, 17]], np.int32)


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def tree(trunk: list[int], *branches: list[int]) -> Tree:
    return Tree(ids(*trunk), tuple(Branch(ids(*each), np.array([len(each) - 1]), TARGETS) for each in branches))


def prompts_of(tree: Tree) -> list[list[int]]:
    return [[*tree.trunk.tolist(), *branch.ids.tolist()] for branch in tree.branches]


def seen_by(batch: dict, row: int, place: int) -> list[int]:
    """The tokens that a place sees, by the rule of `Transformer.hidden`, in the order of their positions."""
    part = {key: values[row, : place + 1] for key, values in batch.items()}
    segment, branch = part["segments"][-1], part["branches"][-1]
    seen = (part["segments"] == 0) | (part["segments"] == segment)
    seen &= (part["branches"] == 0) | (part["branches"] == branch)
    assert (part["positions"][seen] == np.arange(seen.sum())).all(), "each prompt counts its places from 0"
    return part["tokens"][seen].tolist()


class Witness:
    """A predict function that answers a read with what the place sees: the sum of its tokens, and the last of them."""

    def __init__(self):
        self.seen, self.shapes = [], set()

    def __call__(self, batch, at, targets):
        self.shapes.add(at.shape + batch["tokens"].shape)
        prompts = [[seen_by(batch, row, place) for place in places] for row, places in enumerate(at)]
        self.seen += [prompt for of_row in prompts for prompt in of_row]
        total = np.array([[sum(prompt) for prompt in of_row] for of_row in prompts], np.float32)
        last = np.array([[prompt[-1] for prompt in of_row] for of_row in prompts], np.int32)
        return total[:, :, None] + targets, last[:, :, None] == targets


FEW = [tree([1, 2, 3], [4], [5, 6]), tree([1, 2, 7, 8], [9], [10], [11]), tree([1, 2], [12, 13])]


def check(trees: list[Tree], *, context: int, batch_size: int) -> Witness:
    """Asks a witness, and checks that every prompt was seen whole and alone."""
    witness = Witness()
    readings = read(witness, trees, context=context, batch_size=batch_size, doing="asking")
    for each, found in zip(trees, readings, strict=True):
        assert [reading.log_probs.tolist() for reading in found] == [
            (sum(prompt) + TARGETS).tolist() for prompt in prompts_of(each)
        ]
        assert [reading.most_probable.tolist() for reading in found] == [
            (prompt[-1] == TARGETS).tolist() for prompt in prompts_of(each)
        ]
    return witness


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_every_prompt_is_seen_whole_and_alone(batch_size):
    check(FEW, context=12, batch_size=batch_size)


_token = st.integers(1, 5)  # few tokens, so that prompts begin alike by chance as well
_trees = st.lists(
    st.tuples(
        st.lists(_token, max_size=8),
        st.lists(st.lists(_token, min_size=1, max_size=8), min_size=1, max_size=5),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(_trees, st.integers(16, 40), st.sets(st.integers(8, 40), min_size=1, max_size=3), st.integers(1, 4))
def test_any_trees_are_read_so_whatever_the_rows(drawn, context, rows, batch_size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trees_lib, "ROWS", tuple(rows))
        witness = check([tree(trunk, *branches) for trunk, branches in drawn], context=context, batch_size=batch_size)
    assert len(witness.shapes) <= 2, "one shape for short prompts, one for long ones"


@pytest.mark.parametrize(("lengths", "chosen"), [((8, 12), 12), ((12, 8), 12), ((6, 13), 6)])
def test_rows_are_as_long_as_leaves_the_fewest_places(lengths, chosen, monkeypatch):
    monkeypatch.setattr(trees_lib, "ROWS", lengths)
    witness, of_six_tokens = Witness(), [tree([n], *[[n]] * 5) for n in (1, 2)]
    read(witness, of_six_tokens, context=64, batch_size=8, doing="asking")
    assert {length for *_, length in witness.shapes} == {chosen}


def test_few_shapes_are_compiled_for_texts_of_any_length():
    """A text all of whose tokens are read, as the log-probability of a whole text needs them."""
    witness = Witness()
    for length in range(1, 200, 11):
        of_text = Branch(np.ones(length, np.int32), np.arange(length), np.repeat(TARGETS, length, axis=0))
        read(witness, [Tree(ids(), (of_text,))], context=256, batch_size=16, doing="asking")
    assert sorted(witness.shapes) == [(1, reads, 1, 256) for reads in (4, 16, 32, 64, 128, 256)]


def test_what_all_begin_with_stands_once_in_a_row():
    witness = Witness()
    read(witness, FEW, context=16, batch_size=1, doing="asking")
    assert witness.shapes == {(1, 8, 1, 16)}, "2 shared, 1 + 1 + 2, 2 + 1 + 1 + 1, 2: all three fit one row of 16"
    assert shared_beginning([each.trunk for each in FEW]).tolist() == [1, 2]


def test_a_prompt_over_the_context_loses_its_beginning():
    long = tree([1, 2, 3], [4], [5, 6])
    assert prompts_of(cropped(long, 4)) == [[2, 3, 4], [2, 3, 5, 6]]
    assert prompts_of(cropped(long, 2)) == [[4], [5, 6]]
    assert prompts_of(cropped(long, 1)) == [[4], [6]]
    assert cropped(long, 5) is long
    many = Branch(ids(4, 5, 6), np.arange(3), np.repeat(TARGETS, 3, axis=0))
    (kept,) = cropped(Tree(ids(1), (many,)), 2).branches
    assert kept.places.tolist() == [0, 1], "the read at the place that is lost is lost too"


# ---- On models ----


def one_device() -> Mesh:
    return jax.make_mesh((1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:1])


@functools.cache
def random_trees(vocabulary: int = 100) -> list[Tree]:
    rng = np.random.default_rng(0)

    def draw(n: int) -> list[int]:
        return rng.integers(1, vocabulary, n).tolist()

    header = draw(4)
    return [tree(header + draw(n), draw(3), draw(2 + n), draw(5)) for n in (1, 3, 0, 8, 2, 5)]


def scores_of(config, mesh: Mesh, batch_size: int = 3) -> np.ndarray:
    predict = functools.partial(make_predict(config, build(config), mesh), build(config))
    readings = read(predict, random_trees(), context=config.context, batch_size=batch_size, doing="asking")
    return np.concatenate([reading.log_probs for of_tree in readings for reading in of_tree])


def plain(config) -> np.ndarray:
    """The same scores by a forward pass for each prompt."""
    forward = jax.jit(Transformer(config).apply)
    found = []
    for prompt in (prompt for each in random_trees() for prompt in prompts_of(each)):
        padded = np.pad(ids(*prompt), (0, config.context - len(prompt)))[None]  # one shape, so one compilation
        logits = forward({"params": build(config)}, padded)[0, len(prompt) - 1]
        found.append(jax.nn.log_softmax(logits)[TARGETS[0]])
    return np.array(found)


@pytest.mark.parametrize("config", [V05, V04], ids=["v05", "v04"])
def test_scores_are_those_of_a_plain_forward(config):
    expected = plain(config)
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(scores_of(config, one_device()), expected, atol=1e-5)


def test_scores_do_not_depend_on_batch_row_or_devices(monkeypatch):
    expected = scores_of(V05, one_device())
    eight = jax.make_mesh((4, 1, 2), AXES, axis_types=(AxisType.Auto,) * 3)
    np.testing.assert_allclose(scores_of(V05, eight), expected, atol=1e-5)
    for batch_size, row in ((1, 384), (5, 16), (64, 20)):
        monkeypatch.setattr(trees_lib, "ROWS", (row,))
        np.testing.assert_allclose(scores_of(V05, one_device(), batch_size), expected, atol=1e-5)


def test_a_reference_written_in_numpy_gives_the_same_letters():
    scores, params = scores_of(V05, one_device()), build(V05)
    prompts = [prompt for each in random_trees() for prompt in prompts_of(each)]
    logits = np.array([numpy_forward(V05, params, ids(*prompt)[None])[0, -1, TARGETS[0]] for prompt in prompts])
    assert len(set(logits.argmax(axis=1))) > 1
    assert scores.argmax(axis=1).tolist() == logits.argmax(axis=1).tolist()
    # A log-probability is a logit up to what all letters of a prompt have in common.
    np.testing.assert_allclose(np.diff(scores), np.diff(logits), atol=1e-4)
