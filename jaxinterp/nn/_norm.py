"""Normalization of the residual stream, in float32."""

import jax.numpy as jnp

from jaxinterp._typing import Array, Float, Params
from jaxinterp.tap import IDENTITY, Tap


def normalize(
    params: Params | None, x: Float[Array, "... D"], *, kind: str | None, eps: float, name: str, tap: Tap = IDENTITY
) -> Float[Array, "... D"]:
    """LayerNorm or RMSNorm, computed in float32 and returned in the dtype of `x`.

    The scale that `x` is divided by (a standard deviation, or a root mean square) is the on-demand site `name` + `.norm_scale`.

    Args:
        params: `w [D]` and, for LayerNorm, `b [D]`; None where there is no norm.
        x: any leading axes.
        kind: "LN", "RMS" or None (returns `x`).
        eps: added to the variance under the root.
        name: prefix of the site: "attn", "mlp", "final".
        tap: the model's tap.

    Source: Ba et al. 2016 (arXiv 1607.06450); Zhang and Sennrich 2019 (arXiv 1910.07467).
    """
    if kind is None:
        return x
    assert params is not None
    full = x.astype(jnp.float32)
    if kind == "LN":
        full = full - jnp.mean(full, -1, keepdims=True)
    scale = jnp.sqrt(jnp.mean(full * full, -1, keepdims=True) + eps)
    if tap.wants(f"{name}.norm_scale"):
        axes = "BTHD" if x.ndim == 4 else "BTD"
        scale = tap(f"{name}.norm_scale", scale, axes)
    full = full * (1.0 / scale)
    lead = (1,) * (x.ndim - 1)
    full = full * params["w"].astype(jnp.float32).reshape(*lead, -1)
    if kind == "LN":
        full = full + params["b"].astype(jnp.float32).reshape(*lead, -1)
    return full.astype(x.dtype)
