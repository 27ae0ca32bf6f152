"""What decoder rows say by themselves: the tokens that they promote and suppress, and the rows that are close to them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp._tree import pytree
from jaxinterp._typing import Array, Params
from jaxinterp.saes import _linear
from jaxinterp.saes._sae import SAE
from jaxinterp.tap import site_of_hook, split_site

IN_STREAM = ("embed", "resid_pre", "resid_mid", "resid_post", "attn.in", "attn.out", "mlp.in", "mlp.out", "final.in")
"""Sites that are the residual stream, or are added to it."""

ELEMENTS = 2**24
"""Of the largest table that is made at a time, of some decoder rows against all tokens or latents."""


@pytree
class Ranked:
    """For each latent a few of something, best first.

    Attributes:
        ids: int32 [N, n], -1 where there are fewer.
        values: float32 [N, n].
    """

    ids: Any
    values: Any


def extreme_tokens(
    sae: SAE, model: Any, params: Params, unembed: Callable[[Array], Array] | None, dtype: Any, n: int
) -> tuple[Ranked, Ranked]:
    """The tokens whose logits each decoder row raises and lowers most, [N, n] each.

    [N, 0] where there is no `unembed`, and the dictionary does not write into the residual stream, whose dtype is `dtype`.
    """
    rows = _directions(sae) * sae.config.width_out**0.5
    site = sae.config.target_site
    in_stream = split_site(site_of_hook(site) or site)[0] in IN_STREAM and hasattr(model, "unembed")
    if unembed is None and not in_stream:
        empty = Ranked(ids=np.zeros((len(rows), 0), np.int32), values=np.zeros((len(rows), 0), np.float32))
        return empty, empty
    logits = functools.partial(_logits, model=model, unembed=unembed, dtype=dtype)
    v = jax.eval_shape(logits, params, rows[:1]).shape[-1]
    extremes = functools.partial(_extremes, params, model=model, unembed=unembed, dtype=dtype, n=min(n, v))
    up, down = _by_blocks(lambda block, numbers: extremes(block), rows, v)
    return Ranked(ids=up[1], values=up[0]), Ranked(ids=down[1], values=-down[0])


def nearest_latents(sae: SAE, n: int) -> Ranked:
    """The latents whose decoder rows have the largest cosine with each, [N, n]."""
    rows = _directions(sae)
    nearest = functools.partial(_nearest, rows, n=min(n, len(rows) - 1))
    values, ids = _by_blocks(nearest, rows, len(rows))
    return Ranked(ids=ids, values=values)


def _logits(params: Params, rows: Array, *, model: Any, unembed: Callable[[Array], Array] | None, dtype: Any) -> Array:
    out = model.unembed(params, rows[None].astype(dtype))[0] if unembed is None else unembed(rows)
    return out.astype(jnp.float32)


@functools.partial(jax.jit, static_argnames=("model", "unembed", "dtype", "n"))
def _extremes(params: Params, rows: Array, *, n: int, **how: Any) -> Any:
    """The largest logits and the largest negative ones, each with their tokens."""
    moved = _logits(params, rows, **how) - _logits(params, jnp.zeros_like(rows[:1]), **how)
    moved = moved - jnp.mean(moved, axis=1, keepdims=True)
    return jax.lax.top_k(moved, n), jax.lax.top_k(-moved, n)


@functools.partial(jax.jit, static_argnames=("n",))
def _nearest(rows: Array, block: Array, numbers: Array, *, n: int) -> Any:
    """The largest cosines of some rows with the others, and which those are."""
    cosines = jnp.dot(block, rows.T, precision="highest")
    itself = numbers[:, None] == jnp.arange(len(rows))[None]
    return jax.lax.top_k(jnp.where(itself, -jnp.inf, cosines), n)


def _directions(sae: SAE) -> Array:
    """Decoder rows of length 1, [N, D_out]."""
    return _linear.unit_rows(sae.params["W_dec"].astype(jnp.float32))


def _by_blocks(fn: Callable[[Array, Array], Any], rows: Array, width: int) -> Any:
    """`fn` of all rows and their numbers, so many at a time that a table of `width` columns stays small."""
    size = max(1, min(len(rows), ELEMENTS // width))
    parts = []
    for start in range(0, len(rows), size):
        first = min(start, len(rows) - size)  # blocks of one size, so one program
        part = jax.device_get(fn(rows[first : first + size], jnp.arange(first, first + size)))
        parts.append(jax.tree.map(lambda leaf, cut=start - first: leaf[cut:], part))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
