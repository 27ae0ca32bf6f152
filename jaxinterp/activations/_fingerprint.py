"""Which parameters: eight hex digits that are the same however they are cut over devices."""

from __future__ import annotations

import functools
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxinterp._typing import Array, Params


def fingerprint(params: Params, mesh: Mesh) -> str:
    """A checksum of the names, shapes, dtypes and bits of parameters on a mesh; all processes call it.

    The bits of each number are mixed with its place, and the results are added up modulo 2^32: sums of integers are exact in any
    order, so it depends on no sharding, and nothing is gathered. Mixed, not multiplied: a product by odd numbers would see no
    even number of changed signs.

    Example:
        >>> from jaxinterp.mesh import make_mesh
        >>> one, other = (fingerprint({"w": jnp.array([2.0, x])}, make_mesh(data=1)) for x in (3.0, -3.0))
        >>> len(one), one == other
        (8, False)
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    shapes = " ".join(f"{jax.tree_util.keystr(path)} {leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves)
    return f"{int(_sum(params, np.uint32(zlib.crc32(shapes.encode())), mesh=mesh)):08x}"


@functools.partial(jax.jit, static_argnames="mesh")
def _sum(params: Params, total: Any, *, mesh: Mesh) -> Array:
    """Leaf by leaf: the result of one goes into the next, so that XLA's CPU backend works on one at a time (it does not fuse)."""
    for x in jax.tree.leaves(params):
        place = jnp.full(x.shape, total)
        for axis in range(x.ndim):
            stride = math.prod(x.shape[axis + 1 :]) % 2**32
            place = place + lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(stride)
        bits = x if x.dtype == bool else lax.bitcast_convert_type(x, f"uint{8 * min(x.dtype.itemsize, 4)}")
        total = _mix(total) + jnp.sum(_mix(_mix(place) ^ bits.astype(jnp.uint32)), dtype=jnp.uint32)
    return lax.with_sharding_constraint(total, NamedSharding(mesh, P()))


def _mix(x: Array) -> Array:
    """Spreads each bit over all of them; one to one (the last step of MurmurHash3)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x ^ (x >> np.uint32(16))
