"""The mesh axes that a function runs under: one code for one device and for `shard_map`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxinterp._typing import Array, Bool, Float, Int, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axes:
    """Names of the mesh axes inside `shard_map`; without names every collective is the identity.

    Attributes:
        data: the axis over which the rows of a batch are cut.
        dict: the axis over which the latents are cut.
    """

    data: str | None = None
    dict: str | None = None

    def mean(self, x: PyTree) -> PyTree:
        """The mean over the shards of the batch, which are of one size."""
        return x if self.data is None else lax.pmean(x, self.data)

    def rows(self, x: PyTree) -> PyTree:
        """The sum over the shards of the batch."""
        return x if self.data is None else lax.psum(x, self.data)

    def latents(self, x: PyTree) -> PyTree:
        """The sum over the shards of the dictionary."""
        return x if self.dict is None else lax.psum(x, self.dict)

    def least(self, x: Array) -> Array:
        """The minimum over all shards."""
        names = tuple(name for name in (self.data, self.dict) if name is not None)
        return lax.pmin(x, names) if names else x

    def first(self, n_local: int) -> Array | int:
        """The index of this shard's first latent among all."""
        return 0 if self.dict is None else lax.axis_index(self.dict) * n_local

    def local(self, tree: PyTree) -> PyTree:
        """Parameters as each shard of the batch has them: their gradient is that of its rows, for `rows` to sum."""
        return tree if self.data is None else jax.tree.map(lambda leaf: _vary(leaf, self.data), tree)

    def spread(self, x: Array) -> Array:
        """Rows as each shard of the dictionary has them, so that their gradient is summed over those shards."""
        return x if self.dict is None else _vary(x, self.dict)

    def best(self, values: Float[Array, "B K"], k: int, fewer: Int[Array, ""] | None = None) -> Bool[Array, "B K"]:
        """Which candidates of this shard are among the k largest of all shards; ties go to the lower latent.

        Only the candidates travel, [B, K] from each shard, never the whole [B, N].

        Args:
            values: the largest values of this shard, in falling order.
            k: how many are wanted.
            fewer: a traced number of at most k, where not all k are wanted.
        """
        wanted = k if fewer is None else fewer
        if self.dict is None:
            return jnp.broadcast_to(jnp.arange(values.shape[1]) < wanted, values.shape)
        everyone = lax.all_gather(values, self.dict, axis=1)  # [B, shards, K]
        here = lax.axis_index(self.dict)
        n = values.shape[1]
        _, chosen = lax.top_k(everyone.reshape(len(values), -1), k)
        mine = (chosen // n == here) & (jnp.arange(k) < wanted)[None]
        rows = jnp.arange(len(values))[:, None]
        return jnp.zeros_like(values, bool).at[rows, jnp.where(mine, chosen % n, n)].set(True, mode="drop")


def _vary(x: Array, axis: str | None) -> Array:
    lax_as_any: Any = lax  # what newer releases call pcast was pvary
    return lax_as_any.pcast(x, (axis,), to="varying") if hasattr(lax, "pcast") else lax_as_any.pvary(x, (axis,))
