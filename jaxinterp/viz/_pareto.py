"""Error against sparsity for several kinds of dictionary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinterp._errors import InputError
from jaxinterp.viz._style import LINE, SOFT, drawable, look, new_figure

if TYPE_CHECKING:
    import matplotlib.figure

_LOOKS = (("#2673b4", "o"), ("#d4523a", "s"), ("#3f7d3a", "^"), ("#7a4a9e", "D"), ("#8a6d1d", "v"), ("#1f2328", "P"))
_TICKS = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000)


def plot_pareto(
    families: Mapping[str, Sequence[Any]], *, control: Mapping[str, Sequence[Any]] | None = None, size: str = ""
) -> matplotlib.figure.Figure:
    """Draws FVU against L0, one line for each family of dictionaries; lower and further left is better.

    Args:
        families: by name, dictionaries of different sparsity: `saes.Evaluation`s, or mappings with "l0" and "fvu". They should
            have been tuned with equal effort.
        control: the same of random dictionaries, drawn in gray.
        size: what all have in common, for the title.

    Returns:
        A figure; it is not registered with pyplot.

    Raises:
        InputError: no family, or more than can be told apart; a point that is not finite, or whose L0 is not above 0.

    Example:
        >>> figure = plot_pareto({"TopK": [{"l0": 4.0, "fvu": 0.2}, {"l0": 8.0, "fvu": 0.1}]})
        >>> figure.axes[0].get_ylabel()
        'FVU (fraction of variance unexplained)'
    """
    if not 1 <= len(families) <= len(_LOOKS):
        raise InputError(
            f"{len(families)} families: give 1 to {len(_LOOKS)}, which is what colors and markers tell apart."
        )
    points = {name: _points(name, rows) for name, rows in families.items()}
    gray = {name: _points(name, rows) for name, rows in (control or {}).items()}
    with look():
        figure = new_figure(5.2, 3.8)
        axes = figure.subplots()
        for name, table in gray.items():
            axes.plot(*table.T, color="#b4bcc5", marker=".", linestyle=":", linewidth=1.0, label=drawable(name))
        for (name, table), (color, marker) in zip(points.items(), _LOOKS, strict=False):
            axes.plot(*table.T, color=color, marker=marker, markersize=4.5, linewidth=1.4, label=drawable(name))
        axes.set_xscale("log")
        l0 = np.concatenate([*points.values(), *gray.values()])[:, 0]
        ticks = [t for t in _TICKS if 0.8 * l0.min() <= t <= 1.25 * l0.max()]
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0.0)
        axes.grid(color=LINE, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.set_xlabel("L0 (active latents of a row)")
        axes.set_ylabel("FVU (fraction of variance unexplained)")
        axes.legend(frameon=False, fontsize=8)
        if size:
            axes.set_title(drawable(size), loc="left", color=SOFT, fontsize=9)
    return figure


def _points(name: str, rows: Sequence[Any]) -> np.ndarray:
    """L0 and FVU in the order of L0, [n, 2]."""
    get = lambda row, key: row[key] if isinstance(row, Mapping) else getattr(row, key)
    table = np.array([[get(row, "l0"), get(row, "fvu")] for row in rows], np.float64).reshape(-1, 2)
    if not len(table) or not np.isfinite(table).all() or (table[:, 0] <= 0).any():
        raise InputError(
            f"{name!r} has the points (L0, FVU) {table.tolist()}: give at least one, finite, with an L0 above 0."
        )
    return table[np.argsort(table[:, 0])]
