"""The cells of a sweep by the size of their effect."""

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from jaxinterp.viz._labels import along_cell, by_cell, cell_name, coordinate
from jaxinterp.viz._views import one_metric

if TYPE_CHECKING:
    import xarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankedCell:
    """One cell of a sweep in the ranking by absolute effect.

    Attributes:
        cell: its name, such as "L3.H5".
        where: its coordinates; of a listed cell its number and the texts that say what it is.
        effect: in the metric's unit.
        normalized: a fraction; NaN where it is undefined.
        agreement: for how many prompts the effect has this sign; None where the sweep did not keep them.
        n_prompts: of how many prompts that have the place.
        low, high: the 95 % bootstrap interval of the effect; None where the sweep did not keep it.
        outside_null: whether |effect| is above the largest |effect| of any draw of the null at any cell (see `plot`);
            None where the sweep has no null.
    """

    cell: str
    where: dict[str, int | str]
    effect: float
    normalized: float
    agreement: int | None
    n_prompts: int | None
    low: float | None = None
    high: float | None = None
    outside_null: bool | None = None


def ranked(effects: "xarray.Dataset", *, k: int = 10, metric: str | None = None) -> list[RankedCell]:
    """The cells with the largest effects, by absolute value.

    Args:
        effects: what `patching.sweep` returns.
        k: how many.
        metric: which one, where there are several (default: the first).

    Returns:
        At most `k` rows, the largest first; cells whose effect is not a number come last.

    Example:
        >>> import numpy as np, xarray as xr
        >>> effects = xr.Dataset(
        ...     {"effect": (("layer", "head"), np.array([[0.1, -2.0], [0.5, 0.0]]))},
        ...     coords={"layer": [0, 1], "head": [0, 1]},
        ... )
        >>> [(row.cell, row.effect) for row in ranked(effects, k=2)]
        [('L0.H1', -2.0), ('L1.H0', 0.5)]
    """
    _, one = one_metric(effects, metric)
    values = np.asarray(one["effect"].values, dtype=np.float64)
    normalized = np.asarray(one["normalized"].values) if "normalized" in one else np.full(values.shape, math.nan)
    dims = [str(dim) for dim in one["effect"].dims]
    single = by_cell(one, "effect_by_prompt", dims, "prompt")
    low, high, null = by_cell(one, "low", dims), by_cell(one, "high", dims), by_cell(one, "null", dims, "draw")
    bound = None if null is None or not np.isfinite(null).any() else float(np.nanmax(np.abs(null)))
    size = np.where(np.isfinite(values), np.abs(values), -1.0)
    order = np.argsort(-size.ravel(), kind="stable")[: max(k, 0)]
    rows = []
    for flat in order:
        index = tuple(int(i) for i in np.unravel_index(flat, values.shape))
        there = None if single is None else single[index][np.isfinite(single[index])]
        rows.append(
            RankedCell(
                cell=cell_name(one, dims, index),
                where=_where(one, dims, index),
                effect=float(values[index]),
                normalized=float(normalized[index]),
                agreement=None if there is None else int((np.sign(there) == np.sign(values[index])).sum()),
                n_prompts=None if there is None else len(there),
                low=None if low is None else float(low[index]),
                high=None if high is None else float(high[index]),
                outside_null=None if bound is None else bool(abs(values[index]) > bound),
            )
        )
    return rows


def _where(one: "xarray.Dataset", dims: list[str], index: tuple[int, ...]) -> dict[str, int | str]:
    found = {dim: coordinate(one, dim, i) for dim, i in zip(dims, index, strict=True)}
    return found | along_cell(one, index[dims.index("cell")]) if "cell" in dims else found
