"""The compiled part of a sweep: from the edited block on, the rows that an edit can reach, and nothing else."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxinterp._errors import InputError
from jaxinterp._tree import pytree
from jaxinterp._typing import Array, Params, PyTree
from jaxinterp.models import Model, token_positions
from jaxinterp.nn import KeyValues
from jaxinterp.patching._ops import forward_of
from jaxinterp.tap import IDENTITY, Handler, Tap, place, run, take_rows


@pytree
class BaseRun:
    """What the base run leaves for the cells.

    Attributes:
        tokens: [B, T], 0 at padding.
        positions: [B or 1, T], absolute; -1 at padding.
        inputs: [L + 1, B, T, D], the residual stream before each block, and behind the last.
        keys_values: by segment, keys and values [l, B, T, K, E].
        mask: of a plain function, which is told of padding itself: True at real tokens [B, T].
    """

    tokens: Any
    positions: Any
    inputs: Any
    keys_values: Any
    mask: Any = None


class Suffix(NamedTuple):
    """The static side of a compiled sweep: one compile for each.

    Attributes:
        start, stop: the rows that are computed; those before come from the base run, those behind are read by nobody.
        stage: where the first edit is: "embed", "block" or "final"; "whole" for a plain function, of which nothing is known.
        stages: the same for each part of a cell.
        places: if positive, the first block is computed at the edited rows alone, so many in each prompt: its other rows are the
            base's.
        later: whether a cell edits layers behind its first one too.
        chunk: cells side by side.
    """

    start: int
    stop: int
    stage: str
    stages: tuple[str, ...]
    places: int
    later: bool
    chunk: int


@functools.partial(jax.jit, static_argnames="model")
def base_run(model: Model, params: Params, tokens: Array, mask: Array | None) -> BaseRun:
    """One run that keeps the input, the keys and the values of each block."""
    positions = token_positions(tokens, mask, None)
    tokens = tokens if mask is None else jnp.where(mask, tokens, 0)
    x = model.embed(params, tokens, positions=positions)

    def body(x: Array, layer: Any) -> tuple[Array, Any]:
        weights, data = layer
        following, own = model.block(weights, data, x, positions=positions)
        return following, (x, own.keys, own.values)

    inputs, kept = [], []
    for segment in zip(params["blocks"], model.layer_data(), strict=True):
        x, (before, keys, values) = lax.scan(body, x, segment)
        inputs.append(before)
        kept.append((keys, values))
    return BaseRun(
        tokens=tokens, positions=positions, inputs=jnp.concatenate([*inputs, x[None]]), keys_values=tuple(kept)
    )


class Work(NamedTuple):
    """What the pieces of one compiled sweep share; arrays are traced.

    Attributes:
        ops: for each part of a cell an edit without a place.
        reads: [B, U], the rows that are read.
        answers: [B, n], the tokens whose logits are wanted; None: all.
    """

    model: Any
    suffix: Suffix
    params: Params
    base: BaseRun
    ops: tuple[Handler, ...]
    reads: Array
    answers: Array | None
    mesh: Mesh | None = None

    @property
    def n_layers(self) -> int:
        return self.base.inputs.shape[0] - 1

    @property
    def extent(self) -> Any:
        """How many positions each prompt has: known where there is no padding."""
        t = self.base.tokens.shape[1]
        return t if self.base.positions.shape[0] == 1 else jnp.max(self.base.positions, axis=1) + 1

    def own(self, x: Array, axis: int = 1) -> Array:
        """The computed rows of an array of all rows."""
        return lax.slice_in_dim(x, self.suffix.start, self.suffix.stop, axis=axis)

    @property
    def local_reads(self) -> Array:
        """The rows that are read, counted from the first computed one; a row before it stands for the first."""
        return jnp.maximum(self.reads - self.suffix.start, 0)

    @property
    def reads_fewer(self) -> bool:
        """Whether fewer rows are read than are computed."""
        return self.reads.shape[1] < self.suffix.stop - self.suffix.start

    def shared(self, x: Array) -> Array:
        """Cells [C, B, ...] on a mesh: cells along one of its axes, prompts along the other."""
        if self.mesh is None:
            return x
        return lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec("cells", "prompts")))

    def tapped(self, tap: Tap, **at: Any) -> Tap:
        """The tap at the computed rows."""
        rows = jnp.arange(self.suffix.start, self.suffix.stop, dtype=jnp.int32)[None]
        return tap.at(positions=self.own(self.base.positions), rows=rows, extent=self.extent, **at)

    def handlers(self, where: Any, stage: str) -> list[Handler]:
        """The edits of a cell that belong to a stage, at their places."""
        parts = zip(self.ops, where, self.suffix.stages, strict=True)
        return [place(op, **indices) for op, indices, at in parts if at == stage]


def cell_logits(work: Work, layer: Array, where: Any, places: Array | None) -> Array:
    """Logits [C, B, U, V or n] of the cells of a chunk.

    Args:
        work: see `Work`.
        layer: the first edited layer, the same for all cells; traced but not batched, so that one compile serves all layers.
        where: for each part of a cell its indices, with a leading axis C.
        places: [C, B, k], the edited rows, if only those are computed in the first block.
    """
    stage = work.suffix.stage
    if stage == "whole":
        return work.shared(jax.vmap(lambda w: whole_cell(work, w))(where))
    last = work.n_layers - 1
    if stage == "final":
        x = work.base.inputs[-1]
    elif stage == "embed":
        x = to_last(work, work.shared(jax.vmap(lambda w: embed_cell(work, w))(where)), jnp.int32(0), where)
    else:
        x = lax.cond(
            layer == last,
            lambda: first_is_last(work, where),
            lambda: to_last(work, work.shared(first_block(work, layer, where, places)), layer + 1, where),
        )
    return work.shared(unembed_cells(work, x, where))


def whole_cell(work: Work, where: Any) -> Array:
    """A whole forward pass of a plain function; its logits at the rows that are read, [B, U, V]."""
    tokens = work.base.tokens
    out = run(forward_of(work.model, work.base.mask), *work.handlers(where, "whole"))(work.params, tokens)[0]
    if out.ndim != 3 or out.shape[:2] != tokens.shape:
        raise InputError(
            f"the model returned {list(out.shape)}; a sweep needs logits [B, T, V], here "
            f"[{tokens.shape[0]}, {tokens.shape[1]}, V]."
        )
    return take_rows(out, work.reads)


def embed_cell(work: Work, where: Any) -> Array:
    """The edited embedding of the computed rows, [B, S, D]."""

    def embed(tokens: Array, *, tap: Tap) -> Array:
        positions = work.own(work.base.positions)
        return work.model.embed(work.params, tokens, positions=positions, tap=work.tapped(tap))

    return run(embed, *work.handlers(where, "embed"))(work.own(work.base.tokens))[0]


def first_block(work: Work, layer: Array, where: Any, places: Array | None) -> Array:
    """[C, B, S, D] behind the first edited block: what comes before the edit in it is computed once for all cells."""
    x = work.own(lax.dynamic_index_in_dim(work.base.inputs, layer, 0, keepdims=False))
    if not work.suffix.places:
        return jax.vmap(lambda w: _in_segment(work, layer, x, w))(where)
    following = work.own(lax.dynamic_index_in_dim(work.base.inputs, layer + 1, 0, keepdims=False))
    rows = jnp.arange(x.shape[1])[None, :, None]

    def one(where: Any, place: Array) -> Array:
        local = place - work.suffix.start  # negative where a prompt has no such row
        made = _in_segment(work, layer, x, where, jnp.maximum(local, 0))
        out = following
        for j in range(work.suffix.places):
            out = jnp.where(rows == local[:, j, None, None], made[:, j, None], out)
        return out

    assert places is not None
    return jax.vmap(one)(where, places)


def _in_segment(work: Work, layer: Array, x: Array, where: Any, read: Array | None = None) -> Array:
    """One edited block, found in its segment."""
    sizes = _segment_sizes(work.params)
    firsts = [sum(sizes[:i]) for i in range(len(sizes))]
    branches = [functools.partial(_block, work, i, read=read, where=where) for i in range(len(sizes))]
    if len(branches) == 1:
        return branches[0](layer, x)
    segment = sum((layer >= first).astype(jnp.int32) for first in firsts[1:])
    return lax.switch(
        segment, [lambda layer, x, b=b, f=f: b(layer - f, x) for b, f in zip(branches, firsts, strict=True)], layer, x
    )


def first_is_last(work: Work, where: Any) -> Array:
    """[C, B, U, D] behind the last block, when it is the first edited one too."""
    sizes = _segment_sizes(work.params)
    x, read = work.own(work.base.inputs[-2]), work.local_reads if work.reads_fewer else None
    x = jax.vmap(lambda w: _block(work, len(sizes) - 1, sizes[-1] - 1, x, read=read, where=w))(where)
    return x if work.reads_fewer else jax.vmap(lambda x: take_rows(x, work.local_reads))(x)


def to_last(work: Work, x: Array, begin: Array, where: Any) -> Array:
    """[C, B, U, D] behind the last block, from [C, B, S, D] before block `begin`."""
    sizes = _segment_sizes(work.params)
    done = 0
    for segment, size in enumerate(sizes):
        end = size - (segment == len(sizes) - 1)
        x = lax.fori_loop(
            jnp.clip(begin - done, 0, end), end, functools.partial(middle_block, work, segment, where=where), x
        )
        done += size
    return last_block(work, x, where)


def middle_block(work: Work, segment: int, i: Any, x: Array, *, where: Any) -> Array:
    """One block of all cells, edited only where a cell edits later layers too."""
    if not work.suffix.later:
        return jax.vmap(lambda x: _block(work, segment, i, x))(x)
    return jax.vmap(lambda x, w: _block(work, segment, i, x, where=w))(x, where)


def last_block(work: Work, x: Array, where: Any) -> Array:
    """The last block at the rows that are read, [C, B, U, D]."""
    sizes = _segment_sizes(work.params)
    read = work.local_reads if work.reads_fewer else None
    step = functools.partial(_block, work, len(sizes) - 1, sizes[-1] - 1, read=read)
    x = jax.vmap(lambda x, w: step(x, where=w))(x, where) if work.suffix.later else jax.vmap(step)(x)
    return x if work.reads_fewer else jax.vmap(lambda x: take_rows(x, work.local_reads))(x)


def _block(work: Work, segment: int, i: Any, x: Array, read: Array | None = None, where: Any = None) -> Array:
    """Block `i` of a segment on one cell's rows, under the cell's edits if there are any."""

    def at(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(jnp.asarray(leaf), i, 0, keepdims=False), tree)

    start, sizes = work.suffix.start, _segment_sizes(work.params)
    weights, data = at((work.params["blocks"][segment], work.model.layer_data()[segment]))
    prefix = None
    if start:
        keys, values = (lax.slice_in_dim(a, 0, start, axis=1) for a in at(work.base.keys_values[segment]))
        prefix = KeyValues(keys, values, work.base.positions[:, :start])
    how: dict[str, Any] = dict(positions=work.own(work.base.positions), prefix=prefix, read=read)
    if where is None:
        return work.model.block(weights, data, x, tap=IDENTITY, **how)[0]

    def block(x: Array, *, tap: Tap) -> Array:
        tap = work.tapped(tap, layer=jnp.asarray(i + sum(sizes[:segment]), jnp.int32), n_layers=work.n_layers)
        return work.model.block(weights, data, x, tap=tap, **how)[0]

    return run(block, *work.handlers(where, "block"))(x)[0]


def unembed_cells(work: Work, x: Array, where: Any) -> Array:
    """Logits [C, B, U, V or n] of the rows that are read."""

    def unembed(x: Array, *, tap: Tap) -> Array:
        tap = tap.at(positions=work.base.positions, extent=work.extent).narrow(work.reads)
        return work.model.unembed(work.params, x, tokens=work.answers, tap=tap)

    def one(x: Array, where: Any) -> Array:
        return run(unembed, *work.handlers(where, "final"))(x)[0]

    if work.suffix.stage == "final":
        return jax.vmap(functools.partial(one, take_rows(x, work.reads)))(where)
    return jax.vmap(one)(x, where) if work.suffix.later else jax.vmap(lambda x: unembed(x, tap=IDENTITY))(x)


def _segment_sizes(params: Params) -> list[int]:
    return [jax.tree.leaves(segment)[0].shape[0] for segment in params["blocks"]]
