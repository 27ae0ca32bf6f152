"""From what a caller gives to jobs and a plan: everything of a sweep that needs no compute."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError
from jaxinterp._typing import Array, Params
from jaxinterp.models import Model, check_tokens, token_positions
from jaxinterp.patching._cells import Cells, is_list, list_cells, make_cells
from jaxinterp.patching._engine import Job, count_flops, job_costs
from jaxinterp.patching._metrics import Metric
from jaxinterp.patching._null import Null, null_ops
from jaxinterp.patching._ops import Forward, Source, make_handler, resolve
from jaxinterp.patching._plan import Plan, make_chunks
from jaxinterp.patching._reach import Geometry, Reach, is_local, make_geometry, reach
from jaxinterp.tap import Handler, SiteShape, SiteTable, patch, sites


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A sweep that could run.

    Attributes:
        base, mask, source: the prompts.
        metrics: by name.
        cells: all of them, for the axes of the result.
        jobs: the cells' jobs, then those of the null draws, in the same order.
        found: the reach of each job's cells; None for a plain function.
        n_draws: of the null distribution.
    """

    base: Array
    mask: Array | None
    source: Source | None
    metrics: dict[str, Metric]
    cells: Cells
    jobs: tuple[Job, ...]
    found: tuple[Reach | None, ...]
    n_draws: int

    @property
    def reaches(self) -> np.ndarray:
        """[n (1 + draws), B]: whether a cell can change what is read of a prompt."""
        return _by_row(self.jobs, [None if f is None else f.reaches for f in self.found], len(self.base))

    @property
    def there(self) -> np.ndarray:
        """[n, B]: whether a prompt has the positions of a cell."""
        return _by_row(self.jobs, [None if f is None else f.there for f in self.found], len(self.base))[
            : len(self.cells)
        ]


def _by_row(jobs: Sequence[Job], tables: Sequence[Any], n_prompts: int) -> np.ndarray:
    out = np.ones((sum(len(j.cells) for j in jobs), n_prompts), bool)
    for job, table in zip(jobs, tables, strict=True):
        if table is not None:
            out[job.rows] = table
    return out


def prepare(
    model: Forward,
    params: Params,
    *,
    base: Any,
    source: Any,
    site: str | None,
    over: Any,
    metric: Any,
    op: Callable[..., Handler],
    mask: Any,
    source_mask: Any,
    positions: Any,
    roles: Mapping[str, Any] | None,
    null: Null | None,
    mesh: Any,
) -> Prepared:
    """Checks the arguments of a sweep against each other and the model; see `sweep`."""
    metrics = _metrics(metric)
    base, mask = as_tokens(base, "base"), None if mask is None else jnp.asarray(mask, bool)
    if isinstance(model, Model):
        check_tokens(model.config, base, mask)
    elif mask is not None:
        raise InputError(
            "a mask was given, but the model is a plain function, which takes none. Group prompts by their length."
        )
    _check_metrics(model, base, mask, metrics)
    origin = _source(model, base, mask, source, source_mask, positions)
    if op is patch and origin is None:
        raise InputError("op=patch needs source, the prompts to patch from. (For ablations: op=zero, op=mean.)")
    table = sites(model.forward if isinstance(model, Model) else model, params, base)
    cells, groups = _cells(over, site, table, roles)
    _check_mesh(mesh, base)
    measured = tuple(metrics.values())
    jobs: list[Job] = []
    for draw in range(1 + (null.draws if null else 0)):
        for ids, group in groups:
            ops = functools.partial(_ops, model, base, mask, origin, group, table, op, null, draw)
            geometry = _geometry(model, base, mask, origin, measured, group, op, null if draw else None)
            jobs.append(
                Job(
                    model=model,
                    params=params,
                    tokens=base,
                    mask=mask,
                    cells=group,
                    rows=draw * len(cells) + ids,
                    make_ops=ops,
                    metrics=measured,
                    geometry=geometry,
                    mesh=mesh,
                )  # fmt: skip
            )
    found = tuple(_reach(job, table) for job in jobs)
    return Prepared(base, mask, origin, metrics, cells, tuple(jobs), found, null.draws if null else 0)


def make_plan(prepared: Prepared, memory: int | None, held: Sequence[Any] = ()) -> Plan:
    """The plan of a sweep; `held` are the compiled sweeps of another plan to keep to."""
    jobs, chunks, budgets = prepared.jobs, [], []
    for number, (job, found) in enumerate(zip(jobs, prepared.found, strict=True)):
        stop = job.geometry.stop
        costs = job_costs(job, stop, memory)
        budgets.append(costs)
        n_layers = job.model.config.n_layers if isinstance(job.model, Model) else 0
        stages, single, places = _kinds(job)
        chunks += make_chunks(
            number, found or _everything(job), stages=stages, single=single, places=places, start=job.geometry.start, stop=stop,
            n_layers=n_layers, costs=costs, held=held,
        )  # fmt: skip
    costs = max(budgets, key=lambda c: c.base)
    rows = {c.suffix: 1 if c.suffix.stage == "final" else c.suffix.stop - c.suffix.start for c in chunks}
    return Plan(
        n_cells=sum(len(job.cells) for job in jobs),
        chunks=tuple(chunks),
        count_flops=functools.partial(count_flops, jobs, chunks),
        bytes_base=costs.base,
        bytes_fixed=costs.fixed,
        bytes_chunk=max((s.chunk // costs.mesh[0] * costs.cell(n) for s, n in rows.items()), default=0),
        budget=costs.budget,
        mesh=costs.mesh,
    )


def _kinds(job: Job) -> tuple[tuple[str, ...], np.ndarray, int]:
    """The stage of each part, which cells edit one layer only, and how many rows they edit if the others stay the base's."""
    n, cells = len(job.cells), job.cells
    if not isinstance(job.model, Model):
        return ("whole",) * len(cells.sites), np.ones(n, bool), 0
    layered = {s.name: s.n_layers is not None for s in sites(job.model.forward, job.params, job.tokens)}
    stages = tuple("block" if layered[name] else stage_outside(name) for name in cells.sites)
    layers = [part.get("layer") for part in cells.parts]
    single = np.zeros(n, bool)
    if len(cells.parts) == 1:
        single = (
            np.ones(n, bool)
            if stages != ("block",)
            else np.zeros(n, bool)
            if layers[0] is None
            else (layers[0] == layers[0][:, :1]).all(1)
        )
    part = cells.parts[0]
    local = len(cells.parts) == 1 and stages == ("block",) and is_local(cells.sites[0]) and single.all()
    return stages, single, part["position"].shape[-1] if local and "position" in part and job.geometry.causal else 0


def stage_outside(name: str) -> str:
    """Where a site that is in no layer is: before the blocks or behind them."""
    return "final" if name == "logits" or name.startswith("final.") else "embed"


def _everything(job: Job) -> Reach:
    """Of a plain function nothing is known, so every cell runs."""
    n, b = len(job.cells), len(job.tokens)
    return Reach(
        stage=np.zeros(n, np.int32),
        first=np.zeros(n, np.int32),
        reaches=np.ones((n, b), bool),
        there=np.ones((n, b), bool),
    )


def _reach(job: Job, table: SiteTable) -> Reach | None:
    if not isinstance(job.model, Model):
        return None
    shapes = {name: table[name] for name in job.cells.sites}
    before = [name for name in shapes if shapes[name].n_layers is None and stage_outside(name) == "embed"]
    return reach(job.cells, job.geometry, shapes, before, job.model.config.n_layers)


def _cells(over: Any, site: str | None, table: SiteTable, roles: Any) -> tuple[Cells, list[tuple[np.ndarray, Cells]]]:
    """All cells, for the result's axes, and the groups that one compiled sweep can run."""
    if not is_list(over):
        if site is None:
            raise InputError("site is missing: name the value to edit, such as 'attn.z' (jaxinterp.sites lists them).")
        cells = make_cells(over, shape=table[site], roles=roles)
        return cells, [(np.arange(len(cells)), cells)]
    groups = list_cells(over, site=site, table=table, roles=roles)
    n = len(over)
    whole = Cells(axes=(("cell", n),), labels=(tuple(range(n)),), sites=(), parts=())
    return whole, groups


def _geometry(
    model: Forward,
    base: Array,
    mask: Any,
    origin: Source | None,
    metrics: Sequence[Metric],
    cells: Cells,
    op: Any,
    null: Null | None,
) -> Geometry:
    causal = isinstance(model, Model) and model.config.attention_dir == "causal"
    positions = np.asarray(token_positions(base, mask, None))
    differs = None
    if op is patch:
        differs = _differs(base, mask, origin)
        if null is not None:
            differs = null.differs(np.asarray(base), differs)
    geometry = make_geometry(positions, [np.asarray(m.positions) for m in metrics], differs, causal)
    everywhere = len(cells.parts) > 1 and op is not patch and _reads_all(op, cells)
    return geometry.bounded(
        all_rows=not causal or everywhere,
        to_end=not causal or everywhere or any(name in _BY_KEY for name in cells.sites),
        read_all=everywhere,
    )


_BY_KEY = ("attn.scores", "attn.pattern")


def _reads_all(op: Any, cells: Cells) -> bool:
    """Whether an edit that is applied to an edited run depends on all rows of what it finds."""
    return any(getattr(make_handler(op, name).visit, "reads", "all") == "all" for name in cells.sites)


def _ops(
    model: Forward,
    base: Array,
    mask: Any,
    origin: Source | None,
    cells: Cells,
    table: SiteTable,
    op: Any,
    null: Null | None,
    draw: int,
    params: Params,
) -> tuple[Handler, ...]:
    """For each part the edit without a place."""
    made = []
    for name in cells.sites:
        if draw:
            assert null is not None
            handler = None if op is patch else make_handler(op, name)
            made.append(null_ops(null, draw, model, params, base, mask, origin, table[name], handler))
        elif op is patch or len(cells.parts) == 1:
            made.append(
                resolve(model, params, base, mask, origin, table[name], None if op is patch else make_handler(op, name))
            )
        else:  # a second edit finds what the first one left, so it is applied where it stands
            made.append(make_handler(op, name))
    return tuple(made)


def _differs(base: Array, mask: Any, origin: Source | None) -> np.ndarray:
    """[B, T] whether a row has another token, or another position, in the source."""
    assert origin is not None
    own, other = np.asarray(base), np.asarray(origin.tokens)
    if origin.rows is None:
        return own != other
    own_at = np.asarray(np.broadcast_to(token_positions(base, mask, None), own.shape))
    other_at = np.asarray(np.broadcast_to(token_positions(origin.tokens, origin.mask, None), other.shape))
    rows = np.maximum(origin.rows, 0)
    take = lambda a: np.take_along_axis(a, rows, 1)
    return (origin.rows < 0) | (take(other) != own) | (take(other_at) != own_at)


def _source(model: Forward, base: Array, mask: Any, source: Any, source_mask: Any, positions: Any) -> Source | None:
    if source is None:
        if positions is not None or source_mask is not None:
            raise InputError("positions= and source_mask= speak of the source prompts; give source= too.")
        return None
    tokens = as_tokens(source, "source")
    if positions is None:
        if source_mask is not None and not np.array_equal(
            np.asarray(source_mask), np.ones(base.shape) if mask is None else np.asarray(mask)
        ):
            raise InputError(
                "source_mask differs from mask, so rows do not correspond. Give positions=, a map [B, T] from base to source."
            )
        if tokens.shape != base.shape:
            raise InputError(
                f"base has shape {list(base.shape)} and source {list(tokens.shape)}. A patch puts the source's value at the "
                "same place, so both need the same prompts in the same number of tokens: align them, group prompts by length, or "
                "give positions=, a map [B, T] from the base's positions to the source's."
            )
        other = mask
    else:
        other = None if source_mask is None else jnp.asarray(source_mask, bool)
    if isinstance(model, Model):
        check_tokens(model.config, tokens, other)
    return Source(tokens, other, None if positions is None else _mapped_rows(base, mask, tokens, other, positions))


def _mapped_rows(base: Array, mask: Any, source: Array, source_mask: Any, positions: Any) -> np.ndarray:
    """[B, T] rows of the source for each row of the base, from a map of positions."""
    wanted = np.asarray(positions)
    if wanted.shape != base.shape or not np.issubdtype(wanted.dtype, np.integer) or len(source) != len(base):
        raise InputError(
            f"positions is {wanted.dtype}{list(wanted.shape)} for base {list(base.shape)} and source {list(source.shape)}: give for each "
            "position of each base prompt the position in its source prompt, int [B, T], -1 where it has none."
        )
    own = np.broadcast_to(np.asarray(token_positions(base, mask, None)), base.shape)
    there = np.broadcast_to(np.asarray(token_positions(source, source_mask, None)), source.shape)
    rows = np.full(base.shape, -1, np.int32)
    for b in range(len(rows)):
        row_of = {int(p): row for row, p in enumerate(there[b]) if p >= 0}
        for row, p in enumerate(own[b]):
            target = int(wanted[b, p]) if p >= 0 else -1
            if target >= 0 and target not in row_of:
                raise InputError(
                    f"positions[{b}, {p}] = {target}, but source prompt {b} has {len(row_of)} tokens: legal are -1 to {len(row_of) - 1}."
                )
            rows[b, row] = row_of.get(target, -1)
    return rows


def _check_mesh(mesh: Any, base: Array) -> None:
    if mesh is None:
        return
    names = tuple(mesh.axis_names)
    if set(names) != {"cells", "prompts"}:
        raise InputError(
            f"the mesh has axes {names}; a sweep shares cells and prompts: jaxinterp.mesh.make_mesh(cells=4, prompts=2)."
        )
    deep = mesh.shape["prompts"]
    if len(base) % deep:
        raise InputError(
            f"{len(base)} prompts do not divide among {deep} devices of the mesh's axis 'prompts': give a multiple of {deep} prompts, or "
            "fewer devices to prompts and more to cells."
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


def _check_metrics(model: Forward, base: Array, mask: Any, metrics: Mapping[str, Metric]) -> None:
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


def as_tokens(tokens: Any, what: str) -> Array:
    """Token ids as an array [B, T]."""
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
