"""evals/answering/prefix_tree.py: what each prompt sees in a shared row, and scores as of a plain forward pass."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.answering import prefix_tree as trees_lib
from evals.answering.prefix_tree import ROWS, Branch, Tree, cropped, read, shared_beginning
from ghost_jax.parallel.mesh import make_mesh
from ghost_jax.training.step import make_predict
from tests.models import build, one_device
from tests.test_model import V04, V05, logits_of

TARGETS = np.array([[3, 99, 17]], np.int32)


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def tree(trunk: list[int], *branches: list[int]) -> Tree:
    return Tree(ids(*trunk), tuple(Branch(ids(*each), np.array([len(each) - 1]), TARGETS) for each in branches))


def prompts_of(tree: Tree) -> list[list[int]]:
    return [[*tree.trunk.tolist(), *branch.ids.tolist()] for branch in tree.branches]


def seen_by(batch: dict, row: int, place: int) -> list[int]:
    """The tokens that a place attends to, by the rule of `Transformer.hidden`, in the order of their positions."""
    part = {key: values[row, : place + 1] for key, values in batch.items()}
    segment, branch = part["segments"][-1], part["branches"][-1]
    seen = (part["segments"] == 0) | (part["segments"] == segment)
    seen &= (part["branches"] == 0) | (part["branches"] == branch)
    assert (part["positions"][seen] == np.arange(seen.sum())).all(), "each prompt counts its positions from 0"
    return part["tokens"][seen].tolist()


def shapes_of(trees: list[Tree], *, context: int, batch_size: int) -> set[tuple]:
    """Returns the shapes that a model is asked in, after checking that every prompt was seen complete and alone."""
    shapes = set()

    def predict(batch, at, targets):  # answers with the tokens that the place sees: their sum and the last of them
        shapes.add(at.shape + batch["tokens"].shape)
        prompts = [[seen_by(batch, row, place) for place in places] for row, places in enumerate(at)]
        total = np.array([[sum(prompt) for prompt in of_row] for of_row in prompts], np.float32)
        last = np.array([[prompt[-1] for prompt in of_row] for of_row in prompts], np.float32)
        return total[:, :, None] + targets + 1000 * last[:, :, None]

    found = read(predict, trees, context=context, batch_size=batch_size, doing="asking")
    for each, of_tree in zip(trees, found, strict=True):
        for prompt, log_probs in zip(prompts_of(each), of_tree, strict=True):
            assert log_probs.tolist() == (sum(prompt) + TARGETS + 1000 * prompt[-1]).tolist()
    return shapes


_token = st.integers(1, 5)  # few tokens, so that prompts begin alike by chance as well
_branches = st.lists(st.lists(_token, min_size=1, max_size=8), min_size=1, max_size=5)
_trees = st.lists(st.tuples(st.lists(_token, max_size=8), _branches), min_size=1, max_size=8)


@settings(max_examples=100)
@given(_trees, st.integers(16, 40), st.sets(st.integers(8, 40), min_size=1, max_size=3), st.integers(1, 4))
def test_every_prompt_is_seen_complete_and_alone_whatever_the_rows(drawn, context, rows, batch_size):
    trees = [tree(trunk, *branches) for trunk, branches in drawn]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trees_lib, "ROWS", tuple(rows))
        shapes = shapes_of(trees, context=context, batch_size=batch_size)
    assert len(shapes) <= 2, "one shape for short prompts, one for long ones"


def test_a_shared_beginning_is_in_a_row_once():
    few = [tree([1, 2, 3], [4], [5, 6]), tree([1, 2, 7, 8], [9], [10], [11]), tree([1, 2], [12, 13])]
    assert shapes_of(few, context=16, batch_size=1) == {(1, 8, 1, 16)}, "2 + (1 + 1 + 2) + (2 + 3) + 2 in 16"
    assert shared_beginning([each.trunk for each in few]).tolist() == [1, 2]


def test_long_prompts_have_rows_that_hold_the_longest_and_not_the_whole_context():
    trees = [tree([1], [2]), tree([1] * 600, [2]), tree([1] * 700, [2, 3])]
    assert {shape[3] for shape in shapes_of(trees, context=32_768, batch_size=1)} == {256, 1024}


def test_a_prompt_over_the_context_is_cropped_at_its_beginning():
    long = tree([1, 2, 3], [4], [5, 6])
    assert [prompts_of(cropped(long, context)) for context in (4, 1)] == [[[2, 3, 4], [2, 3, 5, 6]], [[4], [6]]]
    many = Branch(ids(4, 5, 6), np.arange(3), np.repeat(TARGETS, 3, axis=0))
    (kept,) = cropped(Tree(ids(1), (many,)), 2).branches
    assert kept.places.tolist() == [0, 1], "the read at the cropped place is dropped"


@functools.cache
def random_trees() -> list[Tree]:
    rng = np.random.default_rng(0)

    def draw(n: int) -> list[int]:
        return rng.integers(1, 100, n).tolist()

    header = draw(4)
    return [tree(header + draw(n), draw(3), draw(2 + n), draw(5)) for n in (1, 3, 0, 8, 2, 5)]


@pytest.mark.parametrize(
    ("config", "devices", "batch_size", "rows"),
    [(V05, 1, 3, ROWS), (V04, 1, 3, ROWS), (V05, 8, 3, ROWS), (V05, 1, 1, (384,)), (V05, 1, 5, (16,))],
)
def test_scores_are_those_of_a_plain_forward_pass(monkeypatch, config, devices, batch_size, rows):
    prompts = [prompt for each in random_trees() for prompt in prompts_of(each)]
    padded = np.stack([np.pad(ids(*prompt), (0, config.context - len(prompt))) for prompt in prompts])
    log_probs = jax.nn.log_softmax(logits_of(config, build(config), padded))
    expected = [log_probs[row, len(prompt) - 1, TARGETS[0]] for row, prompt in enumerate(prompts)]
    assert np.ptp(expected) > 0.5
    monkeypatch.setattr(trees_lib, "ROWS", rows)
    mesh = make_mesh(4, 1, 2) if devices == 8 else one_device()
    predict = functools.partial(make_predict(config, build(config), mesh), build(config))
    found = read(predict, random_trees(), context=config.context, batch_size=batch_size, doing="asking")
    scores = [log_probs[0] for of_tree in found for log_probs in of_tree]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
