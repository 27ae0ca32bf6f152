"""The sweep: a named result from named axes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError
from jaxinterp._typing import Array, ArrayLike, Params
from jaxinterp.models import Model, check_tokens, token_positions
from jaxinterp.patching._cells import Cells, make_cells
from jaxinterp.patching._engine import Forward, read, run_cells, site_table
from jaxinterp.patching._metrics import Metric
from jaxinterp.patching._result import dataset, exists
from jaxinterp.tap import Handler, SiteShape, capture, patch, run

if TYPE_CHECKING:
    import xarray as xr


def sweep(
    model: Forward,
    params: Params,
    *,
    base: Any,
    source: Any = None,
    site: str,
    over: Any,
    metric: Any,
    op: Callable[..., Handler] = patch,
    mask: ArrayLike | None = None,
    roles: Mapping[str, Any] | None = None,
    keep: Sequence[str] = (),
    tokenizer: Any = None,
    provenance: Mapping[str, Any] | None = None,
    memory: int | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Edits one place at a time and measures what it does: activation patching and ablation.

    Every cell is a run on `base` with the edit `op` at one layer, head, position, ... With `op=patch` (the default) the edit puts
    in what `source` has at that place: denoising is base = corrupt, source = clean; noising the other way. All cells run in one
    compiled program, in chunks that fit into memory.

    Args:
        model: a `Model`, or a function `(params, tokens, *, tap) -> logits [B, T, V]`.
        params: its parameters.
        base: prompts, int32 [B, T].
        source: the prompts to patch from, aligned with `base`; only needed by `op=patch`, and for the normalized effect.
        site: which value to edit (`jaxinterp.sites` lists them).
        over: the axes, "layer,head", or a mapping from axis to the values wanted (None: all). Legal axes: layer, head, position,
            role, feature. An axis that is left out is edited as a whole.
        metric: what to measure, or several by name.
        op: makes the edit from `(site, **where)`: `patch`, `zero`, `mean`, `functools.partial(add, value=v)`, ...
        mask: True at real tokens [B, T], where prompts are padded.
        roles: absolute positions [B] by name, for the axis role.
        keep: "prompts" for effects by prompt, "logits" for the logits that the metrics read (other metrics then need no rerun).
        tokenizer: with `str_tokens(ids)` and `bos_id`; adds the text of the longest base prompt's tokens as a coordinate of
            position, and records whether the prompts begin with BOS.
        provenance: recorded in the result's attributes: `lm.source`, say.
        memory: bytes that a chunk of cells may take; None: a quarter of what the device has free.
        progress: whether to show a bar.

    Returns:
        An `xarray.Dataset` with the axes of `over` (and metric, prompt, answer):
        effect: patched - base, in the metric's unit, the mean over prompts that have the place;
        normalized: (patched - base) / (source - base) of the means: 1 restores the source's value, 0 does nothing;
        base, source: the metric of the two runs;
        effect_by_prompt [..., prompt], logits [..., prompt, answer] as asked by `keep`.

    Raises:
        InputError: shapes, axes or a `keep` that are not legal; metrics that are not finite.
        SiteIndexError: values of an axis out of range.
        UnvisitedSiteError: the model has no such site.

    Source: Vig et al. 2020 (arXiv 2004.12265); Heimersheim and Nanda 2024 (arXiv 2404.15255) for the two directions.
    """
    metrics = _metrics(metric)
    base, source, mask = _prompts(model, base, source, mask, metrics, keep)
    shape = site_table(model, params, base)[site]
    cells = make_cells(over, shape=shape, roles=roles)
    edit = _edit(model, params, source, mask, shape, op)
    measured = tuple(metrics.values())
    baseline = np.asarray(_measure(model, params, base, mask, measured))
    target = None if source is None else np.asarray(_measure(model, params, source, mask, measured))
    _check_finite(baseline, metrics, "base")
    if target is not None:
        _check_finite(target, metrics, "source")
    with _bar(len(cells), site, progress) as advance:
        values, logits = run_cells(
            model,
            params,
            base,
            cells,
            op=edit,
            metrics=measured,
            mask=mask,
            memory=memory,
            keep_logits="logits" in keep,
            advance=advance,
        )
    there = exists(cells, base, mask)
    _check_finite(np.where(there[:, None], values, 0.0), metrics, "patched")
    about = {"site": site, "op": _op_name(op), **(provenance or {}), **_bos(tokenizer, base, mask)}
    return dataset(
        cells, metrics, values, logits, baseline, target, there, keep, _texts(tokenizer, base, mask, cells), about
    )


def _metrics(metric: Any) -> dict[str, Metric]:
    metrics = (
        {metric.name: metric} if isinstance(metric, Metric) else dict(metric) if isinstance(metric, Mapping) else {}
    )
    if not metrics or not all(isinstance(m, Metric) for m in metrics.values()):
        raise InputError(
            f"metric={metric!r}: give a metric, such as jaxinterp.patching.logit_difference(correct, wrong, position), or a "
            "mapping from names to metrics."
        )
    return metrics


def _prompts(
    model: Forward, base: Any, source: Any, mask: Any, metrics: Mapping[str, Metric], keep: Sequence[str]
) -> tuple[Array, Array | None, Array | None]:
    """The prompts as arrays, checked against each other and against what the metrics read."""
    unknown = set(keep) - {"prompts", "logits"}
    if unknown:
        raise InputError(f"keep={tuple(keep)}: legal are 'prompts' and 'logits'.")
    base = _tokens(base, "base")
    source = None if source is None else _tokens(source, "source")
    mask = None if mask is None else jnp.asarray(mask, bool)
    if source is not None and source.shape != base.shape:
        raise InputError(
            f"base has shape {list(base.shape)} and source {list(source.shape)}. A patch puts the source's value at the "
            "same place, so both need the same prompts in the same number of tokens: align them, or group prompts by length."
        )
    if isinstance(model, Model):
        for tokens in (base, source):
            if tokens is not None:
                check_tokens(model.config, tokens, mask)
    length = np.asarray(jnp.broadcast_to(jnp.max(token_positions(base, mask, None), 1) + 1, (base.shape[0],)))
    for name, m in metrics.items():
        rows = np.asarray(m.positions)
        if rows.shape[0] != base.shape[0]:
            raise InputError(f"metric {name!r} is for {rows.shape[0]} prompts, base has {base.shape[0]}.")
        if (rows < 0).any() or (rows >= length[:, None]).any():
            wrong = sorted({int(i) for i in np.where(((rows < 0) | (rows >= length[:, None])).any(1))[0]})
            raise InputError(
                f"metric {name!r} reads positions outside prompts {wrong[:10]}, whose lengths are {length[wrong[:10]].tolist()}."
            )
        if isinstance(model, Model) and m.tokens is not None and int(np.max(m.tokens)) >= model.config.outputs:
            raise InputError(
                f"metric {name!r} reads token {int(np.max(m.tokens))}; the model has {model.config.outputs} outputs."
            )
    return base, source, mask


def _tokens(tokens: Any, what: str) -> Array:
    array = (
        tokens if hasattr(tokens, "dtype") else np.asarray(tokens, dtype=None if _is_rectangular(tokens) else object)
    )
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        raise InputError(
            f"{what} is not an array of token ids [batch, position], but {type(tokens).__name__} of {array.dtype}"
            f"{list(array.shape)}. Encode texts first (lm.encode(texts), jaxinterp.tasks.pairs_from_text); prompts of different "
            "lengths need padding and a mask (lm.encode_padded)."
        )
    return jnp.asarray(array)


def _is_rectangular(rows: Any) -> bool:
    return not isinstance(rows, (list, tuple)) or len({np.size(row) for row in rows}) <= 1


def _edit(
    model: Forward,
    params: Params,
    source: Array | None,
    mask: Array | None,
    shape: SiteShape,
    op: Callable[..., Handler],
) -> Handler:
    """The edit without a place. A patch gets what the source run has at the site."""
    if op is not patch:
        made = op(shape.name)
        if not isinstance(made, Handler):
            raise InputError(
                f"op={op!r} made {made!r} from a site; give patch, zero, mean or functools.partial(add, value=...), ..."
            )
        return made
    if source is None:
        raise InputError("op=patch needs source, the prompts to patch from. (For ablations: op=zero, op=mean.)")
    acts = _captured(model, shape.name, params, source, mask)
    return patch(shape.name, acts) if shape.n_layers is None else patch(shape.name, per_layer=acts)


@functools.partial(jax.jit, static_argnames="model")
def _measure(model: Forward, params: Params, tokens: Array, mask: Array | None, metrics: tuple[Metric, ...]) -> Array:
    return read(model, params, tokens, metrics, mask=mask)[0]


@functools.partial(jax.jit, static_argnames=("model", "site"))
def _captured(model: Forward, site: str, params: Params, tokens: Array, mask: Array | None) -> Array:
    if isinstance(model, Model):
        return run(model.forward, capture(site))(params, tokens, mask=mask)[1][site]
    return run(model, capture(site))(params, tokens)[1][site]


def _check_finite(values: np.ndarray, metrics: Mapping[str, Metric], what: str) -> None:
    for name, row in zip(metrics, np.moveaxis(values, -2, 0), strict=True):
        if not np.isfinite(row).all():
            raise InputError(
                f"metric {name!r} of the {what} run is not finite ({np.isnan(row).sum()} NaN, {np.isinf(row).sum()} infinite of "
                f"{row.size}). Are there NaN in the weights, token ids outside the vocabulary, or "
                "answers of probability 0?"
            )


def _op_name(op: Any) -> str:
    return getattr(op, "__name__", None) or getattr(getattr(op, "func", None), "__name__", repr(op))


def _bos(tokenizer: Any, base: Array, mask: Array | None) -> dict[str, bool]:
    """Whether the prompts begin with BOS, read off the prompts themselves."""
    bos = getattr(tokenizer, "bos_id", None)
    if bos is None:
        return {}
    first = np.zeros(len(base), int) if mask is None else np.asarray(mask).argmax(1)
    return {"prepend_bos": bool((np.asarray(base)[np.arange(len(base)), first] == bos).all())}


def _texts(tokenizer: Any, base: Array, mask: Array | None, cells: Cells) -> list[str] | None:
    """The tokens of the longest prompt (the first of several) at the positions of the cells."""
    axes = [a for a, _ in cells.axes]
    if tokenizer is None or "position" not in axes:
        return None
    real = np.ones(base.shape, bool) if mask is None else np.asarray(mask)
    longest = int(real.sum(1).argmax())
    texts = tokenizer.str_tokens(np.asarray(base)[longest][real[longest]].tolist())
    return [texts[i] if i < len(texts) else "" for i in cells.labels[axes.index("position")]]


@contextlib.contextmanager
def _bar(total: int, site: str, progress: bool) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal's error stream; gives a function to call with the number of cells that finished."""
    if not progress:
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(f"sweep {site}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("sweep", total=total)
        yield lambda n: shown.advance(task, n)
