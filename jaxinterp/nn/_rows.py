"""Taking rows: of tables by id, of activations by index."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxinterp._typing import Array, ArrayLike, Float, Int


def lookup(table: Float[ArrayLike, "n D"], ids: Int[Array, "..."]) -> Float[Array, "... D"]:
    """Rows of a table. An id out of range, a negative one too, gives NaN: ids are data, and no error can be raised under jit."""
    ids = jnp.where(ids < 0, table.shape[0], ids)
    return jnp.asarray(table).at[ids].get(mode="fill", fill_value=jnp.nan, out_sharding=_like(ids, table.ndim - 1))


def _like(ids: Array, features: int) -> NamedSharding | None:
    """On a mesh with explicit axes, where a gather must be told: the rows lie as their ids do."""
    sharding = jax.typeof(ids).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec, *(None,) * features))
