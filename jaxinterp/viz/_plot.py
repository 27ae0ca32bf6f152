"""Results as matplotlib figures."""

import math
from typing import TYPE_CHECKING

import numpy as np

from jaxinterp.viz._bars import bars
from jaxinterp.viz._frame import axis_ticks, color_scale, put_titles, shortest_column, title_inches
from jaxinterp.viz._panels import Panel, Value
from jaxinterp.viz._style import INK, SOFT, drawable, look, new_figure
from jaxinterp.viz._views import View, view

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.cm
    import matplotlib.colors
    import matplotlib.figure
    import xarray

_MAX_CELLS_WITH_NUMBERS = 80
_SMALL = 0.5


def plot(
    effects: "xarray.Dataset", *, metric: str | None = None, value: Value | None = None
) -> "matplotlib.figure.Figure":
    """Draws the result of a sweep: a heat map for two axes, bars for one, a panel for each layer for three or each site.

    Colors diverge from 0: red is an effect toward the source run (or an increase of the metric), blue one away from it,
    and both ends stand for the same size. Gray is undefined. Positions carry their tokens, spaces drawn as "·". Listed
    cells are bars, named by what they are.

    A null distribution (`sweep(..., null=...)`) is drawn where there is one. A cell is *inside* it if its |effect| is not above
    the largest |effect| of any draw at any of the cells drawn (family-wise: if the edit were one more draw, some cell would
    be outside in at most 1 of draws + 1 sweeps). Such cells are small, without a number; the color bar is narrow over the
    null's range, and in bar plots the range is a gray band. Intervals (`keep=("interval",)`) are drawn on bars.

    Args:
        effects: what `patching.sweep` returns.
        metric: which one, where there are several (default: the first).
        value: "normalized" (0 is the base run, 1 the source run) or "effect" (in the metric's unit). Default:
            normalized where it is defined.

    Returns:
        A figure; `figure.savefig("effects.png")` (or .pdf, .svg) writes it. It is not registered with pyplot.

    Raises:
        InputError: a metric or value that is not there, or more axes than can be drawn: three, and one of sites.

    Example:
        >>> import numpy as np, xarray as xr
        >>> effects = xr.Dataset(
        ...     {"effect": (("layer", "head"), np.array([[0.1, -2.0], [0.5, 0.0]]))},
        ...     coords={"layer": [0, 1], "head": [0, 1]},
        ... )
        >>> plot(effects, value="effect").axes[0].get_xlabel()
        'head'
    """
    shown = view(effects, metric=metric, value=value)
    with look():
        if shown.panels[0].is_bars:
            return bars(shown)
        return _heatmaps(shown)


def _heatmaps(shown: View) -> "matplotlib.figure.Figure":
    panels = list(shown.panels)
    down = math.ceil(len(panels) / (4 if len(panels[0].columns) <= 12 else 2))
    across = math.ceil(len(panels) / down)
    cell = _cell_inches(panels[0], across)
    longest = max(len(label) for label in panels[0].columns)
    slanted = any(shortest_column(panel) > cell for panel in panels)
    width = across * (len(panels[0].columns) * cell + 0.55) + 1.35
    under = (0.45 + 0.062 * min(longest, 24) if slanted else 0.5) + (0.2 if len(panels) > 1 else 0.0)
    height = down * (len(panels[0].rows) * cell + under) + 0.8
    figure = new_figure(max(width, title_inches(shown), 3.6), max(height, 2.5))
    grid = figure.subplots(down, across, squeeze=False)
    scale = color_scale(shown)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _heatmap(axes, panel, scale, shown, cell, slanted)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    bar = figure.colorbar(scale, ax=list(grid.flat[: len(panels)]), fraction=0.05, pad=0.02, aspect=22, shrink=0.94)
    bar.set_label(shown.unit, color=SOFT, size=8)
    bar.outline.set_visible(False)  # type: ignore[operator]
    if shown.null is not None:
        _mark_null(bar.ax, shown.null.shown, shown.limit)
    put_titles(figure, shown)
    return figure


def _cell_inches(panel: Panel, across: int) -> float:
    room = 8.0 / across
    most = 0.42 if max(panel.values.shape) > 6 else 0.56
    return float(np.clip(min(room / len(panel.columns), 5.5 / len(panel.rows)), 0.13, most))


def _heatmap(
    axes: "matplotlib.axes.Axes",
    panel: Panel,
    scale: "matplotlib.cm.ScalarMappable",
    shown: View,
    cell: float,
    slanted: bool,
) -> None:
    rows, columns = panel.values.shape
    gap = 1.2 if cell >= 0.2 else 0.4
    axes.pcolormesh(
        np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5, np.ma.masked_invalid(panel.values),
        vmin=-shown.limit, vmax=shown.limit, cmap=scale.cmap, edgecolors="white", linewidth=gap,
    )  # fmt: skip
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_aspect("equal")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axis_ticks(axes, panel, slanted)
    if panel.title:
        axes.set_title(drawable(panel.title), loc="left", fontsize=9, pad=3)
    inside = shown.inside(panel)
    _shrink(axes, panel, inside, scale)
    if rows * columns <= _MAX_CELLS_WITH_NUMBERS and cell >= 0.36:
        _numbers(axes, panel, shown.limit, inside)


def _square(x: float, y: float, half: float) -> list[tuple[float, float]]:
    return [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]


def _shrink(
    axes: "matplotlib.axes.Axes", panel: Panel, inside: np.ndarray, scale: "matplotlib.cm.ScalarMappable"
) -> None:
    """Draws the cells inside the null as small squares."""
    from matplotlib.collections import PolyCollection

    at = [(float(r), float(c)) for r, c in np.argwhere(inside)]
    if not at:
        return
    axes.add_collection(PolyCollection([_square(c, r, 0.5) for r, c in at], facecolor="white", edgecolor="none"))
    colors = scale.to_rgba(panel.values[inside])
    small = [_square(c, r, 0.5 * _SMALL) for r, c in at]
    axes.add_collection(PolyCollection(small, facecolor=colors, edgecolor="#b4bcc5", linewidth=0.4))  # type: ignore[arg-type]


def _mark_null(axes: "matplotlib.axes.Axes", null: float, limit: float) -> None:
    """Makes the color bar as narrow over the null's range as the cells inside it are small."""
    from matplotlib.patches import Rectangle

    reach, side = min(null, limit), (1 - _SMALL) / 2
    for left in (0.0, 1 - side):
        frame = Rectangle((left, -reach), side, 2 * reach, facecolor="white", edgecolor="none", zorder=3)
        frame.set_transform(axes.get_yaxis_transform())
        axes.add_patch(frame)
    for end in (-reach, reach) if null < limit else ():
        axes.plot([0, 1], [end, end], color=INK, linewidth=0.8, transform=axes.get_yaxis_transform(), zorder=4)
    axes.text(
        -0.25, 0, "null", transform=axes.get_yaxis_transform(), rotation=90, ha="right", va="center", fontsize=7, color=SOFT,
    )  # fmt: skip


def _numbers(axes: "matplotlib.axes.Axes", panel: Panel, limit: float, inside: np.ndarray) -> None:
    for (row, column), one in np.ndenumerate(panel.values):
        if not math.isfinite(one) or inside[row, column]:
            continue
        color = "white" if abs(one) > 0.62 * limit else INK
        faint = 1.0 if abs(one) >= 0.1 * limit else 0.45
        axes.text(column, row, _short(one), ha="center", va="center", fontsize=6.5, color=color, alpha=faint)


def _short(value: float) -> str:
    text = f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"
    text = text.replace("-", "−")
    return "0" if text in ("0.00", "−0.00") else text.replace("0.", ".", 1) if abs(value) < 1 else text
