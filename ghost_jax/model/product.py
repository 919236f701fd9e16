"""The product of activations and a kernel, with a gradient of its own."""

import functools
from typing import Any

import jax
from jax.lax import dot_general

Axes = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]


def product(x: jax.Array, kernel: jax.Array, axes: Axes, precision: Any = None) -> jax.Array:
    """Returns `jax.lax.dot_general` of x [..., I...] and kernel [I..., O...] over I; of a Flax layer its `dot_general`.

    The same numbers, also backward. But the derivative of a dot_general puts the gradient of its result first in the
    kernel's own, and so has it transposed, which is four times as wide as x where a layer widens; here x comes first.

    Raises:
      ValueError: `axes` are not the last of x and the first of the kernel, in order.
    """
    (of_x, of_kernel), batched = axes
    count = len(of_kernel)
    if (tuple(of_x), tuple(of_kernel), *map(tuple, batched)) != (_last(x, count), _first(count), (), ()):
        raise ValueError(f"a product of shapes {x.shape} and {kernel.shape} over {axes}")
    return _product(x, kernel, count, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(x: jax.Array, kernel: jax.Array, count: int, precision: Any) -> jax.Array:
    return _and_operands(x, kernel, count, precision)[0]


def _and_operands(x: jax.Array, kernel: jax.Array, count: int, precision: Any) -> tuple[jax.Array, tuple]:
    # Stands here in the open, for remat's policy to see that it is a product and keep it.
    return dot_general(x, kernel, ((_last(x, count), _first(count)), ((), ())), precision), (x, kernel)


def _gradients(count: int, precision: Any, operands: tuple, to_result: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = operands
    wide, rows = kernel.ndim - count, _first(x.ndim - count)
    to_x = dot_general(to_result, kernel, ((_last(to_result, wide), _last(kernel, wide)), ((), ())), precision)
    return to_x, dot_general(x, to_result, ((rows, rows), ((), ())), precision)


_product.defvjp(_and_operands, _gradients)


def _last(x: jax.Array, count: int) -> tuple[int, ...]:
    return tuple(range(x.ndim - count, x.ndim))


def _first(count: int) -> tuple[int, ...]:
    return tuple(range(count))
