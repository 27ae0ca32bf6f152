"""Effects along one axis as bars, with what else is known of them: prompts, intervals, the null's range."""

import math
from typing import TYPE_CHECKING

import numpy as np

from jaxinterp.viz._frame import axis_ticks, color_scale, put_titles, shortest_column, title_inches
from jaxinterp.viz._panels import Panel
from jaxinterp.viz._style import INK, SOFT, drawable, new_figure
from jaxinterp.viz._views import View

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

_MOST_DOTS = 20_000


def bars(shown: View) -> "matplotlib.figure.Figure":
    """One panel of bars, or one under the other for several sites."""
    panels = shown.panels
    n = len(panels[0].columns)
    step = float(np.clip(7.0 / n, 0.15 if panels[0].column_axis == "cell" else 0.04, 0.5))
    slanted = shortest_column(panels[0]) > step
    longest = max(len(label) for panel in panels for label in panel.columns)
    foot = 0.062 * min(longest, 40) if slanted else 0.0
    height = len(panels) * (2.4 if len(panels) == 1 else 1.9) + foot + 0.7 + (0.2 if shown.null else 0.0)
    figure = new_figure(max(n * step + 1.0, title_inches(shown), 3.6), height)
    grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True, sharey=True)
    for axes, panel in zip(grid.flat, panels, strict=True):
        _bars(axes, panel, shown)
        axis_ticks(axes, panel, slanted)
        axes.set_ylabel(shown.unit if len(panels) == 1 else "", fontsize=8)
        if panel.title:
            axes.set_title(drawable(panel.title), loc="left", fontsize=9, pad=3)
        if panel is not panels[-1]:
            axes.set_xlabel("")
    low, high = shown.bar_range
    margin = 0.05 * ((high - low) or 1.0)
    grid[0, 0].set_ylim(low - margin, high + margin)
    for axes in grid.flat:
        axes.set_yticks(*_value_ticks(axes))
    if len(panels) > 1:
        figure.supylabel(shown.unit, fontsize=8, color=INK)
    put_titles(figure, shown)
    return figure


def _bars(axes: "matplotlib.axes.Axes", panel: Panel, shown: View) -> None:
    values, inside = panel.values[0], shown.inside(panel)[0]
    n = len(values)
    scale = color_scale(shown)
    colors = [scale.to_rgba(v) if math.isfinite(v) else "#c9ced4" for v in values]
    drawn = axes.bar(range(n), np.nan_to_num(values), width=np.where(inside, 0.4, 0.78), color=colors)
    for bar, one in zip(drawn, values, strict=True):
        if math.isfinite(one) and abs(one) < 0.25 * shown.limit:
            bar.set_edgecolor("#9aa4af")
            bar.set_linewidth(0.6)
    _spread(axes, panel)
    if shown.null is not None:
        axes.axhspan(-shown.null.shown, shown.null.shown, color="#dfe3e8", linewidth=0, zorder=0)
        for end in (-shown.null.shown, shown.null.shown):
            axes.axhline(end, color="#9aa4af", linewidth=0.7, linestyle=(0, (4, 3)), zorder=0.5)
        axes.annotate("null", (1, shown.null.shown), xycoords=axes.get_yaxis_transform(), xytext=(3, 0),
                      textcoords="offset points", ha="left", va="top", fontsize=7, color=SOFT)  # fmt: skip
    if panel.interval is not None:
        _intervals(axes, *(end[0] for end in panel.interval))
    axes.axhline(0, color=SOFT, linewidth=0.8)
    axes.spines["bottom"].set_visible(False)
    axes.grid(axis="y", color="#eaeef2", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlim(-0.7, n - 0.3)


def _intervals(axes: "matplotlib.axes.Axes", low: np.ndarray, high: np.ndarray) -> None:
    """Error bars with a light edge, which keeps them apart from dark bars."""
    n = len(low)
    half = 0.16 if n <= 60 else 0.0
    at = np.arange(n)
    for color, width in (("white", 2.6), (INK, 1.1)):
        axes.vlines(at, low, high, color=color, linewidth=width, zorder=4)
        for end in (low, high):
            axes.hlines(end, at - half, at + half, color=color, linewidth=width, zorder=4)


def _value_ticks(axes: "matplotlib.axes.Axes") -> tuple[list[float], list[str]]:
    from matplotlib.ticker import MaxNLocator

    low, high = axes.get_ylim()
    at = [float(t) for t in MaxNLocator(5).tick_values(low, high) if low <= t <= high]
    return at, [f"{t:g}".replace("-", "−") for t in at]


def _spread(axes: "matplotlib.axes.Axes", panel: Panel) -> None:
    """The single prompts as dots, where the sweep kept them."""
    if panel.by_prompt is None or panel.by_prompt.size > _MOST_DOTS:
        return
    dots = panel.by_prompt[0] * panel.per_unit[0][:, None]
    shift = np.linspace(-0.2, 0.2, dots.shape[1])
    across = np.arange(dots.shape[0])[:, None] + shift[None, :]
    axes.scatter(across, dots, s=6, color=INK, alpha=0.35, linewidth=0, zorder=3)
