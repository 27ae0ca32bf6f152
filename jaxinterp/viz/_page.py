"""A sweep as one HTML page that needs nothing else: no network, no library, a few kilobytes of script of its own."""

import importlib.resources
import json
import math
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinterp.store import atomic_file
from jaxinterp.viz._attention import checked_patterns
from jaxinterp.viz._labels import aligned, visible, words
from jaxinterp.viz._ranked import RankedCell, ranked
from jaxinterp.viz._svg import attention_svg, line_svg, panel_svg, scale_svg
from jaxinterp.viz._views import Value, View, metric_names, view

if TYPE_CHECKING:
    import xarray

_MOST_PROMPT_VALUES = 200_000
_RANKED = 15
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def page(
    effects: "xarray.Dataset",
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    notes: Sequence[str] = (),
    prompts: Sequence[tuple[str, str]] = (),
    patterns: Mapping[str, Any] | None = None,
    tokens: Sequence[str] = (),
    provenance: Mapping[str, object] | None = None,
    command: str | None = None,
) -> Path:
    """Writes the result of a sweep as one HTML file, to be opened in any browser, online or not.

    It shows every metric, normalized and raw, with each cell's values under the pointer (or the arrow keys); the ranking;
    both baselines and where the patched runs land between them; single prompts, where the sweep kept them
    (`keep=("prompts",)`); attention patterns, where they are given; and where the numbers come from. It follows the
    reader's light or dark setting.

    Args:
        effects: what `patching.sweep` returns.
        path: the file to write (whole or not at all).
        title: heading (default: the metric and the site).
        notes: paragraphs of text above the figure.
        prompts: (base, source) texts, shown as a list and as names of the single prompts.
        patterns: attention probabilities [T, T] by title, for `tokens`.
        tokens: the T tokens as text.
        provenance: further facts beside those that the dataset carries in its attributes.
        command: the command that makes the result again.

    Returns:
        The path.

    Raises:
        InputError: effects that are not a sweep's, or patterns that do not fit the tokens.
        SaveError: the file could not be written.
    """
    views = _views(effects)
    squares = checked_patterns(patterns, tokens) if patterns else {}
    heading = title or views[0].title
    body = [
        f"<header><h1>{escape(heading)}</h1><p class='soft'>{escape(_under(views[0], title))}</p></header>",
        *(f'<p class="lede">{escape(note)}</p>' for note in notes),
        _tools(views, prompts, effects),
        *(_view_html(effects, shown, i) for i, shown in enumerate(views)),
        _baselines(views),
        _attention(squares, list(tokens)),
        _prompts(prompts),
        _provenance(effects, provenance, command),
    ]
    text = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{escape(heading)}</title>\n<style>\n{_asset('page.css')}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + f'\n</main>\n<script type="application/json" id="data">{_data(effects, views)}</script>\n'
        f"<script>\n{_asset('page.js')}</script>\n</body>\n</html>\n"
    )
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return Path(path)


def _asset(name: str) -> str:
    return importlib.resources.files("jaxinterp.viz").joinpath(name).read_text(encoding="utf-8")


def _views(effects: "xarray.Dataset") -> list[View]:
    views = []
    for metric in metric_names(effects):
        first = view(effects, metric=metric)
        other: Value = "effect" if first.value == "normalized" else "normalized"
        views.append(first)
        if first.value == "normalized":
            views.append(view(effects, metric=metric, value=other))
    return views


def _under(shown: View, title: str | None) -> str:
    return f"{shown.title}.   {shown.subtitle}" if title else shown.subtitle


def _tools(views: list[View], prompts: Sequence[tuple[str, str]], effects: "xarray.Dataset") -> str:
    parts = []
    if len(views) > 1:
        several = len({shown.metric for shown in views}) > 1
        buttons = "".join(
            f'<button type="button" data-show="{i}" aria-pressed="{"true" if i == 0 else "false"}">'
            f"{escape(words(shown.metric) + ', ' if several else '')}"
            f"{'normalized' if shown.value == 'normalized' else escape('effect in ' + (shown.unit or 'its unit'))}</button>"
            for i, shown in enumerate(views)
        )
        parts.append(f'<div class="choice" role="group" aria-label="what is shown">{buttons}</div>')
    n = _kept_prompts(effects)
    if n:
        names = [_shortened(prompts[i][0]) if i < len(prompts) else f"prompt {i}" for i in range(n)]
        options = "".join(f'<option value="{i}">{escape(f"{i}: {name}")}</option>' for i, name in enumerate(names))
        parts.append(
            '<label class="small soft">prompts <select id="prompt">'
            f'<option value="-1">mean of all {n}</option>{options}</select></label>'
        )
    return f'<div class="tools">{"".join(parts)}</div>'


def _kept_prompts(effects: "xarray.Dataset") -> int:
    if "effect_by_prompt" not in effects or effects["effect_by_prompt"].size > _MOST_PROMPT_VALUES:
        return 0
    return int(effects.sizes["prompt"]) if effects.sizes["prompt"] > 1 else 0


def _shortened(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _view_html(effects: "xarray.Dataset", shown: View, index: int) -> str:
    drawings, first = [], 0
    for panel in shown.panels:
        drawings.append(panel_svg(panel, shown, first))
        first += panel.values.size
    wide = " wide" if len(drawings) > 1 or len(shown.panels[0].columns) > 16 else ""
    return (
        f'<section class="view{" on" if index == 0 else ""}{wide}" data-view="{index}"><div><div class="drawing">'
        f'<div class="panels">{"".join(drawings)}</div>{scale_svg(shown)}</div></div>'
        f'<div><div class="reading" aria-live="polite"></div>{_table(effects, shown)}</div></section>'
    )


def _table(effects: "xarray.Dataset", shown: View) -> str:
    rows = ranked(effects, metric=shown.metric, k=_RANKED)
    names = [name for panel in shown.panels for line in panel.cells for name in line]
    largest = max((abs(row.effect) for row in rows if math.isfinite(row.effect)), default=1.0) or 1.0
    unit = f" ({escape(shown.metric_unit)})" if shown.metric_unit else ""
    kept = _kept_prompts(effects) > 0
    head = f'<th>rank</th><th>cell</th><th class="n">effect{unit}</th><th></th><th class="n">normalized</th>' + (
        "<th>same sign</th>" if kept else ""
    )
    body = "".join(_table_row(i, row, names.index(row.cell), largest, kept) for i, row in enumerate(rows))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _table_row(rank: int, row: RankedCell, i: int, largest: float, kept: bool) -> str:
    size = abs(row.effect) / largest if math.isfinite(row.effect) else 0.0
    left = 40 - 39 * size if row.effect < 0 else 40
    meter = (
        '<svg class="meter" width="80" height="12"><line class="grid" x1="40" x2="40" y1="0" y2="12"/>'
        f'<rect class="cell{" neg" if row.effect < 0 else ""}" style="--v:0.75" x="{left:.1f}" y="2" '
        f'width="{39 * size:.1f}" height="8"/></svg>'
    )
    agreement = f"<td>{row.agreement} of {row.n_prompts}</td>" if kept else ""
    return (
        f'<tr data-i="{i}"><td class="soft">{rank + 1}</td><td>{escape(row.cell)}</td><td class="n">{aligned(row.effect)}</td>'
        f'<td>{meter}</td><td class="n">{aligned(row.normalized)}</td>{agreement}</tr>'
    )


def _baselines(views: list[View]) -> str:
    parts = []
    for shown in views:
        if shown.value == "effect" and any(v.metric == shown.metric and v.value == "normalized" for v in views):
            continue
        parts.append(
            f'<p class="small">{escape(words(shown.metric))}: each dot is one patched run.</p>'
            f'<div class="scroll">{line_svg(shown)}</div>'
        )
    return "<section><h2>Baselines</h2>" + "".join(parts) + "</section>"


def _attention(squares: dict[str, np.ndarray], tokens: list[str]) -> str:
    if not squares:
        return ""
    drawn = "".join(attention_svg(name, one, tokens) for name, one in squares.items())
    return (
        '<section><h2>Attention</h2><p class="small soft">Rows are queries, columns keys. Point at a square, or at a token '
        f'to see what it looks at.</p><div class="heads">{drawn}</div></section>'
    )


def _prompts(prompts: Sequence[tuple[str, str]]) -> str:
    if not prompts:
        return ""
    rows = "".join(
        f'<tr><td class="soft">{i}</td><td class="wrap">{escape(base)}</td><td class="wrap">{escape(source)}</td></tr>'
        for i, (base, source) in enumerate(prompts)
    )
    many = "" if len(prompts) == 1 else "s"
    return (
        f"<section><h2>Prompts</h2><details><summary>{len(prompts)} pair{many}</summary><div class='scroll'><table><thead>"
        f"<tr><th></th><th>base</th><th>source</th></tr></thead><tbody>{rows}</tbody></table></div></details></section>"
    )


def _provenance(effects: "xarray.Dataset", more: Mapping[str, object] | None, command: str | None) -> str:
    facts = {str(key): item for key, item in effects.attrs.items()} | dict(more or {})
    command = command or (str(facts.pop("command")) if facts.get("command") else None)
    facts.pop("command", None)
    rows = "".join(
        f"<dt>{escape(_fact_name(key))}</dt><dd>{escape(_fact(key, item))}</dd>" for key, item in facts.items()
    )
    again = (
        f"<p class='small soft' style='margin-top:14px'>To make it again:</p><pre>{escape(command)}</pre>"
        if command
        else ""
    )
    return f'<section><h2>Where this comes from</h2><dl class="facts">{rows}</dl>{again}</section>'


def _fact_name(key: str) -> str:
    return "BOS prepended" if key == "prepend_bos" else key.replace("_", " ")


def _fact(key: str, item: object) -> str:
    if key == "prepend_bos" or isinstance(item, bool | np.bool_):
        return "yes" if item else "no"
    if isinstance(item, np.ndarray):
        return ", ".join(map(str, item.tolist()))
    return visible(str(item)) if key in ("correct", "wrong") else str(item)


def _data(effects: "xarray.Dataset", views: list[View]) -> str:
    listed = [_view_data(effects, shown) for shown in views]
    written = json.dumps({"views": listed}, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _view_data(effects: "xarray.Dataset", shown: View) -> dict[str, object]:
    every = lambda pick: [number_or_none(v) for panel in shown.panels for v in pick(panel).ravel()]
    values = every(lambda panel: panel.values)
    by_prompt = None
    if _kept_prompts(effects):
        kept = [p.by_prompt.reshape(-1, p.by_prompt.shape[-1]) for p in shown.panels if p.by_prompt is not None]
        by_prompt = [[number_or_none(v) for v in line] for line in np.concatenate(kept)]
    return {
        "metric": shown.metric,
        "value": shown.value,
        "unit": shown.metric_unit,
        "base": number_or_none(shown.base),
        "source": number_or_none(shown.source),
        "names": [name for panel in shown.panels for line in panel.cells for name in line],
        "values": values,
        "effects": every(lambda panel: panel.effects),
        "normalized": every(lambda panel: panel.normalized),
        "perUnit": every(lambda panel: panel.per_unit(shown)),
        "byPrompt": by_prompt,
        "top": max(range(len(values)), key=lambda i: abs(values[i] or 0.0)),
    }


def number_or_none(value: float) -> float | None:
    """Five significant digits, as JSON has them."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
