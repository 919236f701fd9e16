"""ghost_jax/model/dense.py: a dense layer is that of Flax, in its parameters, numbers and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghost_jax.model.dense import KEPT, Dense, kept, product

# Shapes of x and of a kernel, and how many axes they share.
SHAPES = {
    "to heads": ((2, 5, 4), (4, 3, 2, 6), 1),
    "from heads": ((2, 5, 2, 6), (2, 6, 4), 2),
    "of one row": ((4,), (4, 7), 1),
}


@pytest.mark.parametrize(
    ("name", "dtype"), [("to heads", "float32"), ("of one row", "float32"), ("from heads", "bfloat16")]
)
def test_a_dense_layer_is_that_of_flax_also_backward(name, dtype):
    of_x, of_kernel, count = SHAPES[name]
    x = jnp.asarray(np.random.default_rng(0).normal(size=of_x), jnp.float32)
    features, last = of_kernel[count:], tuple(range(-count, 0))
    ours = Dense(features, 0.02, dtype, bias=True, inputs=count)
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
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == "float32" else {"rtol": 0.02, "atol": 0.02}
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, **tolerance), found, expected)


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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpointed_function_does_not_compute_kept_values_again(dtype):
    @jax.custom_vjp
    def square(x):
        return x * x

    square.defvjp(lambda x: (kept(jnp.sin(x)), x), lambda x, to_y: (to_y * x,))
    policy = jax.checkpoint_policies.save_only_these_names(KEPT)
    x = jnp.linspace(0, 1, 8, dtype=dtype)

    def plain(x):
        return jnp.sum(jnp.exp(square(x)).astype(jnp.float32))

    def loss(x):
        return jax.checkpoint(plain, policy=policy)(x)

    np.testing.assert_array_equal(jax.grad(loss)(x), jax.grad(plain)(x))
    assert str(jax.make_jaxpr(jax.grad(loss))(x)).count("sin ") == 1
