"""What a sweep's edit puts in: computed once from the base or the source run, then selected by each cell."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxinterp._errors import InputError
from jaxinterp._typing import Array, Params
from jaxinterp.models import Model, token_positions
from jaxinterp.tap import Handler, Site, SiteShape, capture, patch, run

Forward = Model | Callable[..., Array]
"""A `Model`, or a function `(params, tokens, *, tap) -> logits [B, T, V]`."""


class Source(NamedTuple):
    """The prompts to patch from.

    Attributes:
        tokens: [B, S].
        mask: True at real tokens [B, S], or None.
        rows: [B, T], for each row of the base prompts its row in the source; -1 where it has none, so that a patch leaves it
            alone. None: the same row.
    """

    tokens: Any
    mask: Any = None
    rows: Any = None


def make_handler(op: Callable[..., Handler], site: str) -> Handler:
    """The edit without a place that a user's `op` makes."""
    made = op(site)
    if not isinstance(made, Handler) or len(made.sites) != 1 or made.sites[0] != site:
        raise InputError(
            f"op={op!r} made {made!r} from site {site!r}; give patch, zero, mean or functools.partial(add, value=...), ..., a "
            "function that makes an edit of that site."
        )
    if isinstance(made.data, dict) and made.data.get("where"):
        raise InputError(
            f"op={op!r} chooses {', '.join(made.data['where'])} itself; which places are edited is said by over=. Leave it out "
            "of op."
        )
    return made


def resolve(
    model: Forward,
    params: Params,
    base: Array,
    mask: Array | None,
    source: Source | None,
    shape: SiteShape,
    op: Handler | None,
) -> Handler:
    """One edit for all cells: a patch that brings what the op makes of the base run's value, at every layer and row.

    What an edit finds at its site is the base run's value, if it is the only edit of its cell. So the op is applied once, and all
    ops of a site are one compiled sweep.

    Args:
        model, params: the model.
        base, mask: the base prompts.
        source: the prompts to patch from, if `op` is None.
        shape: of the site.
        op: an edit without a place; None: patch from the source.
    """
    if op is None:
        assert source is not None
        values = captured(model, shape.name, params, source.tokens, source.mask)
        if source.rows is not None:
            return bring(shape, _aligned(values, source.rows, shape), source.rows >= 0)
    else:
        values = _applied(op, captured(model, shape.name, params, base, mask), shape, base, mask)
    return bring(shape, values)


def bring(shape: SiteShape, values: Array, rows: Any = None) -> Handler:
    """A patch with the values of a whole run, [L, B, T, ...] or [B, T, ...], at all rows or at some [B, T]."""
    if shape.n_layers is None:
        return patch(shape.name, values, rows=rows)
    return patch(shape.name, per_layer=values, rows=rows)


def forward_of(model: Forward, mask: Array | None = None) -> Callable[..., Array]:
    """The function `(params, tokens, *, tap) -> logits`; it hears of padding where there is some, so need not know of masks."""
    forward = model.forward if isinstance(model, Model) else model
    return forward if mask is None else functools.partial(forward, mask=mask)


@functools.partial(jax.jit, static_argnames=("model", "site"))
def captured(model: Forward, site: str, params: Params, tokens: Array, mask: Array | None) -> Array:
    """The values of a site in a run, [L, B, T, ...] or [B, T, ...]."""
    return run(forward_of(model, mask), capture(site))(params, tokens)[1][site]


def _aligned(values: Array, rows: Any, shape: SiteShape) -> Array:
    """The source's values at the base's rows; anything where the source has none."""
    if "S" in shape.axes:
        raise InputError(
            f"positions= moves rows, but site {shape.name!r} has axes {shape.axes}: its key positions (S) would have to move "
            "too. Choose another site."
        )
    axis = shape.axes.index("T") + (shape.n_layers is not None)
    index = jnp.maximum(jnp.asarray(rows), 0)
    lead = [1] * values.ndim
    lead[axis - 1], lead[axis] = index.shape  # every site with rows has B before T
    return jnp.take_along_axis(values, index.reshape(lead), axis=axis)


@functools.partial(jax.jit, static_argnames="shape")
def _applied(op: Handler, values: Array, shape: SiteShape, base: Array, mask: Array | None) -> Array:
    """What the op makes of a site's values in every layer."""
    positions = token_positions(base, mask, None)
    extent: Any = base.shape[1] if mask is None else jnp.max(positions, 1) + 1
    site = Site(name=shape.name, axes=shape.axes, n_layers=shape.n_layers, positions=positions, extent=extent)

    def one(value: Array, layer: Any, layer_slice: Any) -> Array:
        return op.visit(site._replace(layer=layer), value, (), op.data, layer_slice, None)[0]

    if shape.n_layers is None:
        return one(values, None, None)
    # as in a run: what has no axis of layers is no value by layer, and the op says so
    slices = jax.tree.map(lambda leaf: leaf if leaf.ndim and leaf.shape[0] == shape.n_layers else None, op.per_layer)
    return jax.vmap(one)(values, jnp.arange(shape.n_layers, dtype=jnp.int32), slices)
