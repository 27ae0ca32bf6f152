"""What heat maps and bars of a page share: cells, labels, lines of text.

A cell carries its size as the CSS variable `--v` (0..1 of the scale) and its sign as a class, so that one drawing
serves light and dark pages.
"""

import math
from html import escape

import numpy as np

from jaxinterp.viz._labels import number
from jaxinterp.viz._panels import Panel
from jaxinterp.viz._views import View

LETTER = 6.8
SLANT = 0.82
SMALL = 0.5  # the share of its side that a cell inside the null keeps


def svg_text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    """A line of text."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def cell_rect(
    panel: Panel, at: tuple[int, int], shown: View, i: int, x: float, y: float, width: float, height: float
) -> str:
    """One cell as a rectangle, whose color the style sheet makes of its size and sign."""
    value = panel.values[at]
    kind = "cell nan" if not math.isfinite(value) else "cell neg" if value < 0 else "cell"
    size = abs(value) / shown.limit if math.isfinite(value) else 0.0
    radius = 2 if min(width, height) > 14 else 0
    return (
        f'<rect class="{kind}" data-i="{i}" style="--v:{size:.4f}" x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" '
        f'height="{max(height, 0.1):.2f}" rx="{radius}"><title>{escape(_told(panel, at))}</title></rect>'
    )


def _told(panel: Panel, at: tuple[int, int]) -> str:
    """What a cell says of itself where no script runs."""
    text = f"{panel.cells[at[0]][at[1]]}: {number(panel.values[at])}"
    if panel.interval is not None:
        low, high = panel.interval
        text += f", 95 % interval {number(low[at])} to {number(high[at])}"
    if panel.null is not None:
        draws = panel.null[at] * panel.per_unit[at]
        draws = draws[np.isfinite(draws)]
        text += f", null {number(draws.min())} to {number(draws.max())}" if len(draws) else ""
    return text


def column_labels(columns: tuple[str, ...], left: float, under: float, side: float, slanted: bool) -> list[str]:
    """Labels under columns, slanted where they are too long to stand side by side."""
    step = math.ceil(13 / side)
    at = range(0, len(columns), step)
    if not slanted:
        return [svg_text(left + (c + 0.5) * side, under + 16, columns[c], "", "middle") for c in at]
    return [
        f'<text class="token" transform="translate({left + (c + 0.5) * side + 4:.1f} {under + 12:.1f}) rotate(-55)" '
        f'text-anchor="end">{escape(columns[c])}</text>'
        for c in at
    ]
