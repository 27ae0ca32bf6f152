"""Latents of which few are active, and products that touch only those.

With k of N latents active, a decoder's product takes B k D multiplications and not B N D; so do the gradients of both matrices.
There are two forms of each product, with one result (to rounding):

- by index: rows of the matrix are gathered, or added to, one active latent at a time. For CPU and GPU.
- dense: the latents are spread over [B, N] and the product is a matrix product. For TPU, whose matrix unit is faster at N columns
  than its memory is at k scattered rows, and wherever more than one latent in `DENSE_FROM` is active.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxinterp._tree import pytree, static
from jaxinterp._typing import Array, Bool, Float, Int

DENSE_FROM = 8
"""By index where N is at least so many times k. On a CPU both take as long at 4 (width 64), 9 (256) and 16 (768):
`experiments/benchmarks/dictionary_products.py`."""


@pytree
class SparseLatents:
    """The active latents of each row.

    Attributes:
        values: [B, K], 0 where fewer than K are active.
        indices: [B, K], which latents they are; no row has one twice.
        n_latents: how many latents there are.
    """

    values: Array
    indices: Array
    n_latents: int = static()

    def dense(self) -> Float[Array, "B N"]:
        """The same latents with their zeros, [B, N]."""
        return _spread(self.values, self.indices, self.n_latents)


def decode_active(
    values: Float[Array, "B K"], indices: Int[Array, "B K"], weights: Float[Array, "N D"]
) -> Float[Array, "B D"]:
    """The sum over active latents of value times row of `weights`, float32.

    Its gradients with respect to values and weights take as much work again.
    """
    return _decode(values, indices, weights)


def _decode_forward(values: Array, indices: Array, weights: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return _sum_of_rows(values, indices, weights), (values, indices, weights)


def _decode_backward(kept: tuple[Array, Array, Array], gradient: Array) -> tuple[Array, None, Array]:
    values, indices, weights = kept
    return (
        _dots_with_rows(gradient, indices, weights).astype(values.dtype),
        None,
        _sum_into_rows(values, indices, gradient, weights),
    )


_decode: Any = jax.custom_vjp(lambda values, indices, weights: _sum_of_rows(values, indices, weights))
_decode.defvjp(_decode_forward, _decode_backward)


def encode_active(
    x: Float[Array, "B D"],
    center: Float[Array, " D"],
    weights: Float[Array, "N D"],
    bias: Float[Array, " N"],
    values: Float[Array, "B K"],
    indices: Int[Array, "B K"],
) -> Float[Array, "B K"]:
    """The pre-activations (x - center) . weights + bias of the latents in `indices`, whose `values` are known.

    It returns `values`, which a dense product has found already, and gives them the gradient of the expression: with respect to
    `weights`, only the rows of active latents get one.
    """
    return _encode(x, center, weights, bias, values, indices)


def _encode_forward(x: Array, center: Array, weights: Array, bias: Array, values: Array, indices: Array) -> tuple:
    return values, (x, center, weights, bias, indices)


def _encode_backward(kept: tuple, gradient: Array) -> tuple:
    x, center, weights, bias, indices = kept
    to_bias = jnp.zeros_like(bias).at[indices].add(gradient.astype(bias.dtype))
    return (
        _sum_of_rows(gradient, indices, weights).astype(x.dtype),
        -jnp.dot(to_bias, weights.astype(bias.dtype), precision="highest").astype(center.dtype),
        _sum_into_rows(gradient, indices, x - center[None], weights),
        to_bias,
        jnp.zeros_like(gradient),
        None,
    )


_encode: Any = jax.custom_vjp(lambda x, center, weights, bias, values, indices: values)
_encode.defvjp(_encode_forward, _encode_backward)


def fired(values: Float[Array, "B K"], indices: Int[Array, "B K"], n: int) -> Bool[Array, " N"]:
    """Which of n latents are active in any row."""
    return jnp.zeros(n, bool).at[indices].max(values > 0)


def _choose(by_index: Callable[..., Array], dense: Callable[..., Array], *args: Array) -> Array:
    """One of two forms, by how sparse the latents are and by the platform that the program is compiled for."""
    indices, weights = args[1], args[2]
    if len(weights) < DENSE_FROM * indices.shape[-1]:
        return dense(*args)
    return lax.platform_dependent(*args, tpu=dense, default=by_index)


def _spread(values: Array, indices: Array, n: int) -> Array:
    rows = jnp.arange(len(values))[:, None]
    return jnp.zeros((len(values), n), values.dtype).at[rows, indices].add(values)


def _sum_of_rows(values: Array, indices: Array, weights: Array) -> Array:
    """[B, D]: the sum over active latents of value times row of weights, float32."""

    def by_index(values: Array, indices: Array, weights: Array) -> Array:
        def add(total: Array, active: tuple[Array, Array]) -> tuple[Array, None]:
            value, index = active
            return total + value[:, None].astype(total.dtype) * weights[index].astype(total.dtype), None

        # one active latent of every row at a time, so that no [B, K, D] is made
        zero = jnp.zeros_like(values, jnp.float32, shape=(len(values), weights.shape[1]))
        return lax.scan(add, zero, (values.T, indices.T))[0]

    def dense(values: Array, indices: Array, weights: Array) -> Array:
        spread = _spread(values, indices, len(weights)).astype(weights.dtype)
        return jnp.dot(spread, weights, precision="highest", preferred_element_type=jnp.float32)

    return _choose(by_index, dense, values, indices, weights)


def _dots_with_rows(rows: Array, indices: Array, weights: Array) -> Array:
    """[B, K]: the product of each row with the weights of its active latents, float32."""
    rows = rows.astype(weights.dtype)
    product = functools.partial(jnp.einsum, precision="highest", preferred_element_type=jnp.float32)

    def by_index(rows: Array, indices: Array, weights: Array) -> Array:
        by_row = lambda rows, indices, weights: lax.map(  # a CPU keeps one row in its cache
            lambda one: product("kd,d->k", weights[one[1]], one[0]), (rows, indices)
        )
        by_latent = lambda rows, indices, weights: (
            lax.map(lambda index: product("bd,bd->b", weights[index], rows), indices.T).T
        )
        return lax.platform_dependent(rows, indices, weights, cpu=by_row, default=by_latent)

    def dense(rows: Array, indices: Array, weights: Array) -> Array:
        return jnp.take_along_axis(product("bd,nd->bn", rows, weights), indices, axis=1)

    return _choose(by_index, dense, rows, indices, weights)


def _sum_into_rows(values: Array, indices: Array, rows: Array, like: Array) -> Array:
    """[N, D]: each row, times its values, added to the weights of its active latents."""
    rows = rows.astype(like.dtype)

    def by_index(values: Array, indices: Array, like: Array, rows: Array) -> Array:
        def add(total: Array, active: tuple[Array, Array]) -> tuple[Array, None]:
            value, index = active
            return total.at[index].add(value[:, None].astype(total.dtype) * rows.astype(total.dtype)), None

        return lax.scan(add, jnp.zeros_like(like, jnp.float32), (values.T, indices.T))[0].astype(like.dtype)

    def dense(values: Array, indices: Array, like: Array, rows: Array) -> Array:
        spread = _spread(values, indices, len(like)).astype(rows.dtype)
        total = jnp.dot(spread.T, rows, precision="highest", preferred_element_type=jnp.float32)
        return total.astype(like.dtype)

    return _choose(by_index, dense, values, indices, like, rows)
