"""Running the cells of a sweep on a model: the plan's chunks, one after the other."""

from __future__ import annotations

import dataclasses
import functools
import math
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
from jaxinterp.patching._cone import (
    BaseRun,
    Suffix,
    Work,
    base_run,
    cell_logits,
    embed_cell,
    first_block,
    first_is_last,
    last_block,
    middle_block,
    unembed_cells,
)
from jaxinterp.patching._costs import default_budget, matrix_flops, tree_bytes
from jaxinterp.patching._metrics import Metric
from jaxinterp.patching._ops import Forward
from jaxinterp.patching._plan import Chunk, Costs, Plan
from jaxinterp.patching._reach import Geometry
from jaxinterp.tap import IDENTITY, Handler, Tap, sites, take_rows


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
        make_ops: gives for each part of a cell an edit without a place; called when the job runs, and abstractly before.
        metrics: M of them.
        geometry: the rows of the prompts.
        mesh: devices to share cells ("cells") and prompts ("prompts") among; None: one device.
    """

    model: Forward
    params: Params
    tokens: Array
    mask: Array | None
    cells: Cells
    rows: np.ndarray
    make_ops: Callable[[Params], tuple[Handler, ...]]
    metrics: tuple[Metric, ...]
    geometry: Geometry
    mesh: Mesh | None = None

    @property
    def is_narrow(self) -> bool:
        """Whether only the tokens that the metrics name are unembedded."""
        return "logits" not in self.cells.sites and all(m.tokens is not None for m in self.metrics)

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

    def placed(self) -> dict[str, Any]:
        """The arrays that a compiled sweep takes besides the base run and the cells, on the mesh if there is one."""
        ops = self.make_ops(self.params)
        arrays = dict(
            params=self.params, ops=ops, metrics=self.metrics, reads=self.geometry.reads, answers=self.answers,
            columns=self.geometry.columns,
        )  # fmt: skip
        if self.mesh is None:
            return arrays
        b = len(self.geometry.positions)
        by_prompt = lambda tree: place_prompts(tree, self.mesh, b)
        ops = tuple(
            dataclasses.replace(
                op, data=by_prompt(op.data), per_layer=place_prompts(op.per_layer, self.mesh, b, axis=1)
            )
            for op in ops
        )
        out = {key: by_prompt(arrays[key]) for key in ("metrics", "reads", "answers", "columns")}
        return {**out, "ops": ops, "params": put(self.params, self.mesh, PartitionSpec())}


def place_prompts(tree: Any, mesh: Mesh, n_prompts: int, axis: int = 0) -> Any:
    """Arrays whose axis `axis` runs over prompts shared along the mesh's "prompts"; others whole on every device."""

    def one(leaf: Any) -> Any:
        shared = np.ndim(leaf) > axis and np.shape(leaf)[axis] == n_prompts
        return put(leaf, mesh, PartitionSpec(*(None,) * axis, "prompts") if shared else PartitionSpec())

    return jax.tree.map(one, tree)


def run_jobs(
    jobs: Sequence[Job],
    plan: Plan,
    *,
    keep_logits: bool,
    finished: frozenset[int],
    store: Callable[[int, Job, np.ndarray, dict[str, np.ndarray]], None],
) -> None:
    """Runs the chunks of a plan.

    Args:
        jobs: on the same base prompts.
        plan: of these jobs.
        keep_logits: also give the logits that each metric reads.
        finished: chunks that need not run.
        store: called with each finished chunk: its index, its job, the ids of its cells, and by name values [c, M, B] and logits of the
            metrics [c, B, P, n].
    """
    arrays: Any = None
    base: Any = None
    running, before = -1, None
    for index, chunk in enumerate(plan.chunks):
        if index in finished:
            continue
        job = jobs[chunk.job]
        if chunk.job != running:
            arrays, running = None, chunk.job  # what the last job's edits brought goes before the next one's come
            arrays = job.placed()
            base = _placed_base(job, arrays["params"]) if base is None else base
        where, places = chunk_indices(job, chunk)
        result = run_chunk(
            job.model, chunk.suffix, arrays, base, jnp.int32(chunk.layer), where, places,
            keep_logits=keep_logits, narrow=job.is_narrow, mesh=job.mesh,
        )  # fmt: skip
        if before is not None:  # while the device works on this chunk, the one before goes to the host
            _hand_over(store, *before)
        before = (job, index, chunk, result)
    if before is not None:
        _hand_over(store, *before)


def _placed_base(job: Job, params: Params) -> BaseRun:
    tokens, mask = job.tokens, job.mask
    if job.mesh is not None:
        mesh = job.mesh
        tokens, mask = (None if a is None else place_prompts(np.asarray(a), mesh, len(a)) for a in (tokens, mask))
    return base_of(job.model, params, tokens, mask)


def _hand_over(store: Any, job: Job, index: int, chunk: Chunk, result: Any) -> None:
    values, logits = jax.tree.map(np.asarray if job.mesh is None else fetch, result)
    named = {"values": values[: chunk.n], **{f"logits{i}": x[: chunk.n] for i, x in enumerate(logits)}}
    store(index, job, chunk.ids[: chunk.n], named)


def chunk_indices(job: Job, chunk: Chunk) -> tuple[Any, Any]:
    """The indices of a chunk's cells by part, and the rows [C, B, k] that they edit where only those are computed."""
    where: Any = job.cells.take(chunk.ids)
    places = job.geometry.rows_at(where[0]["position"]) if chunk.suffix.places else None
    if job.mesh is None:
        return where, places

    def one(leaf: np.ndarray) -> Any:
        return put(leaf, job.mesh, PartitionSpec("cells", "prompts") if leaf.ndim == 3 else PartitionSpec("cells"))

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
    """The metrics of the logits [B, U, n] of the rows that are read, and what each of them reads, [B, P, tokens].

    Args:
        logits: of all tokens, or of the metrics' tokens in turn.
        metrics: M of them.
        columns: for each metric [B, P], where its positions are among the rows.
        narrow: whether only the metrics' tokens are there.
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
        logits = take_rows(model(params, tokens, tap=IDENTITY), arrays["reads"])
    return measure(logits, arrays["metrics"], arrays["columns"], narrow)


def base_of(model: Forward, params: Params, tokens: Array, mask: Array | None) -> BaseRun:
    """What a sweep keeps of its base run; of a plain function nothing but the prompts."""
    if isinstance(model, Model):
        return base_run(model, params, tokens, mask)
    return BaseRun(tokens=tokens, positions=None, inputs=None, keys_values=())


def job_costs(job: Job, stop: int, memory: int | None) -> Costs:
    """What the job holds, and what a cell takes."""
    wide, deep = (1, 1) if job.mesh is None else (job.mesh.shape["cells"], job.mesh.shape["prompts"])
    b, t = job.tokens.shape
    held = sum(tree_bytes((op.data, op.per_layer)) for op in job.op_shapes)
    logits = 3 * 4 * job.geometry.reads.size * (_outputs(job) if job.answers is None else job.answers.shape[1])
    if isinstance(job.model, Model):
        held += tree_bytes(jax.eval_shape(functools.partial(base_run, job.model), job.params, job.tokens, job.mask))
        fixed = 3 * max(tree_bytes(s) // jax.tree.leaves(s)[0].shape[0] for s in job.params["blocks"]) // 2
        sizes = [math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(job.params["blocks"][0])]
        row = 2.0 * b * sum(sizes)
        by_rows = functools.cache(lambda rows: (block_bytes(job.model, job.params, b, rows, stop) + logits) // deep)
    else:
        table = [s for s in sites(job.model, job.params, job.tokens) if s.name not in LARGE_ON_DEMAND]
        fixed, whole = 0, (sum(s.bytes // (s.n_layers or 1) for s in table) + 3 * 4 * b * t * _outputs(job)) // deep
        by_rows, row = (lambda rows: whole), 0.0
    budget = default_budget() if memory is None else memory
    return Costs(base=held // deep, fixed=fixed, cell=by_rows, row=row, budget=budget, mesh=(wide, deep))


def _outputs(job: Job) -> int:
    if isinstance(job.model, Model):
        return job.model.config.outputs
    return jax.eval_shape(lambda p, t: job.model(p, t, tap=IDENTITY), job.params, job.tokens).shape[-1]


LARGE_ON_DEMAND = ("attn.q_in", "attn.k_in", "attn.v_in", "attn.result")  # by head; hardly ever wanted


def block_bytes(model: Model, params: Params, n_prompts: int, rows: int, stop: int) -> int:
    """What one cell takes while a block runs on `rows` rows of `stop`: an estimate from the values of the block."""
    weights, data = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], jnp.result_type(leaf)),
        (params["blocks"][0], model.layer_data()[0]),
    )
    x = jax.ShapeDtypeStruct((n_prompts, rows, model.config.d_model), jax.tree.leaves(params["embed"])[0].dtype)
    positions = jnp.zeros((1, rows), jnp.int32)

    def block(weights: Params, data: Params, x: Array, *, tap: Tap) -> Array:
        return model.block(weights, data, x, positions=positions, tap=tap)[0]

    size = {s.name: s.bytes for s in sites(block, weights, data, x)}
    get = lambda *names: sum(size.get(name, 0) for name in names)
    scores = get("attn.scores") * stop // rows
    # The factors are fitted to what XLA says of compiled sweeps; a test holds them to it within 20 %.
    attention = get("attn.q", "attn.k", "attn.v", "attn.z") + int(2.2 * scores)
    return 5 * get("resid_pre") + max(attention, get("mlp.post") + get("mlp.gate") // 2)


def count_flops(jobs: Sequence[Job], chunks: Sequence[Chunk]) -> tuple[int, int]:
    """Matrix operations of a whole forward pass for each cell, and of the chunks of a plan."""
    job = jobs[0]
    n_cells = sum(len(j.cells) for j in jobs)
    forward = job.model.forward if isinstance(job.model, Model) else job.model
    whole = matrix_flops(lambda p, t: forward(p, t, tap=IDENTITY), job.params, job.tokens)
    if not isinstance(job.model, Model):
        return n_cells * whole, sum(c.n for c in chunks) * whole
    run = functools.partial(base_run, job.model)
    base = jax.eval_shape(run, job.params, job.tokens, job.mask)
    total = matrix_flops(run, job.params, job.tokens, job.mask) if chunks else 0
    for number, suffix in dict.fromkeys((c.job, c.suffix) for c in chunks):
        total += _suffix_flops(jobs[number], base, [c for c in chunks if (c.job, c.suffix) == (number, suffix)])
    return n_cells * whole, total


def _suffix_flops(job: Job, base: Any, chunks: list[Chunk]) -> int:
    suffix = chunks[0].suffix
    where, places = chunk_indices(dataclasses.replace(job, mesh=None), chunks[0])
    n_layers = base.inputs.shape[0] - 1
    rows = suffix.stop - suffix.start
    b, d, c = base.inputs.shape[1], base.inputs.shape[-1], suffix.chunk
    x = jax.ShapeDtypeStruct((c, b, rows, d), base.inputs.dtype)
    read = jax.ShapeDtypeStruct((c, b, job.geometry.reads.shape[1], d), base.inputs.dtype)

    def flops(fn: Callable[..., Any], *more: Any) -> int:
        def call(params: Any, base: Any, ops: Any, *more: Any) -> Any:
            return fn(Work(job.model, suffix, params, base, ops, job.geometry.reads, job.answers), *more)

        return matrix_flops(call, job.params, base, job.op_shapes, *more)

    layer = jax.ShapeDtypeStruct((), jnp.int32)
    out = flops(lambda work, x: unembed_cells(work, x, where), read)
    if suffix.stage == "final":
        return len(chunks) * flops(lambda work: unembed_cells(work, work.base.inputs[-1], where))
    middle = flops(lambda work, x: middle_block(work, 0, 0, x, where=where), x)
    last = flops(lambda work, x: last_block(work, x, where), x)
    if suffix.stage == "embed":
        first = flops(lambda work: jax.vmap(lambda w: embed_cell(work, w))(where))
        return len(chunks) * (first + (n_layers - 1) * middle + last + out)
    first = flops(lambda work, layer: first_block(work, layer, where, places), layer)
    only = flops(lambda work: first_is_last(work, where))
    depth = np.array([n_layers - 2 - chunk.layer for chunk in chunks])
    return int(np.where(depth < 0, only, first + depth * middle + last).sum()) + len(chunks) * out
