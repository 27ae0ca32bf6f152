"""What a handler is told about the value it visits, and what a handler is."""

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import SiteTypeError
from jaxinterp._tree import pytree, static
from jaxinterp._typing import Array, Int, PyTree


class Site(NamedTuple):
    """One visit of a named value.

    Attributes:
        name: the site's name, without a layer number.
        axes: one letter for each axis of the value: `B` batch, `T` position, `S` key position, `H` head, `K` key/value head;
            the last axis, under any other letter, holds the features.
        layer: the index of the layer, static or traced; None outside layers.
        n_layers: how many layers there are; None outside layers.
        step: the index of the decoding step; None outside decoding, and while the prompt is read.
        positions: the absolute positions of the rows that are present, [B or 1, T], counted from each example's first
            real token; -1 marks padding. None: the rows are 0 .. T-1.
        extent: how many positions an example has by the end of the run, an int or [B]; None: as many as there are rows.
        rows: where only some rows of a whole run are present, their indices in it, [B or 1, T]; None: all are, or it is decoding.
        n_steps: how many decoding steps there are; None outside decoding.
    """

    name: str
    axes: str
    layer: int | Int[Array, ""] | None = None
    n_layers: int | None = None
    step: int | Int[Array, ""] | None = None
    positions: Int[Array, "B T"] | None = None
    extent: int | Int[Array, " B"] | None = None
    rows: Int[Array, "B T"] | None = None
    n_steps: int | None = None


class SiteShape(NamedTuple):
    """The static side of a site: what `sites` lists and what `Handler.init` gets."""

    name: str
    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype
    n_layers: int | None
    on_demand: bool
    like: jax.ShapeDtypeStruct | None = None

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """Float32 zeros for a state that rides along: in `shard_map` they vary over the mesh as the site's value does."""
        return (
            jnp.zeros(shape, jnp.float32) if self.like is None else jnp.zeros_like(self.like, jnp.float32, shape=shape)
        )

    @property
    def stacked_shape(self) -> tuple[int, ...]:
        """The shape that a capture has: with a leading L axis where the site is in a layer."""
        return self.shape if self.n_layers is None else (self.n_layers, *self.shape)

    @property
    def bytes(self) -> int:
        """The size of a whole capture."""
        return int(np.prod(self.stacked_shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@pytree
class Handler:
    """One reading or change of a computation: static rules, and data as leaves.

    Attributes:
        sites: static; names or globs that it visits. A glob matches the sites that are computed anyway; an on-demand site must
            be named in full.
        visit: static; `(site, value, state, data, layer_slice, tap) -> (value, state, emitted or None)`. The value that it
            returns has the shape and dtype that it was given. `tap` is the chain to the right of this handler, so that it
            can open sites of its own. Compared by equality under jit: a module-level function or a frozen dataclass.
        init: static; `(list of SiteShape, data) -> state`, the state that rides along. None: no state.
        layers: static; keep what was emitted at these layers only. None: at all of them.
        apart: static; layers that are taken out of the loop over layers, so that their index is static there and the handler can
            do there what costs too much in every layer, and open sites that are in no layer.
        prefix: static; put before the site's name in the dictionary of what was emitted.
        data: leaves; what to patch in, which layer, head, position.
        per_layer: leaves with a leading L axis, sliced along the scan over layers, so that their gradient stays stacked.
    """

    sites: tuple[str, ...] = static()
    visit: Callable[..., tuple[Any, Any, Any]] = static()
    init: Callable[[list[SiteShape], PyTree], PyTree] | None = static(default=None)
    layers: tuple[int, ...] | None = static(default=None)
    apart: tuple[int, ...] = static(default=())
    prefix: str = static(default="")
    data: PyTree = ()
    per_layer: PyTree = None


def is_glob(pattern: str) -> bool:
    """Whether a name of a handler is a pattern."""
    return any(c in pattern for c in "*?[")


def matches(patterns: tuple[str, ...], name: str, on_demand: bool) -> bool:
    """Whether a handler of these names and globs visits the site `name`."""
    return any(p == name or (not on_demand and is_glob(p) and fnmatchcase(name, p)) for p in patterns)


_DEFAULT_AXES = {1: "B", 2: "BD", 3: "BTD", 4: "BTHE"}


def axes_of(name: str, ndim: int, axes: str | None) -> str:
    """The axis letters of a value, checked; by rank where the model gave none."""
    if axes is None:
        return _DEFAULT_AXES.get(ndim, "BTSHKLDEFN"[:ndim])
    if len(axes) != ndim:
        raise SiteTypeError(
            f"site {name!r} is tapped with axes={axes!r}, {len(axes)} letters, but its value has {ndim} axes. "
            "Give one letter for each axis."
        )
    return axes
