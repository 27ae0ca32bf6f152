"""Attention so sharp that no gradient passes it."""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp import patching
from jaxinterp._errors import UnvisitedSiteError
from jaxinterp._typing import Array, ArrayLike, Params
from jaxinterp.tap import capture, run, sites

if TYPE_CHECKING:
    import xarray as xr

SATURATED = 1 - 1e-4
"""A row of attention is saturated when its largest probability p is above this: the derivative of a probability by a score is
p (1 - p) at most, so less than 1e-4 of a change of the scores comes through."""
MANY_ROWS = 0.5
"""The share of saturated rows from which on a head counts as saturated."""
MANY_HEADS = 0.05
"""The share of saturated heads from which on a warning is given."""


def saturation(model: Any, params: Params, tokens: ArrayLike, *, mask: ArrayLike | None = None) -> xr.DataArray:
    """The share of each head's query rows whose softmax is saturated.

    There a query or key could move by much and the pattern would not, to first order: gradients with respect to them underflow,
    and attribution scores that rest on them say nothing. Rows that see a single key do not count, nor does padding.

    Args:
        model: a `Model`, or a function `(params, tokens, *, tap) -> logits` with the site `attn.scores`.
        params: its parameters.
        tokens: prompts, int32 [B, T].
        mask: True at real tokens [B, T], where prompts are padded; of a function as in `sweep`.

    Returns:
        Fractions [layer, head]; NaN for a head without a row that sees two keys.

    Raises:
        UnvisitedSiteError: the model has no site `attn.scores` in layers.

    Example:
        >>> import jax, jaxinterp as ji
        >>> config = ji.TransformerConfig(n_layers=1, d_model=8, n_ctx=8, n_heads=2, d_head=4, d_vocab=5, d_mlp=8)
        >>> model = ji.Model(config=config)
        >>> ji.attribution.saturation(model, model.init(jax.random.key(0)), jax.numpy.array([[1, 2, 3]])).values
        array([[0., 0.]], dtype=float32)
    """
    import xarray as xr

    tokens = jnp.asarray(tokens)
    if not has_scores(sites(patching.forward_of(model), params, tokens)):
        raise UnvisitedSiteError(
            "saturation reads the site 'attn.scores' in layers, which this function does not have."
        )
    largest, visible = _largest(model, params, tokens, None if mask is None else jnp.asarray(mask))
    real = np.ones(tokens.shape, bool) if mask is None else np.asarray(mask)
    counts = (np.asarray(visible) > 1) & real[None, :, None]  # [L, B, H, T]
    hits = ((np.asarray(largest) > SATURATED) & counts).sum((1, 3))
    rows = counts.sum((1, 3))
    share = np.where(rows > 0, hits / np.maximum(rows, 1), np.nan).astype(np.float32)
    coordinates = {"layer": np.arange(share.shape[0]), "head": np.arange(share.shape[1])}
    return xr.DataArray(share, coordinates, ("layer", "head"), name="saturated", attrs={"threshold": SATURATED})


def has_scores(table: Any) -> bool:
    """Whether the sites include scores of attention, by layer."""
    return any(s.name == "attn.scores" and s.n_layers is not None and s.axes == "BHTS" for s in table)


@functools.partial(jax.jit, static_argnames="model")
def _largest(model: Any, params: Params, tokens: Array, mask: Array | None) -> tuple[Array, Array]:
    """The largest probability of each row and how many keys it sees, [L, B, H, T]."""
    reader = run(patching.forward_of(model, mask), capture("attn.scores", of=_summary))
    return reader(params, tokens)[1]["attn.scores"]


def _summary(scores: Array) -> tuple[Array, Array]:
    """What a causal mask, a window or padding hides has the lowest score that there is."""
    seen = scores > jnp.finfo(scores.dtype).min / 2
    top = jnp.max(scores, -1, keepdims=True)
    total = jnp.sum(jnp.where(seen, jnp.exp(scores - top), jnp.zeros_like(scores)), -1)
    return 1 / total, jnp.sum(seen, -1)


def warn_if_saturated(share: xr.DataArray, stacklevel: int) -> None:
    """Names the heads where many rows are saturated, if those are many heads."""
    values = share.values
    heads = np.argwhere(np.nan_to_num(values) >= MANY_ROWS)
    if len(heads) == 0 or len(heads) < MANY_HEADS * values.size:
        return
    names = [f"{layer}.{head} ({100 * values[layer, head]:.0f} %)" for layer, head in heads[:12]]
    warnings.warn(
        f"attention is saturated (largest probability above {SATURATED}) in {len(heads)} of {values.size} heads: "
        f"{', '.join(names)}{', ...' if len(heads) > 12 else ''} (share of query rows). Gradients with respect to their queries "
        "and keys underflow, so scores that pass through them are too small, often 0. Trust patching.sweep there "
        "(audit=64 compares).",
        stacklevel=stacklevel,
    )
