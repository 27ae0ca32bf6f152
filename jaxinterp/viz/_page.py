"""A sweep as one HTML page that needs nothing else: no network, no library, a few kilobytes of script of its own."""

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinterp.viz._attention import checked_patterns
from jaxinterp.viz._html import number_or_none, provenance_html, write_page
from jaxinterp.viz._labels import words
from jaxinterp.viz._panels import Value
from jaxinterp.viz._sections import attention_html, baselines_html, null_html, prompts_html, table_html
from jaxinterp.viz._svg import panel_svg, scale_svg
from jaxinterp.viz._views import View, metric_names, one_metric, view

if TYPE_CHECKING:
    import xarray

_MOST_PROMPT_VALUES = 200_000


def sweep_page(
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
    both baselines and where the patched runs land between them; single prompts and intervals, where the sweep kept them
    (`keep=("prompts", "interval")`); the effects against a null distribution, where there is one (cells inside it are
    small, see `plot`); attention patterns, where they are given; and where the numbers come from. It follows the
    reader's light or dark setting.

    Args:
        effects: what `patching.sweep` returns.
        path: the file to write (whole or not at all).
        title: heading (default: the metric and the site).
        notes: paragraphs of text above the figure.
        prompts: (base, source) texts, shown as a list and as names of the single prompts.
        patterns: attention probabilities [T, T] by title, for `tokens`.
        tokens: the T tokens as text.
        provenance: further facts (model, revision, ...) beside those that the dataset carries in its attributes.
        command: the command that makes the result again.

    Returns:
        The path.

    Raises:
        InputError: effects that are not a sweep's, or patterns that do not fit the tokens.
        SaveError: the file could not be written.

    Example:
        >>> import numpy as np, tempfile, xarray as xr
        >>> effects = xr.Dataset(
        ...     {"effect": (("layer", "head"), np.array([[0.1, -2.0], [0.5, 0.0]]))},
        ...     coords={"layer": [0, 1], "head": [0, 1]},
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = sweep_page(effects, folder + "/effects.html", title="Heads")
        ...     path.name, "<h1>Heads</h1>" in path.read_text()
        ('effects.html', True)
    """
    views = _views(effects)
    squares = checked_patterns(patterns, tokens) if patterns else {}
    heading = title or views[0].title
    body = [
        f"<header><h1>{escape(heading)}</h1><p class='soft'>{escape(_under(views[0], title))}</p></header>",
        *(f'<p class="lede">{escape(note)}</p>' for note in notes),
        _tools(views, prompts, effects),
        *(_view_html(effects, shown, i) for i, shown in enumerate(views)),
        baselines_html(views),
        null_html(effects, views),
        attention_html(squares, list(tokens)),
        prompts_html(prompts, effects),
        provenance_html({str(key): item for key, item in effects.attrs.items()} | dict(provenance or {}), command),
    ]
    data = {"views": _data(effects, views)}
    return write_page(path, heading=heading, body=body, data=data, styles=["page.css"], scripts=["page.js"])


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
    many = len(shown.panels[0].columns) > (8 if shown.panels[0].is_bars else 16)
    wide = " wide" if len(drawings) > 1 or many else ""
    return (
        f'<section class="view{" on" if index == 0 else ""}{wide}" data-view="{index}"><div><div class="drawing">'
        f'<div class="panels">{"".join(drawings)}</div>{scale_svg(shown)}</div></div>'
        f'<div><div class="reading" aria-live="polite"></div>{table_html(effects, shown, _kept_prompts(effects) > 0)}'
        "</div></section>"
    )


def _data(effects: "xarray.Dataset", views: list[View]) -> list[dict[str, object]]:
    """The views' numbers; what the second view of a metric has in common with the first is there only once."""
    listed, first = [], {}
    for i, shown in enumerate(views):
        one = _view_data(shown)
        if shown.metric in first:
            one["sameAs"] = first[shown.metric]
        else:
            first[shown.metric] = i
            one |= _details(effects, shown)
        listed.append(one)
    return listed


def _view_data(shown: View) -> dict[str, object]:
    every = lambda pick: [number_or_none(v) for panel in shown.panels for v in pick(panel).ravel()]
    values = every(lambda panel: panel.values)
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
        "perUnit": every(lambda panel: panel.per_unit),
        "top": max(range(len(values)), key=lambda i: abs(values[i] or 0.0)),
    }


def _details(effects: "xarray.Dataset", shown: View) -> dict[str, Any]:
    """Single prompts, intervals and null effects of each cell, in the metric's unit; null where the sweep has none."""
    _, one = one_metric(effects, shown.metric)
    names: tuple[str, ...] = ("byPrompt", "baseByPrompt", "sourceByPrompt", "low", "high", "nulls", "inside")
    details: dict[str, Any] = dict.fromkeys(names)
    if _kept_prompts(effects):
        details["byPrompt"] = _lines([panel.by_prompt for panel in shown.panels])
        for name in ("base", "source"):
            if f"{name}_by_prompt" in one:
                ends = np.asarray(one[f"{name}_by_prompt"].values, dtype=np.float64)
                details[f"{name}ByPrompt"] = [number_or_none(v) for v in ends.reshape(-1, ends.shape[-1])[0]]
    for name in ("low", "high"):
        ends = [getattr(panel, name) for panel in shown.panels]
        if ends[0] is not None:
            details[name] = [number_or_none(v) for end in ends for v in end.ravel()]
    if shown.null is not None:
        nulls = [panel.null for panel in shown.panels if panel.null is not None]
        if sum(null.size for null in nulls) > _MOST_PROMPT_VALUES:  # the ends of their range are enough
            nulls = [np.stack([null.min(-1), null.max(-1)], -1) for null in nulls]
        details["nulls"] = _lines(nulls)
        details["inside"] = [int(v) for panel in shown.panels for v in shown.inside(panel).ravel()]
        details["draws"] = shown.null.draws
    return details


def _lines(arrays: Sequence[np.ndarray | None]) -> list[list[float | None]]:
    kept = np.concatenate([a.reshape(-1, a.shape[-1]) for a in arrays if a is not None])
    return [[number_or_none(v) for v in line] for line in kept]
