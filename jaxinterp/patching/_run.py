"""Running a prepared sweep: its two ends, its cells, and what is kept of them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxinterp._errors import InputError
from jaxinterp._typing import Params
from jaxinterp.mesh import fetch, from_writer
from jaxinterp.models import Model
from jaxinterp.patching._cone import BaseRun
from jaxinterp.patching._engine import Job, measure_base, measure_run, run_base, run_jobs
from jaxinterp.patching._metrics import Metric, recovered_fraction
from jaxinterp.patching._plan import Plan
from jaxinterp.patching._prepare import Prepared
from jaxinterp.patching._records import facts_of, open_records


class Ends(NamedTuple):
    """The runs without edits.

    Attributes:
        base: metrics of the base run [M, B].
        source: of the source run, or None.
        logits: of the base run what each metric reads, [B, P, n].
        params, kept: the parameters and what the cells need of the base run, on the mesh if there is one.
    """

    base: np.ndarray
    source: np.ndarray | None
    logits: list[np.ndarray]
    params: Params
    kept: BaseRun


def measure_ends(todo: Prepared) -> Ends:
    """The metrics of the base run and of the source run."""
    job = todo.jobs[0]
    how = dict(narrow=job.is_narrow)
    params, kept = run_base(job)
    if isinstance(job.model, Model):
        measured = measure_base(job.model, params, kept, job.readings(), **how)
    else:
        measured = measure_run(job.model, params, kept.tokens, kept.mask, job.readings(), **how)
    base, logits = fetch(measured)
    check_finite(base, todo.metrics, "base")
    if todo.source is None:
        return Ends(base, None, logits, params, kept)
    rows, reads = todo.source.rows, job.geometry.reads
    if rows is not None:  # the metric reads where its positions are in the source
        reads = np.maximum(np.take_along_axis(rows, reads, 1), 0)
    arrays = dict(metrics=job.metrics, reads=reads, answers=job.answers, columns=job.geometry.columns)
    source = np.asarray(measure_run(job.model, job.params, todo.source.tokens, todo.source.mask, arrays, **how)[0])
    check_finite(source, todo.metrics, "source")
    if rows is None and np.array_equal(np.asarray(todo.source.tokens), np.asarray(todo.base)):
        warnings.warn(
            "base and source are the same prompts: every effect of a patch is zero by construction.", stacklevel=3
        )
    _warn_if_flat(base, source, todo.metrics)
    return Ends(base, source, logits, params, kept)


def _warn_if_flat(base: np.ndarray, source: np.ndarray, metrics: Mapping[str, Metric]) -> None:
    gap = recovered_fraction(base.mean(1), base.mean(1), source.mean(1))
    for name, undefined in zip(metrics, np.isnan(gap), strict=True):
        if undefined:
            warnings.warn(
                f"metric {name!r} is the same for base and source, so the normalized effect is undefined (NaN). "
                "The raw effect is there.",
                stacklevel=4,
            )


def run(
    todo: Prepared,
    plan: Plan,
    ends: Ends,
    *,
    store: str | os.PathLike[str] | None,
    about: Mapping[str, Any],
    keep_logits: bool,
    advance: Callable[[int], None],
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Values [n (1 + draws), M, B], and the logits [n, B, P, tokens] that the metrics read.

    Args:
        todo: the sweep.
        plan: of it.
        ends: what stands where a cell changes nothing.
        store: a folder, or None.
        about: further facts for the store.
        keep_logits: whether logits are kept.
        advance: called with the number of cells that were finished.
    """
    reaches = todo.reaches
    n = len(reaches)
    arrays: dict[str, Any] = {"values": ((n, *ends.base.shape), ends.base.dtype)}
    if keep_logits:
        arrays |= {f"logits{i}": ((n, *x.shape), x.dtype) for i, x in enumerate(ends.logits)}
    facts = facts_of(todo, plan, {**about, "logits": keep_logits}) if store is not None else {}
    with open_records(store, facts, arrays, plan) as records:
        done = np.isin(np.arange(len(plan.chunks)), list(records.finished))
        finished = frozenset(np.flatnonzero(from_writer(done)).tolist())
        advance(sum(plan.chunks[i].n for i in finished))

        def keep(index: int, job: Job, ids: np.ndarray, named: dict[str, np.ndarray]) -> None:
            records.write(index, job.rows[ids], named)
            advance(len(ids))

        run_jobs(todo.jobs, plan, ends.params, ends.kept, keep_logits=keep_logits, finished=finished, store=keep)
        values, *logits = (np.asarray(from_writer(records.read(name))) for name in arrays)
    ran = np.zeros(n, bool)
    for chunk in plan.chunks:
        ran[todo.jobs[chunk.job].rows[chunk.ids]] = True
    values = np.where((reaches & ran[:, None])[:, None], values, ends.base[None])
    there = np.tile(todo.there, (1 + todo.n_draws, 1))
    check_finite(np.where(there[:, None], values, 0.0), todo.metrics, "patched")
    cells = len(todo.cells)
    kept = [
        np.where(ran[:cells, None, None, None], x[:cells], own[None])
        for x, own in zip(logits, ends.logits, strict=False)
    ]
    return values, kept


def check_finite(values: np.ndarray, metrics: Mapping[str, Metric], what: str) -> None:
    """Refuses metrics that are not finite.

    Args:
        values: [..., M, B].
        metrics: M of them, by name.
        what: whose they are, for the message: "base", "source", "patched".

    Raises:
        InputError: with the name of the metric and how many of its values are NaN or infinite.

    Example:
        >>> import numpy as np, jaxinterp as ji
        >>> metric = ji.patching.logit_difference([2], [4], [2])
        >>> ji.patching.check_finite(np.ones((1, 1)), {metric.name: metric}, "base")
    """
    for name, row in zip(metrics, np.moveaxis(values, -2, 0), strict=True):
        if not np.isfinite(row).all():
            raise InputError(
                f"metric {name!r} of the {what} run is not finite ({np.isnan(row).sum()} NaN, {np.isinf(row).sum()} infinite of "
                f"{row.size}). Are there NaN in the weights, token ids outside the vocabulary, or "
                "answers of probability 0?"
            )
