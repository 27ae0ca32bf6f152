"""Edits that bring values: patch and add."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError, SiteTypeError
from jaxinterp._typing import Array
from jaxinterp.tap._edit import Edit, check_scalar, refuse_nan
from jaxinterp.tap._site import Handler, Site
from jaxinterp.tap._where import make_where, row_positions, spread, take_rows


def _patch(site: Site, value: Array, data: Any, layer_slice: Any) -> tuple[Array, Array | None]:
    operand, covered = _operand(site, value, data, layer_slice)
    if "rows" not in data or "T" not in site.axes:
        return operand, covered
    rows = data["rows"] if site.rows is None else take_rows(data["rows"], site.rows)
    shape = [1] * value.ndim
    shape[site.axes.index("B")], shape[site.axes.index("T")] = rows.shape
    return operand, rows.reshape(shape) if covered is None else covered & rows.reshape(shape)


def patch(site: str, value: Any = None, *, per_layer: Any = None, rows: Any = None, **where: Any) -> Handler:
    """Replaces the value of a site, whole or at some indices.

    Args:
        site: a name or glob.
        value: broadcastable to the site's value (its shape, a mean over the batch, a scalar).
        per_layer: the same with a leading L axis, as captures have it: layer l gets `per_layer[l]`.
        rows: True at the rows of a whole run, [B, T], that are replaced; the others are left as they are. None: all.
        **where: `layer`, `head`, `position`, `feature`, `step` (see `edit`).

    Example:
        >>> import jax.numpy as jnp, jaxinterp as ji
        >>> f = ji.run(lambda x, *, tap: tap("x", x), ji.patch("x", jnp.zeros(3), feature=[0, 2]))
        >>> f(jnp.ones((1, 3)))[0]
        Array([[0., 1., 0.]], dtype=float32)

    Source: activation patching; Vig et al. 2020 (arXiv 2004.12265), Meng et al. 2022 (arXiv 2202.05262).
    """
    more = {} if rows is None else {"rows": jnp.asarray(rows, bool)}
    return _make(Edit(_patch, "nothing"), site, value, per_layer, where, **more)


def _add(site: Site, value: Array, data: Any, layer_slice: Any) -> tuple[Array, Array | None]:
    operand, covered = _operand(site, value, data, layer_slice)
    return value + jnp.asarray(data["coefficient"], value.dtype) * operand, covered


def add(site: str, value: Any = None, *, per_layer: Any = None, coefficient: Any = 1.0, **where: Any) -> Handler:
    """Adds `coefficient * value` to a site: steering.

    Args:
        site: a name or glob.
        value, per_layer: see `patch`.
        coefficient: a number or scalar array; differentiable.
        **where: see `edit`.
    """
    check_scalar(site, "coefficient", coefficient)
    return _make(Edit(_add, "row"), site, value, per_layer, where, coefficient=coefficient)


def _make(visit: Edit, site: str, value: Any, per_layer: Any, where: Mapping[str, Any], **data: Any) -> Handler:
    if (value is None) == (per_layer is None):
        raise InputError(
            f"the edit of {site!r} needs exactly one of value (broadcast to the site) and per_layer (with a leading layer axis, "
            "as captures have it)."
        )
    array = value if per_layer is None else per_layer
    if not hasattr(array, "dtype") and np.ndim(array):
        array = np.asarray(array, np.float32)
    refuse_nan(site, "value", array)
    return Handler(
        sites=(site,),
        visit=visit,
        data={"where": make_where(**where), "value": array if per_layer is None else None, **data},
        per_layer=array if per_layer is not None else None,
    )


def _operand(site: Site, value: Array, data: Any, layer_slice: Any) -> tuple[Array, Array | None]:
    """The edit's array at this visit, broadcast to the value; and the rows that it covers, where it does not cover all."""
    operand = data["value"] if layer_slice is None else layer_slice
    if operand is None:
        raise SiteTypeError(
            f"the edit at site {site.name!r} brings per_layer values, but "
            + (
                "the site is in no layer: give value=."
                if site.layer is None
                else f"their leading axis is not the {site.n_layers} layers."
            )
        )
    operand = jnp.asarray(operand)
    if operand.weak_type:  # a Python number
        operand = operand.astype(value.dtype)
    if operand.dtype != value.dtype:
        raise SiteTypeError(
            f"the edit at site {site.name!r} brings values of dtype {operand.dtype}, but the site is {value.dtype}. "
            f"Cast them: value.astype('{value.dtype}')."
        )
    operand, covered = _rows(site, value, operand)
    try:
        fits = np.broadcast_shapes(operand.shape, value.shape) == value.shape
    except ValueError:
        fits = False
    if not fits:
        hint = (
            " A stacked capture (leading layer axis) goes in as per_layer=." if operand.ndim == value.ndim + 1 else ""
        )
        raise SiteTypeError(
            f"the edit at site {site.name!r} brings values of shape {list(operand.shape)}, which do not broadcast to the site's "
            f"{list(value.shape)} (axes {site.axes}).{hint}"
        )
    missing = tuple(range(value.ndim - operand.ndim))
    return spread(jnp.expand_dims(operand, missing), value), covered


def _rows(site: Site, value: Array, operand: Array) -> tuple[Array, Array | None]:
    """Where only some rows are present in `value`: those rows of `operand`, which has all of a run."""
    if site.rows is not None and "T" in site.axes:
        return _present(site, value, operand, site.rows), None
    if "T" not in site.axes or not isinstance(site.extent, int):
        return operand, None
    rows = value.shape[site.axes.index("T")]
    axis = operand.ndim - (value.ndim - site.axes.index("T"))
    if rows == site.extent or axis < 0 or operand.shape[axis] in (1, rows):
        return operand, None
    size = operand.shape[axis]
    positions = row_positions(site, rows)
    index = jnp.clip(positions, 0, size - 1)
    batch = operand.shape[0] if axis > 0 else 1
    index = jnp.broadcast_to(index, (max(batch, index.shape[0]), rows)) if axis > 0 else index
    taken = (
        jnp.take_along_axis(operand, index.reshape(index.shape + (1,) * (operand.ndim - 2)), axis=1)
        if axis == 1
        else jnp.take(operand, index[0], axis=axis)
    )
    shape = [1] * value.ndim
    shape[0], shape[site.axes.index("T")] = positions.shape[0], rows
    return taken, ((positions >= 0) & (positions < size)).reshape(shape)


def _present(site: Site, value: Array, operand: Array, rows: Array) -> Array:
    """The rows `rows` of an operand that is as long as the run; as it is where it does not vary by row."""
    axis = site.axes.index("T")
    operand = (
        jnp.expand_dims(operand, tuple(range(value.ndim - operand.ndim))) if operand.ndim < value.ndim else operand
    )
    if operand.ndim != value.ndim or operand.shape[axis] == 1:
        return operand
    if isinstance(site.extent, int) and operand.shape[axis] != site.extent:
        raise SiteTypeError(
            f"the edit at site {site.name!r} brings values for {operand.shape[axis]} positions of a run that has {site.extent}."
        )
    return jnp.moveaxis(take_rows(jnp.moveaxis(operand, axis, 1), rows), 1, axis) if "B" in site.axes else operand
