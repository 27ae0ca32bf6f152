"""The scores of one site, named as a sweep names its effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxinterp import patching
from jaxinterp._typing import Array
from jaxinterp._version import __version__

if TYPE_CHECKING:
    import xarray as xr


def dataset(
    site: str,
    cells: patching.Cells,
    by_prompt: np.ndarray,
    values: Mapping[str, np.ndarray],
    metric: patching.Metric,
    keep: Sequence[str],
    texts: list[str] | None,
    about: Mapping[str, Any],
) -> xr.Dataset:
    """Names the scores [n, B] (NaN where a prompt does not have the place) as a sweep names its effects."""
    import xarray as xr

    there = np.isfinite(by_prompt)
    count = there.sum(1)

    def mean(x: np.ndarray) -> np.ndarray:
        total = np.where(there, x, 0.0).sum(1)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)

    over = [axis for axis, _ in cells.axes]
    score, base, source = mean(by_prompt), mean(values["base"][None]), mean(values["source"][None])
    fraction = patching.recovered_fraction(base + score, base, source)
    data: dict[str, Any] = {
        "score": (over, score.reshape(cells.shape)),
        "normalized": (over, fraction.astype(np.float32).reshape(cells.shape)),
        "base": ((), values["base"].mean()),
        "source": ((), values["source"].mean()),
    }
    if "prompts" in keep:
        data["score_by_prompt"] = ([*over, "prompt"], by_prompt.reshape(*cells.shape, -1))
    coords: dict[str, Any] = {axis: np.asarray(labels) for axis, labels in zip(over, cells.labels, strict=True)}
    if texts is not None:
        coords["token"] = ("position", texts)
    attrs = {
        "site": site, "op": "attribution patching", "metric": metric.name, "unit": metric.unit, "n_prompts": by_prompt.shape[1],
        "jaxinterp": __version__, "jax": jax.__version__,
    }  # fmt: skip
    plain = lambda v: int(v) if isinstance(v, bool) else v if isinstance(v, (str, int, float)) else repr(v)
    return xr.Dataset(data, coords, {**attrs, **{k: plain(v) for k, v in about.items() if v is not None}})


def bos(tokenizer: Any, base: Array, real: np.ndarray) -> dict[str, bool]:
    bos = getattr(tokenizer, "bos_id", None)
    if bos is None:
        return {}
    return {"prepend_bos": bool((np.asarray(base)[np.arange(len(real)), real.argmax(1)] == bos).all())}


def texts_of(tokenizer: Any, base: Array, real: np.ndarray, cells: patching.Cells) -> list[str] | None:
    """The tokens of the longest prompt at the positions of the cells."""
    axes = [a for a, _ in cells.axes]
    if tokenizer is None or "position" not in axes:
        return None
    longest = int(real.sum(1).argmax())
    texts = tokenizer.str_tokens(np.asarray(base)[longest][real[longest]].tolist())
    labels = cells.labels[axes.index("position")]
    return [texts[i] if isinstance(i, int) and i < len(texts) else "" for i in labels]
