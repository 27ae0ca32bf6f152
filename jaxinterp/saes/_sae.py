"""A trained dictionary: parameters and config, as one pytree."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxinterp._errors import InputError
from jaxinterp._tree import is_traced, pytree, static
from jaxinterp._typing import Array, Float, Params, PRNGKeyArray
from jaxinterp.saes import _linear
from jaxinterp.saes._config import SAEConfig
from jaxinterp.saes._normalize import PER_ROW, measured_scale, normalized, restored
from jaxinterp.saes._source import Source
from jaxinterp.saes._sparse import SparseLatents
from jaxinterp.tap import split_site


def init(config: SAEConfig, key: PRNGKeyArray, sample: Float[Array, "B D"] | None = None) -> SAE:
    """A dictionary before training.

    Args:
        config: its config.
        key: a typed key.
        sample: typical rows of what it reads (of a transcoder, of what it is to give): the first bias and lengths come from them.
            None: normally distributed ones.

    Example:
        >>> import jax
        >>> from jaxinterp.saes import ReLU
        >>> init(SAEConfig(architecture=ReLU(), d_in=4, n_latents=8), jax.random.key(0)).params["W_enc"].shape
        (8, 4)
    """
    one, two = jax.random.split(key)
    rows = jax.random.normal(one, (256, config.width_out)) if sample is None else sample
    scale = measured_scale(rows, config.normalize)
    params = config.architecture.init(two, config, normalized(rows, scale, config.normalize)[0])
    return SAE(params=params, scales={"input": scale, "target": scale}, config=config)


@pytree
class SAE:
    """A sparse dictionary; a transcoder where its config names a target.

    Its methods are pure functions of the pytree, so they go under jit, vmap, grad and a mesh.

    Attributes:
        params: W_enc [N, D], W_dec [N, D_out], b_dec [D_out], and what its architecture has besides (b_enc [N], ...). What is
            kept in bfloat16 or float16 is computed with in float32 (`SAEConfig.compute_dtype` has its say on large products).
        scales: scalars, "input" and "target": what rows are multiplied by first (`SAEConfig.normalize`).
        config: its config.
        source: what the file that it was loaded from says beside all this (`saes.load`), for `saes.save`; None of one made here.
            Dictionaries of different sources are pytrees of different structure: set it to None to stack them.
    """

    params: Any
    scales: Any
    config: SAEConfig = static()
    source: Source | None = static(default=None)

    def encode(self, x: Float[Array, "... D"]) -> Float[Array, "... N"]:
        """The activation of each latent, float32.

        Raises:
            InputError: x is not as wide as what the dictionary reads.
        """
        latents = self.encode_active(x)
        latents = latents.dense() if isinstance(latents, SparseLatents) else latents
        return latents.reshape(*x.shape[:-1], self.config.n_latents)

    def encode_active(self, x: Float[Array, "... D"]) -> Float[Array, "B N"] | SparseLatents:
        """The same for rows [B, D] (other axes are flattened), as the architecture has it.

        `SparseLatents` of TopK, else [B, N].
        """
        self._check(x)
        x = beside(self, x)
        rows = normalized(self._rows(x), self.scales["input"], self.config.normalize)[0]
        return self.config.architecture.encode(self._float32(), rows, self.config)

    def decode(
        self, latents: Float[Array, "... N"] | SparseLatents, x: Float[Array, "... D"] | None = None
    ) -> Float[Array, "... D_out"]:
        """The reconstruction (a transcoder's: of its target), float32.

        Args:
            latents: as `encode` or `encode_active` gives them, also changed.
            x: what they were encoded from; needed where each row is normalized by itself, and by a skip transcoder.

        Raises:
            InputError: x is needed and not there.
        """
        if x is None and (self.config.normalize in PER_ROW or self.config.skip):
            raise InputError(
                f"This dictionary (normalize={self.config.normalize!r}, skip={self.config.skip}) decodes latents together with "
                f"what they were encoded from: decode(latents, x)."
            )
        shape = (
            x.shape if x is not None else latents.values.shape if isinstance(latents, SparseLatents) else latents.shape
        )
        codes = latents if isinstance(latents, SparseLatents) else latents.reshape(-1, self.config.n_latents)
        codes = codes if isinstance(codes, SparseLatents) else beside(self, codes)
        x = None if x is None else beside(self, x)
        rows = None if x is None else normalized(self._rows(x), self.scales["input"], self.config.normalize)[0]
        out = _linear.decode(self.config.architecture.decoder(self._float32()), codes, rows, self.config)
        kept = jnp.ones((1, 1), jnp.float32) if x is None else self._rows(x)
        out = restored(out, normalized(kept, self.scales["target"], self.config.normalize)[1])
        return out.reshape(*shape[:-1], self.config.width_out)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D_out"]:
        """Encodes and decodes."""
        latents = self.encode_active(x)
        return self.decode(latents, x)

    def _float32(self) -> Params:
        return {name: leaf.astype(jnp.float32) for name, leaf in self.params.items()}

    def _rows(self, x: Array) -> Array:
        return x.reshape(-1, self.config.d_in)

    def _check(self, x: Array) -> None:
        if x.ndim < 1 or x.shape[-1] != self.config.d_in or not jnp.issubdtype(x.dtype, jnp.floating):
            name, _ = split_site(self.config.site)
            raise InputError(
                f"activations of {x.dtype}{list(x.shape)}; this dictionary reads {self.config.site!r} as floating-point numbers, "
                f"{self.config.d_in} wide. Give what `capture({name!r})` gives at that site, or load the dictionary of the "
                f"other one."
            )


def beside(sae: SAE, x: Array) -> Array:
    """Rows where the parameters of a dictionary lie, as those of one that was trained on a mesh lie elsewhere."""
    leaf = sae.params["W_dec"]
    if is_traced(x) or is_traced(leaf) or not (isinstance(x, jax.Array) and isinstance(leaf, jax.Array)):
        return x
    if not (x.committed and leaf.committed) or x.sharding.device_set == leaf.sharding.device_set:
        return x
    there = leaf.sharding
    return jax.device_put(x, NamedSharding(there.mesh, PartitionSpec()) if isinstance(there, NamedSharding) else there)


def as_written(sae: SAE, rows: Float[Array, "B D"]) -> tuple[Float[Array, "B N"], Float[Array, "N D_out"]]:
    """Latents and directions in the units of the rows: their product is what the latents add to the reconstruction.

    So they are the same for a dictionary that normalizes its rows, or scales its latents, and one that computes the same
    without.
    """
    decoder = sae.config.architecture.decoder(sae._float32())["W_dec"]
    _, (_, factor) = normalized(rows, sae.scales["target"], sae.config.normalize)
    return sae.encode(rows) * factor, decoder
