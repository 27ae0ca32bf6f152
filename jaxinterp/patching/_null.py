"""Null distributions: what a sweep finds when there is nothing to find."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError
from jaxinterp._typing import Array, Params
from jaxinterp.patching._ops import Forward, Source, bring, captured, resolve
from jaxinterp.tap import Handler, SiteShape

Kind = Literal["prompts", "directions"]


@dataclasses.dataclass(frozen=True, eq=False)
class Null:
    """Draws of edits that carry nothing of what the sweep is about.

    Attributes:
        kind: "prompts": a cell gets what another base prompt has at its place; "directions": the edit's change, in each row
            turned into a random direction of the same length.
        draws: how many.
        seed: of the draws.
        order: [draws, B], for "prompts": whose value each prompt gets.
    """

    kind: Kind
    draws: int
    seed: int
    order: np.ndarray

    def differs(self, base: np.ndarray, differs: np.ndarray) -> np.ndarray:
        """[B, T] whether some draw can change a row, given where the source differs."""
        if self.kind == "directions":
            return differs
        return (base[self.order] != base[None]).any(0)


def make_null(kind: str | None, draws: int, seed: int, base: Array, mask: Any) -> Null | None:
    """Draws the null distribution of a sweep.

    Args:
        kind: "prompts", "directions" or None.
        draws: at least 1.
        seed: of the draws.
        base, mask: the base prompts.
    """
    if kind is None:
        return None
    if kind not in get_args(Kind) or draws < 1:
        raise InputError(
            f"null={kind!r} with draws={draws}: legal are 'prompts' (values of another base prompt) and 'directions' (random "
            "directions of the edit's length), with at least 1 draw."
        )
    random, b = np.random.default_rng(seed), len(base)
    alike = (
        np.zeros(b, int) if mask is None else np.unique(np.asarray(mask), axis=0, return_inverse=True)[1].reshape(-1)
    )
    order = np.tile(np.arange(b), (draws, 1))
    if kind == "prompts":
        if min(np.bincount(alike)) < 2:
            raise InputError(
                "null='prompts' gives each prompt the values of another one of the same length, but some prompt has no other. "
                "Give at least two prompts of each length, or null='directions'."
            )
        for row in order:
            for group in np.unique(alike):  # a random cycle through the prompts of a length: nobody gets its own value
                ring = random.permutation(np.flatnonzero(alike == group))
                row[ring] = np.roll(ring, 1)
    return Null(kind, draws, seed, order)  # type: ignore[arg-type]


def null_ops(
    null: Null,
    draw: int,
    model: Forward,
    params: Params,
    base: Array,
    mask: Any,
    origin: Source | None,
    shape: SiteShape,
    op: Handler | None,
) -> Handler:
    """The edit of one draw, counted from 1: a patch that brings its values."""
    own = captured(model, shape.name, params, base, mask)
    if null.kind == "prompts":
        axis = shape.axes.index("B") + (shape.n_layers is not None)
        return bring(shape, jnp.take(own, jnp.asarray(null.order[draw - 1]), axis=axis))
    real = resolve(model, params, base, mask, origin, shape, op)
    target = real.data["value"] if shape.n_layers is None else real.per_layer
    key = jax.random.fold_in(jax.random.key(null.seed), draw)
    values = _turned(own, target, jax.random.fold_in(key, zlib.crc32(shape.name.encode())))
    return bring(shape, values, real.data.get("rows"))


_TURNING = 20
"""Bytes that `_turned` takes for each number besides its result: own and target, and float32 temporaries (more of these where own
and target are of half the length). From XLA, on a CPU."""


def null_bytes(null: Null | None, shapes: Sequence[SiteShape]) -> int:
    """What `null_ops` holds besides its result, one site after another."""
    if null is None:
        return 0
    if null.kind == "prompts":
        return max(shape.bytes for shape in shapes)
    return max(_TURNING * (shape.bytes // np.dtype(shape.dtype).itemsize) for shape in shapes)


@jax.jit
def _turned(own: Array, target: Array, key: Array) -> Array:
    """`own` plus a random direction as long as `target - own`, along the last axis."""
    change = (target - own).astype(jnp.float32)
    direction = jax.random.normal(key, own.shape, jnp.float32)
    length = jnp.sqrt(jnp.sum(change * change, -1, keepdims=True) / jnp.sum(direction * direction, -1, keepdims=True))
    return own + (length * direction).astype(own.dtype)
