"""Bars of a page, with the null's band, intervals and single prompts."""

import math
from collections.abc import Callable
from html import escape

import numpy as np

from jaxinterp.viz._labels import number
from jaxinterp.viz._panels import Panel
from jaxinterp.viz._svg_parts import LETTER, SLANT, SMALL, cell_rect, column_labels, svg_text
from jaxinterp.viz._views import View

_MOST_DOTS = 2_000
_TOP, _TALL = 22.0, 220.0


def bars_svg(panel: Panel, shown: View, first: int) -> str:
    """One row of bars; `first` is the number of its first cell in the page's data."""
    n = len(panel.columns)
    side = float(np.clip(560 / n, 3, 48))
    longest = max(map(len, panel.columns))
    slanted = longest * LETTER > side
    foot = 26 + (SLANT * LETTER * longest if slanted else 14)
    low, high = shown.bar_range
    pixels = _TALL / ((high - low) or 1.0)
    zero = _TOP + pixels * high
    tail = 0.57 * LETTER * len(panel.columns[0]) if slanted else 0.0
    left = max(62.0, tail)
    width, height = left + n * side + (38 if shown.null else 12), _TOP + _TALL + foot
    right = left + n * side + 4
    at = lambda value: zero - pixels * value
    parts = [svg_text(left, 14.0, panel.title, "heading", "start")] if panel.title else []
    parts += _null_band(shown, left, right, at)
    parts += _grid(low, high, left, right, at)
    inside = shown.inside(panel)
    for c, value in enumerate(panel.values[0]):
        wide = side * (0.8 * SMALL if inside[0, c] else 0.8)
        size = pixels * abs(value) if math.isfinite(value) else 0.0
        x = left + (c + 0.5) * side - wide / 2
        y = zero - size if value > 0 else zero
        parts.append(
            cell_rect(panel, (0, c), shown, first + c, x, y, wide, size)
            .replace('class="cell', 'class="bar cell', 1)
            .replace('rx="2"', 'rx="0"')
        )
    parts.append(f'<line class="rule" x1="{left}" x2="{right:.0f}" y1="{zero:.1f}" y2="{zero:.1f}"/>')
    parts += _spread(panel, left, side, at)
    parts += column_labels(panel.columns, left, _TOP + _TALL, side, slanted)
    axis = "" if panel.column_axis == "cell" else panel.column_axis
    parts.append(svg_text(left + n * side / 2, height - 4, axis, "axis", "middle"))
    return (
        f'<svg width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" tabindex="0" role="img" '
        f'aria-label="{escape(shown.title)} {escape(panel.title)}" data-columns="{n}" data-range="{first} {first + n - 1}" '
        f'data-zero="{zero:.3f}" data-pixels="{pixels:.6g}">{"".join(parts)}</svg>'
    )


def _grid(low: float, high: float, left: float, right: float, at: Callable[[float], float]) -> list[str]:
    """Lines at the ends and at 0, or what of them stands apart."""
    values = [0.0] + [end for end in (low, high) if abs(at(end) - at(0.0)) > 12]
    parts = []
    for value in values:
        parts.append(f'<line class="grid" x1="{left}" x2="{right:.0f}" y1="{at(value):.1f}" y2="{at(value):.1f}"/>')
        parts.append(svg_text(left - 6, at(value) + 4, number(value), "axis", "end"))
    return parts


def _null_band(shown: View, left: float, right: float, at: Callable[[float], float]) -> list[str]:
    if shown.null is None:
        return []
    top, under = at(shown.null.shown), at(-shown.null.shown)
    edges = "".join(f'<line x1="{left}" x2="{right:.0f}" y1="{y:.1f}" y2="{y:.1f}"/>' for y in (top, under))
    return [
        f'<g class="band mean-only"><rect x="{left}" y="{top:.1f}" width="{right - left:.0f}" height="{under - top:.1f}"/>'
        f"{edges}{svg_text(right + 4, top + 9, 'null', 'axis', 'start')}</g>"
    ]


def _spread(panel: Panel, left: float, side: float, at: Callable[[float], float]) -> list[str]:
    """Single prompts as dots and intervals as lines, over the bars; they are of the mean, and go when a prompt is chosen."""
    middle = lambda c: left + (c + 0.5) * side
    parts = []
    if panel.by_prompt is not None and panel.by_prompt.size <= _MOST_DOTS:
        dots = panel.by_prompt[0] * panel.per_unit[0][:, None]
        shift = np.linspace(-0.2, 0.2, dots.shape[1]) * side
        circles = "".join(
            f'<circle cx="{middle(c) + shift[p]:.1f}" cy="{at(value):.1f}" r="1.8"/>'
            for (c, p), value in np.ndenumerate(dots)
            if math.isfinite(value)
        )
        parts.append(f'<g class="blobs mean-only">{circles}</g>')
    if panel.interval is not None:
        half = min(side * 0.16, 6.0)
        path = "".join(
            f"M{middle(c):.1f} {at(low):.1f}V{at(high):.1f}"
            + "".join(f"M{middle(c) - half:.1f} {at(end):.1f}h{2 * half:.1f}" for end in (low, high))
            for c, (low, high) in enumerate(zip(*(end[0] for end in panel.interval), strict=True))
            if math.isfinite(low) and math.isfinite(high)
        )
        parts += [f'<path class="{kind} mean-only" d="{path}"/>' for kind in ("halo", "interval")]
    return parts
