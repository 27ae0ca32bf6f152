"""Handlers that change values: edits as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxinterp._errors import InputError, SiteTypeError
from jaxinterp._tree import is_traced
from jaxinterp._typing import Array
from jaxinterp.tap._site import Handler, Site
from jaxinterp.tap._where import axis_of, make_where, real_rows, select, spread


@dataclasses.dataclass(frozen=True)
class Edit:
    """`visit` of an edit: equal for equal rules, so that a jitted function takes another edit without compiling again.

    Attributes:
        change: `(site, value, data, layer_slice) -> (new value, where it covers the value; None: everywhere)`.
        reads: what a row of the new value depends on: "nothing" of the old value, its "row" alone, or "all" of it. A sweep
            recomputes fewer rows the less is read.
    """

    change: Callable[..., tuple[Array, Array | None]]
    reads: Literal["nothing", "row", "all"] = "all"

    def __call__(
        self, site: Site, value: Array, state: Any, data: Any, layer_slice: Any, tap: Any
    ) -> tuple[Array, Any, None]:
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
    step: Any = None,
) -> Handler:
    """Replaces the value of a site by `fn(value)`, or by `fn(value, data)` where data is given.

    Args:
        site: a name or glob (or one of TransformerLens's names, see `run`).
        fn: keeps shape and dtype. It is static: jit compiles again for another function, so put what changes into `data`.
        data: a pytree of arrays.
        layer, head, feature: indices at which the new value is taken: int, sequence or array [n], static or traced. None: all.
        position: the same, or [B, n] for positions that differ by example; absolute, from each example's first real token.
        step: decoding steps of `generate`, as layer, or range(start, stop), or slice(start, None) for all from one on (the ends
            are data). Step i reads the i-th new token, from 0, and chooses the next one; the prompt, which chooses the first one,
            is no step, so that with a step the edit does nothing there. None: the prompt and all steps.

    Raises:
        SiteIndexError: an index out of range; where the index is traced, the value becomes NaN instead.
        SiteTypeError: (when run) another shape or dtype, or an axis that the site does not have.

    Example:
        >>> import jax.numpy as jnp, jaxinterp as ji
        >>> f = ji.run(lambda x, *, tap: tap("x", x), ji.edit("x", jnp.negative, feature=1))
        >>> f(jnp.ones((1, 3)))[0]
        Array([[ 1., -1.,  1.]], dtype=float32)
    """
    where = make_where(layer=layer, head=head, position=position, feature=feature, step=step)
    return Handler(sites=(site,), visit=Edit(_Call(fn, data is not None)), data={"where": where, "data": data})


def place(handler: Handler, **where: Any) -> Handler:
    """The same edit at other indices: `place(patch("attn.z", value), layer=3, head=i)`; `where` as in `edit`.

    Raises:
        InputError: the handler is no edit.
    """
    if not isinstance(handler.visit, Edit):
        raise InputError(
            f"a handler at {', '.join(handler.sites)} is no edit (patch, zero, add, ...), so it has no place to change."
        )
    return dataclasses.replace(handler, data={**handler.data, "where": make_where(**where)})


def zero(site: str, **where: Any) -> Handler:
    """Sets the value of a site to zero, whole or at the indices of `where` (see `edit`): zero ablation."""
    return Handler(sites=(site,), visit=Edit(_zero, "nothing"), data={"where": make_where(**where)})


def _zero(site: Site, value: Array, data: Any, layer_slice: Any) -> tuple[Array, None]:
    return jnp.zeros_like(value), None


@dataclasses.dataclass(frozen=True)
class _Mean:
    over: str

    def __call__(self, site: Site, value: Array, data: Any, layer_slice: Any) -> tuple[Array, None]:
        axes = tuple(i for i, letter in enumerate(site.axes) if letter in self.over)
        if not axes:
            raise SiteTypeError(
                f"mean over {self.over!r} at site {site.name!r}, whose axes are {site.axes!r}: none of them is there."
            )
        weights = real_rows(site, value)
        x = jnp.where(weights > 0, value.astype(jnp.float32), 0.0)
        groups = data.get("groups")
        within = axes if groups is None else tuple(i for i in axes if site.axes[i] != "B")
        total = jnp.sum(x, within, keepdims=True)
        count = jnp.sum(jnp.broadcast_to(weights, value.shape), within, keepdims=True)
        if groups is not None:
            total, count = (_by_group(site, a, groups) for a in (total, count))
        center = total / jnp.maximum(count, 1.0)  # rows that are all padding: 0
        return spread(center.astype(value.dtype), value), None


def _by_group(site: Site, x: Array, groups: Array) -> Array:
    """Each example's sum over the examples of its group."""
    axis = site.axes.index("B")
    if x.shape[axis] != len(groups):
        raise SiteTypeError(f"groups of {len(groups)} examples at site {site.name!r}, which has {x.shape[axis]}.")
    same = (groups[:, None] == groups[None, :]).astype(jnp.float32)
    return jnp.moveaxis(jnp.tensordot(same, x, axes=(1, axis), precision="highest"), 0, axis)


def mean(site: str, *, over: str = "BT", groups: Any = None, **where: Any) -> Handler:
    """Replaces the value of a site by its mean in this run: mean ablation within a batch.

    For the mean over another set of prompts, capture and average there and use `patch`.

    Args:
        site: a name or glob.
        over: axis letters to average over; padding does not count. "B" keeps a mean for each position.
        groups: ints [B]; the mean over examples is then taken within each group: by template, say.
        **where: see `edit`.

    Source: Wang et al. 2022 (arXiv 2211.00593), section 3, for means by position within a template.
    """
    data: dict[str, Any] = {"where": make_where(**where)}
    if groups is not None:
        data["groups"] = jnp.asarray(groups)
        if "B" not in over or data["groups"].ndim != 1 or not jnp.issubdtype(data["groups"].dtype, jnp.integer):
            raise InputError(
                f"groups of {data['groups'].dtype}{list(data['groups'].shape)} with over={over!r}: give one int for each "
                "example [B], and an over that has B."
            )
    return Handler(sites=(site,), visit=Edit(_Mean(over)), data=data)


def _scale(site: Site, value: Array, data: Any, layer_slice: Any) -> tuple[Array, None]:
    return value * jnp.asarray(data["factor"], value.dtype), None


def refuse_nan(site: str, what: str, value: Any) -> None:
    """Refuses NaN in what an edit brings, where its value is known."""
    if is_traced(value):
        return
    with jax.ensure_compile_time_eval():
        if bool(jnp.isnan(jnp.asarray(value)).any()):
            raise InputError(
                f"the {what} for {site!r} has NaN in it; what comes of it could not be told from an error."
            )


def check_scalar(site: str, what: str, value: Any) -> None:
    """Refuses what is no single number."""
    if jnp.ndim(value):
        raise SiteTypeError(
            f"the {what} for {site!r} has shape {list(jnp.shape(value))}; give a number or a scalar array."
        )
    refuse_nan(site, what, value)


def scale(site: str, factor: Any, **where: Any) -> Handler:
    """Multiplies the value of a site by a number or scalar array; `where` as in `edit`."""
    check_scalar(site, "factor", factor)
    return Handler(sites=(site,), visit=Edit(_scale, "row"), data={"where": make_where(**where), "factor": factor})


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
        raise SiteTypeError(
            f"a basis of shape {list(basis.shape)} for {site!r}; legal: [D], or [n, D] with one direction a row."
        )
    refuse_nan(site, "basis", basis)
    basis = jnp.atleast_2d(basis)
    data = {"where": make_where(**where), "basis": basis, "dual": jnp.linalg.pinv(basis)}
    return Handler(sites=(site,), visit=Edit(change, "row"), data=data)


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
