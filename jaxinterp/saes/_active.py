"""What TopK, BatchTopK and Matryoshka share: choosing latents, and AuxK, which revives dead ones."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp
from jax import lax

from jaxinterp._typing import Array, Float, Int, Params, PRNGKeyArray
from jaxinterp.saes._architecture import Outcome, Training
from jaxinterp.saes._bisect import last_with
from jaxinterp.saes._linear import (
    batch_variance,
    first_bias,
    first_norm,
    init_linear,
    norms,
    preactivations,
    squared_norm,
    variance,
    with_gradient,
    written,
)
from jaxinterp.saes._sparse import SparseLatents, fired

if TYPE_CHECKING:
    from jaxinterp.saes._config import SAEConfig

ErrorScale = Literal["variance", "sum"]
"""What a squared error, summed over features, is divided by: the variance of what is reconstructed, or nothing."""


MATCHED_ROWS = 64
"""The encoder's first length comes from so many rows: enough for a mean, few enough for millions of latents."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuxK:
    """Dead latents reconstruct what the live ones leave.

    Attributes:
        k: dead latents of each row. None: half of the width, rounded to a power of 2.
        coefficient: its weight in the loss.
        error_scale: as that of the loss; with "sum" it counts min(dead latents / k, 1) times, as SAELens has it.
        rectified: whether dead latents count by the ReLU of their pre-activations, as in the paper. SAELens takes the k largest
            pre-activations as they are, below 0 too.

    Source: Gao et al. 2024 (arXiv 2406.04093), appendix A.2.
    """

    k: int | None = None
    coefficient: float = 1 / 32
    error_scale: ErrorScale = "variance"
    rectified: bool = True

    def loss(
        self, params: Params, x: Float[Array, "B D"], before: Array, left: Array, at: Training, norm_scaled: bool
    ) -> Float[Array, ""]:
        """How badly the k largest dead latents reconstruct `left` [B, D]; nothing is computed while none is dead.

        `before` are all pre-activations [B, N], without gradient.
        """
        k = self.k or 2 ** max(0, round(math.log2(at.config.width_out / 2)))
        k = min(k, at.config.n_latents)
        left = lax.stop_gradient(left)
        n_dead = at.axes.latents(jnp.sum(at.dead, dtype=jnp.float32))

        def some(_: None) -> Array:
            ranked = ranking(lax.stop_gradient(params), before, norm_scaled)
            best, indices = candidates(jnp.where(at.dead[None], ranked, -jnp.inf), k)
            values = active_values(params, x, before, indices, at, self.rectified)
            chosen = at.axes.best(best, k) & (best > -jnp.inf)
            guess = written(params, sparse(values, indices, chosen, before.shape[1]), at.config, at.axes)
            error = squared_norm(guess - left, at.axes)
            if self.error_scale == "sum":
                return error * jnp.minimum(n_dead / k, 1.0)
            return error / jnp.maximum(variance(left, at.axes), 1e-30)

        return self.coefficient * lax.cond(n_dead > 0, some, lambda _: jnp.zeros_like(n_dead), None)


def init_tied(
    architecture: Any,
    key: PRNGKeyArray,
    config: SAEConfig,
    sample: Float[Array, "B D_out"],
    k: Int[Array, ""] | None = None,
) -> Params:
    """The first parameters of TopK and its kin: the bias from a sample, the encoder scaled to it.

    The encoder is multiplied so that what is reconstructed of `MATCHED_ROWS` rows, without the bias, is as long as the rows are.

    Source: Gao et al. 2024 (arXiv 2406.04093), appendix A.1.
    """
    bias = first_bias(architecture.bias, sample)
    params = init_linear(key, config, bias=bias, norm=first_norm(architecture))
    if config.target is not None:
        return params  # the sample is of outputs: how long inputs are is not known
    rows = sample[:MATCHED_ROWS].astype(jnp.float32)
    before = jnp.maximum(preactivations(params, rows, config), 0.0)
    wanted = jnp.asarray(architecture.k if k is None else k)
    # by sums over latents alone, so that nothing [B, N] travels on a mesh
    bits = lax.bitcast_convert_type(before, jnp.int32)
    least = last_with(lambda middle: jnp.sum(bits >= middle[:, None], axis=1, dtype=jnp.int32) >= wanted, before[:, 0])
    guess = written(params, jnp.where(before >= least[:, None], before, 0.0), config)
    length = lambda a: jnp.mean(jnp.linalg.norm(a, axis=1))
    factor = length(rows - bias[None]) / jnp.maximum(length(guess), 1e-8)
    return {**params, "W_enc": params["W_enc"] * jnp.where(factor > 0, factor, 1.0)}


def candidates(ranked: Float[Array, "B N"], k: int) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
    """The k largest of each row (all, if there are fewer latents here), in falling order."""
    values, indices = lax.top_k(ranked, min(k, ranked.shape[1]))
    return values, indices


def ranking(params: Params, before: Float[Array, "B N"], norm_scaled: bool) -> Float[Array, "B N"]:
    """What latents are chosen by: their pre-activation, times the decoder row's length where that is free."""
    return before * norms(params["W_dec"])[None] if norm_scaled else before


def active_values(
    params: Params, x: Array, before: Array, indices: Int[Array, "B K"], at: Training, rectified: bool = True
) -> Array:
    """The activations of some latents (or their pre-activations), with their gradient, [B, K]."""
    known = jnp.take_along_axis(before, indices, axis=1)
    values = with_gradient(params, x, known, indices, at.config, at.axes)
    return jnp.maximum(values, 0.0) if rectified else values


def sparse(values: Array, indices: Array, chosen: Array, n_latents: int) -> SparseLatents:
    """The chosen ones of some candidates."""
    return SparseLatents(values=jnp.where(chosen, values, 0.0), indices=indices, n_latents=n_latents)


def scaled(
    error: Float[Array, ""], target: Float[Array, "B D_out"], scale: ErrorScale, at: Training
) -> Float[Array, ""]:
    """A mean squared error as the loss counts it."""
    return error if scale == "sum" else error / jnp.maximum(batch_variance(target, at), 1e-30)


def outcome_of_active(latents: SparseLatents, terms: dict[str, Array], fvu: Array, at: Training) -> Outcome:
    """What a loss tells that has the active latents at hand."""
    values = lax.stop_gradient(latents.values)
    seen = fired(values, latents.indices, latents.n_latents)
    return Outcome(
        terms=terms,
        fired=at.axes.rows(seen.astype(jnp.int32)) > 0,
        l0=at.axes.latents(at.axes.mean(jnp.sum(values > 0, dtype=jnp.float32) / len(values))),
        fvu=fvu,
        smallest=at.axes.least(jnp.min(jnp.where(values > 0, values, jnp.inf))),
    )


def faults_of_active(k: object, auxiliary: AuxK | None, config: SAEConfig) -> list[str]:
    """What is wrong with the settings that the three share."""
    faults = legal_k("k", k, config)
    if auxiliary is not None and auxiliary.k is not None:
        faults += legal_k("auxiliary.k", auxiliary.k, config)
    return faults


def legal_k(name: str, k: object, config: SAEConfig) -> list[str]:
    """What is wrong with a number of active latents."""
    if isinstance(k, int) and 1 <= k <= config.n_latents:
        return []
    return [f"{name}={k!r} of n_latents={config.n_latents}: a whole number from 1 to {config.n_latents}."]
