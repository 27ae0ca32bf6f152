"""Handlers that read values, and the additive probe for gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError, SiteIndexError, SiteTypeError
from jaxinterp._tree import is_traced, pytree
from jaxinterp._typing import Array, PyTree
from jaxinterp.tap._site import Handler, Site, SiteShape
from jaxinterp.tap._where import axis_of, check_positions, make_where, position_limit, real_rows, row_positions


@dataclasses.dataclass(frozen=True)
class _Capture:
    layers: tuple[int, ...] | None
    of: Callable[[Array], PyTree] | None

    def __call__(
        self, site: Site, value: Array, state: Any, data: Any, layer_slice: Any, tap: Any
    ) -> tuple[Array, Any, PyTree]:
        if self.layers is not None:
            if site.n_layers is None:
                raise SiteTypeError(
                    f"capture(layers={self.layers}) of site {site.name!r}, which is in no layer. Leave layers out."
                )
            wrong = [i for i in self.layers if i >= site.n_layers]
            if wrong:
                raise SiteIndexError(
                    f"capture of layers {wrong}: the model has {site.n_layers}, so legal are 0 to {site.n_layers - 1}."
                )
        kept = value if "position" not in data else _take(site, value, data["position"])
        return value, state, kept if self.of is None else self.of(kept)


def _take(site: Site, value: Array, position: Any) -> Array:
    """The rows at absolute positions; NaN for a position that is not there."""
    axis = axis_of("position", site)
    rows = row_positions(site, value.shape[axis])
    wanted = position if np.ndim(position) == 2 else position.reshape(1, -1)  # [B or 1, n]
    limit = position_limit(site, rows.shape[1])
    if not is_traced(wanted) and not is_traced(limit):
        check_positions(wanted, site, limit)
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        raise SiteTypeError(
            f"capture(position=...) of site {site.name!r}, of dtype {value.dtype}, which has no NaN to mark a position that is "
            "not there. Capture it whole."
        )
    hit = rows[:, :, None] == wanted[:, None, :]  # [B or 1, T, n]
    index, there = jnp.argmax(hit, 1), hit.any(1)
    moved = jnp.moveaxis(value, axis, 1) if "B" in site.axes else jnp.moveaxis(value, axis, 0)[None]
    index = jnp.broadcast_to(index, (moved.shape[0], index.shape[1]))
    tail = (1,) * (moved.ndim - 2)
    out = jnp.take_along_axis(moved, index.reshape(index.shape + tail), axis=1)
    there = jnp.broadcast_to(there, index.shape).reshape(index.shape + tail)
    out = jnp.where(there, out, jnp.asarray(jnp.nan, out.dtype))
    return jnp.moveaxis(out, 1, axis) if "B" in site.axes else jnp.moveaxis(out[0], 0, axis)


def capture(
    *sites: str, layers: Any = None, position: Any = None, of: Callable[[Array], PyTree] | None = None, prefix: str = ""
) -> Handler:
    """Stores the values of sites; `run` returns them by name, with a leading L axis for sites in layers.

    Args:
        *sites: names or globs (or TransformerLens's names, see `run`). A glob finds the sites that are computed anyway, never
            on-demand ones.
        layers: keep these layers only, static ints; the capture's leading axis is then as long as they are, in ascending order.
        position: keep these absolute positions only: int, [n] or [B, n]; the position axis becomes n long.
        of: applied to each value before it is stored, so that a reduction is kept instead of the tensor. Static.
        prefix: put before the names, so that one site can be captured before and after an edit.

    Example:
        >>> import jax.numpy as jnp, jaxinterp as ji
        >>> ji.run(lambda x, *, tap: tap("x", x), ji.capture("x", of=jnp.sum))(jnp.ones((2, 3)))[1]
        {'x': Array(6., dtype=float32)}
    """
    if not sites:
        raise InputError("capture() names no site. Give names or globs: capture('resid_pre', 'attn.*').")
    if layers is not None:
        layers = tuple(sorted({int(i) for i in np.atleast_1d(layers)}))
        if not layers or layers[0] < 0:
            raise SiteIndexError(f"capture(layers={list(layers)}): give at least one layer, counted from 0.")
    where = make_where(position=position)
    return Handler(sites=tuple(sites), visit=_Capture(layers, of), layers=layers, prefix=prefix, data=where)


@dataclasses.dataclass(frozen=True)
class _Perturb:
    def __call__(
        self, site: Site, value: Array, state: Any, data: Any, layer_slice: Any, tap: Any
    ) -> tuple[Array, Any, None]:
        delta = layer_slice[site.name] if site.layer is not None else data[site.name]
        if delta is None or delta.shape != value.shape or delta.dtype != value.dtype:
            lead = [site.n_layers] if site.layer is not None else []
            got = data[site.name]
            raise SiteTypeError(
                f"perturb at site {site.name!r} got {got.dtype}{list(got.shape)}; it needs the shape of a capture, "
                f"{value.dtype}{lead + list(value.shape)}."
            )
        return value + delta, state, None


def perturb(deltas: Mapping[str, Any]) -> Handler:
    """Adds an array to each of some sites: differentiate with respect to it, at zero, for gradients at activations.

    Args:
        deltas: by site name, arrays of the shape that `capture` gives (a leading L axis for sites in layers), as
            `{name: jnp.zeros(sites(fn, *args)[name].stacked_shape)}`. Sites in layers and others cannot be told apart by shape,
            so layered ones go through the scan and their gradient stays stacked.

    Example:
        >>> import jax, jax.numpy as jnp, jaxinterp as ji
        >>> fn = lambda x, *, tap: jnp.sum(tap("x", x) ** 2)
        >>> jax.grad(lambda d: ji.run(fn, ji.perturb({"x": d}))(jnp.ones((1, 2)))[0])(jnp.zeros((1, 2)))
        Array([[2., 2.]], dtype=float32)
    """
    if not deltas:
        raise InputError("perturb({}) names no site.")
    return Handler(sites=tuple(sorted(deltas)), visit=_Perturb(), data=dict(deltas), per_layer=dict(deltas))


@pytree
class Statistics:
    """Running moments of a site: count [L], mean and m2 [L, ...features] (no L outside layers).

    `m2` is the sum of squared differences from the mean.
    """

    count: Array
    mean: Array
    m2: Array

    @property
    def variance(self) -> Array:
        """The population variance of each feature."""
        count = self.count.reshape(self.count.shape + (1,) * (self.mean.ndim - self.count.ndim))
        return self.m2 / jnp.maximum(count, 1.0)


@dataclasses.dataclass(frozen=True)
class _Accumulate:
    def __call__(
        self, site: Site, value: Array, state: Any, data: Any, layer_slice: Any, tap: Any
    ) -> tuple[Array, Any, None]:
        old: Statistics = state[site.name]
        here = old if site.layer is None else jax.tree.map(lambda a: a[site.layer], old)
        axes = tuple(i for i, letter in enumerate(site.axes) if letter in "BT")
        x = value.astype(jnp.float32)
        weight = real_rows(site, x)
        count = jnp.sum(weight)
        x = jnp.where(weight > 0, x, 0.0)  # whatever stands at padding
        center = jnp.sum(x, axes, keepdims=True) / jnp.maximum(count, 1.0)
        m2 = jnp.sum(weight * (x - center) ** 2, axes)
        center = center.reshape(m2.shape)
        total = jnp.maximum(here.count + count, 1.0)
        shift = center - here.mean
        new = Statistics(
            count=here.count + count,
            mean=here.mean + shift * (count / total),
            m2=here.m2 + m2 + shift**2 * (here.count * count / total),
        )
        if site.layer is not None:
            new = jax.tree.map(lambda a, b: a.at[site.layer].set(b), old, new)
        return value, {**state, site.name: new}, None


def _empty(specs: list[SiteShape], data: Any) -> dict[str, Statistics]:
    state = {}
    for spec in specs:
        if spec.name in data:
            state[spec.name] = data[spec.name]
            continue
        lead = () if spec.n_layers is None else (spec.n_layers,)
        kept = tuple(n for n, letter in zip(spec.shape, spec.axes, strict=True) if letter not in "BT")
        state[spec.name] = Statistics(count=spec.zeros(lead), mean=spec.zeros(lead + kept), m2=spec.zeros(lead + kept))
    return state


def statistics(*sites: str, state: Mapping[str, Statistics] | None = None) -> Handler:
    """Mean and variance of each feature over batch and positions, accumulated in the scan's carry; nothing is stored by layer.

    The last state (`run`'s third result) is a dictionary of `Statistics` by site; pass it as `state` to go on with the next
    batch. Padding does not count. Inside `shard_map` each shard counts its own rows.

    Source: Chan, Golub and LeVeque 1979, the pairwise update of moments.
    """
    if not sites:
        raise InputError("statistics() names no site. Give names or globs: statistics('resid_pre').")
    return Handler(sites=tuple(sites), visit=_Accumulate(), init=_empty, data=dict(state or {}))
