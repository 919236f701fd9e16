"""ghost_jax/model/product.py: the numbers of `jax.lax.dot_general` and of its derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghost_jax.model.product import product

# Shapes of x and of a kernel, and how many axes they share.
SHAPES = {
    "widens": ((2, 5, 4), (4, 7), 1),
    "to heads": ((2, 5, 4), (4, 3, 2, 6), 1),
    "from heads": ((2, 5, 2, 6), (2, 6, 4), 2),
    "of one row": ((4,), (4, 7), 1),
}


def operands(name: str, dtype: str = "float32") -> tuple:
    of_x, of_kernel, count = SHAPES[name]
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=shape), dtype) for shape in (of_x, of_kernel))
    last = tuple(range(len(of_x) - count, len(of_x)))
    return x, kernel, ((last, tuple(range(count))), ((), ()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SHAPES)
def test_it_is_a_dot_general_also_backward(name, dtype):
    x, kernel, axes = operands(name, dtype)

    def weighed(multiply, *both):
        result = multiply(*both, axes)
        return jnp.sum(result * jnp.cos(jnp.arange(result.size)).reshape(result.shape).astype(dtype))

    found, gradients = jax.value_and_grad(lambda *both: weighed(product, *both), (0, 1))(x, kernel)
    expected, of_jax = jax.value_and_grad(lambda *both: weighed(jax.lax.dot_general, *both), (0, 1))(x, kernel)
    assert found == expected
    for ours, theirs in zip(gradients, of_jax, strict=True):
        assert ours.dtype == theirs.dtype == dtype
        np.testing.assert_allclose(
            ours.astype(np.float32), theirs.astype(np.float32), rtol=1e-5 if dtype == "float32" else 0.02, atol=1e-5
        )


def test_other_axes_are_refused():
    x, kernel, _ = operands("widens")
    with pytest.raises(ValueError, match="over"):
        product(x, kernel.T, (((2,), (1,)), ((), ())))
    with pytest.raises(ValueError, match="over"):
        product(jnp.ones((3, 4)), jnp.ones((3, 4, 2)), (((1,), (1,)), ((0,), (0,))))
