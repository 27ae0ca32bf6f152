"""Attention patterns of a few heads as a figure."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinterp._errors import InputError
from jaxinterp.viz._labels import visible
from jaxinterp.viz._style import INK, SEQUENTIAL, SOFT, colormap, drawable, look, new_figure

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

_MOST_HEADS = 16


def attention(
    pattern: Any, tokens: Sequence[str], *, titles: Sequence[str] | None = None
) -> "matplotlib.figure.Figure":
    """Draws where each token looks: one square for each head, queries down, keys across.

    Args:
        pattern: probabilities [T, S], or [heads, T, S] (at most 16 heads), or a mapping from a title to [T, S].
        tokens: the T tokens as text.
        titles: a title for each head (default: their numbers).

    Returns:
        A figure, in one scale from 0 to 1.

    Raises:
        InputError: shapes that do not fit, values that are no probabilities, or too many heads.

    Example:
        >>> import numpy as np
        >>> figure = attention(np.eye(3), ["Once", " upon", " a"])
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['Once', '·upon', '·a']
    """
    panels = checked_patterns(pattern, tokens, titles)
    labels = [visible(token) for token in tokens]
    across = min(len(panels), 4 if len(tokens) <= 16 else 2)
    down = -(-len(panels) // across)
    side = float(np.clip(0.2 * len(labels), 1.5, 8.0 / across))
    margin = 0.2 + 0.062 * min(max(map(len, labels)), 24)
    with look():
        figure = new_figure(across * (side + 0.15) + margin + 1.0, down * (side + 0.4 + 0.35) + margin)
        grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, (title, one) in zip(grid.flat, panels.items(), strict=False):
            drawn = _square(axes, one, title)
        for axes in grid.flat[: len(panels)]:
            _token_ticks(axes, labels)
        bar = figure.colorbar(drawn, ax=list(grid.flat), fraction=0.05, pad=0.02, aspect=22, shrink=0.9)
        bar.set_label("attention probability", color=SOFT, size=8)
        bar.outline.set_visible(False)  # type: ignore[operator]
        figure.supxlabel("looks at (key)", fontsize=8, color=SOFT)
        figure.supylabel("token (query)", fontsize=8, color=SOFT)
    return figure


def checked_patterns(pattern: Any, tokens: Sequence[str], titles: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The patterns as one [T, T] array for each title, or an error that says what does not fit."""
    if isinstance(pattern, Mapping):
        if titles is not None:
            raise InputError("titles are given twice: the mapping's keys are the titles already.")
        panels = {str(title): np.asarray(one, dtype=np.float64) for title, one in pattern.items()}
    else:
        stacked = np.asarray(pattern, dtype=np.float64)
        stacked = stacked[None] if stacked.ndim == 2 else stacked
        if stacked.ndim != 3:
            raise InputError(
                f"pattern has shape {stacked.shape}; give [T, S] or [heads, T, S]: "
                "choose a layer and an example first, such as acts['attn.pattern'][layer, 0]."
            )
        names = [f"head {i}" for i in range(len(stacked))] if titles is None else list(titles)
        if len(names) != len(stacked):
            raise InputError(f"{len(names)} titles for {len(stacked)} heads.")
        panels = dict(zip(names, stacked, strict=True))
    if not 1 <= len(panels) <= _MOST_HEADS:
        raise InputError(f"{len(panels)} patterns; one figure holds 1 to {_MOST_HEADS}. Choose some of the heads.")
    n = len(tokens)
    for title, one in panels.items():
        if one.shape != (n, n):
            raise InputError(f"pattern {title!r} has shape {one.shape}, but there are {n} tokens: it needs ({n}, {n}).")
        if np.nanmin(one) < -1e-4 or np.nanmax(one) > 1 + 1e-4:
            raise InputError(
                f"pattern {title!r} reaches from {np.nanmin(one):.3g} to {np.nanmax(one):.3g}; probabilities lie in "
                "0..1. Capture 'attn.pattern', not 'attn.scores'."
            )
    return panels


def _square(axes: "matplotlib.axes.Axes", one: np.ndarray, title: str) -> Any:
    edges = np.arange(len(one) + 1) - 0.5
    shown = np.ma.masked_invalid(one)
    drawn = axes.pcolormesh(edges, edges, shown, vmin=0, vmax=1, cmap=colormap(SEQUENTIAL, "attention"),
                            edgecolors="white", linewidth=0.6)  # fmt: skip
    axes.set_ylim(len(one) - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.set_title(drawable(title), loc="left", fontsize=9, color=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return drawn


def _token_ticks(axes: "matplotlib.axes.Axes", labels: list[str]) -> None:
    step = -(-len(labels) // 40)
    at = list(range(0, len(labels), step))
    shown = [drawable(labels[i]) for i in at]
    axes.set_xticks(at, shown, rotation=60, ha="right", rotation_mode="anchor", fontsize=7)
    axes.set_yticks(at, shown, fontsize=7)
