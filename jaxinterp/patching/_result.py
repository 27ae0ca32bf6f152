"""The result of a sweep: named axes, effects, baselines."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxinterp._version import __version__
from jaxinterp.patching._metrics import Metric, recovered_fraction
from jaxinterp.patching._prepare import Prepared
from jaxinterp.patching._run import Ends

if TYPE_CHECKING:
    import xarray as xr


def dataset(
    todo: Prepared,
    values: np.ndarray,
    logits: list[np.ndarray],
    ends: Ends,
    keep: Sequence[str],
    texts: list[str] | None,
    listed: Mapping[str, Any],
    about: Mapping[str, Any],
    seed: int,
) -> xr.Dataset:
    """Names what `run` returned.

    Args:
        todo: the sweep.
        values: [n (1 + draws), M, B].
        logits: of each metric [n, B, P, tokens]; empty if not kept.
        ends: the runs without edits.
        keep: "prompts", "interval", "logits".
        texts: of the position axis, or None.
        listed: what listed cells are, by name [n].
        about: attributes.
        seed: of the bootstrap.
    """
    import xarray as xr

    cells, metrics, there, target = todo.cells, todo.metrics, todo.there, ends.source
    over = [axis for axis, _ in cells.axes]
    several = len(metrics) > 1
    lead = ["metric"] if several else []

    def spread(a: np.ndarray) -> np.ndarray:
        """[n, M, ...] to [M, *over, ...], without M where there is one metric."""
        a = np.moveaxis(a.reshape(*cells.shape, *a.shape[1:]), len(over), 0)
        return a if several else a[0]

    n, baseline = len(cells), ends.base
    by_prompt = np.where(there[:, None], values[:n] - baseline[None], np.nan).astype(np.float32)
    data: dict[str, Any] = {"effect": (lead + over, spread(_means(by_prompt, there)))}
    data["base"] = (lead, baseline.mean(1) if several else baseline.mean())
    if target is not None:
        patched, base = _means(values[:n], there), _means(baseline[None], there)
        data["normalized"] = (lead + over, spread(recovered_fraction(patched, base, _means(target[None], there))))
        _warn_if_flat(baseline, target, metrics)
        data["source"] = (lead, target.mean(1) if several else target.mean())
    if todo.n_draws:
        draws = values[n:].reshape(todo.n_draws, n, *values.shape[1:]) - baseline
        null = np.stack([spread(_means(np.where(there[:, None], draw, np.nan), there)) for draw in draws])
        data["null"] = (["draw", *lead, *over], null.astype(np.float32))
    if "interval" in keep:
        low, high = _intervals(by_prompt, there, seed)
        data["low"], data["high"] = (lead + over, spread(low)), (lead + over, spread(high))
    if "prompts" in keep:
        data["effect_by_prompt"] = ([*lead, *over, "prompt"], spread(by_prompt))
        data["base_by_prompt"] = ([*lead, "prompt"], baseline if several else baseline[0])
        if target is not None:
            data["source_by_prompt"] = ([*lead, "prompt"], target if several else target[0])
    data |= _kept_logits(logits, metrics, over, cells.shape)
    coords: dict[str, Any] = {axis: np.asarray(labels) for axis, labels in zip(over, cells.labels, strict=True)}
    coords |= {name: ("cell", np.asarray(values)) for name, values in listed.items()}
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


def _kept_logits(
    logits: list[np.ndarray], metrics: Mapping[str, Metric], over: list[str], shape: tuple[int, ...]
) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for (name, m), kept in zip(metrics.items(), logits, strict=False):
        tail = f"_{name}" if len(metrics) > 1 else ""
        read = ["read" + tail] if kept.shape[2] > 1 else []  # the positions that are read, where they are several
        data["logits" + tail] = (
            [*over, "prompt", *read, "answer" + tail],
            (kept if read else kept[:, :, 0]).reshape(*shape, *kept.shape[1 : 2 + len(read)], -1),
        )
        if m.tokens is not None:
            data["answer_token" + tail] = (["prompt", "answer" + tail], np.asarray(m.tokens))
    return data


def _means(x: np.ndarray, there: np.ndarray) -> np.ndarray:
    """[C, M] from [C or 1, M, B]: the mean over the prompts of each cell; NaN where there are none."""
    count = there.sum(1)[:, None]
    total = np.where(there[:, None], x, 0.0).sum(2)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


_RESAMPLES = 1000


def _intervals(by_prompt: np.ndarray, there: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The ends [C, M] of 95 % percentile bootstrap intervals of the means over prompts.

    Source: Efron 1979, Annals of Statistics 7.
    """
    n_prompts = there.shape[1]
    drawn = np.random.default_rng(seed).multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), _RESAMPLES)
    weights = drawn.astype(np.float64).T  # [B, resamples]
    ends = np.full((2, *by_prompt.shape[:2]), np.nan, np.float32)
    for i, (effect, here) in enumerate(zip(by_prompt, there, strict=True)):
        count = here.astype(np.float64) @ weights
        total = np.where(here, effect, 0.0).astype(np.float64) @ weights
        if here.any():
            ends[:, i] = np.quantile(total[:, count > 0] / count[count > 0], [0.025, 0.975], axis=1)
    return ends[0], ends[1]


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
