"""What rows are divided by before a dictionary sees them."""

from __future__ import annotations

import jax.numpy as jnp

from jaxinterp._typing import Array, Float

EPS = 1e-5
PER_ROW = ("layer_norm", "row_sqrt_d")
"""The kinds that measure each row, so that a reconstruction goes back by the row that it is of."""


def measured_scale(rows: Float[Array, "B D"], kind: str) -> Float[Array, ""]:
    """What rows are multiplied by, from a sample of them.

    "sqrt_d": the square root of the width over the mean length (Conerly et al. 2024, "Update on how we train SAEs"); "unit": one
    over the root of the mean squared length (Rajamanoharan et al. 2024, arXiv 2407.14435); else 1.
    """
    rows = rows.astype(jnp.float32)
    if kind == "sqrt_d":
        return jnp.sqrt(float(rows.shape[1])) / jnp.mean(jnp.linalg.norm(rows, axis=1))
    if kind == "unit":
        return 1.0 / jnp.sqrt(jnp.mean(jnp.sum(jnp.square(rows), axis=1)))
    return jnp.ones((), jnp.float32)


def normalized(rows: Float[Array, "B D"], scale: Float[Array, ""], kind: str) -> tuple[Array, tuple[Array, Array]]:
    """Rows as the dictionary sees them, in float32; and what takes a reconstruction back: (shift, factor)."""
    rows = rows.astype(jnp.float32)
    if kind == "layer_norm":
        mean = jnp.mean(rows, axis=1, keepdims=True)
        deviation = jnp.std(rows, axis=1, keepdims=True, ddof=1)
        return (rows - mean) / (deviation + EPS), (mean, deviation)
    if kind == "row_sqrt_d":
        length = jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-30) / jnp.sqrt(float(rows.shape[1]))
        return rows / length, (jnp.zeros_like(length), length)
    zero = jnp.zeros((), jnp.float32)
    return (rows, (zero, zero + 1.0)) if kind == "none" else (rows * scale, (zero, 1.0 / scale))


def restored(rows: Float[Array, "B D"], back: tuple[Array, Array]) -> Float[Array, "B D"]:
    """A reconstruction in the units of what was read."""
    shift, factor = back
    return rows * factor + shift
