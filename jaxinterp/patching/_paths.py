"""Path patching: what a component does through chosen inputs of others."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxinterp._errors import InputError
from jaxinterp._typing import Array, ArrayLike, Params
from jaxinterp.models import Model
from jaxinterp.patching._about import bar
from jaxinterp.patching._check import check_keep
from jaxinterp.patching._costs import default_budget, tree_bytes
from jaxinterp.patching._engine import Job, measure
from jaxinterp.patching._prepare import Prepared, prepare
from jaxinterp.patching._reach import Reach
from jaxinterp.patching._receivers import Receivers, describe, make_receivers
from jaxinterp.patching._result import named_result
from jaxinterp.patching._run import Ends, check_finite, measure_ends
from jaxinterp.tap import Handler, capture, patch, place, run, sites

if TYPE_CHECKING:
    import xarray as xr

SENDERS = ("attn.z", "mlp.out", "embed")
"""What can send: heads, MLPs, the embedding."""
FORMS = ("recomputed", "frozen")
MOST_CELLS = 256


def path_patch(
    model: Any,
    params: Params,
    *,
    base: Any,
    source: Any,
    senders: str = "attn.z",
    over: Any,
    receivers: Any,
    metric: Any,
    form: str = "recomputed",
    mask: ArrayLike | None = None,
    source_mask: ArrayLike | None = None,
    positions: ArrayLike | None = None,
    roles: Mapping[str, Any] | None = None,
    keep: Sequence[str] = (),
    seed: int = 0,
    tokenizer: Any = None,
    provenance: Mapping[str, Any] | None = None,
    memory: int | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """The effect of each sender on the metric through the chosen receivers only, not through the rest of the model.

    Two runs a sender. The first, on `base`: the sender has its output of the source run, every head's output (`attn.z`) is
    frozen to the base run's, and what the receivers would read from the residual stream is recorded. The second, on `base` too:
    the receivers' inputs are replaced by what was recorded, and all else is computed. What reaches the metric has gone
    sender -> receivers -> metric. The inputs are those before the norm, which belongs to the receiver.

    `form` says what lies between sender and receiver. "recomputed": MLPs and norms are computed in the first run, so that a path
    is the edge and every route through MLPs. "frozen": MLPs' outputs are the base run's too, so that an input is the base run's
    plus the sender's change, and nothing else: one edge resampled. For the logits the final norm then divides by the base run's
    scale: the effect of a head on a logit difference is the difference of its direct logit attributions, source minus base.

    The logits as receiver are read off the first run. An input is replaced as a whole: of two receivers the later one does not
    see what the earlier one changed, so beside "logits" other receivers would change nothing (a warning says so).

    All senders of a site run in one compiled program, in chunks that fit into memory; other receivers of the same kinds and
    prompts of the same shape compile nothing. A sender from which no path leads to the metric through a receiver (a head in a
    later layer than every receiver; in a causal model a position behind all that the metric reads, or before the prompts
    differ) is not run: its effect is exactly 0.

    Args:
        model: a `Model`.
        params: its parameters.
        base: prompts, int32 [B, T].
        source: the prompts that the senders' outputs come from, aligned with `base`.
        senders: the site of the senders: "attn.z" (heads), "mlp.out" or "embed".
        over: the axes of senders, as in `sweep`: "layer,head", {"layer": None, "head": [0, 3], "position": [4]}, "layer,role". An
            axis that is left out is sent as a whole: with "layer,head", at all positions. Or a list of senders: mappings such as
            {"layer": 3, "head": 1} or {"site": "mlp.out", "layer": 0}; a list of mappings in it is several senders at once.
        receivers: one or a list of ("q", layer, head), ("k", layer, head), ("v", layer, head), ("mlp", layer), "logits"; None in
            place of an index means all. Heads of "k" and "v" are key/value heads.
        metric: what to measure, or several by name.
        form: "recomputed" or "frozen".
        mask, source_mask, positions, roles, keep, seed, tokenizer, provenance, memory, progress: as in `sweep`.

    Returns:
        An `xarray.Dataset` as `sweep` gives it: effect, normalized, base, source over the axes of `over`, in the metric's unit;
        the receivers and the form are attributes.

    Raises:
        InputError: senders, receivers, a form, shapes or axes that are not legal.
        SiteIndexError: a layer, head or position that is not there.

    Example:
        >>> import jax, jaxinterp as ji
        >>> config = ji.TransformerConfig(n_layers=2, d_model=8, n_ctx=8, n_heads=2, d_head=4, d_vocab=5, d_mlp=8)
        >>> model = ji.Model(config=config)
        >>> params = model.init(jax.random.key(0))
        >>> effects = ji.patching.path_patch(
        ...     model, params, base=[[1, 2, 3]], source=[[1, 4, 3]], over="layer,head", receivers=[("q", 1, 0), ("k", 1, 0)],
        ...     metric=ji.patching.logit_difference([2], [4], [2]), progress=False)
        >>> effects.effect.dims, float(abs(effects.effect[1]).max())  # layer 1 is not before its own queries
        (('layer', 'head'), 0.0)

    Source: Wang et al. 2022 (arXiv 2211.00593), appendix B, for "recomputed"; Miller et al. 2024 (arXiv 2407.08734) for edges
    with everything else frozen.
    """
    _check_form(model, form)
    check_keep(keep)
    goal = make_receivers(receivers, config=model.config)
    named = describe(goal)
    if goal.logits and goal.chosen:
        warnings.warn(
            f"receivers={named}: the logits read what was recorded for them, so the other receivers change nothing. "
            'Leave out "logits", or give nothing else.',
            stacklevel=2,
        )
        goal = Receivers(chosen={}, logits=True)
    todo = prepare(
        model, params, base=base, source=source, site=senders, over=over, metric=metric, mask=mask,
        source_mask=source_mask, positions=positions, roles=roles,
    )  # fmt: skip
    _check_senders(todo)
    ends = measure_ends(todo)
    values, logits = _run_paths(todo, ends, goal, form == "frozen", "logits" in keep, memory, progress)
    check_finite(np.where(todo.there[:, None], values, 0.0), todo.metrics, "patched")
    return named_result(
        todo, values - ends.base, base=ends.base, source=ends.source, site=senders, op="path_patch", over=over, keep=keep,
        logits=logits, tokenizer=tokenizer, provenance=provenance, seed=seed, more={"receivers": named, "form": form},
    )  # fmt: skip


def _check_form(model: Any, form: str) -> None:
    if not isinstance(model, Model):
        raise InputError(
            f"path_patch got {type(model).__name__} as model; it needs a jaxinterp Model, whose heads and MLPs it can freeze."
        )
    if form not in FORMS:
        raise InputError(f"form={form!r}: legal are {' and '.join(map(repr, FORMS))}.")
    if form == "frozen" and model.config.norm_position == "post":
        raise InputError(
            "form='frozen' says that an input is the base run's plus the sender's change; this model normalizes the residual "
            "stream after each sum (norm_position='post'), where no such sum exists. Take form='recomputed'."
        )


def _check_senders(todo: Prepared) -> None:
    wrong = sorted({name for job in todo.jobs for name in job.cells.sites} - set(SENDERS))
    if wrong:
        raise InputError(
            f"senders {', '.join(map(repr, wrong))}: legal are {', '.join(map(repr, SENDERS))} (heads, MLPs, the embedding)."
        )


@functools.partial(jax.jit, static_argnames=("model", "frozen", "logits"))
def _base_run(model: Model, params: Params, tokens: Array, mask: Array | None, frozen: bool, logits: bool) -> Any:
    """What the first run holds at the base's: by site; "final.norm_scale" only where the logits receive in the frozen form."""
    names = ["attn.z"]
    if frozen and not model.config.attn_only:
        names.append("mlp.out")
    if frozen and logits and model.config.final_norm and model.config.normalization_type is not None:
        names.append("final.norm_scale")
    return run(model.forward, capture(*names))(params, tokens, mask=mask)[1]


@functools.partial(jax.jit, static_argnames=("model", "narrow", "keep_logits"))
def _chunk_of_paths(
    model: Model,
    params: Params,
    tokens: Array,
    mask: Array | None,
    ops: tuple[Handler, ...],
    held: dict[str, Array],
    receivers: Receivers,
    reading: dict[str, Any],
    where: Any,
    *,
    narrow: bool,
    keep_logits: bool,
) -> tuple[Array, list[Array]]:
    """Metrics [n, M, B] and logits by metric [n, B, P, ...] of the senders at `where`, whose indices have a leading axis n."""
    scale = "final.norm_scale"
    frozen = [patch(name, per_layer=value) for name, value in held.items() if name != scale]
    scales = [patch(scale, held[scale])] if scale in held else []

    def one(where: Any) -> Any:
        handlers = (*frozen, *(place(op, **at) for op, at in zip(ops, where, strict=True)))
        if receivers.logits:
            handlers = (*handlers, *scales)
        else:
            record = run(model.forward, *handlers, capture(*receivers.sites))
            handlers = receivers.handlers(record(params, tokens, mask=mask)[1])
        last = run(model.forward, *handlers)
        out = last(params, tokens, mask=mask, read=reading["reads"], answers=reading["answers"])[0]
        values, logits = measure(out, reading["metrics"], reading["columns"], narrow)
        return values, logits if keep_logits else []

    return jax.vmap(one)(where)


def _run_paths(
    todo: Prepared,
    ends: Ends,
    receivers: Receivers,
    frozen: bool,
    keep_logits: bool,
    memory: int | None,
    progress: bool,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Runs the senders that can do something; what cannot has the base run's metrics and logits, to the bit."""
    n = len(todo.cells)
    values = np.repeat(ends.base[None], n, axis=0)
    logits = [np.repeat(x[None], n, axis=0) for x in ends.logits] if keep_logits else []
    live = [_live(job, found, receivers) for job, found in zip(todo.jobs, todo.found, strict=True)]
    with bar(sum(int(x.any(1).sum()) for x in live), "paths", progress) as advance:
        for job, reaches in zip(todo.jobs, live, strict=True):
            assert isinstance(job.model, Model)
            held = _base_run(job.model, job.params, job.tokens, job.mask, frozen, receivers.logits)
            ops, reading = job.make_ops(job.params), job.readings()
            chunk = _chunk_size(job, receivers, tree_bytes((held, ops)), memory)
            running = np.flatnonzero(reaches.any(1))
            for start in range(0, len(running), chunk):
                # The last chunk is filled up with its last cell: one shape, one compile.
                ids = running[np.minimum(np.arange(start, start + chunk), len(running) - 1)]
                got, kept = _chunk_of_paths(
                    job.model, job.params, job.tokens, job.mask, ops, held, receivers, reading, job.cells.take(ids),
                    narrow=job.is_narrow, keep_logits=keep_logits,
                )  # fmt: skip
                done = ids[: len(running) - start]
                rows, moves = job.rows[done], reaches[done]
                values[rows] = np.where(moves[:, None], np.asarray(got)[: len(done)], values[rows])
                for x, part in zip(logits, kept, strict=True):
                    x[rows] = np.where(moves[:, :, None, None], np.asarray(part)[: len(done)], x[rows])
                advance(len(done))
    return values, logits


def _live(job: Job, found: Reach, receivers: Receivers) -> np.ndarray:
    """[n, B]: whether what is sent can reach the metric through a receiver."""
    rows_read, differs = job.geometry.is_read, job.geometry.differs
    some = np.zeros(found.reaches.shape, bool)
    for name, part in zip(job.cells.sites, job.cells.parts, strict=True):
        reaches = np.ones(some.shape, bool)
        if "layer" in part and not receivers.logits:
            layer = np.asarray(part["layer"]).min(1)
            last = max(receivers.last(kind) for kind in ("q", "k", "v"))
            at_mlp = receivers.last("mlp") >= layer if name == "attn.z" else receivers.last("mlp") > layer
            reaches &= ((last > layer) | at_mlp)[:, None]
        if "position" in part:
            rows = job.geometry.rows_at(np.asarray(part["position"]))
            if receivers.stay:  # since the frozen heads carry nothing from one position to another
                reaches &= _any_at(rows_read, rows)
            if name == "embed" and differs is not None:  # is made of its own token alone
                reaches &= _any_at(differs, rows)
        some |= reaches
    return found.reaches & some


def _any_at(table: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """[n, B]: whether [B, T] is true at any of the rows [n, B, k]; a row of -1 is not there."""
    return np.any(table[np.arange(len(table))[None, :, None], rows] & (rows >= 0), axis=-1)


def _chunk_size(job: Job, receivers: Receivers, held: int, memory: int | None) -> int:
    """How many senders run side by side. It does not depend on which of them can reach a receiver: that compiles nothing.

    A sender needs what is recorded for it, at all layers, one layer's values at a time, and three times its logits.
    """
    assert isinstance(job.model, Model)
    table = sites(job.model.forward, job.params, job.tokens)
    layer = sum(s.bytes // (s.n_layers or 1) for s in table if not s.on_demand and s.name != "logits")
    recorded = sum(table[site].bytes for site in receivers.sites) if not receivers.logits else 0
    answers = job.model.config.outputs if job.answers is None else job.answers.shape[1]
    cell = layer + recorded + 3 * 4 * job.geometry.reads.size * answers
    fits = max(1, ((default_budget() if memory is None else memory) - held) // cell)
    n = len(job.cells)
    # Several chunks even where all would fit, so that senders that cannot reach a receiver are left out by the chunk.
    return max(1, min(n, fits, MOST_CELLS, max(16, math.ceil(n / 8))))
