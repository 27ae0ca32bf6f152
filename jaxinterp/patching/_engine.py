"""Running the cells of a sweep: arrays in, arrays out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError
from jaxinterp._typing import Array, Float, Params
from jaxinterp.models import Model, token_positions
from jaxinterp.nn import take_rows
from jaxinterp.patching._cells import Cells
from jaxinterp.patching._metrics import Metric
from jaxinterp.tap import IDENTITY, Handler, SiteTable, place, run, sites

Forward = Model | Callable[..., Array]
"""A `Model`, or a function `(params, tokens, *, tap) -> logits [B, T, V]`."""


def run_cells(
    model: Forward,
    params: Params,
    tokens: Array,
    cells: Cells,
    *,
    op: Handler,
    metrics: Sequence[Metric],
    mask: Array | None = None,
    memory: int | None = None,
    keep_logits: bool = False,
    advance: Callable[[int], None] = lambda cells: None,
) -> tuple[Float[np.ndarray, "n M B"], list[np.ndarray]]:
    """Metrics of the run with the edit `op` at each cell, as one compiled program called once for each chunk of cells.

    Args:
        model: a `Model`, or a function `(params, tokens, *, tap) -> logits`.
        params: its parameters.
        tokens: the base prompts, int32 [B, T].
        cells: from `make_cells`.
        op: an edit without a place, such as `patch("attn.z", per_layer=captured)` or `zero("mlp.out")`.
        metrics: M metrics.
        mask: True at real tokens [B, T], or None.
        memory: bytes that a chunk may take; None: a share of what the device has.
        keep_logits: also return the logits that the metrics read.
        advance: called with the number of cells of each finished chunk.

    Returns:
        Values [n, M, B], and the logits that each metric reads, [n, B, P, tokens] (an empty list unless asked for).
    """
    where = cells.where()
    chunk = chunk_size(model, params, tokens, len(cells), op=op, metrics=metrics, memory=memory)
    values, logits = [], []
    for start in range(0, len(cells), chunk):
        # The last chunk is filled up with its last cell: one shape, one compile.
        rows = np.minimum(np.arange(start, start + chunk), len(cells) - 1)
        part = {key: index[rows] for key, index in where.items()}
        got, kept = _chunk(model, params, tokens, mask, part, op, tuple(metrics), keep_logits)
        n = min(chunk, len(cells) - start)
        values.append(np.asarray(got)[:n])
        logits.append([np.asarray(k)[:n] for k in kept])
        advance(n)
    return np.concatenate(values), [np.concatenate(parts) for parts in zip(*logits, strict=True)]


@functools.partial(jax.jit, static_argnames=("model", "keep_logits"))
def _chunk(
    model: Forward,
    params: Params,
    tokens: Array,
    mask: Array | None,
    where: Any,
    op: Handler,
    metrics: Any,
    keep_logits: bool,
) -> tuple[Array, list[Array]]:
    def one(where: Any) -> Any:
        values, logits = read(model, params, tokens, metrics, place(op, **where), mask=mask)
        return values, logits if keep_logits else []

    return jax.vmap(one)(where)


def read(
    model: Forward,
    params: Params,
    tokens: Array,
    metrics: Sequence[Metric],
    *handlers: Handler,
    mask: Array | None = None,
) -> tuple[Float[Array, "M B"], list[Array]]:
    """Metrics of one run under handlers, and the logits that each of them reads, [B, P, tokens].

    A `Model` computes logits only at the positions and of the tokens that are read, unless an edit is behind the blocks.
    """
    places = token_positions(tokens, mask, None)
    hits = [places[:, :, None] == jnp.asarray(m.positions)[:, None, :] for m in metrics]  # [B, T, P]
    rows = [jnp.argmax(hit, axis=1) for hit in hits]
    if _is_narrow(model, *handlers):
        logits = _narrow(model, params, tokens, mask, metrics, rows, handlers)  # type: ignore[arg-type]
    else:
        whole = _whole(model, params, tokens, mask, handlers)
        logits = [_of_tokens(take_rows(whole, at), m) for m, at in zip(metrics, rows, strict=True)]
    # A position that a prompt does not have is NaN, never another row.
    logits = [jnp.where(h.any(1)[..., None], x, jnp.nan) for h, x in zip(hits, logits, strict=True)]
    return jnp.stack([m(x) for m, x in zip(metrics, logits, strict=True)]), logits


def _is_narrow(model: Forward, *handlers: Handler) -> bool:
    """Whether logits are computed only where a metric reads them: a model's, with no edit behind its blocks."""
    names = [name for h in handlers for name in h.sites]
    behind = any(name.startswith(("final.", "logits")) or set(name) & set("*?[") for name in names)
    return isinstance(model, Model) and not behind


def _narrow(
    model: Model,
    params: Params,
    tokens: Array,
    mask: Array | None,
    metrics: Sequence[Metric],
    rows: list[Array],
    handlers: Sequence[Handler],
) -> list[Array]:
    """One unembedding of the rows of all metrics, and of their tokens only if each names some."""
    named = [m.tokens for m in metrics]
    answers = None if any(t is None for t in named) else jnp.concatenate([_legal(t) for t in named], 1)
    forward = run(model.forward, *handlers)
    out = forward(params, tokens, mask=mask, read=jnp.concatenate(rows, 1), answers=answers)[0]
    parts = jnp.split(out, np.cumsum([at.shape[1] for at in rows])[:-1], axis=1)
    if answers is None:
        return [_of_tokens(part, m) for part, m in zip(parts, metrics, strict=True)]
    columns = np.cumsum([0, *(t.shape[1] for t in named if t is not None)])
    return [part[:, :, columns[i] : columns[i + 1]] for i, part in enumerate(parts)]


def _of_tokens(logits: Array, metric: Metric) -> Array:
    """[B, P, V] to the metric's tokens, or all."""
    if metric.tokens is None:
        return logits
    return jnp.take_along_axis(logits, _legal(metric.tokens)[:, None, :], axis=2)


def _whole(model: Forward, params: Params, tokens: Array, mask: Array | None, handlers: Sequence[Handler]) -> Array:
    if isinstance(model, Model):
        return run(model.forward, *handlers)(params, tokens, mask=mask)[0]
    if mask is not None:
        raise InputError(
            "a mask was given, but the model is a plain function, which takes none. Group prompts by their length."
        )
    out = run(model, *handlers)(params, tokens)[0]
    if out.ndim != 3 or out.shape[:2] != tokens.shape:
        raise InputError(
            f"the model returned {list(out.shape)}; a sweep needs logits [B, T, V], here "
            f"[{tokens.shape[0]}, {tokens.shape[1]}, V]."
        )
    return out


def _legal(tokens: Any) -> Array:
    return jnp.maximum(jnp.asarray(tokens), 0)


def site_table(model: Forward, params: Params, tokens: Array) -> SiteTable:
    """The sites of a model or function at these tokens."""
    return sites(model.forward if isinstance(model, Model) else model, params, tokens)


def chunk_size(
    model: Forward,
    params: Params,
    tokens: Array,
    n_cells: int,
    *,
    op: Handler,
    metrics: Sequence[Metric],
    memory: int | None = None,
) -> int:
    """How many cells run side by side: as many as the budget holds, spread evenly over the chunks; at least one.

    A cell is taken to need one layer's values, since the scan over layers keeps no more, and three times its logits.
    """
    budget = device_memory() // 4 if memory is None else memory
    table = [s for s in site_table(model, params, tokens) if s.name not in _BY_HEAD]
    layer = sum(s.bytes // (s.n_layers or 1) for s in table if s.name != "logits")
    out = (
        model.config.outputs
        if isinstance(model, Model)
        else jax.eval_shape(lambda p, t: model(p, t, tap=IDENTITY), params, tokens).shape[-1]
    )
    if _is_narrow(model, op):
        logits = sum(m.positions.size * (out if m.tokens is None else m.tokens.shape[1]) for m in metrics)
    else:
        logits = tokens.size * out
    fits = max(1, min(n_cells, int(budget // max(1, layer + 3 * 4 * logits)), MOST_CELLS))
    if fits < n_cells:
        fits = 1 << (fits.bit_length() - 1)  # a power of two, so that a little less free memory compiles nothing new
    return -(-n_cells // -(-n_cells // fits))


_BY_HEAD = ("attn.q_in", "attn.k_in", "attn.v_in", "attn.result")  # large, on demand, hardly ever wanted
MOST_CELLS = 512


def device_memory() -> int:
    """Free bytes of the first device; on a CPU, what the system says is available, at most 8 GiB."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
    try:
        with open("/proc/meminfo") as file:
            free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = 4 << 30
    return min(free, 8 << 30)
