"""Results as matplotlib figures."""

import math
from typing import TYPE_CHECKING

import numpy as np

from jaxinterp.viz._style import DIVERGING, INK, SOFT, colormap, drawable, look, new_figure
from jaxinterp.viz._views import Panel, Value, View, view

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.cm
    import matplotlib.colors
    import matplotlib.figure
    import xarray

_AXIS_WORDS = {
    "layer": "layer", "head": "head", "key_value_head": "key/value head", "position": "position", "role": "role",
    "feature": "feature",
}  # fmt: skip
_MAX_CELLS_WITH_NUMBERS = 80
_MAX_LABELS = 48


def plot(
    effects: "xarray.Dataset", *, metric: str | None = None, value: Value | None = None
) -> "matplotlib.figure.Figure":
    """Draws the result of a sweep: a heat map for two axes, bars for one, a panel for each layer for three.

    Colors diverge from 0: red is an effect toward the source run (or an increase of the metric), blue one away from it,
    and both ends stand for the same size. Gray is undefined. Positions carry their tokens, spaces drawn as "·".

    Args:
        effects: what `patching.sweep` returns.
        metric: which one, where there are several (default: the first).
        value: "normalized" (0 is the base run, 1 the source run) or "effect" (in the metric's unit). Default:
            normalized where it is defined.

    Returns:
        A figure; `figure.savefig("effects.png")` (or .pdf, .svg) writes it. It is not registered with pyplot.

    Raises:
        InputError: a metric or value that is not there, or more than three axes.

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
        if shown.panels[0].is_bars and len(shown.panels) == 1:
            return _bars(shown)
        return _heatmaps(shown)


def _scale(shown: View) -> "matplotlib.cm.ScalarMappable":
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(norm=Normalize(-shown.limit, shown.limit), cmap=colormap(DIVERGING, "jaxinterp"))


def _heatmaps(shown: View) -> "matplotlib.figure.Figure":
    panels = list(shown.panels)
    down = math.ceil(len(panels) / (4 if len(panels[0].columns) <= 12 else 2))
    across = math.ceil(len(panels) / down)
    cell = _cell_inches(panels[0], across)
    longest = max(len(label) for label in panels[0].columns)
    slanted = _slanted(panels[0], cell)
    width = across * (len(panels[0].columns) * cell + 0.55) + 1.35
    under = (0.45 + 0.062 * min(longest, 24) if slanted else 0.5) + (0.2 if len(panels) > 1 else 0.0)
    height = down * (len(panels[0].rows) * cell + under) + 0.8
    figure = new_figure(max(width, _title_inches(shown), 3.6), max(height, 2.5))
    grid = figure.subplots(down, across, squeeze=False)
    scale = _scale(shown)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _heatmap(axes, panel, scale, shown, cell, slanted)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    bar = figure.colorbar(scale, ax=list(grid.flat[: len(panels)]), fraction=0.05, pad=0.02, aspect=22, shrink=0.94)
    bar.set_label(shown.unit, color=SOFT, size=8)
    bar.outline.set_visible(False)  # type: ignore[operator]
    _titles(figure, shown)
    return figure


def _cell_inches(panel: Panel, across: int) -> float:
    room = 8.0 / across
    most = 0.42 if max(panel.values.shape) > 6 else 0.56
    return float(np.clip(min(room / len(panel.columns), 5.5 / len(panel.rows)), 0.13, most))


def _slanted(panel: Panel, cell: float) -> bool:
    return max(len(label) for label in panel.columns) * 0.075 > cell


def _title_inches(shown: View) -> float:
    return max(len(shown.title) * 0.094, len(shown.subtitle) * 0.07) + 0.3


def _titles(figure: "matplotlib.figure.Figure", shown: View) -> None:
    from matplotlib.transforms import ScaledTranslation

    # The title's second line is empty: it keeps the room in which the subtitle stands, in a smaller letter.
    left = 0.06 / figure.get_figwidth()
    figure.suptitle(drawable(shown.title) + "\n ", x=left, ha="left", fontsize=11, fontweight="bold", color=INK)
    below = figure.transFigure + ScaledTranslation(0, -0.26, figure.dpi_scale_trans)
    figure.text(left, 1, drawable(shown.subtitle), transform=below, ha="left", va="top", fontsize=8, color=SOFT)


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
    _ticks(axes, panel, slanted)
    if panel.title:
        axes.set_title(drawable(panel.title), loc="left", fontsize=9, pad=3)
    if rows * columns <= _MAX_CELLS_WITH_NUMBERS and cell >= 0.36:
        _numbers(axes, panel, shown.limit)


def _ticks(axes: "matplotlib.axes.Axes", panel: Panel, slanted: bool) -> None:
    axes.set_xlabel(_AXIS_WORDS.get(panel.column_axis, panel.column_axis))
    axes.set_ylabel(_AXIS_WORDS.get(panel.row_axis, panel.row_axis))
    axes.xaxis.label.set_color(SOFT)
    axes.yaxis.label.set_color(SOFT)
    at = _thinned(len(panel.columns))
    labels = [drawable(panel.columns[i]) for i in at]
    if slanted:
        axes.set_xticks(at, labels, rotation=60, ha="right", rotation_mode="anchor")
    else:
        axes.set_xticks(at, labels)
    at = _thinned(len(panel.rows))
    axes.set_yticks(at, [drawable(panel.rows[i]) for i in at])


def _thinned(n: int) -> list[int]:
    step = math.ceil(n / _MAX_LABELS)
    return list(range(0, n, step))


def _numbers(axes: "matplotlib.axes.Axes", panel: Panel, limit: float) -> None:
    for (row, column), one in np.ndenumerate(panel.values):
        if not math.isfinite(one):
            continue
        color = "white" if abs(one) > 0.62 * limit else INK
        faint = 1.0 if abs(one) >= 0.1 * limit else 0.45
        axes.text(column, row, _short(one), ha="center", va="center", fontsize=6.5, color=color, alpha=faint)


def _short(value: float) -> str:
    text = f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"
    text = text.replace("-", "−")
    return "0" if text in ("0.00", "−0.00") else text.replace("0.", ".", 1) if abs(value) < 1 else text


def _bars(shown: View) -> "matplotlib.figure.Figure":
    panel = shown.panels[0]
    values = panel.values[0]
    n = len(values)
    longest = max(len(label) for label in panel.columns)
    step = float(np.clip(7.0 / n, 0.1, 0.5))
    slanted = _slanted(panel, step)
    height = 3.1 + (0.062 * min(longest, 24) if slanted else 0.0)
    figure = new_figure(max(n * step + 1.0, _title_inches(shown), 3.6), height)
    axes = figure.subplots()
    scale = _scale(shown)
    colors = [scale.to_rgba(v) if math.isfinite(v) else "#c9ced4" for v in values]
    drawn = axes.bar(range(n), np.nan_to_num(values), width=0.78, color=colors)
    for bar, one in zip(drawn, values, strict=True):
        if math.isfinite(one) and abs(one) < 0.12 * shown.limit:
            bar.set_edgecolor("#9aa4af")
            bar.set_linewidth(0.6)
    _spread(axes, shown)
    axes.axhline(0, color=SOFT, linewidth=0.8)
    _ticks(axes, panel, slanted)
    axes.set_yticks(*_value_ticks(axes))
    axes.set_ylabel(shown.unit, fontsize=8)
    axes.spines["bottom"].set_visible(False)
    axes.grid(axis="y", color="#eaeef2", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlim(-0.7, n - 0.3)
    _titles(figure, shown)
    return figure


def _value_ticks(axes: "matplotlib.axes.Axes") -> tuple[list[float], list[str]]:
    from matplotlib.ticker import MaxNLocator

    low, high = axes.get_ylim()
    at = [float(t) for t in MaxNLocator(5).tick_values(low, high) if low <= t <= high]
    return at, [f"{t:g}".replace("-", "−") for t in at]


def _spread(axes: "matplotlib.axes.Axes", shown: View) -> None:
    """The single prompts as dots, where the sweep kept them."""
    panel = shown.panels[0]
    if panel.by_prompt is None:
        return
    dots = panel.by_prompt[0] * panel.per_unit(shown)[0][:, None]
    shift = np.linspace(-0.2, 0.2, dots.shape[1])
    across = np.arange(dots.shape[0])[:, None] + shift[None, :]
    axes.scatter(across, dots, s=6, color=INK, alpha=0.35, linewidth=0, zorder=3)
