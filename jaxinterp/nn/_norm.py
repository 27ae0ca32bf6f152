"""Normalization of the residual stream, in float32."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax.numpy as jnp

from jaxinterp._typing import Array, Float, Params
from jaxinterp.tap import IDENTITY, Tap


class Norm(NamedTuple):
    """How a norm computes; what it learned stands beside.

    Attributes:
        kind: "LN", "RMS" or None (no norm).
        eps: added to the variance under the root.
        offset: what is multiplied by is this plus the weight.
    """

    kind: Literal["LN", "RMS"] | None
    eps: float = 1e-5
    offset: float = 0.0


NO_NORM = Norm(None)


def normalize(
    params: Params | None, x: Float[Array, "... D"], *, norm: Norm, site: str, axes: str = "BTD", tap: Tap = IDENTITY
) -> Float[Array, "... D"]:
    """LayerNorm or RMSNorm over the last axis, computed in float32 and returned in the dtype of `x`.

    Args:
        params: `w [D]` and, for LayerNorm, `b [D]`; None where there is no norm.
        x: any leading axes.
        norm: which.
        site: the on-demand site of the scale that `x` is divided by (a standard deviation, or a root mean square), [..., 1].
        axes: the letters of the axes of `x`.
        tap: the model's tap.

    Source: Ba et al. 2016 (arXiv 1607.06450); Zhang and Sennrich 2019 (arXiv 1910.07467).
    """
    if norm.kind is None:
        return x
    assert params is not None
    full = x.astype(jnp.float32)
    if norm.kind == "LN":
        full = full - jnp.mean(full, -1, keepdims=True)
    scale = jnp.sqrt(jnp.mean(full * full, -1, keepdims=True) + norm.eps)
    if tap.wants(site):
        scale = tap(site, scale, axes)
    full = full * (1.0 / scale)
    lead = (1,) * (x.ndim - 1)
    weight = params["w"].astype(jnp.float32)
    full = full * (weight + norm.offset if norm.offset else weight).reshape(*lead, -1)
    if norm.kind == "LN":
        full = full + params["b"].astype(jnp.float32).reshape(*lead, -1)
    return full.astype(x.dtype)
