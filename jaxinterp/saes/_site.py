"""A dictionary's site inside a model: reading it, and putting something else in its place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError
from jaxinterp._tree import pytree
from jaxinterp._typing import Array, Float, Params
from jaxinterp.tap import Handler, capture, edit, run, split_site


@pytree
class Batch:
    """Tokens with what belongs to each, [B, T].

    Attributes:
        tokens: ids.
        kept: whether it may be touched: there is a token, and it is not excluded.
        predicts: [B, T - 1], whether there is a next token of the same text.
        how: further arguments of the forward pass.
    """

    tokens: Any
    kept: Any
    predicts: Any
    how: Any


def as_batch(tokens: Any, exclude: tuple[int, ...], exclude_positions: tuple[int, ...]) -> Batch:
    """Token ids [B, T], or a `TokenBatch` of `activations.read_tokens`, as a batch."""
    how: dict[str, Any] = {}
    if isinstance(tokens, tuple):
        ids, documents, positions, segments = (np.asarray(part) for part in tokens)
        real = documents >= 0
        how = {"positions": jnp.asarray(positions), "segments": jnp.asarray(segments)}
        same = segments[:, 1:] == segments[:, :-1]
    else:
        ids = np.asarray(tokens)
        real, positions = np.ones(ids.shape, bool), np.broadcast_to(np.arange(ids.shape[-1]), ids.shape)
        same = np.ones((*ids.shape[:-1], max(ids.shape[-1] - 1, 0)), bool)
    if ids.ndim != 2 or ids.shape[1] < 2 or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(
            f"tokens are {ids.dtype}{list(ids.shape)}; give integer ids [batch, position], two positions or more."
        )
    kept = real & ~np.isin(ids, exclude) & ~np.isin(positions, exclude_positions)
    predicts = real[:, 1:] & real[:, :-1] & same
    arrays = (jnp.asarray(a) for a in (ids.astype(np.int32), kept, predicts))
    return Batch(**dict(zip(("tokens", "kept", "predicts"), arrays, strict=True)), how=how)


def read_site(model: Any, params: Params, batch: Batch, name: str) -> Float[Array, "B T D"]:
    """The value of a site, its features laid flat."""
    site, layer = split_site(name)
    handler = capture(site, layers=None if layer is None else (layer,))
    value = run(model.forward, handler)(params, batch.tokens, **batch.how)[1][site]
    return _flat(value if layer is None else value[0])


def put(name: str, fn: Callable[[Array, Any], Array], kept: Array, data: Any) -> Handler:
    """A handler that puts `fn(value [B, T, D], data)` at a site, where `kept` [B, T] allows; `fn` at module level."""
    site, layer = split_site(name)
    return edit(site, _Put(fn), {"kept": kept, "data": data}, layer=layer)


@dataclasses.dataclass(frozen=True)
class _Put:
    """Equal for equal functions, so that jit does not compile again."""

    fn: Callable[[Array, Any], Array]

    def __call__(self, value: Array, data: Any) -> Array:
        flat = _flat(value)
        new = self.fn(flat, data["data"]).astype(value.dtype)
        return jnp.where(data["kept"][..., None], new, flat).reshape(value.shape)


def _flat(value: Array) -> Array:
    return value.reshape(*value.shape[:2], -1)
