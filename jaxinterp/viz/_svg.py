"""Panels of a sweep, and attention patterns, as SVG whose colors come from the page's style sheet.

A cell carries its size as the CSS variable `--v` (0..1 of the scale) and its sign as a class, so that one drawing
serves light and dark pages.
"""

import math
from html import escape

import numpy as np

from jaxinterp.viz._labels import number, visible
from jaxinterp.viz._views import Panel, View

_LETTER = 6.8
_SLANT = 0.82


def panel_svg(panel: Panel, shown: View, first: int) -> str:
    """One panel; `first` is the number of its first cell in the page's data."""
    return _bars(panel, shown, first) if panel.is_bars else _heatmap(panel, shown, first)


def scale_svg(shown: View) -> str:
    """The color scale with its unit: a strip of the cells' own colors."""
    steps = 48
    width = 260
    strips = []
    for i in range(steps):
        at = -1 + (2 * i + 1) / steps
        side = "cell neg" if at < 0 else "cell"
        strips.append(
            f'<rect class="{side}" style="--v:{abs(at):.3f}" x="{20 + i * width / steps:.1f}" y="2" '
            f'width="{width / steps + 0.4:.1f}" height="11"/>'
        )
    ticks = "".join(
        f'<text class="tick axis" data-at="{at}" x="{20 + (at + 1) / 2 * width:.0f}" y="28" text-anchor="middle">'
        f"{number(at * shown.limit)}</text>"
        for at in (-1, 0, 1)
    )
    return (
        f'<svg class="legend" width="{width + 40}" height="34" role="img" aria-label="color scale">{"".join(strips)}{ticks}</svg>'
        f'<div class="soft small">{escape(shown.unit)}; red toward the source run, blue away from it</div>'
        if shown.value == "normalized"
        else f'<svg class="legend" width="{width + 40}" height="34" role="img" aria-label="color scale">{"".join(strips)}'
        f'{ticks}</svg><div class="soft small">change in {escape(shown.unit or shown.metric)}</div>'
    )


def _cell_size(panel: Panel) -> float:
    rows, columns = panel.values.shape
    return float(np.clip(min(620 / columns, 520 / rows), 11, 44))


def _heatmap(panel: Panel, shown: View, first: int) -> str:
    rows, columns = panel.values.shape
    side = _cell_size(panel)
    left = 30 + _LETTER * max(map(len, panel.rows))
    top = 22.0 if panel.title else 4.0
    slanted = max(map(len, panel.columns)) * _LETTER > side
    foot = 22 + (_SLANT * _LETTER * max(map(len, panel.columns)) if slanted else 12)
    tail = 0.57 * _LETTER * len(panel.columns[0]) if slanted else 0.0
    left = max(left, tail)
    width, height = left + columns * side + 12, top + rows * side + foot + 4
    parts = [f'<text x="{left:.0f}" y="14" font-weight="600">{escape(panel.title)}</text>'] if panel.title else []
    with_numbers = rows * columns <= 100 and side >= 30
    for (r, c), value in np.ndenumerate(panel.values):
        i = first + r * columns + c
        x, y = left + c * side, top + r * side
        parts.append(_cell(panel.cells[r][c], value, shown, i, x + 0.75, y + 0.75, side - 1.5, side - 1.5))
        if with_numbers:
            parts.append(_value(value, shown.limit, i, x + side / 2, y + side / 2))
    parts += _row_labels(panel, left, top, side)
    parts += _column_labels(panel.columns, left, top + rows * side, side, slanted)
    parts.append(_text(left + columns * side / 2, height - 4, panel.column_axis, "axis", "middle"))
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


def _cell(name: str, value: float, shown: View, i: int, x: float, y: float, width: float, height: float) -> str:
    kind = "cell nan" if not math.isfinite(value) else "cell neg" if value < 0 else "cell"
    size = abs(value) / shown.limit if math.isfinite(value) else 0.0
    radius = 2 if min(width, height) > 14 else 0
    return (
        f'<rect class="{kind}" data-i="{i}" style="--v:{size:.4f}" x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" '
        f'height="{max(height, 0.1):.2f}" rx="{radius}"><title>{escape(name)}: {number(value)}</title></rect>'
    )


def _value(value: float, limit: float, i: int, x: float, y: float) -> str:
    size = abs(value) / limit if math.isfinite(value) else 0.0
    kind = " strong" if size > 0.62 else " faint" if size < 0.1 else ""
    return f'<text class="value{kind}" data-i="{i}" x="{x:.1f}" y="{y:.1f}">{short(value)}</text>'


def short(value: float) -> str:
    """At most four characters, for inside a cell: .38, −1.2, 0."""
    if not math.isfinite(value):
        return ""
    text = f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"
    if float(text) == 0:
        return "0"
    return (text.replace("0.", ".", 1) if abs(value) < 1 else text).replace("-", "−")


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _row_labels(panel: Panel, left: float, top: float, side: float) -> list[str]:
    step = math.ceil(11 / side)
    at = range(0, len(panel.rows), step)
    kind = "token" if panel.row_axis == "position" else ""
    return [_text(left - 6, top + (r + 0.5) * side + 4, panel.rows[r], kind, "end") for r in at]


def _column_labels(columns: tuple[str, ...], left: float, under: float, side: float, slanted: bool) -> list[str]:
    step = math.ceil(13 / side)
    at = range(0, len(columns), step)
    if not slanted:
        return [_text(left + (c + 0.5) * side, under + 16, columns[c], "", "middle") for c in at]
    return [
        f'<text class="token" transform="translate({left + (c + 0.5) * side + 4:.1f} {under + 12:.1f}) rotate(-55)" '
        f'text-anchor="end">{escape(columns[c])}</text>'
        for c in at
    ]


def _bars(panel: Panel, shown: View, first: int) -> str:
    values = panel.values[0]
    side = float(np.clip(560 / len(values), 12, 48))
    slanted = max(map(len, panel.columns)) * _LETTER > side
    foot = 26 + (_SLANT * _LETTER * max(map(len, panel.columns)) if slanted else 14)
    finite = values[np.isfinite(values)]
    high = max(float(finite.max()) if finite.size else 0.0, 0.0)
    low = min(float(finite.min()) if finite.size else 0.0, 0.0)
    span = (high - low) or 1.0
    left, top, tall = 62.0, 12.0, 220.0
    zero = top + tall * high / span
    width, height = left + len(values) * side + 12, top + tall + foot
    parts = []
    for at in sorted({low, 0.0, high}):
        y = top + tall * (high - at) / span
        parts.append(f'<line class="grid" x1="{left}" x2="{width - 8:.0f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 6, y + 4, number(at), "axis", "end"))
    for c, value in enumerate(values):
        size = tall * abs(value) / span if math.isfinite(value) else 0.0
        y = zero - size if value > 0 else zero
        parts.append(
            _cell(panel.cells[0][c], value, shown, first + c, left + c * side + side * 0.1, y, side * 0.8, size)
            .replace('class="cell', 'class="bar cell', 1)
            .replace('rx="2"', 'rx="0"')
        )
    parts.append(f'<line class="rule" x1="{left}" x2="{width - 8:.0f}" y1="{zero:.1f}" y2="{zero:.1f}"/>')
    parts += _column_labels(panel.columns, left, top + tall, side, slanted)
    parts.append(_text(left + len(values) * side / 2, height - 4, panel.column_axis, "axis", "middle"))
    return (
        f'<svg width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" tabindex="0" role="img" '
        f'aria-label="{escape(shown.title)}" data-columns="{len(values)}" data-range="{first} {first + len(values) - 1}">'
        f"{''.join(parts)}</svg>"
    )


def line_svg(shown: View) -> str:
    """Where every patched run lands on the line from the base run to the source run."""
    landed = shown.base + np.concatenate([panel.effects.ravel() for panel in shown.panels])
    landed = landed[np.isfinite(landed)]
    ends = [end for end in (shown.base, shown.source) if math.isfinite(end)]
    if not (len(landed) and ends):
        return ""
    low, high = float(min([*landed, *ends])), float(max([*landed, *ends]))
    margin = 0.06 * ((high - low) or 1.0)
    low, high = low - margin, high + margin

    def at(value: float) -> float:
        return 20 + 660 * (value - low) / (high - low)

    blobs = "".join(f'<circle cx="{at(float(v)):.1f}" cy="{38 - (i * 7) % 15}" r="3"/>' for i, v in enumerate(landed))
    marks = [f'<line class="rule" x1="20" x2="680" y1="50" y2="50"/><g class="blobs">{blobs}</g>']
    for end, name in ((shown.base, "base"), (shown.source, "source")):
        if math.isfinite(end):
            marks.append(f'<line class="rule" x1="{at(end):.1f}" x2="{at(end):.1f}" y1="14" y2="58" stroke-width="2"/>')
            marks.append(_text(at(end), 74.0, f"{name} {number(end)} {shown.metric_unit}", "", "middle"))
    return f'<svg width="700" height="82" viewBox="0 0 700 82" role="img" aria-label="baselines">{"".join(marks)}</svg>'


def attention_svg(title: str, pattern: np.ndarray, tokens: list[str]) -> str:
    """One head's pattern with its tokens beneath, which are shaded by what the chosen token looks at."""
    n = len(tokens)
    side = float(np.clip(250 / n, 5, 24))
    shown = [visible(token) for token in tokens]
    left = 8 + 6.7 * max(map(len, shown)) if side >= 11 else 0.0
    cells = [_text(left - 5, (q + 0.5) * side + 4, token, "token", "end") for q, token in enumerate(shown) if left]
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
