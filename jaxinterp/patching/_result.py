"""The result of a sweep: named axes, effects, baselines."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxinterp._typing import Array
from jaxinterp._version import __version__
from jaxinterp.patching._cells import Cells
from jaxinterp.patching._metrics import Metric, recovered_fraction

if TYPE_CHECKING:
    import xarray as xr


def exists(cells: Cells, base: Array, mask: Array | None) -> np.ndarray:
    """[n, B]: whether a prompt has the position of a cell."""
    shape = (len(cells), base.shape[0])
    if cells.position is None or mask is None:
        return np.ones(shape, bool)
    length = np.asarray(mask).sum(1)
    position = np.asarray(cells.position)
    return np.broadcast_to(
        (position if position.ndim == 1 else position[:, :, 0]).reshape(len(cells), -1) < length[None], shape
    )


def dataset(
    cells: Cells,
    metrics: Mapping[str, Metric],
    values: np.ndarray,
    logits: list[np.ndarray],
    baseline: np.ndarray,
    target: np.ndarray | None,
    there: np.ndarray,
    keep: Sequence[str],
    texts: list[str] | None,
    about: Mapping[str, Any],
) -> xr.Dataset:
    """Names what `run_cells` returned.

    Args:
        cells: C of them.
        metrics: M by name.
        values: [C, M, B].
        logits: of each metric [C, B, P, n]; empty if not kept.
        baseline: of the base run [M, B].
        target: of the source run [M, B], or None.
        there: [C, B], from `exists`.
        keep: "prompts", "logits".
        texts: of the position axis, or None.
        about: attributes.
    """
    import xarray as xr

    over = [axis for axis, _ in cells.axes]
    several = len(metrics) > 1
    lead = ["metric"] if several else []

    def spread(a: np.ndarray) -> np.ndarray:
        """[n, M, ...] to [M, *over, ...], without M where there is one metric."""
        a = np.moveaxis(a.reshape(*cells.shape, *a.shape[1:]), len(over), 0)
        return a if several else a[0]

    by_prompt = np.where(there[:, None], values - baseline[None], np.nan)
    patched, base = _means(values, there), _means(baseline[None], there)
    data: dict[str, Any] = {"effect": (lead + over, spread(_means(by_prompt, there)))}
    data["base"] = (lead, baseline.mean(1) if several else baseline.mean())
    if target is not None:
        fraction = recovered_fraction(patched, base, _means(target[None], there))
        _warn_if_flat(baseline, target, metrics)
        data["normalized"] = (lead + over, spread(fraction))
        data["source"] = (lead, target.mean(1) if several else target.mean())
    if "prompts" in keep:
        data["effect_by_prompt"] = ([*lead, *over, "prompt"], spread(by_prompt))
        data["base_by_prompt"] = ([*lead, "prompt"], baseline if several else baseline[0])
        if target is not None:
            data["source_by_prompt"] = ([*lead, "prompt"], target if several else target[0])
    for (name, m), kept in zip(metrics.items(), logits, strict=False):
        tail = f"_{name}" if several else ""
        read = ["read" + tail] if kept.shape[2] > 1 else []  # the positions that are read, where they are several
        data["logits" + tail] = (
            [*over, "prompt", *read, "answer" + tail],
            (kept if read else kept[:, :, 0]).reshape(*cells.shape, *kept.shape[1 : 2 + len(read)], -1),
        )
        if m.tokens is not None:
            data["answer_token" + tail] = (["prompt", "answer" + tail], np.asarray(m.tokens))
    coords: dict[str, Any] = {axis: np.asarray(labels) for axis, labels in zip(over, cells.labels, strict=True)}
    if several:
        coords["metric"] = list(metrics)
    if texts is not None:
        coords["token"] = ("position", texts)
    attrs = {
        "n_prompts": baseline.shape[1],
        "metric": ", ".join(metrics),
        "unit": ", ".join(m.unit for m in metrics.values()),
    }
    return xr.Dataset(
        data, coords, {**attrs, **_versions(), **{k: _plain(v) for k, v in about.items() if v is not None}}
    )


def _means(x: np.ndarray, there: np.ndarray) -> np.ndarray:
    """[C, M] from [C or 1, M, B]: the mean over the prompts of each cell; NaN where there are none."""
    count = there.sum(1)[:, None]
    total = np.where(there[:, None], x, 0.0).sum(2)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _warn_if_flat(baseline: np.ndarray, target: np.ndarray, metrics: Mapping[str, Metric]) -> None:
    base, source = baseline.mean(1), target.mean(1)
    for name, undefined in zip(metrics, np.isnan(recovered_fraction(base, base, source)), strict=True):
        if undefined:
            warnings.warn(
                f"metric {name!r} is the same for base and source, so the normalized effect is undefined (NaN). "
                "The raw effect is there.",
                stacklevel=4,
            )


def _versions() -> dict[str, str]:
    return {"jaxinterp": __version__, "jax": jax.__version__}


def _plain(value: Any) -> Any:
    """A value that netCDF attributes can hold."""
    if isinstance(value, bool):
        return int(value)
    return value if isinstance(value, (str, int, float)) else repr(value)
