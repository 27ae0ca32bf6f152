"""What every figure of a sweep has around its data: the titles, the color scale, the ticks."""

import math
from typing import TYPE_CHECKING

from jaxinterp.viz._panels import Panel
from jaxinterp.viz._style import DIVERGING, INK, SOFT, colormap, drawable
from jaxinterp.viz._views import View

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.cm
    import matplotlib.figure

_AXIS_WORDS = {
    "layer": "layer", "head": "head", "key_value_head": "key/value head", "position": "position", "role": "role",
    "feature": "feature", "cell": "",
}  # fmt: skip
_MAX_LABELS = 48


def color_scale(shown: View) -> "matplotlib.cm.ScalarMappable":
    """The diverging map over minus to plus the largest absolute value."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(norm=Normalize(-shown.limit, shown.limit), cmap=colormap(DIVERGING, "jaxinterp"))


def shortest_column(panel: Panel) -> float:
    """How wide, in inches, a column must be for its label to stand upright."""
    return max(len(label) for label in panel.columns) * 0.075


def _lines(shown: View) -> list[str]:
    return [shown.subtitle, *([shown.null.note] if shown.null else [])]


def title_inches(shown: View) -> float:
    """How wide the titles are."""
    return max(len(shown.title) * 0.094, *(len(line) * 0.0665 for line in _lines(shown))) + 0.3


def put_titles(figure: "matplotlib.figure.Figure", shown: View) -> None:
    """The title, and under it the prompts and baselines, and the rule of the null."""
    from matplotlib.transforms import ScaledTranslation

    # The title's further lines are empty: they keep the room in which the others stand, in a smaller letter.
    left, lines = 0.06 / figure.get_figwidth(), _lines(shown)
    title = drawable(shown.title) + "\n " * len(lines)
    figure.suptitle(title, x=left, ha="left", fontsize=11, fontweight="bold", color=INK)
    for i, line in enumerate(lines):
        below = figure.transFigure + ScaledTranslation(0, -0.26 - 0.17 * i, figure.dpi_scale_trans)
        figure.text(left, 1, drawable(line), transform=below, ha="left", va="top", fontsize=8, color=SOFT)


def axis_ticks(axes: "matplotlib.axes.Axes", panel: Panel, slanted: bool) -> None:
    """Labels of columns and rows, thinned where they are many."""
    axes.set_xlabel(_AXIS_WORDS.get(panel.column_axis, panel.column_axis))
    axes.set_ylabel(_AXIS_WORDS.get(panel.row_axis, panel.row_axis))
    axes.xaxis.label.set_color(SOFT)
    axes.yaxis.label.set_color(SOFT)
    at = _thinned(len(panel.columns), 100 if panel.column_axis == "cell" else _MAX_LABELS)
    labels = [drawable(panel.columns[i]) for i in at]
    if slanted:
        axes.set_xticks(at, labels, rotation=60, ha="right", rotation_mode="anchor")
    else:
        axes.set_xticks(at, labels)
    at = _thinned(len(panel.rows), _MAX_LABELS)
    axes.set_yticks(at, [drawable(panel.rows[i]) for i in at])


def _thinned(n: int, most: int) -> list[int]:
    step = math.ceil(n / most)
    return list(range(0, n, step))
