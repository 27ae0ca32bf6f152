"""What there is to draw in the result of a sweep: labelled panels, units, the ranking, the provenance.

Both the figures and the pages are drawn from a `View`, so they can not disagree.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Literal

import numpy as np

from jaxinterp._errors import InputError, closest

if TYPE_CHECKING:
    import xarray

Value = Literal["normalized", "effect"]

AXES = ("layer", "head", "key_value_head", "position", "role", "feature")
_METRIC_UNITS = {"logit_difference": "logits", "log_probability": "nats", "kl_divergence": "nats", "cross_entropy": "nats"}
_NORMALIZED = "fraction of the gap to the source"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """One matrix with the labels of its rows and columns; a single row has no row axis."""

    values: np.ndarray
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
        return prompts + ends


_VERBS = {
    "patch": "patching", "zero": "zeroing", "mean": "mean-ablating", "add": "adding to", "scale": "scaling",
    "project_out": "projecting a subspace out of", "project_onto": "projecting onto a subspace of",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankedCell:
    """One cell of a sweep in the ranking by absolute effect."""

    cell: str
    where: dict[str, int | str]
    effect: float
    normalized: float
    agreement: int | None
    n_prompts: int | None


def number(value: float) -> str:
    """A number as a person reads it: three significant digits, a true minus sign."""
    if not math.isfinite(value):
        return "undefined"
    if value == 0:
        return "0"
    text = f"{value:.2f}" if 0.1 <= abs(value) < 1000 else f"{value:.3g}"
    return text.replace("-", "−") if float(text) else "0.00"


def aligned(value: float) -> str:
    """A number for a column of a table: three decimals."""
    if not math.isfinite(value):
        return "undefined"
    text = f"{value:.3f}" if abs(value) < 1e4 else f"{value:.3g}"
    return text.replace("-", "−") if float(text) else "0.000"


def words(name: str) -> str:
    """`logit_difference` as `Logit difference`."""
    text = name.replace("_", " ").replace("kl ", "KL ")
    return text[:1].upper() + text[1:]


def visible(token: str) -> str:
    """A token with its spaces and line breaks made visible: ' She' is '·She'."""
    return token.replace(" ", "·").replace("▁", "·").replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")


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
    metric, one = _one_metric(effects, metric)
    if value is None:
        value = "normalized" if "normalized" in one and bool(np.isfinite(one["normalized"].values).any()) else "effect"
    if value not in ("normalized", "effect") or value not in one:
        raise InputError(
            f"value={value!r} can not be drawn: the result holds {', '.join(sorted(map(str, one.data_vars)))}. "
            "Use value='normalized' or value='effect'."
        )
    unit = str(one.attrs.get("unit") or one["effect"].attrs.get("units") or _METRIC_UNITS.get(metric, ""))
    n_prompts = effects.attrs.get("n_prompts")
    return View(
        metric=metric,
        value=value,
        unit=_NORMALIZED if value == "normalized" else unit,
        metric_unit=unit,
        panels=_panels(one, value),
        base=float(one["base"]) if "base" in one else math.nan,
        source=float(one["source"]) if "source" in one else math.nan,
        site=str(effects.attrs.get("site", "site")),
        op=str(effects.attrs.get("op", "patch")),
        n_prompts=None if n_prompts is None else int(n_prompts),
    )


def ranked(effects: "xarray.Dataset", *, k: int = 10, metric: str | None = None) -> list[RankedCell]:
    """The cells with the largest effects, by absolute value.

    Args:
        effects: what `patching.sweep` returns.
        k: how many.
        metric: which one, where there are several (default: the first).

    Returns:
        At most `k` rows: the cell's name (such as "L3.H5"), its coordinates, effect (in the metric's unit), normalized
        effect (fraction), and, where the result was kept by prompt, for how many prompts the effect has this sign.

    Example:
        >>> import numpy as np, xarray as xr
        >>> effects = xr.Dataset(
        ...     {"effect": (("layer", "head"), np.array([[0.1, -2.0], [0.5, 0.0]]))},
        ...     coords={"layer": [0, 1], "head": [0, 1]},
        ... )
        >>> [(row.cell, row.effect) for row in ranked(effects, k=2)]
        [('L0.H1', -2.0), ('L1.H0', 0.5)]
    """
    _, one = _one_metric(effects, metric)
    values = np.asarray(one["effect"].values, dtype=np.float64)
    normalized = np.asarray(one["normalized"].values) if "normalized" in one else np.full(values.shape, math.nan)
    dims = [str(dim) for dim in one["effect"].dims]
    by_prompt = _by_prompt(one, dims)
    size = np.where(np.isfinite(values), np.abs(values), -1.0)
    order = np.argsort(-size.ravel(), kind="stable")[: max(k, 0)]
    rows = []
    for flat in order:
        index = tuple(int(i) for i in np.unravel_index(flat, values.shape))
        agreement = None
        if by_prompt is not None:
            agreement = int((np.sign(by_prompt[index]) == np.sign(values[index])).sum())
        rows.append(
            RankedCell(
                cell=_cell_name(one, dims, index),
                where={dim: _coordinate(one, dim, i) for dim, i in zip(dims, index, strict=True)},
                effect=float(values[index]),
                normalized=float(normalized[index]),
                agreement=agreement,
                n_prompts=None if by_prompt is None else int(by_prompt.shape[-1]),
            )
        )
    return rows


def _check(effects: "xarray.Dataset") -> None:
    if "effect" not in effects:
        held = ", ".join(sorted(map(str, effects.data_vars))) or "nothing"
        raise InputError(f"this dataset is not the result of a sweep: it holds {held} and no 'effect'.")


def _one_metric(effects: "xarray.Dataset", metric: str | None) -> tuple[str, "xarray.Dataset"]:
    names = metric_names(effects)
    if metric is None:
        metric = names[0]
    if metric not in names:
        raise InputError(f"the sweep has no metric {metric!r}. {closest(metric, names)}")
    return metric, effects.sel(metric=metric) if "metric" in effects.dims else effects


def _coordinate(one: "xarray.Dataset", dim: str, i: int) -> int | str:
    if dim not in one.coords:
        return i
    item = one[dim].values[i]
    return int(item) if isinstance(item, np.integer | int) else str(item)


def _token(one: "xarray.Dataset", dim: str, i: int) -> str:
    """The token at a position, "" where there is none."""
    if dim != "position" or "token" not in one.coords or one["token"].dims != ("position",):
        return ""
    return visible(str(one["token"].values[i]))


def _label(one: "xarray.Dataset", dim: str, i: int) -> str:
    return f"{_token(one, dim, i)} {_coordinate(one, dim, i)}".strip()


_SHORT = {"layer": "L", "head": "H", "key_value_head": "KV", "feature": "F"}


def _cell_name(one: "xarray.Dataset", dims: list[str], index: tuple[int, ...]) -> str:
    """Such as L3.H5, or L3 ·Lily@4."""
    name = ""
    for dim, i in zip(dims, index, strict=True):
        where = _coordinate(one, dim, i)
        if dim in _SHORT:
            name += ("." if name else "") + f"{_SHORT[dim]}{where}"
        elif dim == "position":
            name += f" {_token(one, dim, i)}@{where}"
        else:
            name += f" {where}"
    return name.strip() or "all"


def _by_prompt(one: "xarray.Dataset", dims: list[str]) -> np.ndarray | None:
    if "effect_by_prompt" not in one:
        return None
    return np.asarray(one["effect_by_prompt"].transpose(*dims, "prompt").values, dtype=np.float64)


def _panels(one: "xarray.Dataset", value: Value) -> tuple[Panel, ...]:
    dims = [str(dim) for dim in one[value].dims]
    if len(dims) > 3:
        raise InputError(
            f"a sweep over {len(dims)} axes ({', '.join(dims)}) can not be drawn. Choose along one of them first, "
            f"for example effects.sel({dims[0]}={_coordinate(one, dims[0], 0)!r})."
        )
    order = sorted(dims, key=lambda dim: AXES.index(dim) if dim in AXES else len(AXES))
    one = one.transpose(*order, ...)
    if len(order) < 3:
        return (_panel(one, value, order, {}),)
    facet = order[0]
    return tuple(
        _panel(one.isel({facet: [i]}), value, order[1:], {facet: _label(one, facet, i)}) for i in range(one.sizes[facet])
    )


def _panel(one: "xarray.Dataset", value: Value, dims: list[str], facet: dict[str, str]) -> Panel:
    title = "".join(f"{axis} {label}" for axis, label in facet.items())
    every = [*facet, *dims]
    array = np.asarray(one[value].transpose(*every).values, dtype=np.float64)
    shape = tuple(one.sizes[dim] for dim in dims)
    full = (1,) * (2 - len(shape)) + shape
    names = [_cell_name(one, every, tuple(int(i) for i in index)) for index in np.ndindex(array.shape)]
    by_prompt = _by_prompt(one, every)
    labels = [tuple(_label(one, dim, i) for i in range(one.sizes[dim])) for dim in dims]
    return Panel(
        values=array.reshape(full),
        by_prompt=None if by_prompt is None else by_prompt.reshape(*full, by_prompt.shape[-1]),
        row_axis=dims[0] if len(dims) == 2 else "",
        column_axis=dims[-1] if dims else "",
        rows=labels[0] if len(dims) == 2 else ("",),
        columns=labels[-1] if dims else ("all",),
        cells=tuple(tuple(names[r * full[1] : (r + 1) * full[1]]) for r in range(full[0])),
        title=title,
    )
