"""Rows of activations on a mesh: appended in place, shuffled over all devices, taken off as slices.

Each device along `data` has room for C rows of each site and one document number a row; the rows that it holds are the first
ones. How many those are is known on the host, so nothing here waits for a device.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxinterp._typing import Array, PRNGKeyArray

AXIS = "data"
FINE = np.iinfo(np.int32).max
"""In place of a document's number: none of a site's values is NaN or infinite."""

Rows = dict[str, Array]
"""By site, [n, width]."""


def empty(widths: Mapping[str, int], dtype: Any, rows: int, mesh: Mesh) -> tuple[Rows, Array]:
    """Room for `rows` rows over the whole mesh, and for their documents."""
    cut = NamedSharding(mesh, P(AXIS))
    make = jax.jit(
        lambda: (
            {name: jnp.zeros((rows, width), dtype) for name, width in widths.items()},
            jnp.full(rows, -1, jnp.int32),
        ),
        out_shardings=cut,
    )
    return make()


@functools.partial(jax.jit, static_argnames="mesh", donate_argnums=(0, 1, 2))
def append(
    values: Rows, documents: Array, faults: Array, new: Rows, new_documents: Array, places: Array, *, mesh: Mesh
) -> tuple[Rows, Array, Array]:
    """Puts new rows behind those that are there, in place.

    Args:
        values: by site, [n * C, width].
        documents: [n * C].
        faults: int32 [n, sites], the lowest document with NaN or infinity in what each device was given.
        new: by site, [n * R, width].
        new_documents: [n * R].
        places: int32 [n, 2 + R], for each device: how many rows it holds, how many of the new ones are kept, and the order of the
            new rows, those that are kept first. The others are written too, behind, where the next ones will stand.
        mesh: with the axis `data`.
    """

    def local(values: Rows, documents: Array, faults: Array, new: Rows, new_documents: Array, places: Array) -> Any:
        start, kept, order = places[0, 0], places[0, 1], places[0, 2:]
        is_kept = jnp.arange(order.shape[0], dtype=jnp.int32) < kept
        new_documents = new_documents[order]
        out, found = {}, []
        for name, held in values.items():
            rows = new[name].astype(held.dtype)[order]
            broken = is_kept & ~jnp.isfinite(rows).all(axis=1)
            found.append(jnp.min(jnp.where(broken, new_documents, FINE)))
            out[name] = lax.dynamic_update_slice_in_dim(held, rows, start, axis=0)
        documents = lax.dynamic_update_slice_in_dim(documents, new_documents, start, axis=0)
        return out, documents, jnp.minimum(faults, jnp.stack(found)[None])

    return jax.shard_map(local, mesh=mesh, in_specs=(P(AXIS),) * 6, out_specs=(P(AXIS),) * 3)(
        values, documents, faults, new, new_documents, places
    )


@functools.partial(jax.jit, static_argnames="mesh")
def orders(key: PRNGKeyArray, counts: Array, capacity: Array, *, mesh: Mesh) -> tuple[Array, Array]:
    """Where the rows of each device go at a shuffle: the order in which they are dealt, and that in which they are laid down.

    With n devices, rows in random order are dealt to the devices in turn, going on where the device before left off. So each gets
    as many as every other one, or one more, and no block from one device to another is longer than C / n.

    Args:
        key: of this shuffle.
        counts: [n], rows that each device holds.
        capacity: int32 [n * C], whatever; its shape counts.
        mesh: with the axis `data`.

    Returns:
        Two arrays int32 [n * C] of local indices; the second into what came from all devices.
    """
    n = mesh.shape[AXIS]

    def local(key: PRNGKeyArray, counts: Array, capacity: Array) -> tuple[Array, Array]:
        here, room = lax.axis_index(AXIS), capacity.shape[0]
        first, second = jax.random.split(jax.random.fold_in(key, here))
        index = jnp.arange(room, dtype=jnp.int32)
        if n == 1:
            return _random_order(second, index < counts[0]), index
        order = _random_order(first, index < counts[here])
        starts = jnp.cumsum(counts) - counts
        to, slot = jnp.arange(n, dtype=jnp.int32)[:, None], jnp.arange(room // n, dtype=jnp.int32)[None]
        dealt = (to - starts[here]) % n + n * slot  # [to, slot]: which of the rows in random order
        came = (here - starts[:, None]) % n + n * slot < counts[:, None]  # [from, slot]: whether a row lies there
        return order[dealt.reshape(-1)], _random_order(second, came.reshape(-1))

    return jax.shard_map(local, mesh=mesh, in_specs=(P(), P(), P(AXIS)), out_specs=(P(AXIS), P(AXIS)))(
        key, counts, capacity
    )


def _random_order(key: PRNGKeyArray, is_there: Array) -> Array:
    """Indices in random order, those that are there first."""
    index = jnp.arange(is_there.shape[0], dtype=jnp.int32)
    bits = jax.random.bits(key, is_there.shape, jnp.uint32)
    return lax.sort((~is_there, bits, index), num_keys=2)[2]


@functools.partial(jax.jit, static_argnames="mesh", donate_argnums=0)
def shuffle(rows: Array, dealt: Array, laid: Array, *, mesh: Mesh) -> Array:
    """Moves the rows of one array as `orders` says, by one exchange of equal blocks between all devices."""
    n = mesh.shape[AXIS]

    def local(rows: Array, dealt: Array, laid: Array) -> Array:
        rows = rows[dealt]
        if n == 1:
            return rows
        blocks = rows.reshape(n, -1, *rows.shape[1:])
        return lax.all_to_all(blocks, AXIS, 0, 0).reshape(rows.shape)[laid]

    return jax.shard_map(local, mesh=mesh, in_specs=(P(AXIS),) * 3, out_specs=P(AXIS))(rows, dealt, laid)


@functools.partial(jax.jit, static_argnames=("size", "mesh"))
def take(values: Rows, documents: Array, counts: Array, *, size: int, mesh: Mesh) -> tuple[Rows, Array]:
    """The last `size` rows that each device holds; they stay where they are, and count no more."""

    def local(arrays: Any, counts: Array) -> Any:
        start = counts[lax.axis_index(AXIS)] - size
        return jax.tree.map(lambda rows: lax.dynamic_slice_in_dim(rows, start, size, axis=0), arrays)

    return jax.shard_map(local, mesh=mesh, in_specs=(P(AXIS), P()), out_specs=P(AXIS))((values, documents), counts)


@functools.partial(jax.jit, static_argnames="mesh")
def first_faults(faults: Array, *, mesh: Mesh) -> Array:
    """The lowest document with NaN or infinity for each site, over all devices, on each of them."""
    return lax.with_sharding_constraint(jnp.min(faults, axis=0), NamedSharding(mesh, P()))
