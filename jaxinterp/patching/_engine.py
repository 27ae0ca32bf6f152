"""Running the cells of a sweep on a model: the plan's chunks, one after the other."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxinterp._typing import Array, Float, Params
from jaxinterp.mesh import fetch, put
from jaxinterp.models import Model
from jaxinterp.patching._cells import Cells
from jaxinterp.patching._cone import BaseRun, Suffix, Work, base_run, cell_logits, unembed_cells
from jaxinterp.patching._metrics import Metric
from jaxinterp.patching._ops import Forward, forward_of
from jaxinterp.patching._plan import Chunk, Plan
from jaxinterp.patching._reach import Geometry
from jaxinterp.tap import IDENTITY, Handler, take_rows


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """Cells with one set of edits, ready to run.

    Attributes:
        model: the model.
        params: its parameters.
        tokens: the base prompts [B, T].
        mask: True at real tokens, or None.
        cells: n of them.
        rows: [n], which rows of the results these cells are.
        stages: for each part of a cell where its site is: "embed", "block", "final" or "whole".
        make_ops: gives for each part of a cell an edit without a place; called when the job runs, and abstractly before.
        metrics: M of them.
        geometry: the rows of the prompts.
        making: bytes that are held while the edits of the sweep's null distribution are made, besides these edits. The same for
            its other cells, so that one compiled sweep serves both.
        mesh: devices to share cells ("cells") and prompts ("prompts") among; None: one device.
    """

    model: Forward
    params: Params
    tokens: Array
    mask: Array | None
    cells: Cells
    rows: np.ndarray
    stages: tuple[str, ...]
    make_ops: Callable[[Params], tuple[Handler, ...]]
    metrics: tuple[Metric, ...]
    geometry: Geometry
    making: int = 0
    mesh: Mesh | None = None

    @property
    def is_narrow(self) -> bool:
        """Whether only the tokens that the metrics name are unembedded."""
        named = "logits" not in self.cells.sites and all(m.tokens is not None for m in self.metrics)
        return named and isinstance(self.model, Model)

    @property
    def answers(self) -> np.ndarray | None:
        """[B, n]: those tokens."""
        if not self.is_narrow:
            return None
        return np.concatenate([np.maximum(np.asarray(m.tokens), 0) for m in self.metrics], 1).astype(np.int32)

    @functools.cached_property
    def op_shapes(self) -> tuple[Handler, ...]:
        """The edits with shapes in place of arrays."""
        return jax.eval_shape(self.make_ops, self.params)

    def readings(self) -> dict[str, Any]:
        """What is read and how, on the mesh if there is one."""
        arrays = dict(
            metrics=self.metrics, reads=self.geometry.reads, answers=self.answers, columns=self.geometry.columns
        )
        if self.mesh is None:
            return arrays
        return {key: place_prompts(value, self.mesh, len(self.tokens)) for key, value in arrays.items()}

    def edits(self) -> tuple[Handler, ...]:
        """The edits with their values, on the mesh if there is one."""
        ops = self.make_ops(self.params)
        if self.mesh is None:
            return ops
        by_prompt = functools.partial(place_prompts, mesh=self.mesh, n_prompts=len(self.tokens))
        return tuple(
            dataclasses.replace(op, data=by_prompt(op.data), per_layer=by_prompt(op.per_layer, axis=1)) for op in ops
        )


def place_prompts(tree: Any, mesh: Mesh, n_prompts: int, axis: int = 0) -> Any:
    """Arrays whose axis `axis` runs over prompts shared along the mesh's "prompts"; others whole on every device."""

    def one(leaf: Any) -> Any:
        shared = np.ndim(leaf) > axis and np.shape(leaf)[axis] == n_prompts
        return put(leaf, mesh, PartitionSpec(*(None,) * axis, "prompts") if shared else PartitionSpec())

    return jax.tree.map(one, tree)


def run_jobs(
    jobs: Sequence[Job],
    plan: Plan,
    params: Params,
    base: BaseRun,
    *,
    keep_logits: bool,
    finished: frozenset[int],
    store: Callable[[int, Job, np.ndarray, dict[str, np.ndarray]], None],
) -> None:
    """Runs the chunks of a plan.

    Args:
        jobs: on the same base prompts.
        plan: of these jobs.
        params, base: from `run_base`.
        keep_logits: also give the logits that each metric reads.
        finished: chunks that need not run.
        store: called with each finished chunk: its index, its job, the ids of its cells, and by name values [c, M, B] and logits
            of the metrics [c, B, P, n].
    """
    arrays: Any = None
    running, before = -1, None
    for index, chunk in enumerate(plan.chunks):
        if index in finished:
            continue
        job = jobs[chunk.job]
        if chunk.job != running:
            if before is not None:  # what the last job's edits brought goes before the next one's come
                jax.block_until_ready(before[-1])
            arrays, running = None, chunk.job
            arrays = {**job.readings(), "params": params, "ops": job.edits()}
        where, places = chunk_indices(job, chunk)
        if before is not None:  # one chunk at a time: two would take the memory of two
            jax.block_until_ready(before[-1])
        result = run_chunk(
            job.model, chunk.suffix, arrays, base, jnp.int32(chunk.layer), where, places,
            keep_logits=keep_logits, narrow=job.is_narrow, mesh=job.mesh,
        )  # fmt: skip
        if before is not None:  # while the device works on this chunk, the one before goes to the host
            _hand_over(store, *before)
        before = (job, index, chunk, result)
    if before is not None:
        _hand_over(store, *before)


def run_base(job: Job) -> tuple[Params, BaseRun]:
    """The parameters, and what a sweep keeps of its base run: of a plain function nothing but the prompts; on the mesh if any."""
    params, tokens, mask = job.params, job.tokens, job.mask
    if job.mesh is not None:
        host = jax.tree.map(np.asarray, (tokens, mask))
        tokens, mask = place_prompts(host, job.mesh, len(job.tokens))
        params = put(params, job.mesh, PartitionSpec())
    if isinstance(job.model, Model):
        return params, base_run(job.model, params, tokens, mask)
    return params, BaseRun(tokens=tokens, positions=None, inputs=None, keys_values=(), mask=mask)


def _hand_over(store: Any, job: Job, index: int, chunk: Chunk, result: Any) -> None:
    values, logits = jax.tree.map(np.asarray if job.mesh is None else fetch, result)
    named = {"values": values[: chunk.n], **{f"logits{i}": x[: chunk.n] for i, x in enumerate(logits)}}
    store(index, job, chunk.ids[: chunk.n], named)


def chunk_indices(job: Job, chunk: Chunk) -> tuple[Any, Any]:
    """The indices of a chunk's cells by part, and the rows [C, B, k] that they edit where only those are computed."""
    where: Any = job.cells.take(chunk.ids)
    places = job.geometry.rows_at(where[0]["position"]) if chunk.suffix.places else None
    mesh = job.mesh
    if mesh is None:
        return where, places

    def one(leaf: np.ndarray) -> Any:
        return put(leaf, mesh, PartitionSpec("cells", "prompts") if leaf.ndim == 3 else PartitionSpec("cells"))

    return jax.tree.map(one, (where, places))


@functools.partial(jax.jit, static_argnames=("model", "suffix", "keep_logits", "narrow", "mesh"))
def run_chunk(
    model: Forward,
    suffix: Suffix,
    arrays: dict[str, Any],
    base: BaseRun,
    layer: Array,
    where: Any,
    places: Any,
    *,
    keep_logits: bool,
    narrow: bool,
    mesh: Mesh | None,
) -> tuple[Array, list[Array]]:
    """Values [C, M, B] of the cells of a chunk, and, if kept, the logits that each metric reads."""
    work = Work(model, suffix, arrays["params"], base, arrays["ops"], arrays["reads"], arrays["answers"], mesh)
    logits = cell_logits(work, layer, where, places)
    if suffix.start:  # a row before the computed ones is the base's
        own = unembed_cells(work._replace(suffix=suffix._replace(later=False)), _rows_read(work)[None], where)
        logits = jnp.where((work.reads < suffix.start)[None, :, :, None], own, logits)
    values, kept = jax.vmap(lambda x: measure(x, arrays["metrics"], arrays["columns"], narrow))(logits)
    if mesh is not None:
        values = jax.lax.with_sharding_constraint(values, NamedSharding(mesh, PartitionSpec("cells", None, "prompts")))
    return values, kept if keep_logits else []


def _rows_read(work: Work) -> Array:
    return take_rows(work.base.inputs[-1], work.reads)


def measure(
    logits: Array, metrics: Sequence[Metric], columns: Sequence[Array], narrow: bool
) -> tuple[Float[Array, "M B"], list[Array]]:
    """The metrics of the logits of the rows that are read.

    Args:
        logits: [B, U, n], of all tokens, or of the metrics' tokens in turn.
        metrics: M of them.
        columns: for each metric [B, P], where its positions are among the rows.
        narrow: whether only the metrics' tokens are there.

    Returns:
        The metrics [M, B], and the logits that each of them reads, [B, P, tokens].

    Example:
        >>> import jax.numpy as jnp, jaxinterp as ji
        >>> metric = ji.patching.logit_difference([2], [0], [5])
        >>> logits = jnp.array([[[1.0, 0.0, 4.0]]])  # of position 5, the only row
        >>> ji.patching.measure(logits, [metric], [jnp.array([[0]])], narrow=False)[0].tolist()
        [[3.0]]
    """
    out, first = [], 0
    for metric, column in zip(metrics, columns, strict=True):
        column = jnp.asarray(column)
        x = take_rows(logits, jnp.maximum(column, 0))
        if narrow:
            width = metric.tokens.shape[1]
            x = x[:, :, first : first + width]
            first += width
        elif metric.tokens is not None:
            x = jnp.take_along_axis(x, jnp.maximum(jnp.asarray(metric.tokens), 0)[:, None, :], axis=2)
        # A position that a prompt does not have is NaN, never another row.
        out.append(jnp.where((column >= 0)[..., None], x, jnp.asarray(jnp.nan, x.dtype)))
    return jnp.stack([m(x) for m, x in zip(metrics, out, strict=True)]), out


@functools.partial(jax.jit, static_argnames=("model", "narrow"))
def measure_run(
    model: Forward, params: Params, tokens: Array, mask: Array | None, arrays: dict[str, Any], *, narrow: bool
) -> tuple[Float[Array, "M B"], list[Array]]:
    """The metrics of a run without edits, and the logits that each of them reads."""
    if isinstance(model, Model):
        logits = model.forward(params, tokens, mask=mask, read=arrays["reads"], answers=arrays["answers"])
    else:
        logits = take_rows(forward_of(model, mask)(params, tokens, tap=IDENTITY), arrays["reads"])
    return measure(logits, arrays["metrics"], arrays["columns"], narrow)


@functools.partial(jax.jit, static_argnames=("model", "narrow"))
def measure_base(
    model: Model, params: Params, base: BaseRun, arrays: dict[str, Any], *, narrow: bool
) -> tuple[Float[Array, "M B"], list[Array]]:
    """The same of a base run that is there already."""
    rows = take_rows(base.inputs[-1], jnp.asarray(arrays["reads"]))
    return measure(model.unembed(params, rows, tokens=arrays["answers"]), arrays["metrics"], arrays["columns"], narrow)
