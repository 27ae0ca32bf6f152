"""From what a caller gives to jobs and a plan: everything of a sweep that needs no compute."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError
from jaxinterp._typing import Array, Params
from jaxinterp.models import Model, token_positions
from jaxinterp.patching._cells import Cells, is_list, list_cells, make_cells
from jaxinterp.patching._check import (
    as_tokens,
    check_mapped,
    check_mesh,
    check_metrics,
    check_places,
    check_prompts,
    differing_rows,
    make_source,
    named_metrics,
)
from jaxinterp.patching._engine import Job
from jaxinterp.patching._estimate import count_flops, job_costs
from jaxinterp.patching._metrics import Metric
from jaxinterp.patching._names import in_own_names
from jaxinterp.patching._null import Null, make_null, null_bytes, null_ops
from jaxinterp.patching._ops import Forward, Source, forward_of, make_handler, resolve
from jaxinterp.patching._plan import Costs, Plan, make_chunks
from jaxinterp.patching._reach import Geometry, Reach, is_local, make_geometry, reach
from jaxinterp.tap import Handler, SiteTable, patch, sites


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A sweep that could run.

    Attributes:
        base, mask, source: the prompts.
        metrics: by name.
        cells: all of them, for the axes of the result.
        jobs: the cells' jobs, then those of the null draws, in the same order.
        found: the reach of each job's cells.
        n_draws: of the null distribution.
    """

    base: Array
    mask: Array | None
    source: Source | None
    metrics: dict[str, Metric]
    cells: Cells
    jobs: tuple[Job, ...]
    found: tuple[Reach, ...]
    n_draws: int

    @property
    def reaches(self) -> np.ndarray:
        """[n (1 + draws), B]: whether a cell can change what is read of a prompt."""
        return self._by_row([found.reaches for found in self.found])

    @property
    def there(self) -> np.ndarray:
        """[n, B]: whether a prompt has the positions of a cell."""
        return self._by_row([found.there for found in self.found])[: len(self.cells)]

    def _by_row(self, tables: Sequence[np.ndarray]) -> np.ndarray:
        order = np.argsort(np.concatenate([job.rows for job in self.jobs]))
        return np.concatenate(tables)[order]


def prepare(
    model: Forward,
    params: Params,
    *,
    base: Any,
    source: Any = None,
    site: str | None = None,
    over: Any,
    metric: Any,
    op: Callable[..., Handler] = patch,
    mask: Any = None,
    source_mask: Any = None,
    positions: Any = None,
    roles: Mapping[str, Any] | None = None,
    null: str | None = None,
    draws: int = 10,
    seed: int = 0,
    mesh: Any = None,
) -> Prepared:
    """Checks the arguments of a sweep against each other and the model, and lays out its cells. The first step of `sweep`.

    Args: see `sweep`; `params` may be shapes.

    Returns:
        The cells as arrays, what a prompt has of them and what they can change of it; computes nothing.

    Raises:
        InputError, SiteIndexError, UnvisitedSiteError: as `sweep`.

    Example:
        >>> import jax, jaxinterp as ji
        >>> config = ji.TransformerConfig(n_layers=2, d_model=8, n_ctx=8, n_heads=2, d_head=4, d_vocab=5, d_mlp=8)
        >>> model = ji.Model(config=config)
        >>> todo = ji.patching.prepare(
        ...     model, model.param_shapes(), base=[[1, 2, 3]], source=[[1, 4, 3]], site="attn.z", over="layer,position",
        ...     metric=ji.patching.logit_difference([2], [4], [2]))
        >>> todo.cells.shape, todo.reaches[:, 0].tolist()  # the prompts differ from position 1 on; the last layer is read at 2
        ((2, 3), [False, True, True, False, False, True])
    """
    metrics = named_metrics(metric)
    base, mask = as_tokens(base, "base"), None if mask is None else jnp.asarray(mask, bool)
    check_prompts(model, base, mask)
    origin = make_source(model, base, mask, source, source_mask, positions)
    check_metrics(model, base, mask, metrics)
    check_mapped(metrics, base, mask, origin)
    if op is patch and origin is None:
        raise InputError("op=patch needs source, the prompts to patch from. (For ablations: op=zero, op=mean.)")
    table = sites(forward_of(model), params, base)
    cells, groups = _cells(over, site, table, roles)
    check_mesh(mesh, base)
    check_places(model, params, base, mask, list(dict.fromkeys(name for _, group in groups for name in group.sites)))
    chance = make_null(null, draws, seed, base, mask)
    _check_null(chance, [table[name].axes for _, group in groups for name in group.sites])
    measured = tuple(metrics.values())
    # The sweep, then the draws of its null distribution: they differ in what they bring, not in where they can bring it.
    rounds = [(None, range(1)), *([(chance, range(1, 1 + chance.draws))] if chance else [])]
    jobs: list[Job] = []
    found: list[Reach] = []
    for ids, group in groups:
        stages = tuple(_stage(model, table, name) for name in group.sites)
        making = null_bytes(chance, [table[name] for name in group.sites])
        for drawn, numbers in rounds:
            geometry = _geometry(model, base, mask, origin, measured, group, stages, op, drawn)
            reached = _reach(model, group, geometry, stages)
            _check_there(op, geometry, reached)
            for draw in numbers:
                ops = functools.partial(_ops, model, base, mask, origin, group, stages, table, op, drawn, draw)
                jobs.append(
                    Job(
                        model=model, params=params, tokens=base, mask=mask, cells=group, rows=draw * len(cells) + ids,
                        stages=stages, make_ops=ops, metrics=measured, geometry=geometry, making=making,
                        mesh=mesh,
                    )
                )  # fmt: skip
                found.append(reached)
    return Prepared(base, mask, origin, metrics, cells, tuple(jobs), tuple(found), chance.draws if chance else 0)


def _check_null(null: Null | None, axes: Sequence[str]) -> None:
    if null is not None and null.kind == "directions" and any("S" in letters for letters in axes):
        raise InputError(
            "null='directions' turns a change in a space of features; attention scores and patterns have none (a pattern sums "
            "to 1, over the past alone). Use null='prompts', or sweep attn.q, attn.k or attn.z."
        )


def _check_there(op: Any, geometry: Geometry, reached: Reach) -> None:
    if geometry.reads_all and not reached.there.all():
        raise InputError(
            f"op={op!r} depends on all prompts at once, but some prompt does not have the position of some cell. Leave "
            "such prompts or positions out, or patch means that were taken before."
        )


def make_plan(prepared: Prepared, memory: int | None, held: Sequence[Any] = ()) -> Plan:
    """The plan of a sweep; `held` are the compiled sweeps of another plan to keep to."""
    jobs, chunks = prepared.jobs, []
    costs: dict[int, Costs] = {}  # jobs of one geometry cost the same
    for number, (job, found) in enumerate(zip(jobs, prepared.found, strict=True)):
        geometry = job.geometry
        if id(geometry) not in costs:
            costs[id(geometry)] = job_costs(job, geometry.stop, memory)
        single, places = _kinds(job)
        chunks += make_chunks(
            number,
            found,
            stages=job.stages,
            single=single,
            places=places,
            start=geometry.start,
            stop=geometry.stop,
            n_layers=_n_layers(job.model),
            costs=costs[id(geometry)],
            held=held,
        )
    dearest = max(costs.values(), key=lambda c: c.base)
    rows = {c.suffix: 1 if c.suffix.stage == "final" else c.suffix.stop - c.suffix.start for c in chunks}
    return Plan(
        n_cells=sum(len(job.cells) for job in jobs),
        chunks=tuple(chunks),
        count_flops=functools.partial(count_flops, jobs, chunks),
        bytes_base=dearest.base,
        bytes_fixed=dearest.fixed,
        bytes_chunk=max((s.chunk // dearest.mesh[0] * dearest.cell(n) for s, n in rows.items()), default=0),
        budget=dearest.budget,
        mesh=dearest.mesh,
    )


def _n_layers(model: Forward) -> int:
    return model.config.n_layers if isinstance(model, Model) else 0


def _edit_one_layer(cells: Cells, stages: tuple[str, ...]) -> np.ndarray:
    """[n], whether a cell is one edit at one layer."""
    n, layers = len(cells), cells.parts[0].get("layer")
    if len(cells.parts) > 1:
        return np.zeros(n, bool)
    return np.full(n, stages[0] in ("embed", "final")) if layers is None else (layers == layers[:, :1]).all(1)


def _is_live(op: Any, cells: Cells, stages: tuple[str, ...]) -> bool:
    """Whether the op has to be applied in each run: a second edit finds what the first one left, not what the base run has."""
    return op is not patch and not _edit_one_layer(cells, stages).all()


def _kinds(job: Job) -> tuple[np.ndarray, int]:
    """Which cells edit one layer only; and how many rows a cell edits, if its others stay the base's until the next layer."""
    cells, single = job.cells, _edit_one_layer(job.cells, job.stages)
    part, in_block = cells.parts[0], job.stages == ("block",)
    local = in_block and single.all() and is_local(cells.sites[0]) and job.geometry.causal
    return single, part["position"].shape[-1] if local and "position" in part else 0


def _stage(model: Forward, table: SiteTable, name: str) -> str:
    """Where a site is: in the blocks, before or behind them; of a plain function nothing is known."""
    if not isinstance(model, Model):
        return "whole"
    if table[name].n_layers is not None:
        return "block"
    return "final" if name == "logits" or name.startswith("final.") else "embed"


def _reach(model: Forward, cells: Cells, geometry: Geometry, stages: tuple[str, ...]) -> Reach:
    if isinstance(model, Model):
        return reach(cells, geometry, stages, model.config.n_layers)
    n, b = len(cells), len(geometry.positions)  # every cell of a plain function runs
    nothing, there = np.zeros(n, np.int32), np.ones((n, b), bool)
    for part in cells.parts:
        if "position" in part:
            there &= (geometry.rows_at(part["position"]) >= 0).all(2)
    return Reach(stage=nothing, first=nothing, reaches=np.ones((n, b), bool), there=there)


def _cells(over: Any, site: str | None, table: SiteTable, roles: Any) -> tuple[Cells, list[tuple[np.ndarray, Cells]]]:
    """All cells, for the result's axes, and the groups that one compiled sweep can run."""
    over, site = in_own_names(over, site, table)
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
    stages: tuple[str, ...],
    op: Any,
    null: Null | None,
) -> Geometry:
    causal = isinstance(model, Model) and model.config.attention_dir == "causal"
    positions = np.asarray(token_positions(base, mask, None))
    differs = None
    if op is patch:
        differs = differing_rows(base, mask, origin)
        if null is not None:
            differs = null.differs(np.asarray(base), differs)
    geometry = make_geometry(positions, [np.asarray(m.positions) for m in metrics], differs, causal)
    everywhere = _is_live(op, cells, stages) and _reads_all(op, cells)
    if null is None and op is patch and origin is not None and origin.rows is not None:
        geometry = dataclasses.replace(geometry, mapped=origin.rows >= 0)
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
    stages: tuple[str, ...],
    table: SiteTable,
    op: Any,
    null: Null | None,
    draw: int,
    params: Params,
) -> tuple[Handler, ...]:
    """For each part the edit without a place."""
    made = []
    for name in cells.sites:
        if null is not None:
            handler = None if op is patch else make_handler(op, name)
            made.append(null_ops(null, draw, model, params, base, mask, origin, table[name], handler))
        elif not _is_live(op, cells, stages):
            made.append(
                resolve(model, params, base, mask, origin, table[name], None if op is patch else make_handler(op, name))
            )
        else:
            made.append(make_handler(op, name))
    return tuple(made)
