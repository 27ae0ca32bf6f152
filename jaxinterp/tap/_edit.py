"""Handlers that change values: edits as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError, SiteTypeError
from jaxinterp._tree import is_traced
from jaxinterp._typing import Array
from jaxinterp.tap._site import Handler, Site
from jaxinterp.tap._where import axis_of, make_where, row_positions, select


@dataclasses.dataclass(frozen=True)
class _Edit:
    """`visit` of an edit: equal for equal rules, so that a jitted function takes another edit without compiling again."""

    change: Callable[..., Array]

    def __call__(self, site: Site, value: Array, state: Any, data: Any, layer_slice: Any, tap: Any) -> tuple[Array, Any, None]:
        new, covered = self.change(site, value, data, layer_slice)
        if jnp.shape(new) != value.shape or jnp.result_type(new) != value.dtype:
            raise SiteTypeError(
                f"the edit at site {site.name!r} returned {jnp.result_type(new)}{list(jnp.shape(new))} for a value of "
                f"{value.dtype}{list(value.shape)}. Return the same shape and dtype, for example with .astype(value.dtype)."
            )
        if covered is not None:
            new = jnp.where(covered, new, value)
        return select(data["where"], site, value, new), state, None


@dataclasses.dataclass(frozen=True)
class _Call:
    """A user's function of the value (and of data, if there is some)."""

    fn: Callable[..., Array]
    takes_data: bool

    def __call__(self, site: Site, value: Array, data: Any, layer_slice: Any) -> tuple[Array, None]:
        return self.fn(value, data["data"]) if self.takes_data else self.fn(value), None


def edit(
    site: str,
    fn: Callable[..., Array],
    data: Any = None,
    *,
    layer: Any = None,
    head: Any = None,
    position: Any = None,
    feature: Any = None,
) -> Handler:
    """Replaces the value of a site by `fn(value)`, or by `fn(value, data)` where data is given.

    Args:
        site: a name or glob.
        fn: keeps shape and dtype. It is static: jit compiles again for another function, so put what changes into `data`.
        data: a pytree of arrays.
        layer, head, feature: the indices at which the new value is taken: int, sequence or array [n], static or traced. None: all.
        position: the same, or [B, n] for positions that differ by example; absolute, from each example's first real token.

    Raises:
        SiteIndexError: an index out of range; where the index is traced, the value becomes NaN instead.
        SiteTypeError: (when run) another shape or dtype, or an axis that the site does not have.

    Example:
        >>> import jax.numpy as jnp, jaxinterp as ji
        >>> f = ji.run(lambda x, *, tap: tap("x", x), ji.edit("x", jnp.negative, feature=1))
        >>> f(jnp.ones((1, 3)))[0]
        Array([[ 1., -1.,  1.]], dtype=float32)
    """
    where = make_where(layer=layer, head=head, position=position, feature=feature)
    return Handler(sites=(site,), visit=_Edit(_Call(fn, data is not None)), data={"where": where, "data": data})


def _operand(site: Site, value: Array, data: Any, layer_slice: Any) -> tuple[Array, Array | None]:
    """The edit's array at this visit, broadcast to the value; and the rows that it covers, where it does not cover all."""
    operand = data["value"] if layer_slice is None else layer_slice
    if operand is None:
        raise SiteTypeError(
            f"the edit at site {site.name!r} brings per_layer values, but "
            + ("the site is in no layer: give value=." if site.layer is None else f"their leading axis is not the {site.n_layers} layers.")
        )
    if not jnp.issubdtype(operand.dtype, jnp.inexact) or operand.dtype != value.dtype:
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
        hint = " A stacked capture (leading layer axis) goes in as per_layer=." if operand.ndim == value.ndim + 1 else ""
        raise SiteTypeError(
            f"the edit at site {site.name!r} brings values of shape {list(operand.shape)}, which do not broadcast to the site's "
            f"{list(value.shape)} (axes {site.axes}).{hint}"
        )
    missing = tuple(range(value.ndim - operand.ndim))
    return jnp.broadcast_to(jnp.expand_dims(operand, missing), value.shape), covered


def _rows(site: Site, value: Array, operand: Array) -> tuple[Array, Array | None]:
    """In decoding, the rows of `operand` (all positions of a run) that are present in `value`."""
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


def _make(change: Any, site: str, value: Any, per_layer: Any, where: Mapping[str, Any], **data: Any) -> Handler:
    if (value is None) == (per_layer is None):
        raise InputError(
            f"the edit of {site!r} needs exactly one of value (broadcast to the site) and per_layer (with a leading layer axis, as "
            "captures have it)."
        )
    array = value if per_layer is None else per_layer
    array = array if hasattr(array, "dtype") else np.asarray(array, np.float32)
    if not is_traced(array) and isinstance(array, (np.ndarray,)) and np.isnan(array).any():
        raise InputError(f"the value to put into {site!r} has NaN in it; a patch from it could not be told from an error.")
    return Handler(
        sites=(site,),
        visit=_Edit(change),
        data={"where": make_where(**where), "value": array if per_layer is None else None, **data},
        per_layer=array if per_layer is not None else None,
    )


def place(handler: Handler, **where: Any) -> Handler:
    """The same edit at other indices: `place(patch("attn.z", value), layer=3, head=i)`; `where` as in `edit`.

    Raises:
        InputError: the handler is no edit.
    """
    if not isinstance(handler.visit, _Edit):
        raise InputError(f"a handler at {', '.join(handler.sites)} is no edit (patch, zero, add, ...), so it has no place to change.")
    return dataclasses.replace(handler, data={**handler.data, "where": make_where(**where)})


def _patch(site: Site, value: Array, data: Any, layer_slice: Any) -> tuple[Array, Array | None]:
    return _operand(site, value, data, layer_slice)


def patch(site: str, value: Any = None, *, per_layer: Any = None, **where: Any) -> Handler:
    """Replaces the value of a site, whole or at some indices.

    Args:
        site: a name or glob.
        value: broadcastable to the site's value (its shape, a mean over the batch, a scalar).
        per_layer: the same with a leading L axis, as captures have it: layer l gets `per_layer[l]`.
        **where: `layer`, `head`, `position`, `feature` (see `edit`).

    Example:
        >>> import jax.numpy as jnp, jaxinterp as ji
        >>> f = ji.run(lambda x, *, tap: tap("x", x), ji.patch("x", jnp.zeros(3), feature=[0, 2]))
        >>> f(jnp.ones((1, 3)))[0]
        Array([[0., 1., 0.]], dtype=float32)

    Source: activation patching; Vig et al. 2020 (arXiv 2004.12265), Meng et al. 2022 (arXiv 2202.05262).
    """
    return _make(_patch, site, value, per_layer, where)


def zero(site: str, **where: Any) -> Handler:
    """Sets the value of a site to zero, whole or at the indices of `where` (see `edit`): zero ablation."""
    return edit(site, jnp.zeros_like, **where)


@dataclasses.dataclass(frozen=True)
class _Mean:
    over: str

    def __call__(self, site: Site, value: Array, data: Any, layer_slice: Any) -> tuple[Array, None]:
        axes = tuple(i for i, letter in enumerate(site.axes) if letter in self.over)
        if not axes:
            raise SiteTypeError(f"mean over {self.over!r} at site {site.name!r}, whose axes are {site.axes!r}: none of them is there.")
        weights = jnp.ones((1,) * value.ndim, value.dtype)
        if "T" in self.over and "T" in site.axes and site.positions is not None:
            shape = [1] * value.ndim
            shape[site.axes.index("B")], shape[site.axes.index("T")] = site.positions.shape
            weights = (site.positions >= 0).astype(value.dtype).reshape(shape)
        weights = jnp.broadcast_to(weights, value.shape)
        total = jnp.sum(jnp.where(weights > 0, value, jnp.zeros_like(value)), axes, keepdims=True)
        return jnp.broadcast_to(total / jnp.sum(weights, axes, keepdims=True), value.shape), None


def mean(site: str, *, over: str = "BT", **where: Any) -> Handler:
    """Replaces the value of a site by its mean in this run: mean ablation within a batch.

    For the mean over another set of prompts, capture and average there and use `patch`.

    Args:
        site: a name or glob.
        over: axis letters to average over; padding does not count. "B" keeps a mean for each position.
        **where: see `edit`.
    """
    return Handler(sites=(site,), visit=_Edit(_Mean(over)), data={"where": make_where(**where)})


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
    return _make(_add, site, value, per_layer, where, coefficient=coefficient)


def _scale(site: Site, value: Array, data: Any, layer_slice: Any) -> tuple[Array, None]:
    return value * jnp.asarray(data["factor"], value.dtype), None


def scale(site: str, factor: Any, **where: Any) -> Handler:
    """Multiplies the value of a site by a number or scalar array; `where` as in `edit`."""
    return Handler(sites=(site,), visit=_Edit(_scale), data={"where": make_where(**where), "factor": factor})


def _onto(site: Site, value: Array, data: Any) -> Array:
    axis_of("feature", site)
    basis, dual = data["basis"], data["dual"]
    if basis.shape[-1] != value.shape[-1]:
        raise SiteTypeError(
            f"a basis of shape {list(basis.shape)} at site {site.name!r}, whose features are {value.shape[-1]} wide. Give [n, "
            f"{value.shape[-1]}]."
        )
    coordinates = jnp.einsum("...d,dn->...n", value.astype(jnp.float32), dual, precision="highest")
    return jnp.einsum("...n,nd->...d", coordinates, basis, precision="highest").astype(value.dtype)


def _project_out(site: Site, value: Array, data: Any, layer_slice: Any) -> tuple[Array, None]:
    return value - _onto(site, value, data), None


def _project_onto(site: Site, value: Array, data: Any, layer_slice: Any) -> tuple[Array, None]:
    return _onto(site, value, data), None


def _subspace(change: Any, site: str, basis: Any, where: Mapping[str, Any]) -> Handler:
    basis = jnp.asarray(basis, jnp.float32)
    if basis.ndim not in (1, 2):
        raise SiteTypeError(f"a basis of shape {list(basis.shape)} for {site!r}; legal: [D], or [n, D] with one direction a row.")
    basis = jnp.atleast_2d(basis)
    data = {"where": make_where(**where), "basis": basis, "dual": jnp.linalg.pinv(basis)}
    return Handler(sites=(site,), visit=_Edit(change), data=data)


def project_out(site: str, basis: Any, **where: Any) -> Handler:
    """Removes from the features of a site what lies in the span of `basis`: x - B⁺B x.

    Args:
        site: a name or glob.
        basis: [D] or [n, D], rows of any length and angle.
        **where: see `edit`.
    """
    return _subspace(_project_out, site, basis, where)


def project_onto(site: str, basis: Any, **where: Any) -> Handler:
    """Keeps of the features of a site only what lies in the span of `basis` ([D] or [n, D]); `where` as in `edit`."""
    return _subspace(_project_onto, site, basis, where)
