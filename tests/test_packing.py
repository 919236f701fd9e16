"""ghost_jax/data/packing.py: every record in exactly one row, rows full, and nothing attended to across records."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghost_jax.data import packing
from ghost_jax.data.mixture import ALONE
from ghost_jax.data.packing import Example, pack
from ghost_jax.model import transformer
from ghost_jax.model.config import ModelConfig
from ghost_jax.model.transformer import Transformer
from ghost_jax.training.loss import loss_sum


@given(st.integers(1, 64).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(1, n), max_size=80))))
def test_every_record_is_in_one_row_and_no_two_rows_fit_into_one(case):
    row_len, lengths = case
    rows = pack(lengths, row_len)
    assert sorted(record for row in rows for record in row) == list(range(len(lengths)))
    sums = [sum(lengths[record] for record in row) for row in rows]
    assert all(0 < filled <= row_len for filled in sums)
    assert all(a + b > row_len for i, a in enumerate(sums) for b in sums[:i])


def test_the_longest_goes_first_and_each_where_it_leaves_the_fewest_places():
    assert pack([3, 7, 2, 5, 4], 10) == [[1, 0], [3, 4], [2]]


def fill(examples: list[Example], row_len: int, loss_norm: str = "token_mean") -> dict:
    """Returns one row: the second of a batch of three, which must not depend on the others."""
    rows = [[SPOKEN] * (row_len // 3), examples, []]
    return {key: values[1] for key, values in packing.fill(rows, row_len, loss_norm).items()}


def example(ids: list[int], mask: list[int], gold: int = 0, branches: tuple[int, ...] = ()) -> Example:
    return Example(np.array(ids, np.int32), np.array(mask, bool), gold, np.array(branches, np.uint8))


SPOKEN = example([10, 11, 12, 13], [0, 0, 1, 1])
ANSWERED = example([20, 21, 22], [0, 1, 1], gold=3)
# A prompt 30 31 32 and the options "40 41" and "50", each behind the prompt's last token and before its end, 9.
RANKED = example([30, 31, 32, 40, 41, 9, 32, 50, 9], [0, 0, 0, 1, 1, 1, 0, 1, 1], 2, (0, 0, 1, 1, 1, 1, 2, 2, 2))


def assert_row(row: dict, **expected: list) -> None:
    for key, values in expected.items():
        np.testing.assert_allclose(row[key], values, err_msg=key)


def test_a_row_holds_each_example_in_its_segment():
    row = fill([SPOKEN, ANSWERED, RANKED], 15)
    assert_row(
        row,
        tokens=[10, 11, 12, 20, 21, 30, 31, 32, 40, 41, 9, 32, 50, 0, 0],
        targets=[11, 12, 13, 21, 22, 31, 32, 40, 41, 9, 32, 50, 9, 0, 0],
        segments=[1, 1, 1, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 0, 0],
        positions=[0, 1, 2, 0, 1, 0, 1, 2, 3, 4, 5, 2, 3, 0, 0],
        weights=[0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        letters=[0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        branches=[0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 0, 0],
        ranked=[0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 2, 2, 0, 0],
    )
    assert {str(values.dtype) for key, values in row.items() if key != "weights"} == {"int32"}
    assert row["weights"].dtype == np.float32


def test_by_record_the_weights_of_each_sum_to_one():
    uneven = example([1, 2, 3, 4, 5], [1, 1, 0, 1, 1])  # its first token is no target, so three are supervised
    row = fill([SPOKEN, uneven, RANKED], 16, "record_mean")
    assert_row(row, weights=[0, 1 / 2, 1 / 2, 1 / 3, 0, 1 / 3, 1 / 3, *[0] * 9])
    mute = fill([example([1, 2, 3], [1, 0, 0], gold=1), SPOKEN], 6, "record_mean")
    assert_row(mute, weights=[0, 0, 0, 1 / 2, 1 / 2, 0], letters=[0] * 6)


def test_what_cropping_removed_is_neither_predicted_nor_ranked():
    assert fill([example([7, 8, 9], [0, 1, 1], gold=2)], 4)["letters"].tolist() == [2, 0, 0, 0]
    assert not fill([example([8, 9, 9], [1, 1, 1], gold=2)], 4)["letters"].any()
    for count in (8, 7, 6, 3):
        row = fill([Example(RANKED.ids[-count:], RANKED.mask[-count:], RANKED.gold, RANKED.branches[-count:])], 8)
        assert row["branches"].any()
        if count == 8:  # a token of the prompt
            assert_row(row, positions=[0, 1, 2, 3, 4, 1, 2, 0], ranked=[0, 1, 1, 1, 0, 2, 2, 0])
        else:
            assert not row["ranked"].any()


def test_with_learned_positions_packed_loss_and_gradient_are_those_of_one_conversation_a_row():
    rng = np.random.default_rng(2)
    lengths = (9, 17, 5, 24, 2)
    conversations = [Example(rng.integers(0, 97, n + 1).astype(np.int32), rng.random(n + 1) < 0.5) for n in lengths]
    together = packing.fill([conversations], 64, "token_mean")
    apart = packing.fill([[conversation] for conversation in conversations], 64, "token_mean")
    config = ModelConfig(layers=1, width=32, heads=2, mlp_dim=48, vocab_size=97, context=64, generation="v04")
    params = jax.jit(transformer.init, static_argnums=0)(config, jax.random.key(0))
    gradient = jax.jit(jax.value_and_grad(functools.partial(loss_sum, Transformer(config)), has_aux=True))
    (packed, packed_weights), packed_grads = gradient(params, together)
    (padded, padded_weights), padded_grads = gradient(params, {key: apart[key] for key in ALONE})
    assert float(packed_weights) == pytest.approx(float(padded_weights))
    assert float(packed) == pytest.approx(float(padded), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), packed_grads, padded_grads)
