"""ghost_jax/model/dense.py: a dense layer is that of Flax, in its parameters, numbers and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghost_jax.model.dense import Dense, product


@pytest.mark.parametrize(
    ("of_x", "of_kernel", "inputs", "dtype"),
    [
        ((2, 5, 4), (4, 3, 2, 6), 1, "float32"),  # to heads
        ((4,), (4, 7), 1, "float32"),  # of one row
        ((2, 5, 2, 6), (2, 6, 4), 2, "bfloat16"),  # from heads
    ],
)
def test_a_dense_layer_is_that_of_flax_also_backward(of_x, of_kernel, inputs, dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=of_x), jnp.float32)
    features, last = of_kernel[inputs:], tuple(range(-inputs, 0))
    ours = Dense(features, 0.02, dtype, bias=True, inputs=inputs)
    theirs = nn.DenseGeneral(features, axis=last, dtype=dtype, kernel_init=nn.initializers.normal(0.02))
    variables = ours.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, variables, theirs.init(jax.random.key(1), x))

    def loss(layer, variables, x):
        y = layer.apply(variables, x)
        assert y.dtype == dtype
        return jnp.sum(y.astype(jnp.float32) * jnp.cos(jnp.arange(y.size)).reshape(y.shape))

    found, expected = (
        jax.jit(jax.value_and_grad(lambda *given, layer=layer: loss(layer, *given), (0, 1)))(variables, x)
        for layer in (ours, theirs)
    )
    tolerance = 1e-5 if dtype == "float32" else 0.02
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), found, expected)


def test_the_gradient_of_a_kernel_is_not_rounded():
    """In bfloat16 it is the float32 sum of products of rounded factors."""
    rng = np.random.default_rng(0)
    x, to_y = (jnp.asarray(rng.normal(size=(64, size)), jnp.bfloat16) for size in (8, 16))
    kernel = jnp.asarray(rng.normal(size=(8, 16)), jnp.float32)
    _, gradients = jax.vjp(product, x, kernel)
    found = gradients(to_y)[1]
    assert found.dtype == jnp.float32
    exact = np.asarray(x, np.float64).T @ np.asarray(to_y, np.float64)
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)
