"""Panels of a sweep, and attention patterns, as SVG whose colors come from the page's style sheet."""

import math
from html import escape

import numpy as np

from jaxinterp.viz._labels import number, visible
from jaxinterp.viz._panels import Panel
from jaxinterp.viz._svg_bars import bars_svg
from jaxinterp.viz._svg_parts import LETTER, SLANT, SMALL, cell_rect, column_labels, svg_text
from jaxinterp.viz._views import View


def panel_svg(panel: Panel, shown: View, first: int) -> str:
    """One panel; `first` is the number of its first cell in the page's data."""
    return bars_svg(panel, shown, first) if panel.is_bars else _heatmap(panel, shown, first)


def scale_svg(shown: View) -> str:
    """The color scale with its unit: a strip of the cells' own colors."""
    steps = 48
    width = 260.0
    strips = []
    for i in range(steps):
        at = -1 + (2 * i + 1) / steps
        side = "cell neg" if at < 0 else "cell"
        strips.append(
            f'<rect class="{side}" style="--v:{abs(at):.3f}" x="{28 + i * width / steps:.1f}" y="2" '
            f'width="{width / steps + 0.4:.1f}" height="11"/>'
        )
    ticks = "".join(
        f'<text class="tick axis" data-at="{at}" x="{28 + (at + 1) / 2 * width:.0f}" y="28" text-anchor="middle">'
        f"{number(at * shown.limit)}</text>"
        for at in (-1, 0, 1)
    )
    unit = (
        f"{shown.unit}; red toward the source run, blue away from it"
        if shown.value == "normalized"
        else f"change in {shown.unit or shown.metric}"
    )
    note = f'<div class="soft small mean-only">{escape(shown.null.note)}</div>' if shown.null else ""
    return (
        f'<svg class="legend" width="{width + 56:.0f}" height="34" role="img" aria-label="color scale">{"".join(strips)}'
        f'{_null_on_scale(shown, width)}{ticks}</svg><div class="soft small">{escape(unit)}</div>{note}'
    )


def _null_on_scale(shown: View, width: float) -> str:
    """Makes the strip as low over the null's range as the cells inside it are small."""
    if shown.null is None:
        return ""
    reach = width / 2 * min(shown.null.shown / shown.limit, 1.0)
    left, right, side = 28 + width / 2 - reach, 28 + width / 2 + reach, 11 * (1 - SMALL) / 2
    frames = "".join(
        f'<rect x="{left:.1f}" y="{y:.2f}" width="{2 * reach:.1f}" height="{side + 0.5:.2f}"/>'
        for y in (1.5, 13 - side)
    )
    ends = "".join(f'<line class="ink" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="15"/>' for x in (left, right))
    return f'<g class="frame mean-only">{frames}{ends if reach < width / 2 else ""}</g>'


def cell_side(panel: Panel) -> float:
    rows, columns = panel.values.shape
    return float(np.clip(min(620 / columns, 520 / rows), 11, 44))


def _heatmap(panel: Panel, shown: View, first: int) -> str:
    rows, columns = panel.values.shape
    side = cell_side(panel)
    left = 30 + LETTER * max(map(len, panel.rows))
    top = 22.0 if panel.title else 4.0
    slanted = max(map(len, panel.columns)) * LETTER > side
    foot = 22 + (SLANT * LETTER * max(map(len, panel.columns)) if slanted else 12)
    tail = 0.57 * LETTER * len(panel.columns[0]) if slanted else 0.0
    left = max(left, tail)
    width, height = left + columns * side + 12, top + rows * side + foot + 4
    parts = [f'<text x="{left:.0f}" y="14" font-weight="600">{escape(panel.title)}</text>'] if panel.title else []
    inside = shown.inside(panel)
    with_numbers = rows * columns <= 100 and side >= 30
    for (r, c), value in np.ndenumerate(panel.values):
        i = first + r * columns + c
        x, y = left + c * side, top + r * side
        parts.append(cell_rect(panel, (r, c), shown, i, x + 0.75, y + 0.75, side - 1.5, side - 1.5))
        if with_numbers:
            parts.append(_value(value, shown.limit, i, x + side / 2, y + side / 2, bool(inside[r, c])))
    parts.append(_frames(inside, left, top, side))
    parts += _row_labels(panel, left, top, side)
    parts += column_labels(panel.columns, left, top + rows * side, side, slanted)
    parts.append(svg_text(left + columns * side / 2, height - 4, panel.column_axis, "axis", "middle"))
    middle = top + rows * side / 2
    parts.append(
        f'<text class="axis" transform="translate(12 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(panel.row_axis)}</text>"
    )
    last = first + rows * columns - 1
    return (
        f'<svg width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" tabindex="0" role="img" '
        f'aria-label="{escape(shown.title)} {escape(panel.title)}" data-columns="{columns}" data-range="{first} {last}">'
        f"{''.join(parts)}</svg>"
    )


def _frames(inside: np.ndarray, left: float, top: float, side: float) -> str:
    """What covers the margins of the cells inside the null, so that they are small; one path for all of them."""
    if not inside.any():
        return ""
    small = side * SMALL
    margin, whole, edges = (side - small) / 2, [], []
    for r, c in np.argwhere(inside):
        x, y = left + c * side, top + r * side
        hole = f"M{x + margin:.1f} {y + margin:.1f}v{small:.1f}h{small:.1f}v-{small:.1f}z"
        whole.append(f"M{x + 0.2:.1f} {y + 0.2:.1f}h{side - 0.4:.1f}v{side - 0.4:.1f}h-{side - 0.4:.1f}z{hole}")
        edges.append(hole)
    return f'<g class="frame mean-only"><path d="{"".join(whole)}"/><path class="edge" d="{"".join(edges)}"/></g>'


def _value(value: float, limit: float, i: int, x: float, y: float, inside: bool) -> str:
    size = abs(value) / limit if math.isfinite(value) else 0.0
    kind = " strong" if size > 0.62 else " faint" if size < 0.1 else ""
    kind += " inside" if inside else ""
    return f'<text class="value{kind}" data-i="{i}" x="{x:.1f}" y="{y:.1f}">{short(value)}</text>'


def short(value: float) -> str:
    """At most four characters, for inside a cell: .38, −1.2, 0."""
    if not math.isfinite(value):
        return ""
    text = f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"
    if float(text) == 0:
        return "0"
    return (text.replace("0.", ".", 1) if abs(value) < 1 else text).replace("-", "−")


def _row_labels(panel: Panel, left: float, top: float, side: float) -> list[str]:
    step = math.ceil(11 / side)
    at = range(0, len(panel.rows), step)
    kind = "token" if panel.row_axis == "position" else ""
    return [svg_text(left - 6, top + (r + 0.5) * side + 4, panel.rows[r], kind, "end") for r in at]


def attention_svg(title: str, pattern: np.ndarray, tokens: list[str]) -> str:
    """One head's pattern with its tokens beneath, which are shaded by what the chosen token looks at."""
    n = len(tokens)
    side = float(np.clip(250 / n, 5, 24))
    shown = [visible(token) for token in tokens]
    left = 8 + 6.7 * max(map(len, shown)) if side >= 11 else 0.0
    cells = [svg_text(left - 5, (q + 0.5) * side + 4, token, "token", "end") for q, token in enumerate(shown) if left]
    for (q, k), p in np.ndenumerate(pattern):
        if not math.isfinite(p) or (p < 5e-4 and k > q):
            continue
        cells.append(
            f'<rect class="look" data-q="{q}" data-k="{k}" data-p="{p:.4f}" style="--v:{p:.4f}" '
            f'x="{left + k * side:.1f}" y="{q * side:.1f}" width="{side - 0.6:.1f}" height="{side - 0.6:.1f}">'
            f"<title>{escape(shown[q])} → {escape(shown[k])}: {p:.3f}</title></rect>"
        )
    words = "<wbr>".join(f"<span>{escape(token)}</span>" for token in shown)
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg width="{left + n * side:.0f}" height="{n * side:.0f}" role="img" '
        f'aria-label="attention of {escape(title)}">{"".join(cells)}</svg><div class="strip mono small" '
        f'style="max-width:{max(left + n * side, 240):.0f}px">{words}</div><div class="said soft small">&nbsp;</div></figure>'
    )
