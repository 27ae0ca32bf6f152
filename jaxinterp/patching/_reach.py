"""What an edit can reach: which rows of which prompts can differ from the base run, and from which layer on.

A block of a causal model mixes rows only through keys and values, and only forward. So an edit at a layer and a row changes
nothing in layers below nor in rows before; one behind the keys and values changes its own row alone until the next layer. Where
base and source agree in all rows up to some row, a patch up to there changes nothing at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxinterp.patching._cells import Cells

_BEHIND_MIXING = (
    "attn.q", "attn.q_in", "attn.q_norm_scale", "attn.q_rot", "attn.scores", "attn.pattern", "attn.z", "attn.result",
    "attn.post_norm_scale", "attn.out", "resid_mid", "mlp.in", "mlp.norm_scale", "mlp.pre", "mlp.gate", "mlp.post",
    "mlp.post_norm_scale", "mlp.out", "resid_post",
)  # fmt: skip
_BY_TOKEN = (
    "embed.token", "embed.position", "embed.norm_scale", "embed", "resid_pre", "attn.in", "attn.norm_scale", "attn.q", "attn.k",
    "attn.v", "attn.q_in", "attn.k_in", "attn.v_in", "attn.q_norm_scale", "attn.k_norm_scale", "attn.q_rot", "attn.k_rot",
)  # fmt: skip


def is_local(site: str) -> bool:
    """Whether a change at a row of this site stays in that row until the next layer."""
    return site in _BEHIND_MIXING or site == "logits" or site.startswith("final.")


@dataclasses.dataclass(frozen=True, eq=False)
class Geometry:
    """The rows of the prompts.

    Attributes:
        positions: [B, T], absolute; -1 at padding.
        reads: [B, U], the rows that some metric reads, each once (the last one repeated where a prompt has fewer).
        columns: for each metric [B, P], where its positions are among `reads`; -1 for a position that the prompt does not have.
        differs: [B, T] whether the token or the position of a row differs between base and source; None: an edit may change any
            row.
        mapped: [B, T] whether a row has a counterpart in the source; None: all have.
        causal: whether a row sees only rows up to itself.
        start: the first row that is computed for all cells; None: as each cell allows.
        stop: behind the last row that is computed.
        reads_all: whether an edit depends on all rows of the run that it edits.
    """

    positions: np.ndarray
    reads: np.ndarray
    columns: tuple[np.ndarray, ...]
    differs: np.ndarray | None
    causal: bool
    mapped: np.ndarray | None = None
    start: int | None = None
    stop: int = 0
    reads_all: bool = False

    @property
    def n_rows(self) -> int:
        """How many rows there are, T."""
        return self.positions.shape[1]

    @property
    def is_read(self) -> np.ndarray:
        """[B, T] whether some metric reads a row."""
        out = np.zeros(self.positions.shape, bool)
        np.put_along_axis(out, self.reads, True, axis=1)
        return out

    def bounded(self, *, all_rows: bool, to_end: bool, read_all: bool) -> Geometry:
        """With the rows to compute: all, not just from a cell's first one; to the end, not just to the last one that is read.

        With `read_all` every row is read, for an edit behind the last mixing of rows that depends on all of them.
        """
        stop = self.n_rows if to_end else int(self.reads.max()) + 1
        out = dataclasses.replace(self, start=0 if all_rows else None, stop=stop)
        if not read_all:
            return out
        out = dataclasses.replace(out, reads_all=True)
        every = np.broadcast_to(np.arange(self.n_rows, dtype=np.int32), self.positions.shape)
        columns = tuple(
            np.where(c >= 0, np.take_along_axis(self.reads, np.maximum(c, 0), 1), -1).astype(np.int32)
            for c in self.columns
        )
        return dataclasses.replace(out, reads=every, columns=columns)

    def rows_at(self, positions: np.ndarray) -> np.ndarray:
        """Rows [n, B, k] of absolute positions [n, k] or [n, B, k]; -1 where a prompt has no such position."""
        b = len(self.positions)
        table = np.full((b, self.n_rows + 1), -1, np.int32)  # the last column: positions that are not there
        example, row = np.nonzero(self.positions >= 0)
        table[example, self.positions[example, row]] = row
        wanted = positions if positions.ndim == 3 else positions[:, None, :]
        wanted = np.broadcast_to(wanted, (len(wanted), b, wanted.shape[2]))
        return table[np.arange(b)[None, :, None], np.minimum(wanted, self.n_rows)]

    def changed(self, site: str, highest: int) -> np.ndarray:
        """[B, T]: rows of a site, up to a layer, at which the edit can bring something else than the base run has."""
        real = self.positions >= 0 if self.mapped is None else (self.positions >= 0) & self.mapped
        if self.differs is None:
            return real
        if site in _BY_TOKEN and highest <= 0:
            return real & self.differs
        if self.causal:
            return real & np.logical_or.accumulate(self.differs, axis=1)
        return real & self.differs.any(1, keepdims=True)


def make_geometry(
    positions: np.ndarray, metric_positions: Sequence[np.ndarray], differs: np.ndarray | None, causal: bool
) -> Geometry:
    """Where the metrics read, as rows.

    Args:
        positions: [B or 1, T] of the base prompts.
        metric_positions: absolute, [B, P], by metric.
        differs, causal: see `Geometry`.
    """
    b = len(metric_positions[0])
    positions = np.broadcast_to(np.asarray(positions), (b, positions.shape[1]))
    empty = Geometry(positions=positions, reads=np.zeros((b, 0), np.int32), columns=(), differs=differs, causal=causal)
    rows = [empty.rows_at(np.asarray(m)[None])[0] for m in metric_positions]
    unique = [np.unique(np.concatenate([r[i] for r in rows])) for i in range(b)]
    unique = [u[u >= 0] if (u >= 0).any() else np.zeros(1, int) for u in unique]
    width = max(map(len, unique))
    reads = np.stack([np.pad(u, (0, width - len(u)), mode="edge") for u in unique]).astype(np.int32)
    columns = tuple(
        np.stack([np.where(r[i] >= 0, np.searchsorted(unique[i], r[i]), -1) for i in range(b)]).astype(np.int32)
        for r in rows
    )
    return dataclasses.replace(empty, reads=reads, columns=columns)


@dataclasses.dataclass(frozen=True, eq=False)
class Reach:
    """What the cells can change.

    Attributes:
        stage: [n], where a cell's first edit is: -1 at the embedding, a layer, L behind the blocks.
        first: [n], the first row that can differ in some prompt; T where nothing can.
        reaches: [n, B], whether the edit can change what the metrics read of a prompt.
        there: [n, B], whether the prompt has all positions of the cell.
    """

    stage: np.ndarray
    first: np.ndarray
    reaches: np.ndarray
    there: np.ndarray


def reach(cells: Cells, geometry: Geometry, stages: Sequence[str], n_layers: int) -> Reach:
    """The reach of each cell.

    Args:
        cells: n of them.
        geometry: of the prompts.
        stages: of the parts: "embed", "block" or "final".
        n_layers: L.
    """
    n, b = len(cells), len(geometry.positions)
    stage, first = np.full(n, n_layers, np.int32), np.full((n, b), geometry.n_rows, np.int32)
    reaches, there = np.zeros((n, b), bool), np.ones((n, b), bool)
    for site, part, name in zip(cells.sites, cells.parts, stages, strict=True):
        at = _layers(part, name, n_layers, n)
        rows = geometry.rows_at(part["position"]) if "position" in part else None
        if rows is not None:
            there &= (rows >= 0).all(2)
        high = np.minimum(at.max(1), 1)  # of the highest layer it matters whether it is above the first
        for highest in np.unique(high):
            ids = np.flatnonzero(high == highest)
            begin, hits = _reach_of_part(
                geometry, site, int(highest), at[ids], None if rows is None else rows[ids], n_layers
            )
            first[ids] = np.minimum(first[ids], begin)
            reaches[ids] |= hits
        stage = np.minimum(stage, at.min(1))
    first = np.where(reaches, first, geometry.n_rows)
    return Reach(stage=stage, first=first.min(1), reaches=reaches, there=there)


def _layers(part: Any, stage: str, n_layers: int, n: int) -> np.ndarray:
    """[n, k]: the layers of a part; -1 before the blocks, L behind them."""
    if stage != "block":
        return np.full((n, 1), -1 if stage == "embed" else n_layers, np.int32)
    return part["layer"] if "layer" in part else np.broadcast_to(np.arange(n_layers), (n, n_layers))


def _reach_of_part(
    geometry: Geometry, site: str, highest: int, at: np.ndarray, rows: np.ndarray | None, n_layers: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of a part of n cells, at layers `at` [n, k]: the first row that it changes (T: none), and whether that is read, [n, B].

    `highest` is the highest layer of these cells; 1 stands for all above the first. Without `rows` [n, B, k] all are edited.
    """
    changed, is_read = geometry.changed(site, highest), geometry.is_read
    t, b = geometry.n_rows, len(changed)
    if rows is None:
        begin = np.broadcast_to(np.where(changed.any(1), changed.argmax(1), t), (len(at), b))
        on_read = np.broadcast_to((changed & is_read).any(1), (len(at), b))
    else:
        example = np.arange(b)[None, :, None]
        valid = (rows >= 0) & changed[example, np.maximum(rows, 0)]
        begin = np.where(valid, rows, t).min(2)
        on_read = (valid & is_read[example, np.maximum(rows, 0)]).any(2)
    lowest = at.min(1)
    only_row = (lowest >= n_layers) | ((lowest >= n_layers - 1) & is_local(site))  # nothing behind it mixes rows
    mixed = (begin <= geometry.reads.max(1)[None]) if geometry.causal else begin < t
    return begin, np.where(only_row[:, None], on_read, mixed)
