"""What there is to draw in the result of a sweep: labelled panels, units, the null's range.

Both the figures and the pages are drawn from a `View`, so they can not disagree.
"""

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from jaxinterp._errors import InputError, closest
from jaxinterp.viz._labels import number, words
from jaxinterp.viz._panels import AXES, Panel, Value, fewer, make_panels

if TYPE_CHECKING:
    import xarray

_NORMALIZED = "fraction of the gap to the source"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Null:
    """What a sweep finds when there is nothing to find.

    A cell is *inside* the null if its |effect| is not above the largest |effect| of any draw at any of the cells: one bound
    for all cells (family-wise). If the edit were one more draw of the null, some cell would lie outside it in at most 1 of
    draws + 1 sweeps, however many cells there are. Compared in the metric's unit.

    Attributes:
        limit: the largest |effect|, in the metric's unit.
        unit: that unit.
        shown: the largest in the unit that is shown, where the band and the color bar have their marks.
        draws: how many.
        n_cells: over how many cells.
    """

    limit: float
    unit: str
    shown: float
    draws: int
    n_cells: int

    @property
    def note(self) -> str:
        """The rule, for a figure."""
        unit = f" {self.unit}" if self.unit else ""
        return (
            f"small: inside the null, |effect| not above {number(self.limit)}{unit}, the largest of {self.draws} "
            f"draw{'' if self.draws == 1 else 's'} over all {self.n_cells:,} cells"
        )


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
    null: Null | None = None

    def inside(self, panel: Panel) -> np.ndarray:
        """Which cells of a panel are inside the null; none where the sweep has no null."""
        if self.null is None:
            return np.zeros(panel.effects.shape, bool)
        return np.abs(panel.effects) <= self.null.limit  # NaN is not

    @property
    def limit(self) -> float:
        """The largest absolute value: the diverging colors reach from minus this to plus this."""
        sizes = [np.abs(panel.values[np.isfinite(panel.values)]) for panel in self.panels]
        largest = max((float(size.max()) for size in sizes if size.size), default=0.0)
        return largest if largest > 0 else 1.0

    @property
    def bar_range(self) -> tuple[float, float]:
        """The least and the largest number that bars, their dots, their intervals and the null's band reach; 0 is between."""
        beside = 0.0 if self.null is None else self.null.shown
        drawn = np.concatenate([panel.drawn_values(beside) for panel in self.panels])
        return float(drawn.min()), float(drawn.max())

    @property
    def title(self) -> str:
        """What was measured, where."""
        site = "listed cells" if self.site == "listed" else self.site
        return f"{words(self.metric)} after {_VERBS.get(self.op, self.op)} {site}"

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
    base, source = _end(one, "base"), _end(one, "source")
    per_unit = 1.0 if value == "effect" or source == base else 1 / (source - base)
    panels = make_panels(one, value, per_unit)
    null = _null(panels, unit)
    panels, note = fewer(panels)
    if "token" in one.coords and n_prompts is not None and int(n_prompts) > 1:
        note += f"{', ' if note else ''}tokens of the longest prompt"
    return View(
        metric=metric,
        value=value,
        unit=_NORMALIZED if value == "normalized" else unit,
        metric_unit=unit,
        panels=panels,
        note=note,
        null=null,
        base=base,
        source=source,
        site=str(effects.attrs.get("site", "site")),
        op=str(effects.attrs.get("op", "patch")),
        n_prompts=None if n_prompts is None else int(n_prompts),
    )


def _end(one: "xarray.Dataset", name: str) -> float:
    """The metric of a run without edits, which is the same for every site."""
    values = np.asarray(one[name].values, dtype=np.float64).ravel() if name in one else np.array([])
    if len(values) and not np.allclose(values, values[0], rtol=1e-3, equal_nan=True):
        raise InputError(
            f"{name!r} has {len(values)} values along {', '.join(map(str, one[name].dims))}: these are several sweeps. "
            "Draw one of them, chosen with sel."
        )
    return float(values[0]) if len(values) else math.nan


def _null(panels: tuple[Panel, ...], unit: str) -> Null | None:
    nulls = [(panel.null, panel.per_unit) for panel in panels if panel.null is not None]
    if not any(np.isfinite(null).any() for null, _ in nulls):
        return None
    return Null(
        limit=max(float(np.nanmax(np.abs(null), initial=0.0)) for null, _ in nulls),
        unit=unit,
        shown=max(float(np.nanmax(np.abs(null * scale[..., None]), initial=0.0)) for null, scale in nulls),
        draws=nulls[0][0].shape[-1],
        n_cells=sum(scale.size for _, scale in nulls),
    )


def _check(effects: "xarray.Dataset") -> None:
    if "effect" not in effects:
        held = ", ".join(sorted(map(str, effects.data_vars))) or "nothing"
        raise InputError(f"this dataset is not the result of a sweep: it holds {held} and no 'effect'.")


def one_metric(effects: "xarray.Dataset", metric: str | None) -> tuple[str, "xarray.Dataset"]:
    """One metric of a sweep, with its axes in the order of `AXES`: what is given is not changed."""
    names = metric_names(effects)
    if metric is None:
        metric = names[0]
    if metric not in names:
        raise InputError(f"the sweep has no metric {metric!r}. {closest(metric, names)}")
    one = effects.sel(metric=metric) if "metric" in effects.dims else effects
    order = sorted(map(str, one["effect"].dims), key=lambda dim: AXES.index(dim) if dim in AXES else len(AXES))
    return metric, one.transpose(*order, ...)


def _unit(effects: "xarray.Dataset", metric: str) -> str:
    units = str(effects.attrs.get("unit", "")).split(", ")
    names = metric_names(effects)
    return units[names.index(metric)] if len(units) == len(names) else ""
