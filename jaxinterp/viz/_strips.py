"""All cells of a sweep on one line: between the baselines, and against the null."""

import math

import numpy as np

from jaxinterp.viz._labels import number
from jaxinterp.viz._svg_parts import svg_text
from jaxinterp.viz._views import View

_BINS = 60


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
            marks.append(svg_text(at(end), 74.0, f"{name} {number(end)} {shown.metric_unit}", "", "middle"))
    return f'<svg width="700" height="82" viewBox="0 0 700 82" role="img" aria-label="baselines">{"".join(marks)}</svg>'


def null_svg(shown: View) -> str:
    """Histogram of the cells' effects, up, against that of the null's, down, in the unit that is shown."""
    if shown.null is None:
        return ""
    effects = np.concatenate([panel.values.ravel() for panel in shown.panels])
    nulls = [p.null * p.per_unit[..., None] for p in shown.panels if p.null is not None]
    null = np.concatenate([one.ravel() for one in nulls])
    reach = 1.02 * max(shown.limit, shown.null.shown)
    width = 2 * reach / _BINS
    if shown.null.shown > width / 2:  # then the band's edges are edges of bins
        width = shown.null.shown / round(shown.null.shown / width + 0.01 if shown.null.shown > width else 1)
    half = math.ceil(reach / width)
    reach = half * width
    at = lambda value: 350 + 330 * value / reach
    tall, zero = 44.0, 66.0
    band = shown.null.shown
    parts = [
        f'<g class="band"><rect x="{at(-band):.1f}" y="14" width="{at(band) - at(-band):.1f}" height="104"/>'
        + "".join(f'<line x1="{at(e):.1f}" x2="{at(e):.1f}" y1="14" y2="118"/>' for e in (-band, band))
        + "</g>"
    ]
    for values, sign, kind in ((effects, -1, "up"), (null, 1, "down")):
        # A hair less, so that the value that makes the band falls into it.
        counts, edges = np.histogram((1 - 1e-9) * values[np.isfinite(values)], 2 * half, (-reach, reach))
        size = np.log1p(counts) / np.log1p(max(int(counts.max()), 1)) * tall
        path = "".join(
            f"M{at(edge):.1f} {zero + sign}v{sign * one:.1f}h{330 / half - 1:.1f}v{-sign * one:.1f}z"
            for edge, one in zip(edges, size, strict=False)
            if one > 0
        )
        parts.append(f'<path class="{kind}" d="{path}"/>')
    parts.append(f'<line class="rule" x1="20" x2="680" y1="{zero}" y2="{zero}"/>')
    n_effects, n_null = np.isfinite(effects).sum(), np.isfinite(null).sum()
    parts.append(svg_text(20.0, 28.0, f"{n_effects:,} effects", "", "start"))
    parts.append(svg_text(20.0, 112.0, f"{n_null:,} null effects", "", "start"))
    for value in (-0.98 * reach, 0.0, 0.98 * reach):
        parts.append(svg_text(at(value), 134.0, number(value), "axis", "middle"))
    return (
        '<svg class="null" width="700" height="140" viewBox="0 0 700 140" role="img" '
        f'aria-label="effects against the null">{"".join(parts)}</svg>'
    )
