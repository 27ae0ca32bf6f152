"""From products at every place to the score of each cell of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxinterp import patching
from jaxinterp._errors import InputError
from jaxinterp.tap import SiteShape


def axes_for(shapes: Mapping[str, SiteShape], over: Any, *, chosen: bool) -> dict[str, dict[str, Any]]:
    """For each site those of the axes that it has, in the order given.

    Args:
        shapes: sites by name.
        over: as in `sweep`.
        chosen: whether the caller named the axes, so that one that no site has is a fault.
    """
    axes = patching.parse_over(over)
    found = {
        name: {axis: values for axis, values in axes.items() if patching.axis_letter(axis, shape)}
        for name, shape in shapes.items()
    }
    lost = [axis for axis in axes if chosen and not any(axis in has for has in found.values())]
    bare = [name for name, has in found.items() if not has]
    if lost or bare:
        raise InputError(
            f"over={over!r}: "
            + (f"no site of {', '.join(shapes)} has the axis {', '.join(lost)}. " if lost else "")
            + (f"{', '.join(bare)} has none of the axes. " if bare else "")
            + "Name axes that the sites have, or other sites (jaxinterp.sites lists them)."
        )
    return found


def check_single(cells: patching.Cells, audit: int) -> None:
    """Refuses blocks where cells are to be audited one by one."""
    blocks = [axis for axis, _ in cells.axes if indices(cells, axis).shape[-1] > 1]
    if blocks:
        raise InputError(
            f"audit={audit}: over has blocks of several {', '.join(blocks)} indices; an audit needs a single "
            f"{' and '.join(blocks)} a cell."
        )


def gather(products: np.ndarray, todo: patching.Prepared) -> np.ndarray:
    """The score of each cell for each prompt, [n, B]; anything where a prompt does not have the position.

    Args:
        products: B first, then one axis for each axis of the cells; rows along T.
        todo: the cells. A cell of several indices is the sum over all their combinations.
    """
    cells, geometry = todo.cells, todo.jobs[0].geometry
    n_prompts, m = products.shape[0], products.ndim - 1
    index: list[Any] = [np.arange(n_prompts).reshape(1, n_prompts, *(1,) * m)]
    once: Any = True
    for axis, (name, _) in enumerate(cells.axes):
        which = indices(cells, name)  # [n, 1 or B, k]
        fresh = ~((which[..., :, None] == which[..., None, :]) & np.tri(which.shape[-1], k=-1, dtype=bool)).any(-1)
        if name in ("position", "role"):
            which = geometry.rows_at(which)
        shape = [*which.shape[:2], *(which.shape[2] if i == axis else 1 for i in range(m))]
        index.append(which.reshape(shape))
        once = once & fresh.reshape(*fresh.shape[:2], *shape[2:])  # a repeated index adds nothing
    return np.where(once, products[tuple(index)], 0.0).sum(tuple(range(2, 2 + m))).astype(np.float32)


def indices(cells: patching.Cells, axis: str) -> np.ndarray:
    """The indices of each cell along an axis, [n, 1 or B, k]."""
    which = np.asarray(cells.parts[0]["position" if axis == "role" else axis])
    return which if which.ndim == 3 else which[:, None, :]
