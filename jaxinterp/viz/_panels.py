"""The matrices of a sweep, with the labels of their rows and columns."""

import dataclasses
import math
from typing import TYPE_CHECKING, Literal

import numpy as np

from jaxinterp._errors import InputError
from jaxinterp.viz._labels import by_cell, cell_name, coordinate, label

if TYPE_CHECKING:
    import xarray

Value = Literal["normalized", "effect"]

AXES = ("site", "layer", "head", "key_value_head", "position", "role", "feature", "cell")
MOST_CELLS = 12_000
_MOST_ACROSS = 250
_MOST_BARS = 60
_MOST_PANELS = 48
_LARGEST = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """One matrix with the labels of its rows and columns; a single row has no row axis.

    Attributes:
        values: [rows, columns] what is shown: the effects (in the metric's unit) or the normalized effects (fractions).
        effects, normalized: both.
        per_unit: what an effect is multiplied by to be shown; by cell, since a position is not in every prompt.
        by_prompt: effects [rows, columns, prompts].
        null: effects of the null's draws [rows, columns, draws].
        low, high: ends of the effects' intervals.
        row_axis, column_axis, rows, columns: names of the axes, and the labels along them.
        cells: names of the cells, by row.
        title: what the panel is, of several.
    """

    values: np.ndarray
    effects: np.ndarray
    normalized: np.ndarray
    per_unit: np.ndarray
    by_prompt: np.ndarray | None
    null: np.ndarray | None
    low: np.ndarray | None
    high: np.ndarray | None
    row_axis: str
    column_axis: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    title: str = ""

    @property
    def is_bars(self) -> bool:
        """Whether there is only one axis, which is drawn as bars."""
        return not self.row_axis

    @property
    def interval(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The intervals' ends, lower first, in the unit that is shown."""
        if self.low is None or self.high is None:
            return None
        ends = self.low * self.per_unit, self.high * self.per_unit
        return np.minimum(*ends), np.maximum(*ends)

    def drawn_values(self, beside: float = 0.0) -> np.ndarray:
        """Every finite number that a bar plot shows: effects, single prompts, intervals, and ± `beside`."""
        numbers = [self.values.ravel(), np.array([0.0, beside, -beside])]
        if self.by_prompt is not None:
            numbers.append((self.by_prompt * self.per_unit[..., None]).ravel())
        if self.interval is not None:
            numbers += [end.ravel() for end in self.interval]
        every = np.concatenate(numbers)
        return every[np.isfinite(every)]


def make_panels(one: "xarray.Dataset", value: Value, per_unit: float) -> tuple[Panel, ...]:
    """One panel, or one for each site or each value of the first of three axes.

    Args:
        one: a metric of a sweep, its axes in the order of `AXES`.
        value: what is shown.
        per_unit: what an effect is multiplied by to be shown, where a cell does not say it itself.
    """
    dims = [str(dim) for dim in one[value].dims]
    empty = [dim for dim in dims if one.sizes[dim] == 0]
    if empty:
        raise InputError(f"nothing to draw: axis {empty[0]!r} is empty. Select at least one of its values.")
    facet = dims[0] if len(dims) == 3 or (dims and dims[0] == "site") else None
    inner = dims if facet is None else dims[1:]
    if len(inner) > 2:
        raise InputError(
            f"a sweep over {len(dims)} axes ({', '.join(dims)}) can not be drawn. Choose along one of them first, "
            f"for example effects.sel({dims[0]}={coordinate(one, dims[0], 0)!r}), or take the mean over one, "
            f"effects.mean({dims[0]!r})."
        )
    if facet is None:
        return (_panel(one, value, inner, {}, per_unit),)
    return tuple(
        _panel(one.isel({facet: [i]}), value, inner, {facet: label(one, facet, i)}, per_unit)
        for i in range(one.sizes[facet])
    )


def _panel(one: "xarray.Dataset", value: Value, dims: list[str], facet: dict[str, str], fallback: float) -> Panel:
    every = [*facet, *dims]
    shape = tuple(one.sizes[dim] for dim in dims)
    full = (1,) * (2 - len(shape)) + shape

    def matrix(name: str, last: str | None = None) -> np.ndarray | None:
        found = by_cell(one, name, every, last)
        return None if found is None else found.reshape(*full, *(() if last is None else (-1,)))

    effects, normalized = matrix("effect"), matrix("normalized")
    assert effects is not None  # `view` has checked it
    if normalized is None:
        normalized = np.full(full, math.nan)
    names = [cell_name(one, every, tuple(int(i) for i in index)) for index in np.ndindex((1,) * len(facet) + shape)]
    labels = [tuple(label(one, dim, i) for i in range(one.sizes[dim])) for dim in dims]
    return Panel(
        values=normalized if value == "normalized" else effects,
        effects=effects,
        normalized=normalized,
        per_unit=_ratio(normalized, effects, fallback) if value == "normalized" else np.ones_like(effects),
        by_prompt=matrix("effect_by_prompt", "prompt"),
        null=matrix("null", "draw"),
        low=matrix("low"),
        high=matrix("high"),
        row_axis=dims[0] if len(dims) == 2 else "",
        column_axis=dims[-1] if dims else "",
        rows=labels[0] if len(dims) == 2 else ("",),
        columns=labels[-1] if dims else ("all",),
        cells=tuple(tuple(names[r * full[1] : (r + 1) * full[1]]) for r in range(full[0])),
        title="".join(text if axis == "site" else f"{axis} {text}" for axis, text in facet.items()),
    )


def _ratio(normalized: np.ndarray, effects: np.ndarray, fallback: float) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = normalized / effects
    return np.where(np.isfinite(ratio), ratio, fallback)


def fewer(panels: tuple[Panel, ...]) -> tuple[tuple[Panel, ...], str]:
    """Of more cells than a reader can tell apart the largest, as bars; and a word about it."""
    total = sum(panel.values.size for panel in panels)
    widest = max(max(panel.values.shape) for panel in panels)
    most_across = _MOST_BARS if panels[0].column_axis == "cell" else _MOST_ACROSS
    if total <= MOST_CELLS and widest <= most_across and len(panels) <= _MOST_PANELS:
        return panels, ""
    names = [name for panel in panels for line in panel.cells for name in line]
    size = np.abs(np.concatenate([panel.effects.ravel() for panel in panels]))
    order = np.argsort(-np.where(np.isfinite(size), size, -1.0), kind="stable")[:_LARGEST]

    def kept(name: str) -> np.ndarray | None:
        arrays = [getattr(panel, name) for panel in panels]
        if arrays[0] is None:
            return None
        return np.concatenate([a.reshape(-1, *a.shape[2:]) for a in arrays])[order][None]

    columns = tuple(names[i] for i in order)
    arrays = ("values", "effects", "normalized", "per_unit", "by_prompt", "null", "low", "high")
    panel = Panel(
        **{name: kept(name) for name in arrays},  # type: ignore[arg-type]
        row_axis="",
        column_axis="cell",
        rows=("",),
        columns=columns,
        cells=(columns,),
    )
    return (panel,), f"the {len(columns)} largest of {total:,} cells"
