"""What the jobs of a sweep cost: operations and memory, from shapes alone."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp._typing import Array, Params
from jaxinterp.models import Model
from jaxinterp.patching._cone import (
    Work,
    base_run,
    embed_cell,
    first_block,
    first_is_last,
    last_block,
    middle_block,
    unembed_cells,
)
from jaxinterp.patching._costs import default_budget, matrix_flops, tree_bytes
from jaxinterp.patching._engine import Job, chunk_indices
from jaxinterp.patching._ops import forward_of
from jaxinterp.patching._plan import Chunk, Costs
from jaxinterp.tap import IDENTITY, Tap, sites


def job_costs(job: Job, stop: int, memory: int | None) -> Costs:
    """What the job holds, and what a cell takes."""
    wide, deep = (1, 1) if job.mesh is None else (job.mesh.shape["cells"], job.mesh.shape["prompts"])
    model, (b, t) = job.model, job.tokens.shape
    held = sum(tree_bytes((op.data, op.per_layer)) for op in job.op_shapes)
    logits = 3 * 4 * job.geometry.reads.size * (_outputs(job) if job.answers is None else job.answers.shape[1])
    if isinstance(model, Model):
        held += tree_bytes(jax.eval_shape(functools.partial(base_run, model), job.params, job.tokens, job.mask))
        weights = max(tree_bytes(s) // jax.tree.leaves(s)[0].shape[0] for s in job.params["blocks"])
        fixed = 3 * weights // 2
        row = 2.0 * b * sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(job.params["blocks"][0]))
        by_rows = functools.cache(lambda rows: (block_bytes(model, job.params, b, rows, stop) + logits) // deep)
    else:
        table = [s for s in sites(model, job.params, job.tokens) if s.name not in _LARGE_ON_DEMAND]
        whole = (sum(s.bytes // (s.n_layers or 1) for s in table) + 3 * 4 * b * t * _outputs(job)) // deep
        fixed, weights, row, by_rows = 0, 0, 0.0, lambda rows: whole
    budget = default_budget() if memory is None else memory
    return Costs(
        base=held // deep + job.making + _RUNTIME,  # edits are made on one device, and then shared
        fixed=fixed,
        cell=by_rows,
        row=row,
        weights=weights,
        budget=budget,
        mesh=(wide, deep),
    )


def _outputs(job: Job) -> int:
    """How many logits a position has."""
    model = job.model
    if isinstance(model, Model):
        return model.config.outputs
    return jax.eval_shape(lambda p, t: model(p, t, tap=IDENTITY), job.params, job.tokens).shape[-1]


_RUNTIME = 32 << 20
"""What the runtime takes besides: packed operands of matrix products, the allocator's slack. Measured on a CPU."""

_LARGE_ON_DEMAND = ("attn.q_in", "attn.k_in", "attn.v_in", "attn.result")  # by head; hardly ever wanted


def block_bytes(model: Model, params: Params, n_prompts: int, rows: int, stop: int) -> int:
    """What one cell takes while a block runs on `rows` rows of `stop`: an estimate from the values of the block."""
    weights, data = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], jnp.result_type(leaf)),
        (params["blocks"][0], model.layer_data()[0]),
    )
    positions, tokens = jnp.zeros((1, rows), jnp.int32), jax.ShapeDtypeStruct((n_prompts, rows), jnp.int32)
    x = jax.eval_shape(functools.partial(model.embed, positions=positions), params, tokens)

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
    whole = matrix_flops(lambda p, t: forward_of(job.model)(p, t, tap=IDENTITY), job.params, job.tokens)
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
    where, places = jax.tree.map(jnp.asarray, chunk_indices(dataclasses.replace(job, mesh=None), chunks[0]))
    n_layers = base.inputs.shape[0] - 1
    rows = suffix.stop - suffix.start
    b, d, c = base.inputs.shape[1], base.inputs.shape[-1], suffix.chunk
    x = jax.ShapeDtypeStruct((c, b, rows, d), base.inputs.dtype)
    read = jax.ShapeDtypeStruct((c, b, job.geometry.reads.shape[1], d), base.inputs.dtype)

    def flops(fn: Callable[..., Any], *more: Any) -> int:
        def call(params: Any, base: Any, ops: Any, *more: Any) -> Any:
            reads, answers = jax.tree.map(jnp.asarray, (job.geometry.reads, job.answers))
            return fn(Work(job.model, suffix, params, base, ops, reads, answers), *more)

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
