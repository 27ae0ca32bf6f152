"""The parts of a sweep's page beside its drawings: the ranking, the baselines, the null, attention, the prompts."""

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from jaxinterp.viz._labels import aligned, number, words
from jaxinterp.viz._ranked import RankedCell, ranked
from jaxinterp.viz._strips import line_svg, null_svg
from jaxinterp.viz._svg import attention_svg
from jaxinterp.viz._views import View, metric_names, one_metric

if TYPE_CHECKING:
    import xarray

_RANKED = 15


def table_html(effects: "xarray.Dataset", shown: View, kept: bool) -> str:
    """The cells with the largest effects; `kept` says whether single prompts are on the page."""
    rows = ranked(effects, metric=shown.metric, k=_RANKED)
    names = [name for panel in shown.panels for line in panel.cells for name in line]
    at = {name: i for i, name in reversed(list(enumerate(names)))}
    largest = max((abs(row.effect) for row in rows if math.isfinite(row.effect)), default=1.0) or 1.0
    unit = f" ({escape(shown.metric_unit)})" if shown.metric_unit else ""
    more = [
        '<th class="n">normalized</th>' if "normalized" in effects else "",
        '<th class="n">95 % interval</th>' if "low" in effects else "",
        "<th>null</th>" if shown.null else "",
        "<th>same sign</th>" if kept else "",
    ]
    caption = '<caption class="small soft">means over all prompts</caption>' if kept else ""
    head = f'<th>rank</th><th>cell</th><th class="n">effect{unit}</th><th></th>{"".join(more)}'
    body = "".join(
        _table_row(i, row, at.get(row.cell), largest, "normalized" in effects, kept) for i, row in enumerate(rows)
    )
    return f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _table_row(rank: int, row: RankedCell, i: int | None, largest: float, normalized: bool, kept: bool) -> str:
    size = abs(row.effect) / largest if math.isfinite(row.effect) else 0.0
    left = 40 - 39 * size if row.effect < 0 else 40
    meter = (
        '<svg class="meter" width="80" height="12"><line class="grid" x1="40" x2="40" y1="0" y2="12"/>'
        f'<rect class="cell{" neg" if row.effect < 0 else ""}" style="--v:0.75" x="{left:.1f}" y="2" '
        f'width="{39 * size:.1f}" height="8"/></svg>'
    )
    number_of = "" if i is None else f' data-i="{i}"'
    more = f'<td class="n">{aligned(row.normalized)}</td>' if normalized else ""
    if row.low is not None and row.high is not None:
        more += f'<td class="n">{aligned(row.low)} to {aligned(row.high)}</td>'
    if row.outside_null is not None:
        more += "<td>outside</td>" if row.outside_null else '<td class="soft">inside</td>'
    if kept:
        more += f"<td>{row.agreement} of {row.n_prompts}</td>"
    return (
        f'<tr{number_of}><td class="soft">{rank + 1}</td><td>{escape(row.cell)}</td>'
        f'<td class="n">{aligned(row.effect)}</td><td>{meter}</td>{more}</tr>'
    )


def baselines_html(views: list[View]) -> str:
    """Where the patched runs land between base and source."""
    parts = []
    for shown in views:
        if shown.value == "effect" and any(v.metric == shown.metric and v.value == "normalized" for v in views):
            continue
        parts.append(
            f'<p class="small">{escape(words(shown.metric))}: each dot is one patched run.</p>'
            f'<div class="scroll">{line_svg(shown)}</div>'
        )
    return "<section><h2>Baselines</h2>" + "".join(parts) + "</section>"


def null_html(effects: "xarray.Dataset", views: list[View]) -> str:
    """The cells' effects against the null's, for each metric, and the rule."""
    parts, seen = [], set()
    for shown in views:
        null = shown.null
        if null is None or shown.metric in seen:
            continue
        seen.add(shown.metric)
        outside = sum(int((~shown.inside(p) & np.isfinite(p.effects)).sum()) for p in shown.panels)
        kind = effects.attrs.get("null")
        draws = f"{null.draws} draw{'' if null.draws == 1 else 's'} of the null{escape(f' ({kind})') if kind else ''}"
        parts.append(
            f'<p class="small">{escape(words(shown.metric))}: the largest absolute effect of {draws} over all '
            f"{null.n_cells:,} cells is {number(null.limit)} {escape(null.unit)}; the band is ±{number(null.shown)}. "
            f"{outside:,} of the cells drawn lie{'s' if outside == 1 else ''} outside. If the edit were one more draw of "
            f"the null, some cell would lie outside in at most 1 of {null.draws + 1} sweeps.</p>"
            f'<div class="scroll">{null_svg(shown)}</div>'
            f'<p class="small soft">{escape(shown.unit)}; cells upward, null effects downward; heights are logarithmic.</p>'
        )
    return "<section><h2>Against the null</h2>" + "".join(parts) + "</section>" if parts else ""


def attention_html(squares: dict[str, np.ndarray], tokens: list[str]) -> str:
    """Patterns of a few heads."""
    if not squares:
        return ""
    drawn = "".join(attention_svg(name, one, tokens) for name, one in squares.items())
    return (
        '<section><h2>Attention</h2><p class="small soft">Rows are queries, columns keys. Point at a square, or at a token '
        f'to see what it looks at.</p><div class="heads">{drawn}</div></section>'
    )


def prompts_html(prompts: Sequence[tuple[str, str]], effects: "xarray.Dataset") -> str:
    """The prompts, with the metric of both runs where the sweep kept them by prompt."""
    if not prompts:
        return ""
    ends = _ends_by_prompt(effects)
    heads = "".join(f'<th class="n">{escape(name)}</th>' for name in ends)
    rows = "".join(
        f'<tr><td class="soft">{i}</td><td class="wrap">{escape(base)}</td><td class="wrap">{escape(source)}</td>'
        + "".join(f'<td class="n">{aligned(end[i]) if i < len(end) else ""}</td>' for end in ends.values())
        + "</tr>"
        for i, (base, source) in enumerate(prompts)
    )
    many = "" if len(prompts) == 1 else "s"
    return (
        f"<section><h2>Prompts</h2><details><summary>{len(prompts)} pair{many}</summary><div class='scroll'><table><thead>"
        f"<tr><th></th><th>base</th><th>source</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div></details></section>"
    )


def _ends_by_prompt(effects: "xarray.Dataset") -> dict[str, np.ndarray]:
    """The first metric of the two runs by prompt, by the title of a column."""
    name, one = one_metric(effects, metric_names(effects)[0])
    found = {}
    for end in ("base", "source"):
        if f"{end}_by_prompt" in one:
            values = np.asarray(one[f"{end}_by_prompt"].values, dtype=np.float64)
            found[f"{name}, {end}"] = values.reshape(-1, values.shape[-1])[0]
    return found
