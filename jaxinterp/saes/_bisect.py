"""Thresholds by bisection over the bits of a float32: exact, and with sums alone."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from jaxinterp._typing import Array, Bool, Float, Int

INFINITY_BITS = 0x7F800000


def last_with(
    enough: Callable[[Int[Array, "..."]], Bool[Array, "..."]], like: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The largest number, from 0 up, at which `enough` still holds; it must hold below each number at which it does.

    Positive numbers are ordered as their bits are, so 31 halvings find it.

    Args:
        enough: bits of numbers, of the shape of `like`, to whether it holds there.
        like: gives the shape.
    """

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = low + (high - low) // 2
        holds = enough(middle)
        return jnp.where(holds, middle, low), jnp.where(holds, high, middle)

    low = jnp.zeros_like(like, jnp.int32)
    return lax.bitcast_convert_type(lax.fori_loop(0, 31, halve, (low, low + INFINITY_BITS))[0], jnp.float32)
