"""The plan of a sweep: which cells run, from where, how many side by side, and what that costs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxinterp._errors import InputError
from jaxinterp.patching._cone import Suffix
from jaxinterp.patching._reach import Reach

MOST_BUCKETS = 4
MOST_CELLS = 512


class Chunk(NamedTuple):
    """Cells that run side by side.

    Attributes:
        job: which of the sweep's jobs they belong to.
        suffix: the compiled sweep that runs them.
        layer: the layer of their first edit.
        ids: [suffix.chunk], which cells; the last one is repeated to fill the chunk.
        n: how many of them are not repetitions.
    """

    job: int
    suffix: Suffix
    layer: int
    ids: np.ndarray
    n: int


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What a sweep will do, known before anything is computed; prints as a table.

    Attributes:
        n_cells: of the sweep.
        chunks: what runs, in order. Cells that provably change nothing are in none: their effect is exactly 0.
        count_flops: gives `flops`, which is counted when it is asked for: () -> (int, int).
        bytes_base: held throughout: the base run, what the edits bring, what making those of a null distribution takes, and the
            runtime's own 32 MiB.
        bytes_fixed: of one compiled sweep, whatever its number of cells: a layer's weights, sliced out.
        bytes_chunk: of the cells of the largest chunk.
        budget: bytes that were given or found.
        mesh: sizes of the axes "cells" and "prompts".
    """

    n_cells: int
    chunks: tuple[Chunk, ...]
    count_flops: Any
    bytes_base: int
    bytes_fixed: int
    bytes_chunk: int
    budget: int
    mesh: tuple[int, int]

    @property
    def n_run(self) -> int:
        """How many cells run."""
        return sum(chunk.n for chunk in self.chunks)

    @property
    def suffixes(self) -> tuple[Suffix, ...]:
        """The compiled sweeps, one compile each."""
        return tuple(dict.fromkeys(chunk.suffix for chunk in self.chunks))

    @property
    def bytes_peak(self) -> int:
        """What the sweep takes at its peak, on one device."""
        return self.bytes_base + self.bytes_fixed + self.bytes_chunk

    @functools.cached_property
    def flops(self) -> tuple[int, int]:
        """Floating-point operations of matrix products: of a whole forward pass for each cell, and of this plan."""
        return self.count_flops()

    def __str__(self) -> str:
        naive, planned = self.flops
        rows = [
            ("cells", f"{self.n_cells:,}"),
            ("cells that run", f"{self.n_run:,} (the others provably change nothing: effect exactly 0)"),
            ("operations, one whole forward a cell", f"{naive:.3e}"),
            ("operations, this plan", f"{planned:.3e}" + (f" ({naive / planned:.1f} times fewer)" if planned else "")),
            (
                "rows recomputed: cells side by side",
                ", ".join(f"{s.start}-{s.stop - 1}: {s.chunk}" for s in self.suffixes) or "none",
            ),
            ("compiles", f"{len(self.suffixes)} and the base run"),
            ("calls", f"{len(self.chunks):,}"),
            ("memory: base run, what is patched in, runtime", _size(self.bytes_base)),
            ("memory: cells side by side", _size(self.bytes_fixed + self.bytes_chunk)),
            ("memory: budget", _size(self.budget)),
        ]
        if self.mesh != (1, 1):
            rows.append(("devices: cells x prompts", f"{self.mesh[0]} x {self.mesh[1]}"))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)

    __repr__ = __str__


def _size(n: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.4g} {unit}"
        n = n / 1024  # type: ignore[assignment]
    return f"{n:.4g} GiB"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """What a chunk takes, for one number of computed rows.

    Attributes:
        base: bytes held throughout.
        fixed: bytes of a compiled sweep besides its cells.
        cell: bytes of one cell, by its number of rows.
        row: floating-point operations of one layer on one row of all prompts.
        weights: bytes of a layer, which each call reads once for each layer.
        budget: bytes.
        mesh: sizes of the axes "cells" and "prompts".
    """

    base: int
    fixed: int
    cell: Any
    row: float
    weights: int
    budget: int
    mesh: tuple[int, int] = (1, 1)


def make_chunks(
    job: int,
    found: Reach,
    *,
    stages: tuple[str, ...],
    single: np.ndarray,
    places: int,
    start: int | None,
    stop: int,
    n_layers: int,
    costs: Costs,
    held: Sequence[Suffix] = (),
) -> tuple[Chunk, ...]:
    """Groups the cells that can change something by their first layer and by a few numbers of rows.

    Args:
        job: its number.
        found: the reach of each cell.
        stages: of the parts.
        single: [n] whether a cell edits one layer only.
        places: how many rows of a prompt a cell edits, if the first block may be computed at them alone; else 0.
        start: the first row for all cells; None: by cell.
        stop: behind the last row.
        n_layers: L.
        costs: see `Costs`.
        held: suffixes of an earlier plan to keep to, where they hold the cells.
    """
    run = np.flatnonzero(found.reaches.any(1))
    later = bool((~single[run]).any())
    chunks: list[Chunk] = []
    for stage in ("embed", "block", "final") if stages[0] != "whole" else ("whole",):
        ids = run if stage == "whole" else run[_stage_mask(found.stage[run], stage, n_layers)]
        if not len(ids):
            continue
        first = found.first[ids]
        if stage == "final":
            first = np.zeros(len(ids), int)
        elif start is not None:
            first = np.full(len(ids), start)
        first = np.minimum(first, stop - 1)
        layers = np.where(found.stage[ids] < 0, 0, found.stage[ids])
        kept = [s for s in held if s.stage == stage and s.stop == stop and s.stages == stages]
        depth = n_layers + 1 - np.unique(layers)
        each = _device_flops().compile + _device_flops().a_byte * costs.weights * depth.sum()
        starts = _starts(first, costs.row * (n_layers + 1 - layers), [s.start for s in kept], each)
        for begin in sorted(set(starts)):
            inside = starts == begin
            rows = stop - begin if stage != "final" else 1
            few = places if stage == "block" and places and 2 * places <= rows else 0
            suffix = Suffix(start=int(begin), stop=stop, stage=stage, stages=stages, places=few, later=later, chunk=0)
            again = [s.chunk for s in kept if s._replace(chunk=0) == suffix]
            chunks += _of_bucket(job, suffix, ids[inside], layers[inside], n_layers, costs, again)
    return tuple(chunks)


def _stage_mask(stage: np.ndarray, name: str, n_layers: int) -> np.ndarray:
    if name == "embed":
        return stage < 0
    return stage >= n_layers if name == "final" else (stage >= 0) & (stage < n_layers)


def _starts(first: np.ndarray, weight: np.ndarray, held: Sequence[int], each: float = 0.0) -> np.ndarray:
    """For each cell the row where its bucket begins: at most four buckets, each saving more operations than it costs, `each`."""
    if held and first.min() >= min(held):
        legal = np.sort(np.asarray(held))
        return legal[np.searchsorted(legal, first, side="right") - 1]
    distinct, inverse = np.unique(first, return_inverse=True)
    total = np.concatenate([[0], np.cumsum(np.bincount(inverse, weights=weight))])
    moment = np.concatenate([[0], np.cumsum(np.bincount(inverse, weights=weight * first))])
    n = len(distinct)
    # best[j]: the least waste of the first j distinct rows in so many buckets; cut[j]: where the last of these begins
    best, cuts, costs = np.where(np.arange(n + 1) > 0, np.inf, 0.0), [], []
    for _ in range(min(MOST_BUCKETS, n)):
        # waste of a bucket from distinct row i up to j: the rows that its cells compute before their own first one
        waste = moment[None, :] - moment[:, None] - np.append(distinct, 0)[:, None] * (total[None, :] - total[:, None])
        every = np.where(np.arange(n + 1)[:, None] < np.arange(n + 1)[None, :], best[:, None] + waste, np.inf)
        cuts.append(every.argmin(0))
        best = every.min(0)
        costs.append(best[n] + len(cuts) * each)
    cuts = cuts[: int(np.argmin(costs)) + 1]
    begins, j = [], n
    for cut in reversed(cuts):
        j = cut[j]
        begins.append(distinct[j])
    legal = np.sort(np.asarray(begins))
    return legal[np.searchsorted(legal, first, side="right") - 1]


class _Device(NamedTuple):
    """Operations that a device does, roughly, while one more sweep is compiled, and while it reads a byte of memory."""

    compile: float
    a_byte: float


def _device_flops() -> _Device:
    return _Device(compile=1e11, a_byte=20.0) if jax.default_backend() == "cpu" else _Device(compile=3e13, a_byte=200.0)


def _of_bucket(
    job: int, suffix: Suffix, ids: np.ndarray, layers: np.ndarray, n_layers: int, costs: Costs, held: Sequence[int]
) -> list[Chunk]:
    groups = [(int(layer), ids[layers == layer]) for layer in np.unique(layers)]
    rows = 1 if suffix.stage == "final" else suffix.stop - suffix.start
    size = held[0] if held else _chunk_size(np.array([len(g) for _, g in groups]), rows, costs)
    if size % costs.mesh[0]:
        raise InputError(
            f"the plan runs {size} cells side by side, which do not divide among the mesh's {costs.mesh[0]} devices for cells. "
            "Make the plan with the same mesh."
        )
    suffix = suffix._replace(chunk=size)
    out = []
    for layer, group in groups:
        for begin in range(0, len(group), size):
            part = group[begin : begin + size]
            out.append(Chunk(job, suffix, layer, np.pad(part, (0, size - len(part)), mode="edge"), len(part)))
    return out


def _chunk_size(groups: np.ndarray, rows: int, costs: Costs) -> int:
    """Cells side by side: as many as the budget holds, evenly over the chunks of each layer, so that few are filled up."""
    wide, _ = costs.mesh
    cell = max(1, costs.cell(rows))
    fits = (costs.budget - costs.base - costs.fixed) // cell  # on one device
    if fits < 1:
        least = costs.base + costs.fixed + cell
        raise InputError(
            f"memory={costs.budget:,} bytes is too little for this sweep: the base run and what is patched in take "
            f"{costs.base:,}, one cell {costs.fixed + cell:,}. The smallest that works is memory={least:,}; fewer or shorter "
            "prompts need less."
        )
    most = int(min(fits, MOST_CELLS, -(-groups.max() // wide)))
    sizes = np.arange(1, most + 1)
    calls = -(-groups[:, None] // (sizes * wide)[None])
    work = (calls * (sizes + 1)).sum(0)  # a call costs about one cell more: its weights, and what all cells share
    best = sizes[work <= work.min() * 1.0001].max()
    return int(best) * wide
