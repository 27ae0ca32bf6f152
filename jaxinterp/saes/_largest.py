"""The largest pre-activations of a whole batch, and what they add to its reconstructions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxinterp._typing import Array, Bool, Float, Int, Params
from jaxinterp.saes import _linear
from jaxinterp.saes._active import active_values, candidates, sparse
from jaxinterp.saes._architecture import Training
from jaxinterp.saes._axes import Axes
from jaxinterp.saes._bisect import last_with
from jaxinterp.saes._sparse import DENSE_FROM, fired

ROOM = 4
"""A row of a large dictionary has room for so many times k active latents,"""
CROWDED = 8
"""and one row in so many may have more, which are worked off densely. Of activations of language models a few hundredths do."""


class Added(NamedTuple):
    """What chosen latents add, and which they are.

    Attributes:
        written: by part of the dictionary [parts, B, D].
        fired: booleans [N].
        count: how many there are.
        smallest: the smallest activation; infinity where there is none.
    """

    written: Any
    fired: Any
    count: Any
    smallest: Any


def kth_largest(values: Sequence[Float[Array, "_ _"]], k: Int[Array, ""], axes: Axes) -> Float[Array, ""]:
    """The k-th largest positive value of some arrays on all shards, exactly; 0 if there are fewer.

    For each of 31 halvings one number travels.
    """
    bits = [lax.bitcast_convert_type(jnp.maximum(part, 0.0), jnp.int32) for part in values]
    most = k.astype(jnp.uint32)

    def count(least: Array) -> Array:
        here = sum((jnp.sum(part >= least, dtype=jnp.uint32) for part in bits), jnp.zeros((), jnp.uint32))
        # more than k tell no more, and a sum of those would overflow
        return axes.latents(axes.rows(jnp.minimum(here, most)))

    return last_with(lambda least: count(least) >= most, jnp.zeros((), jnp.float32))


def written_by_largest(
    k: int, params: Params, x: Array, before: Array, ranked: Array, at: Training, widths: tuple[int, ...]
) -> Added:
    """What the k B largest of a batch add.

    In a large dictionary each row offers its `ROOM` k largest latents as candidates. Crowded rows, which could have more chosen
    ones than that, are worked off densely; only where those are more than one in `CROWDED`, the whole batch is. The result is
    the same.
    """
    rows = at.axes.rows(jnp.full_like(x, len(x), jnp.int32, shape=()))
    wanted = rows * (k if at.k is None else at.k)
    largest = lambda *values: kth_largest(values, wanted, at.axes)
    n, room = before.shape[1], ROOM * k

    def whole(params: Params) -> Added:
        return _summed(_densely(params, x, ranked, largest(ranked), at, widths), at)

    if n < DENSE_FROM * room:
        return whole(params)
    best, indices = candidates(ranked, room)
    guess = largest(best)
    crowded = (best[:, -1] >= guess) & (best[:, -1] > 0)
    cap = -(-len(x) // CROWDED)
    # the most on any shard, so that all take the same branch
    number = -at.axes.least(-jnp.sum(crowded, dtype=jnp.int32))

    def none(params: Params) -> Added:
        return _summed(_sparsely(params, x, before, (best, indices), guess, jnp.ones_like(crowded), at, widths), at)

    def some(params: Params) -> Added:
        where = jnp.nonzero(crowded, size=cap, fill_value=len(x))[0]
        take = lambda a: a.at[where].get(mode="fill", fill_value=0.0)
        threshold = largest(jnp.where(crowded[:, None], 0.0, best), take(ranked))
        few = _sparsely(params, x, before, (best, indices), threshold, ~crowded, at, widths)
        many = jax.checkpoint(lambda p: _densely(p, take(x), take(ranked), threshold, at, widths))(params)
        both = Added(
            written=few.written.at[:, where].add(many.written, mode="drop"),
            fired=few.fired | many.fired,
            count=few.count + many.count,
            smallest=jnp.minimum(few.smallest, many.smallest),
        )
        return _summed(both, at)

    tier = jnp.where(number == 0, 0, jnp.where(number <= cap, 1, 2))
    return lax.switch(tier, [none, some, jax.checkpoint(whole)], params)


def _summed(added: Added, at: Training) -> Added:
    """With what the other shards of the dictionary add."""
    return added._replace(written=at.axes.latents(added.written))


def _densely(params: Params, x: Array, ranked: Array, threshold: Array, at: Training, widths: tuple[int, ...]) -> Added:
    """What the latents above the threshold add, by products with all of them."""
    chosen = (ranked >= threshold) & (ranked > 0)
    values = jnp.where(chosen, _linear.preactivations(params, x, at.config), 0.0)
    part_of = _part_of(ranked.shape[1], at, widths)
    parts = [jnp.where((part_of == i)[None], values, 0.0) if len(widths) > 1 else values for i in range(len(widths))]
    written = jnp.stack([_linear.written(params, part, at.config) for part in parts])
    return _seen(written, jnp.where(chosen, ranked, 0.0), jnp.any(chosen, axis=0))


def _sparsely(
    params: Params,
    x: Array,
    before: Array,
    offered: tuple[Float[Array, "B K"], Int[Array, "B K"]],
    threshold: Array,
    allowed: Bool[Array, " B"],
    at: Training,
    widths: tuple[int, ...],
) -> Added:
    """What the candidates above the threshold add, of rows that are allowed."""
    (best, indices), n = offered, before.shape[1]
    chosen = (best >= threshold) & (best > 0) & allowed[:, None]
    values = active_values(params, x, before, indices, at)
    part_of = _part_of(n, at, widths)
    parts = [chosen & (part_of[indices] == i) if len(widths) > 1 else chosen for i in range(len(widths))]
    written = jnp.stack([_linear.written(params, sparse(values, indices, part, n), at.config) for part in parts])
    seen = lax.stop_gradient(jnp.where(chosen, best, 0.0))
    return _seen(written, seen, fired(seen, indices, n))


def _part_of(n: int, at: Training, widths: tuple[int, ...]) -> Int[Array, " N"]:
    """Which part of the dictionary each latent of this shard is in."""
    index = jnp.arange(n) + at.axes.first(n)
    return jnp.sum(index[:, None] >= jnp.asarray(widths)[None], axis=1, dtype=jnp.int32)


def _seen(written: Array, values: Array, fired: Array) -> Added:
    positive = values > 0
    return Added(
        written=written,
        fired=fired,
        count=jnp.sum(positive, dtype=jnp.float32),
        smallest=jnp.min(jnp.where(positive, values, jnp.inf)),
    )
