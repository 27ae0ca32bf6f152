"""What there is to draw in the result of a sweep: labelled panels, units, the ranking, the provenance.

Both the figures and the pages are drawn from a `View`, so they can not disagree.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Literal

import numpy as np

from jaxinterp._errors import InputError, closest
from jaxinterp.viz._labels import cell_name, coordinate, effects_by_prompt, label, number, words

if TYPE_CHECKING:
    import xarray

Value = Literal["normalized", "effect"]

AXES = ("layer", "head", "key_value_head", "position", "role", "feature")
MOST_CELLS = 12_000
_LARGEST = 40
_NORMALIZED = "fraction of the gap to the source"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """One matrix with the labels of its rows and columns; a single row has no row axis.

    `values` are what is shown: the effects (in the metric's unit) or the normalized effects (fractions).
    """

    values: np.ndarray
    effects: np.ndarray
    normalized: np.ndarray
    by_prompt: np.ndarray | None
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

    def per_unit(self, shown: "View") -> np.ndarray:
        """What an effect is multiplied by to be shown; by cell, since a position is not in every prompt."""
        if shown.value == "effect":
            return np.ones_like(self.effects)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = self.normalized / self.effects
            return np.where(np.isfinite(ratio), ratio, 1 / np.float64(shown.source - shown.base))


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """One metric of a sweep, in one unit: what a figure shows."""

    metric: str
    value: Value
    unit: str
    panels: tuple[Panel, ...]
    base: float
    source: float
    metric_unit: str
    site: str
    op: str
    n_prompts: int | None
    note: str = ""

    @property
    def limit(self) -> float:
        """The largest absolute value: the diverging colors reach from minus this to plus this."""
        sizes = [np.abs(panel.values[np.isfinite(panel.values)]) for panel in self.panels]
        largest = max((float(size.max()) for size in sizes if size.size), default=0.0)
        return largest if largest > 0 else 1.0

    @property
    def title(self) -> str:
        """What was measured, where."""
        return f"{words(self.metric)} after {_VERBS.get(self.op, self.op)} {self.site}"

    @property
    def subtitle(self) -> str:
        """How many prompts, and between which two values."""
        prompts = "" if self.n_prompts is None else f"{self.n_prompts} prompt{'' if self.n_prompts == 1 else 's'}   "
        unit = f" {self.metric_unit}" if self.metric_unit else ""
        ends = f"base {number(self.base)}{unit}"
        if math.isfinite(self.source):
            ends += f"  →  source {number(self.source)}{unit}"
        return prompts + ends + (f"   {self.note}" if self.note else "")


_VERBS = {
    "patch": "patching", "zero": "zeroing", "mean": "mean-ablating", "add": "adding to", "scale": "scaling",
    "project_out": "projecting a subspace out of", "project_onto": "projecting onto a subspace of",
}  # fmt: skip


def metric_names(effects: "xarray.Dataset") -> list[str]:
    """The metrics of a sweep, in order."""
    _check(effects)
    if "metric" in effects.dims:
        return [str(name) for name in effects["metric"].values]
    return [str(effects.attrs.get("metric", "metric"))]


def view(effects: "xarray.Dataset", *, metric: str | None = None, value: Value | None = None) -> View:
    """One metric of a sweep, arranged for drawing.

    Args:
        effects: what `patching.sweep` returns.
        metric: which one, where there are several (default: the first).
        value: "normalized" (0 is the base run, 1 the source run) or "effect" (in the metric's unit). Default:
            normalized where it is defined, which needs a base and a source that differ.

    Raises:
        InputError: a metric or value that is not there, or more than three axes.
    """
    metric, one = one_metric(effects, metric)
    if value is None:
        value = "normalized" if "normalized" in one and bool(np.isfinite(one["normalized"].values).any()) else "effect"
    if value not in ("normalized", "effect") or value not in one:
        raise InputError(
            f"value={value!r} can not be drawn: the result holds {', '.join(sorted(map(str, one.data_vars)))}. "
            "Use value='normalized' or value='effect'."
        )
    unit = _unit(effects, metric)
    n_prompts = effects.attrs.get("n_prompts")
    panels, note = _fewer(_panels(one, value))
    if "token" in one.coords and n_prompts is not None and int(n_prompts) > 1:
        note += f"{', ' if note else ''}tokens of the longest prompt"
    return View(
        metric=metric,
        value=value,
        unit=_NORMALIZED if value == "normalized" else unit,
        metric_unit=unit,
        panels=panels,
        note=note,
        base=float(one["base"]) if "base" in one else math.nan,
        source=float(one["source"]) if "source" in one else math.nan,
        site=str(effects.attrs.get("site", "site")),
        op=str(effects.attrs.get("op", "patch")),
        n_prompts=None if n_prompts is None else int(n_prompts),
    )


def _check(effects: "xarray.Dataset") -> None:
    if "effect" not in effects:
        held = ", ".join(sorted(map(str, effects.data_vars))) or "nothing"
        raise InputError(f"this dataset is not the result of a sweep: it holds {held} and no 'effect'.")


def one_metric(effects: "xarray.Dataset", metric: str | None) -> tuple[str, "xarray.Dataset"]:
    """One metric of a sweep, with its axes in the order of `AXES`."""
    names = metric_names(effects)
    if metric is None:
        metric = names[0]
    if metric not in names:
        raise InputError(f"the sweep has no metric {metric!r}. {closest(metric, names)}")
    one = effects.sel(metric=metric) if "metric" in effects.dims else effects
    order = sorted(map(str, one["effect"].dims), key=lambda dim: AXES.index(dim) if dim in AXES else len(AXES))
    return metric, one.transpose(*order, ...)


def _fewer(panels: tuple[Panel, ...]) -> tuple[tuple[Panel, ...], str]:
    """Of very many cells the largest, as bars; and a word about it."""
    total = sum(panel.values.size for panel in panels)
    if total <= MOST_CELLS:
        return panels, ""
    every = lambda name: np.concatenate([getattr(panel, name).ravel() for panel in panels])
    names = [name for panel in panels for line in panel.cells for name in line]
    size = np.abs(every("effects"))
    order = np.argsort(-np.where(np.isfinite(size), size, -1.0), kind="stable")[:_LARGEST]
    kept = [panel.by_prompt.reshape(panel.values.size, -1) for panel in panels if panel.by_prompt is not None]
    columns = tuple(names[i] for i in order)
    panel = Panel(
        values=every("values")[order][None],
        effects=every("effects")[order][None],
        normalized=every("normalized")[order][None],
        by_prompt=np.concatenate(kept)[order][None] if kept else None,
        row_axis="",
        column_axis="cell",
        rows=("",),
        columns=columns,
        cells=(columns,),
    )
    return (panel,), f"the {_LARGEST} largest of {total:,} cells"


def _unit(effects: "xarray.Dataset", metric: str) -> str:
    units = str(effects.attrs.get("unit", "")).split(", ")
    names = metric_names(effects)
    return units[names.index(metric)] if len(units) == len(names) else ""


def _panels(one: "xarray.Dataset", value: Value) -> tuple[Panel, ...]:
    dims = [str(dim) for dim in one[value].dims]
    if len(dims) > 3:
        raise InputError(
            f"a sweep over {len(dims)} axes ({', '.join(dims)}) can not be drawn. Choose along one of them first, "
            f"for example effects.sel({dims[0]}={coordinate(one, dims[0], 0)!r})."
        )
    if len(dims) < 3:
        return (_panel(one, value, dims, {}),)
    facet = dims[0]
    return tuple(
        _panel(one.isel({facet: [i]}), value, dims[1:], {facet: label(one, facet, i)}) for i in range(one.sizes[facet])
    )


def _panel(one: "xarray.Dataset", value: Value, dims: list[str], facet: dict[str, str]) -> Panel:
    title = "".join(f"{axis} {label}" for axis, label in facet.items())
    every = [*facet, *dims]
    array = np.asarray(one["effect"].transpose(*every).values, dtype=np.float64)
    normalized = np.full(array.shape, math.nan)
    if "normalized" in one:
        normalized = np.asarray(one["normalized"].transpose(*every).values, dtype=np.float64)
    shape = tuple(one.sizes[dim] for dim in dims)
    full = (1,) * (2 - len(shape)) + shape
    names = [cell_name(one, every, tuple(int(i) for i in index)) for index in np.ndindex(array.shape)]
    single = effects_by_prompt(one, every)
    labels = [tuple(label(one, dim, i) for i in range(one.sizes[dim])) for dim in dims]
    return Panel(
        values=(normalized if value == "normalized" else array).reshape(full),
        effects=array.reshape(full),
        normalized=normalized.reshape(full),
        by_prompt=None if single is None else single.reshape(*full, single.shape[-1]),
        row_axis=dims[0] if len(dims) == 2 else "",
        column_axis=dims[-1] if dims else "",
        rows=labels[0] if len(dims) == 2 else ("",),
        columns=labels[-1] if dims else ("all",),
        cells=tuple(tuple(names[r * full[1] : (r + 1) * full[1]]) for r in range(full[0])),
        title=title,
    )
