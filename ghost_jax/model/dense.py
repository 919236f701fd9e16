"""Dense layers with their own gradient, and the values that the backward pass keeps.

Shapes: I inputs and O outputs of a layer, each one axis or several.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint

KEPT = "kept"  # name of the values that `kept` marks, for the policy of `jax.checkpoint`


class Dense(nn.Module):
    """A linear layer over the last axes of its input, with the parameters of `nn.DenseGeneral`.

    Attributes:
      features: axes O of the result.
      std: standard deviation of the initial kernel [I..., O...].
      dtype: type of the product's factors and of the result; parameters and their gradients are float32.
      bias: whether a bias [O...] is added.
      inputs: how many of the last axes of x are I.
    """

    features: tuple[int, ...]
    std: float
    dtype: str
    bias: bool = False
    inputs: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*x.shape[x.ndim - self.inputs :], *self.features)
        kernel = self.param("kernel", nn.initializers.normal(self.std), shape)
        y = product(x.astype(self.dtype), kernel, self.inputs)
        return plus(y, self.param("bias", nn.initializers.zeros, self.features)) if self.bias else y


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: jax.Array, kernel: jax.Array, inputs: int = 1) -> jax.Array:
    """Returns x [..., I...] times a kernel [I..., O...] float32, [..., O...] in the type of x.

    The kernel's gradient transposes x. JAX's own would transpose the gradient of the result, which is wider wherever a
    layer widens.
    """
    return _product_forward(x, kernel, inputs)[0]


def _product_forward(x: jax.Array, kernel: jax.Array, inputs: int) -> tuple[jax.Array, tuple]:
    y = _dot(x, kernel.astype(x.dtype), _last(x, inputs), _first(inputs))
    return kept(y.astype(x.dtype)), (x, kernel)


def _product_backward(inputs: int, operands: tuple, to_y: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = operands
    rows, outputs = x.ndim - inputs, kernel.ndim - inputs
    to_x = _dot(to_y, kernel.astype(x.dtype), _last(to_y, outputs), _last(kernel, outputs))
    columns = transposed(x, *_last(x, inputs), *_first(rows))
    return to_x.astype(x.dtype), _dot(columns, to_y, _last(columns, rows), _first(rows))


product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def plus(y: jax.Array, bias: jax.Array) -> jax.Array:
    """Returns y [..., O...] + bias [O...] float32 in the type of y.

    The bias's gradient is a product with ones: XLA's sum over many rows takes a CPU ten times as long.
    """
    return (y + bias).astype(y.dtype)


def _plus_backward(bias: jax.Array, to_y: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows = _first(to_y.ndim - bias.ndim)
    ones = jnp.ones([to_y.shape[axis] for axis in rows], to_y.dtype)
    return to_y, _dot(ones, to_y, rows, rows)


plus.defvjp(lambda y, bias: (plus(y, bias), bias), _plus_backward)


def _dot(a: jax.Array, b: jax.Array, axes_a: tuple[int, ...], axes_b: tuple[int, ...]) -> jax.Array:
    # A CPU multiplies bfloat16 factors fast only into a float32 result; callers round it once.
    return jax.lax.dot_general(a, b, ((axes_a, axes_b), ((), ())), preferred_element_type=jnp.float32)


def transposed(x: jax.Array, *order: int) -> jax.Array:
    """Returns x with its axes in this order; on a CPU in bfloat16 a copy with that layout in memory.

    XLA would fold the transpose into the product that makes or reads x, and compute that product in float32.
    """
    if x.dtype != jnp.bfloat16:
        return x.transpose(order)

    def copied(x: jax.Array) -> jax.Array:
        in_order = Layout(tuple(range(x.ndim)))
        return with_layout_constraint(with_layout_constraint(x, in_order).transpose(order), in_order)

    return jax.lax.platform_dependent(x, cpu=copied, default=lambda x: x.transpose(order))


def kept(x: jax.Array) -> jax.Array:
    """Returns x, marked to be kept for the backward pass; it must not be differentiated through.

    A bfloat16 one is kept as its bits: XLA on a CPU converts a stack of bfloat16 to float32 to read or write a layer.
    """
    if x.dtype != jnp.bfloat16:
        return checkpoint_name(x, KEPT)
    bits = checkpoint_name(jax.lax.bitcast_convert_type(x, jnp.uint16), KEPT)
    return jax.lax.bitcast_convert_type(bits, x.dtype)


def _last(x: jax.Array, count: int) -> tuple[int, ...]:
    return tuple(range(x.ndim - count, x.ndim))


def _first(count: int) -> tuple[int, ...]:
    return tuple(range(count))
