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
    if isinstance(over, str):
        over = [name.strip() for name in over.split(",") if name.strip()]
    axes = dict(over) if isinstance(over, Mapping) else dict.fromkeys(over)
    unknown = [axis for axis in axes if axis not in patching.AXES]
    if unknown or not axes or {"position", "role"} <= set(axes):
        raise InputError(f"over={over!r}: legal are {', '.join(patching.AXES)}, and position or role, not both.")
    found = {
        name: {axis: values for axis, values in axes.items() if has_axis(axis, shape)} for name, shape in shapes.items()
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


def has_axis(axis: str, shape: SiteShape) -> bool:
    """Whether a site has an axis of cells."""
    if axis == "layer":
        return shape.n_layers is not None
    if axis == "feature":
        return shape.axes[-1] not in "BTSHK"
    return any(letter in shape.axes for letter in ("HK" if axis == "head" else "T"))


def check_single(cells: patching.Cells, audit: int) -> None:
    """Refuses blocks where cells are to be audited one by one."""
    blocks = [axis for axis, _ in cells.axes if indices(cells, axis).shape[-1] > 1]
    if blocks:
        raise InputError(
            f"audit={audit}: over has blocks of several {', '.join(blocks)} indices; an audit needs a single "
            f"{' and '.join(blocks)} a cell."
        )


def gather(products: np.ndarray, letters: str, cells: patching.Cells, real: np.ndarray) -> np.ndarray:
    """The score of each cell for each prompt, [n, B]; NaN where a prompt does not have the position.

    Args:
        products: with the axes `letters`, B first, then one for each axis of the cells; rows along T.
        letters: such as "BLHT".
        cells: from `make_cells`. A cell of several indices is the sum over all their combinations.
        real: True at real tokens [B, T].
    """
    n, n_prompts, m = len(cells), len(real), len(letters) - 1
    there = np.ones((n, n_prompts), bool)
    index: list[Any] = [np.arange(n_prompts).reshape(1, n_prompts, *(1,) * m)]
    once: Any = True
    for axis, (name, _) in enumerate(cells.axes):
        which = indices(cells, name)  # [n, 1 or B, k]
        fresh = ~((which[..., :, None] == which[..., None, :]) & np.tri(which.shape[-1], k=-1, dtype=bool)).any(-1)
        if name in ("position", "role"):
            which, has = _rows(which, real)
            there &= has
        shape = [*which.shape[:2], *(which.shape[2] if i == axis else 1 for i in range(m))]
        index.append(which.reshape(shape))
        once = once & fresh.reshape(*fresh.shape[:2], *shape[2:])  # a repeated index adds nothing
    picked = np.where(once, products[tuple(index)], 0.0).sum(tuple(range(2, 2 + m)))
    return np.where(there, picked, np.nan).astype(np.float32)


def indices(cells: patching.Cells, axis: str) -> np.ndarray:
    """The indices of each cell along an axis, [n, 1 or B, k]."""
    which = np.asarray(cells.parts[0]["position" if axis == "role" else axis])
    return which if which.ndim == 3 else which[:, None, :]


def _rows(position: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows [n, B, k] of absolute positions, and whether all of them are there, [n, B]."""
    length = real.sum(1)
    row_of = np.argsort(~real, axis=1, kind="stable")  # by prompt: its real rows in order, then padding
    position = np.broadcast_to(position, (position.shape[0], len(real), position.shape[2]))
    has = position < length[None, :, None]
    rows = row_of[np.arange(len(real))[None, :, None], np.where(has, position, 0)]
    return rows, has.all(-1)
