"""Activations of several sites from one forward pass, as rows."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxinterp import mesh as meshes
from jaxinterp._errors import InputError, SiteIndexError, SiteTypeError, TokenError
from jaxinterp._typing import Array, Params
from jaxinterp.activations._fingerprint import fingerprint
from jaxinterp.activations._packing import TokenBatch
from jaxinterp.activations._pool import AXIS
from jaxinterp.activations._source import Chunk
from jaxinterp.models import Model
from jaxinterp.tap import SiteTable, capture, run, sites, split_site

SHARDED_PASSES = 16
"""Passes for each process that may give a process nothing, where several read."""


class Target(NamedTuple):
    """A site in one layer, or outside of the layers (None), and the key that it has in a batch."""

    key: str
    site: str
    layer: int | None


class Harvest:
    """Reads tokens, and computes the rows of the sites.

    Attributes:
        widths: by key.
        dtype: that the model computes in.
        rows: R, of one device along `data` in one pass.
    """

    def __init__(
        self, model: Model, params: Params, tokens: Any, wanted: Sequence[Any], mesh: Mesh, skip: Mapping[str, Any]
    ):
        parts = mesh.shape[AXIS]
        if tokens.batch_size % parts:
            raise InputError(
                f"Batches of {tokens.batch_size} rows of tokens cannot be cut over the mesh {dict(mesh.shape)}: give "
                f"read_tokens a batch_size that is a multiple of {parts}."
            )
        if tokens.n_ctx > model.config.n_ctx:
            raise InputError(
                f"Rows of {tokens.n_ctx} tokens are longer than the model's context of {model.config.n_ctx}: give "
                f"read_tokens n_ctx={model.config.n_ctx} or less."
            )
        self.model, self.tokens, self.mesh = model, tokens, mesh
        self.params = _on_mesh(params, mesh)
        table = sites(model.forward, params, jax.ShapeDtypeStruct((1, tokens.n_ctx), jnp.int32))
        self.targets = tuple(_target(entry, table) for entry in _listed(wanted))
        self.stop = _last_block(self.targets, table)
        shapes = {target.key: table[target.site] for target in self.targets}
        self.widths = {key: int(np.prod(shape.shape[2:])) for key, shape in shapes.items()}
        with jax.numpy_dtype_promotion("standard"):  # norms' scales are float32 in any model
            self.dtype = jnp.result_type(*(shape.dtype for shape in shapes.values()))
        self.rows = tokens.batch_size // parts * tokens.n_ctx
        self._plan = (self.targets, self.stop, tokens.packed, _spread(self.params, mesh, tokens.batch_size))
        self._barren_from: int | None = None  # passes begun when rows were wanted for the last time, if none were since
        self._skip_ids = np.asarray(skip["tokens"], np.int32)
        self._skip_positions = np.asarray(skip["positions"], np.int32)
        self.description = {
            "kind": "activations",
            "model": json.loads(json.dumps(dataclasses.asdict(model.config))),
            "params": fingerprint(self.params, mesh),
            "sites": [target.key for target in self.targets],
            "tokens": tokens.description,
            "exclude": {name: np.asarray(ids).tolist() for name, ids in skip.items()},
        }

    def read(self) -> Chunk | None:
        """The next rows of tokens; None where there are no more."""
        begun = self.tokens.passes
        batch = next(self.tokens, None)
        if batch is None:
            return None
        high, low = int(batch.tokens.max()), int(batch.tokens.min())
        if low < 0 or high >= self.model.config.d_vocab:
            raise TokenError(
                f"token ids from {low} to {high} are not all in the model's vocabulary of {self.model.config.d_vocab}. Were they "
                "made by another model's tokenizer?"
            )
        is_kept = batch.documents >= 0
        is_kept &= ~np.isin(batch.tokens, self._skip_ids) & ~np.isin(batch.positions, self._skip_positions)
        is_barren = self._note(begun, bool(is_kept.any()))
        return Chunk(batch, is_kept.reshape(-1, self.rows), self.tokens.passes, is_barren)

    def _note(self, begun: int, is_any: bool) -> bool:
        """Whether a whole pass gave nothing, where `begun` passes were before this batch.

        When the pass after the next begins, fewer pieces of the next one wait than a batch has rows, and the following batch
        has them. A part of shuffled documents is not the same in each pass, so a process that reads one waits for some more.
        """
        if is_any:
            self._barren_from = None
        elif self._barren_from is None:
            self._barren_from = begun
        else:
            parts = self.tokens.shard[1]
            return begun - self._barren_from >= (2 if parts == 1 else SHARDED_PASSES * parts)
        return False

    def nothing(self) -> Any:
        """What `compute` takes where this process has no more tokens and others have."""
        shape = (self.tokens.batch_size // self.tokens.shard[1], self.tokens.n_ctx)
        return TokenBatch(*(np.full(shape, value, np.int32) for value in (0, -1, 0, -1)))

    def compute(self, batch: TokenBatch, /) -> tuple[dict[str, Array], Array]:
        """The rows by key, [n * R, width], and their documents [n * R]."""
        cut = NamedSharding(self.mesh, P(AXIS))
        inputs = TokenBatch(*(jax.make_array_from_process_local_data(cut, array) for array in batch))
        return _harvest(self.params, inputs, model=self.model, plan=self._plan, mesh=self.mesh)

    def state(self) -> Any:
        """Where the source stands, for JSON."""
        return self.tokens.state()

    def restore(self, state: Any) -> None:
        """Goes on from there."""
        self._barren_from = None
        self.tokens.restore(state)


@functools.partial(jax.jit, static_argnames=("model", "plan", "mesh"))
def _harvest(
    params: Params, batch: TokenBatch, *, model: Model, plan: Any, mesh: Mesh
) -> tuple[dict[str, Array], Array]:
    targets, stop, packed, spread = plan
    tokens, documents, positions, segments = lax.with_sharding_constraint(batch, NamedSharding(mesh, spread))
    layers: dict[str, Any] = {}
    for target in targets:
        layers.setdefault(target.site, set()).add(target.layer)
    handlers = [capture(site, layers=None if None in chosen else tuple(chosen)) for site, chosen in layers.items()]
    how: dict[str, Any] = {"segments": segments} if packed else {"mask": documents >= 0}
    if stop is None:
        _, acts, _ = run(model.forward, *handlers)(params, tokens, positions=positions, **how)
    else:
        _, acts, _ = run(model.residual, *handlers)(params, tokens, positions=positions, stop=stop, **how)
    rows = {}
    for target in targets:
        value = acts[target.site]
        value = value if target.layer is None else value[sorted(layers[target.site]).index(target.layer)]
        rows[target.key] = value.reshape(value.shape[0] * value.shape[1], -1)
    return lax.with_sharding_constraint((rows, documents.reshape(-1)), NamedSharding(mesh, P(AXIS)))


def _last_block(targets: Sequence[Target], table: SiteTable) -> int | None:
    """How many blocks have to run; None: all, and what is behind them."""
    rows = list(table)  # in the order of visits
    first = next((i for i, row in enumerate(rows) if row.n_layers is not None), len(rows))
    behind = {row.name for row in rows[first:] if row.n_layers is None}
    if behind & {target.site for target in targets}:
        return None
    return max(-1 if target.layer is None else target.layer for target in targets) + 1


def _spread(params: Params, mesh: Mesh, batch_size: int) -> P:
    """How a pass cuts the rows of tokens: over `data`, and over the axes that cut no parameter, if that divides."""
    specs = [leaf.sharding.spec for leaf in jax.tree.leaves(params) if isinstance(leaf.sharding, NamedSharding)]
    busy = {name for spec in specs for entry in spec for name in (entry if isinstance(entry, tuple) else (entry,))}
    axes = (AXIS, *(name for name in mesh.axis_names if name != AXIS and name not in busy))
    return P(axes if batch_size % math.prod(mesh.shape[name] for name in axes) == 0 else AXIS)


def _listed(wanted: Any) -> list[Any]:
    listed = [wanted] if isinstance(wanted, str) else list(wanted)
    listed = [tuple(listed)] if len(listed) == 2 and isinstance(listed[1], int) else listed
    if not listed:
        raise InputError('sites is empty: give at least one, as in [("resid_post", 3)].')
    return listed


def _target(entry: Any, table: SiteTable) -> Target:
    """A site as the caller names it: ("resid_post", 3), "resid_post.3", "embed", "blocks.3.hook_resid_post"."""
    name, layer = split_site(entry) if isinstance(entry, str) else entry
    site, named = table.resolve(name)
    layer = named if layer is None else int(layer)
    shape = table[site]
    if shape.n_layers is None and layer is not None:
        raise SiteIndexError(f"site {site!r} is in no layer: name it alone, {site!r}, not {entry!r}.")
    if shape.n_layers is not None and (layer is None or not 0 <= layer < shape.n_layers):
        raise SiteIndexError(
            f'site {entry!r}: give one layer from 0 to {shape.n_layers - 1}, as in ("{site}", {shape.n_layers - 1}).'
        )
    if shape.axes[:2] != "BT":
        raise SiteTypeError(
            f"site {site!r} has axes {shape.axes}; a row is one token's values, so sites begin with B and T."
        )
    return Target(site if layer is None else f"{site}.{layer}", site, layer)


def _on_mesh(params: Params, mesh: Mesh) -> Params:
    """Parameters that lie on the mesh already as they are, others whole on each device."""
    there = set(mesh.devices.flat)
    lies = lambda leaf: isinstance(leaf, jax.Array) and leaf.committed and set(leaf.sharding.device_set) == there
    return jax.tree.map(lambda leaf: leaf if lies(leaf) else meshes.put(leaf, mesh), params)
