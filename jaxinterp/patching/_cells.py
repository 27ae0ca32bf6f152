"""Cells: the places of a sweep, as arrays."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxinterp._errors import InputError, SiteIndexError, closest
from jaxinterp._tree import pytree, static
from jaxinterp.tap import SiteShape

AXES = ("layer", "head", "position", "role", "feature")
"""What a sweep can run over. A role is a position that differs by prompt: "the name", "the end"."""


@pytree
class Cells:
    """Every combination of some axes, in row-major order.

    Attributes:
        axes: static; the axes' names and their sizes.
        labels: static; for each axis its values: ints, or names of roles.
        layer, head, feature: [n] or None.
        position: [n], or by prompt [n, B, 1], or None.
    """

    axes: tuple[tuple[str, int], ...] = static()
    labels: tuple[tuple[Any, ...], ...] = static()
    layer: Any = None
    head: Any = None
    position: Any = None
    feature: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return tuple(size for _, size in self.axes)

    def __len__(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def where(self) -> dict[str, np.ndarray]:
        """The indices by name, each with a leading axis of cells."""
        fields = {"layer": self.layer, "head": self.head, "position": self.position, "feature": self.feature}
        return {key: np.asarray(value) for key, value in fields.items() if value is not None}


def parse_over(over: Any) -> dict[str, Any]:
    """`over` as a mapping from axis to its values, None for all."""
    if isinstance(over, str):
        over = [name.strip() for name in over.split(",") if name.strip()]
    axes = dict(over) if isinstance(over, Mapping) else dict.fromkeys(over)
    unknown = [axis for axis in axes if axis not in AXES]
    if unknown or not axes:
        raise InputError(
            f"over={over!r}: "
            + (f"unknown axis {unknown[0]!r}. " if unknown else "no axis. ")
            + f"Legal: {', '.join(AXES)}."
        )
    if "position" in axes and "role" in axes:
        raise InputError("over names both position and role; a role is a position, so give one of them.")
    return axes


def make_cells(over: Any, *, shape: SiteShape, roles: Mapping[str, Any] | None = None) -> Cells:
    """The cells of a sweep.

    Args:
        over: "layer,head", a list of axes, or a mapping from axis to the values wanted (None: all).
        shape: of the site, from `jaxinterp.sites`.
        roles: positions [B] by name, for the axis role.

    Raises:
        InputError: an unknown axis or role, or an axis that the site does not have.
        SiteIndexError: values out of range.
    """
    chosen = {axis: _values(axis, wanted, shape, roles) for axis, wanted in parse_over(over).items()}
    grid = np.array(list(itertools.product(*(range(len(v)) for v in chosen.values()))), np.int32).reshape(
        -1, len(chosen)
    )
    fields: dict[str, Any] = {}
    for column, (axis, values) in enumerate(chosen.items()):
        if axis == "role":
            assert roles is not None
            table = np.stack([np.asarray(roles[name], np.int32) for name in values])
            fields["position"] = table[grid[:, column]][:, :, None]
        else:
            fields[axis] = np.asarray(values, np.int32)[grid[:, column]]
    return Cells(
        axes=tuple((a, len(v)) for a, v in chosen.items()), labels=tuple(tuple(v) for v in chosen.values()), **fields
    )


def _values(axis: str, wanted: Any, shape: SiteShape, roles: Mapping[str, Any] | None) -> Sequence[Any]:
    if axis == "role":
        if not roles:
            raise InputError(
                "over names the axis role, but no roles were given. Pass roles={'name': positions [B], ...}."
            )
        if "T" not in shape.axes:
            raise InputError(
                f"site {shape.name!r} has axes {shape.axes!r} and so no positions; leave role out of over."
            )
        names = list(roles) if wanted is None else [wanted] if isinstance(wanted, str) else list(wanted)
        for name in names:
            if name not in roles:
                raise InputError(f"no role {name!r}. {closest(name, roles)}")
        return names
    size = axis_size(axis, shape)
    values = (
        list(range(size))
        if wanted is None
        else [int(i) for i in np.atleast_1d(np.asarray(list(wanted) if isinstance(wanted, range) else wanted))]
    )
    wrong = [i for i in values if not 0 <= i < size]
    if wrong:
        raise SiteIndexError(f"over {axis}={wrong}: site {shape.name!r} has {size}, so legal are 0 to {size - 1}.")
    if len(set(values)) != len(values) or not values:
        raise InputError(f"over {axis}={values}: give each value once, and at least one.")
    return values


def axis_size(axis: str, shape: SiteShape) -> int:
    """How many layers, heads, positions or features a site has."""
    if axis == "layer":
        if shape.n_layers is None:
            raise InputError(f"site {shape.name!r} is in no layer; leave layer out of over.")
        return shape.n_layers
    letters = {"head": "HK", "position": "T"}.get(axis)
    if letters is None:
        found = [len(shape.axes) - 1] if shape.axes[-1] not in "BTSHK" else []
    else:
        found = [shape.axes.index(a) for a in letters if a in shape.axes]
    if not found:
        raise InputError(
            f"site {shape.name!r} has axes {shape.axes!r} and so no {axis}; leave it out of over, or choose another site."
        )
    return shape.shape[found[0]]
