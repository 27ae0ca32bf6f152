"""How the training of dictionaries went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinterp._errors import InputError
from jaxinterp.viz._style import LINE, SOFT, colormap, drawable, look, new_figure

if TYPE_CHECKING:
    import matplotlib.figure

_PANELS = (
    ("loss", "loss"), ("fvu", "FVU (fraction of variance unexplained)"), ("l0", "L0 (active latents of a row)"),
    ("dead", "dead latents (share)"),
)  # fmt: skip
_COLORS = ("#0d4a7a", "#2f9c95", "#d9a441", "#b3392b")
_LEGEND = 10
"""So many lines are told by name; more by their order from dark blue to red."""


def plot_training(
    rows: Sequence[Mapping[str, Any]], *, labels: Sequence[str] | None = None, size: str = ""
) -> matplotlib.figure.Figure:
    """Draws loss, FVU, L0 and dead share against the step, one line for each dictionary of the run.

    Args:
        rows: of `saes.read_metrics`; those of an ensemble hold a number for each member.
        labels: of the members; None: their numbers.
        size: what all have in common, for the title.

    Returns:
        A figure; it is not registered with pyplot.

    Raises:
        InputError: no row; labels that are not as many as the members.

    Example:
        >>> row = {"step": 1, "loss": 1.0, "fvu": 0.9, "l0": 4.0, "dead": 0.0}
        >>> [axes.get_title("left") for axes in plot_training([row, row | {"step": 2, "fvu": 0.5}]).axes[2:]]
        ['L0 (active latents of a row)', 'dead latents (share)']
    """
    if not rows:
        raise InputError("there is no row of metrics to draw: a run writes one every `log_every` steps.")
    steps = [row["step"] for row in rows]
    table = {name: np.stack([np.atleast_1d(np.asarray(row[name], np.float64)) for row in rows]) for name, _ in _PANELS}
    members = table["loss"].shape[1]
    names = [str(i) for i in range(members)] if labels is None else [drawable(label) for label in labels]
    if len(names) != members:
        raise InputError(f"{len(names)} labels for {members} dictionaries: give one for each.")
    colors = colormap(_COLORS, "members")(np.linspace(0, 1, members) if members > 1 else [0.0])
    with look():
        figure = new_figure(8.4, 5.2)
        for axes, (name, label) in zip(figure.subplots(2, 2, sharex=True).flat, _PANELS, strict=True):
            for values, color, member in zip(table[name].T, colors, names, strict=True):
                axes.plot(steps, values, color=color, linewidth=1.3, marker="." if len(rows) == 1 else "", label=member)
            axes.set_title(label, loc="left", fontsize=9)
            axes.grid(color=LINE, linewidth=0.5)
            axes.set_axisbelow(True)
            if name == "loss" and (table[name] > 0).all():
                axes.set_yscale("log")
            else:
                axes.set_ylim(bottom=min(0.0, float(np.nanmin(table[name], initial=0.0))))
        for axes in figure.axes[2:]:
            axes.set_xlabel("step")
        if 1 < members <= _LEGEND or labels is not None:
            figure.axes[1].legend(frameon=False, fontsize=8, ncols=1 + (members > 5))
        if size:
            figure.suptitle(drawable(size), x=0.02, ha="left", color=SOFT, fontsize=9)
    return figure
