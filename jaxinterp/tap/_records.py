"""What handlers emitted, and how pieces of different layers come together under one name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import DuplicateSiteError
from jaxinterp._typing import PyTree


class Place(NamedTuple):
    """Where a piece belongs.

    Attributes:
        layers: the layers along its leading axis; None: it has no such axis.
        inside: it was emitted in the body of a loop over layers, for the layer of that iteration.
        keep: with `inside`, the only layers at which it is kept; None: at all.
        alone: it is of one layer by its name, so that its axis of layers is taken away in the end.
    """

    layers: tuple[int, ...] | None = None
    inside: bool = False
    keep: tuple[int, ...] | None = None
    alone: bool = False


class Records:
    """Pieces by name: a site is emitted once for each (layer, step), possibly by several loops over layers."""

    def __init__(self) -> None:
        self.values: dict[str, list[PyTree]] = {}
        self.places: dict[str, list[Place]] = {}

    def add(self, key: str, value: PyTree, layer: Any, keep: tuple[int, ...] | None, alone: bool = False) -> None:
        """One value, from a handler that keeps the layers `keep`; `alone` as in `Place`."""
        if layer is None:
            self._put(key, value, Place())
        elif isinstance(layer, int):
            if keep is None or layer in keep:
                self._put(key, jax.tree.map(lambda a: a[None], value), Place(layers=(layer,), alone=alone))
        else:
            self._put(key, value, Place(inside=True, keep=keep, alone=alone))

    def _put(self, key: str, value: PyTree, place: Place) -> None:
        taken = self.places.get(key, [])
        if any(p.layers is None or place.layers is None or set(p.layers) & set(place.layers) for p in taken):
            raise DuplicateSiteError(
                f"{key!r} was emitted twice for one layer and step. Either the function taps that site twice (tap it once, "
                "or under two names), or two handlers capture it: give one of them prefix='before/', say."
            )
        self.values.setdefault(key, []).append(value)
        self.places.setdefault(key, []).append(place)

    def merge(self, other: Records, prefix: str = "") -> None:
        """Adds what an inner scope emitted."""
        for key, values in other.values.items():
            for value, place in zip(values, other.places[key], strict=True):
                self._put(prefix + key, value, place)

    def restore(self, values: Mapping[str, PyTree], places: Mapping[str, Place], prefix: str = "") -> None:
        """Adds what `collapse` of an inner scope gave."""
        for key, value in values.items():
            self._put(prefix + key, value, places[key])

    def collapse(self) -> tuple[dict[str, PyTree], dict[str, Place]]:
        """One value a name: pieces of several loops over layers, concatenated in the order of layers."""
        values, places = {}, {}
        for key, pieces in self.values.items():
            found = self.places[key]
            values[key], places[key] = pieces[0], found[0]
            if len(pieces) > 1:  # all have layers, else _put had refused
                order = sorted(range(len(pieces)), key=lambda i: found[i].layers or ())
                values[key] = jax.tree.map(lambda *a: jnp.concatenate(a), *(pieces[i] for i in order))
                places[key] = Place(layers=tuple(n for i in order for n in found[i].layers or ()), alone=found[0].alone)
            if places[key].alone and places[key].layers is not None:
                values[key], places[key] = jax.tree.map(lambda a: a[0], values[key]), Place()
        return values, places


def from_loop(
    whole: Mapping[str, PyTree],
    buffers: Mapping[str, PyTree],
    places: Mapping[str, Place],
    layers: Sequence[int] | None,
) -> Records:
    """The records of a finished loop: `whole` is stacked, `buffers` hold the kept layers.

    Args:
        layers: what the loop ran over; None for decoding steps, which get a plain leading axis.
    """
    records = Records()
    for key, value in whole.items():
        inside = places[key]._replace(layers=None)
        records._put(key, value, inside if layers is None else Place(layers=tuple(layers)))
    for key, value in buffers.items():
        kept = tuple(i for i in places[key].keep or () if i in (layers or ()))
        alone = places[key].alone
        if kept or not alone:  # of one layer, which another loop runs over: nothing
            records._put(key, jax.tree.map(lambda a: a[:-1], value), Place(layers=kept, alone=alone))
    return records


def slot(keep: Sequence[int], index: Any, layers: Sequence[int]) -> Any:
    """The row of a buffer for the traced layer `index`; its spare last row where that layer is not kept."""
    here = [i for i in keep if i in layers]
    table = np.full(len(layers), len(here), np.int32)
    for row, i in enumerate(here):
        table[list(layers).index(i)] = row
    return jnp.asarray(table)[index - layers[0]]


def buffer(leaf: jax.ShapeDtypeStruct, keep: Sequence[int], layers: Sequence[int]) -> jax.Array:
    """Room for `leaf` at the kept layers and a spare row; made by zeros_like, so that it lies on a mesh as the value does."""
    rows = len([i for i in keep if i in layers]) + 1
    return jnp.broadcast_to(jnp.zeros_like(leaf)[None], (rows, *leaf.shape))
