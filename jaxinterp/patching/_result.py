"""The result of a sweep: named axes, effects, baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxinterp._version import __version__
from jaxinterp.patching._about import bos_facts, token_texts
from jaxinterp.patching._cells import coordinates, is_list
from jaxinterp.patching._metrics import Metric, recovered_fraction
from jaxinterp.patching._prepare import Prepared

if TYPE_CHECKING:
    import xarray as xr


def named_result(
    todo: Prepared,
    effects: np.ndarray,
    *,
    base: np.ndarray,
    source: np.ndarray | None,
    site: str | None,
    op: str,
    over: Any,
    keep: Sequence[str] = (),
    logits: Sequence[np.ndarray] = (),
    tokenizer: Any = None,
    provenance: Mapping[str, Any] | None = None,
    seed: int = 0,
    more: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Names the effects of prepared cells: axes, labels, the two runs, attributes. The last step of `sweep`.

    Args:
        todo: what was run, from `prepare`.
        effects: patched - base, [n, M, B] for n cells, M metrics and B prompts, in the metrics' units; of a null distribution the
            n of each draw follow. What stands where a prompt does not have the place does not count.
        base, source: the metrics of the two runs [M, B]; without a source there is no normalized effect.
        site, op, over: what the caller named them, for coordinates and attributes.
        keep: "prompts", "interval"; see `sweep`.
        logits: of each metric [n, B, P, tokens]; empty if not kept.
        tokenizer, provenance: as in `sweep`.
        seed: of the bootstrap.
        more: further attributes.

    Returns:
        The `xarray.Dataset` that `sweep` describes.

    Example:
        >>> import jax, numpy as np, jaxinterp as ji
        >>> config = ji.TransformerConfig(n_layers=2, d_model=8, n_ctx=8, n_heads=2, d_head=4, d_vocab=5, d_mlp=8)
        >>> model = ji.Model(config=config)
        >>> todo = ji.patching.prepare(
        ...     model, model.param_shapes(), base=[[1, 2, 3]], source=[[1, 4, 3]], site="mlp.out", over="layer",
        ...     metric=ji.patching.logit_difference([2], [4], [2]))
        >>> named = ji.patching.named_result(
        ...     todo, np.float32([[[0.5]], [[1.0]]]), base=np.float32([[1.0]]), source=np.float32([[3.0]]),
        ...     site="mlp.out", op="guess", over="layer")
        >>> named.normalized.values
        array([0.25, 0.5 ], dtype=float32)
    """
    import xarray as xr

    cells, metrics, there = todo.cells, todo.metrics, todo.there
    axes = [axis for axis, _ in cells.axes]
    several = len(metrics) > 1
    lead = ["metric"] if several else []

    def spread(a: np.ndarray) -> np.ndarray:
        """[n, M, ...] to [M, *axes, ...], without M where there is one metric."""
        a = np.moveaxis(a.reshape(*cells.shape, *a.shape[1:]), len(axes), 0)
        return a if several else a[0]

    every = np.where(there[:, None], effects.reshape(-1, len(cells), *effects.shape[1:]), np.nan)
    by_prompt = every[0].astype(np.float32)
    data: dict[str, Any] = {"effect": (lead + axes, spread(_means(by_prompt, there)))}
    data["base"] = (lead, base.mean(1) if several else base.mean())
    if source is not None:
        ends = [_means(run[None], there) for run in (base, source)]
        data["normalized"] = (lead + axes, spread(recovered_fraction(_means(by_prompt + base, there), *ends)))
        data["source"] = (lead, source.mean(1) if several else source.mean())
    if todo.n_draws:
        null = np.stack([spread(_means(draw, there)) for draw in every[1:]])
        data["null"] = (["draw", *lead, *axes], null)
    if "interval" in keep:
        low, high = _intervals(by_prompt, there, seed)
        data["low"], data["high"] = (lead + axes, spread(low)), (lead + axes, spread(high))
    if "prompts" in keep:
        data["effect_by_prompt"] = ([*lead, *axes, "prompt"], spread(by_prompt))
        data["base_by_prompt"] = ([*lead, "prompt"], base if several else base[0])
        if source is not None:
            data["source_by_prompt"] = ([*lead, "prompt"], source if several else source[0])
    data |= _kept_logits(logits, metrics, axes, cells.shape)
    facts = {"site": site or "listed", "op": op, **(provenance or {}), **bos_facts(tokenizer, todo.base, todo.mask)}
    return xr.Dataset(data, _coordinates(todo, site, over, tokenizer), _attributes(todo, {**facts, **(more or {})}))


def _coordinates(todo: Prepared, site: str | None, over: Any, tokenizer: Any) -> dict[str, Any]:
    """Labels of the axes; what listed cells are; names of several metrics; the tokens at the positions."""
    cells, texts = todo.cells, token_texts(tokenizer, todo)
    coords: dict[str, Any] = {axis: np.asarray(of) for (axis, _), of in zip(cells.axes, cells.labels, strict=True)}
    if is_list(over):
        coords |= {name: ("cell", np.asarray(values)) for name, values in coordinates(over, site).items()}
    if len(todo.metrics) > 1:
        coords["metric"] = list(todo.metrics)
    if texts is not None:
        coords["token"] = ("position", texts)
    return coords


def _kept_logits(
    logits: Sequence[np.ndarray], metrics: Mapping[str, Metric], over: list[str], shape: tuple[int, ...]
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


def _attributes(todo: Prepared, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the numbers are and who made them, and further facts where there are any."""
    about = {
        "n_prompts": len(todo.base),
        "metric": ", ".join(todo.metrics),
        "unit": ", ".join(m.unit for m in todo.metrics.values()),
        "jaxinterp": __version__,
        "jax": jax.__version__,
    }
    return {**about, **{key: _plain(value) for key, value in facts.items() if value is not None}}


def _plain(value: Any) -> Any:
    """A value that netCDF attributes can hold."""
    if isinstance(value, bool):
        return int(value)
    return value if isinstance(value, (str, int, float)) else repr(value)
