"""Which layer, head, position, feature and decoding step a handler speaks of, as array data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import SiteIndexError, SiteTypeError
from jaxinterp._tree import is_traced
from jaxinterp._typing import Array, Bool, Float, Int
from jaxinterp.tap._site import Site

Where = Mapping[str, Any]
"""Integer arrays under the keys layer, head, position, feature, step, and steps (first and behind the last); an absent key means
all."""

_LETTERS = {"head": "HK", "position": "T"}
_NO_END = np.iinfo(np.int32).max  # of a range of steps that goes to the last one


def make_where(
    *, layer: Any = None, head: Any = None, position: Any = None, feature: Any = None, step: Any = None
) -> dict[str, Any]:
    """Checks a selection and turns it into arrays.

    Args:
        layer, head, feature: an int, a sequence of ints or an int array [n], static or traced; None: all.
        position: the same, or [B, n] for positions that differ by example. Absolute, from each example's first real token.
        step: as layer, or range(start, stop), or slice(start, stop) whose ends may be traced or None.

    Raises:
        SiteIndexError: a negative index whose value is known.
        SiteTypeError: not integers, or too many axes.
    """
    given = {"layer": layer, "head": head, "position": position, "feature": feature, **_steps(step)}
    where = {}
    for key, value in given.items():
        if value is None:
            continue
        array = value if hasattr(value, "dtype") else _array(value)
        if array.size == 0:
            raise SiteIndexError(f"{key}={value!r} selects nothing. Leave the handler out, or give at least one index.")
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise SiteTypeError(
                f"{key}={value!r} is of dtype {array.dtype}; give an int, a list of ints or an integer array."
            )
        if array.ndim > (2 if key == "position" else 1):
            shapes = "[], [n] or [B, n]" if key == "position" else "[] or [n]"
            raise SiteTypeError(f"{key} has shape {array.shape}; legal: {shapes}.")
        if not is_traced(array) and np.asarray(array).min() < 0:
            raise SiteIndexError(
                f"{key}={np.asarray(array).tolist()} is negative. Indices count from 0; positions from each example's first "
                "real token, so that the last of T tokens is T - 1."
            )
        if key == "steps" and not is_traced(array) and array[0] >= array[1]:
            raise SiteIndexError(f"step={step!r} selects nothing. Leave the handler out, or give at least one step.")
        where[key] = jnp.asarray(array, jnp.int32) if is_traced(array) else np.asarray(array, np.int32)
    return where


def _steps(step: Any) -> dict[str, Any]:
    """A range of steps as its two ends, so that another range of them compiles nothing; else the steps themselves."""
    if not isinstance(step, (slice, range)):
        return {"step": step}
    if step.step not in (None, 1):
        raise SiteIndexError(f"step={step!r} leaves steps out: give a list of the steps in its place.")
    start, stop = (0 if step.start is None else step.start), (_NO_END if step.stop is None else step.stop)
    return {"steps": _array([start, stop])}


def _array(value: Any) -> Any:
    """A list may hold tracers."""
    return jnp.asarray(value) if any(map(is_traced, jax.tree.leaves(value))) else np.asarray(value)


def spread(x: Array, value: Array) -> Array:
    """`x`, of as many axes, broadcast to the shape of `value` (and to its sharding, where mesh axes are explicit)."""
    return jnp.where(jnp.ones((1,) * value.ndim, bool), x, value)


def select(where: Where, site: Site, value: Array, new: Array) -> Array:
    """`new` where `where` points, `value` elsewhere; NaN everywhere if a traced index is out of range.

    Raises:
        SiteIndexError: an index out of range whose value is known.
        SiteTypeError: the site has no such axis.
    """
    mask, bad = _masks(where, site, value)
    out = new if mask is None else jnp.where(mask, new, value)
    if bad is None:
        return out
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        raise SiteTypeError(
            f"site {site.name!r} is of dtype {value.dtype}, which has no NaN, so a traced index out of range could not be told. "
            "Give layer, head, position and feature as Python ints there."
        )
    return jnp.where(bad, jnp.asarray(jnp.nan, value.dtype), out)


def _masks(where: Where, site: Site, value: Array) -> tuple[Array | None, Array | None]:
    """(where to apply, whether an index is out of range), each broadcastable to the value, or None."""
    mask: Any = None
    bad: Any = None

    def also(m: Any, b: Any) -> None:
        nonlocal mask, bad
        mask = m if mask is None else mask & m
        bad = b if bad is None or b is None else bad | b

    for key, index in where.items():
        if key in ("layer", "step", "steps"):
            also(*(_layer_mask(index, site) if key == "layer" else _step_mask(key, index, site)))
            continue
        axis = axis_of(key, site)
        shape = [1] * value.ndim
        if key == "position":
            hit, wrong = _position_mask(index, site, value.shape[axis])
            if hit.shape[0] > 1:
                shape[_batch_axis(site, value, hit.shape[0])] = hit.shape[0]
            if wrong is not None:
                wrong = wrong.reshape([n if n == wrong.size else 1 for n in shape])
            shape[axis] = hit.shape[1]
        else:
            size = value.shape[axis]
            wrong = _out_of_range(index, size, key, site)
            hit = (jnp.arange(size)[:, None] == jnp.reshape(index, (1, -1))).any(-1)
            shape[axis] = size
        also(hit.reshape(shape), wrong)
    return mask, bad


def axis_of(key: str, site: Site) -> int:
    """The axis of a site's value that holds heads, positions or features."""
    if key == "feature":
        if site.axes and site.axes[-1] not in "BTSHK":
            return len(site.axes) - 1
    else:
        for letter in _LETTERS[key]:
            if letter in site.axes:
                return site.axes.index(letter)
    legal = [k for k, letters in _LETTERS.items() if any(a in site.axes for a in letters)]
    legal += ["feature"] * (bool(site.axes) and site.axes[-1] not in "BTSHK") + ["layer"] * (site.layer is not None)
    raise SiteTypeError(
        f"site {site.name!r} has axes {site.axes!r} and so no {key}. It can be selected by: {', '.join(legal) or 'nothing'}."
    )


def _batch_axis(site: Site, value: Array, examples: int) -> int:
    axis = site.axes.find("B")
    if axis < 0 or value.shape[axis] != examples:
        raise SiteTypeError(
            f"positions for {examples} examples at site {site.name!r}, whose value has shape {list(value.shape)} (axes "
            f"{site.axes}). Give [n], the same for all, or [B, n] with one row an example."
        )
    return axis


def _layer_mask(index: Any, site: Site) -> tuple[Any, Any]:
    if site.layer is None or site.n_layers is None:
        raise SiteTypeError(
            f"site {site.name!r} is not in a layer, so layer={index} cannot be selected. Leave layer out."
        )
    wrong = _out_of_range(index, site.n_layers, "layer", site)
    return (jnp.asarray(site.layer, jnp.int32) == jnp.reshape(index, (-1,))).any(), wrong


def _step_mask(key: str, index: Any, site: Site) -> tuple[Any, Any]:
    """Nothing outside of decoding steps: a prompt is read in none of them."""
    if site.step is None or site.n_steps is None:
        return jnp.zeros((), bool), None
    step = jnp.asarray(site.step, jnp.int32)
    if key == "step":
        wrong = _out_of_range(index, site.n_steps, "step", site)
        return (step == jnp.reshape(index, (-1,))).any(), wrong
    start, stop = index[0], index[1]
    beyond = (start >= site.n_steps) | ((stop > site.n_steps) & (stop != _NO_END))
    if not is_traced(index) and beyond:
        raise SiteIndexError(
            f"steps {start} to {'the last' if stop == _NO_END else stop - 1} at site {site.name!r}, which has {site.n_steps} "
            f"steps: legal are 0 to {site.n_steps - 1} (slice(start, None) goes to the last)."
        )
    wrong = (beyond | (start < 0) | (start >= stop)) if is_traced(index) else None
    return (start <= step) & (step < stop), wrong


def _out_of_range(index: Any, size: int, key: str, site: Site) -> Bool[Array, ""] | None:
    if is_traced(index):
        return ((index < 0) | (index >= size)).any()
    if np.max(index) >= size:
        raise SiteIndexError(
            f"{key}={np.asarray(index).tolist()} at site {site.name!r}, which has {size} "
            f"{'layers' if key == 'layer' else key + 's'}: legal are 0 to {size - 1}."
        )
    return None


def take_rows(x: Array, rows: Int[Array, "B P"]) -> Array:
    """Rows of [B, T, ...] by [B or 1, P]."""
    batch = max(x.shape[0], rows.shape[0])
    x = jnp.broadcast_to(x, (batch, *x.shape[1:]))
    index = jnp.broadcast_to(rows, (batch, rows.shape[1]))
    return jnp.take_along_axis(x, index.reshape(index.shape + (1,) * (x.ndim - 2)), axis=1)


def row_positions(site: Site, rows: int) -> Int[Array, "B T"]:
    """The absolute positions of the rows that are present, [B or 1, T]."""
    return jnp.arange(rows, dtype=jnp.int32)[None] if site.positions is None else site.positions


def real_rows(site: Site, value: Array) -> Float[Array, "..."]:
    """Float32 weights: 1 at real rows, 0 at padding; as long as the value along B and T, one long elsewhere."""
    shape = [n if letter in "BT" else 1 for n, letter in zip(value.shape, site.axes, strict=True)]
    if site.positions is None or "T" not in site.axes:
        return jnp.ones(shape, jnp.float32)
    place = [1] * value.ndim
    place[site.axes.index("T")] = site.positions.shape[1]
    if site.positions.shape[0] > 1:
        place[_batch_axis(site, value, site.positions.shape[0])] = site.positions.shape[0]
    return jnp.broadcast_to((site.positions >= 0).astype(jnp.float32).reshape(place), shape)


def _position_mask(index: Any, site: Site, rows: int) -> tuple[Any, Any]:
    """([B or 1, T] rows that are meant, [B or 1] whether some position does not exist, or None where that is known)."""
    index = index if np.ndim(index) == 2 else index.reshape(1, -1)
    limit = position_limit(site, rows)
    hit = (row_positions(site, rows)[:, :, None] == index[:, None, :]).any(-1)
    if is_traced(index) or is_traced(limit):
        return hit, ((index < 0) | (index >= limit)).any(-1)
    check_positions(index, site, limit)
    return hit, None


def position_limit(site: Site, rows: int) -> Any:
    """How many positions each example has, [B or 1, 1]; a numpy array where that is known."""
    extent: Any = rows if site.extent is None else site.extent
    return (extent if is_traced(extent) else np.asarray(extent)).reshape(-1, 1)


def check_positions(index: np.ndarray, site: Site, limit: np.ndarray) -> None:
    """Refuses positions, [B or 1, n], of which some example has none; `limit` is how many it has, [B or 1, 1]."""
    if np.any(index >= limit):
        raise SiteIndexError(
            f"position={np.asarray(index).tolist()} at site {site.name!r}, which has {limit.ravel().tolist()} "
            "positions (by example). Legal are 0 to one less; they count from each example's first real token."
        )
