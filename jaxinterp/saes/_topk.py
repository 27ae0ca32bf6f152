"""TopK: of each row the k latents with the largest pre-activations."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import jax.numpy as jnp
from jax import lax

from jaxinterp._typing import Array, Float, Int, Params, PRNGKeyArray
from jaxinterp.saes import _linear
from jaxinterp.saes._active import (
    AuxK,
    ErrorScale,
    active_values,
    candidates,
    faults_of_active,
    init_tied,
    legal_k,
    outcome_of_active,
    ranking,
    scaled,
    sparse,
)
from jaxinterp.saes._architecture import Outcome, Training
from jaxinterp.saes._sparse import SparseLatents

if TYPE_CHECKING:
    from jaxinterp.saes._config import SAEConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopK:
    """z = ReLU(TopK(W_enc (x - b_dec) + b_enc)); loss = FVU + AuxK (+ FVU by multi_k latents / 8).

    Attributes:
        k: active latents of each row.
        auxiliary: the loss of dead latents; None: none.
        multi_k: Multi-TopK: the reconstruction by so many latents counts an eighth as well. None: off; the paper has 4 k.
        error_scale: "variance" of the batch, which makes the error the FVU; or "sum".
        unit_norm: whether decoder rows have length 1 (they are normalized after each step, and the gradient along them is
            dropped).
        norm_scaled: whether latents are chosen by, and given as, their pre-activation times the length of their decoder row.
        decoder_norm: the first length of decoder rows. None: 1 with unit_norm, else 0.1.
        bias: the decoder's first bias.

    Source: Gao et al. 2024 (arXiv 2406.04093); norm_scaled is from SAELens.
    """

    name: ClassVar[str] = "topk"
    k: int = 32
    auxiliary: AuxK | None = AuxK()
    multi_k: int | None = None
    error_scale: ErrorScale = "variance"
    unit_norm: bool = True
    norm_scaled: bool = False
    decoder_norm: float | None = None
    bias: _linear.Bias = "geometric_median"

    @property
    def sparsity(self) -> float:
        """What `Training.sparsity` is without warm-up: there is no penalty."""
        return 0.0

    def faults(self, config: SAEConfig) -> list[str]:
        """What is wrong with the settings, one sentence each."""
        faults = faults_of_active(self.k, self.auxiliary, config)
        if self.multi_k is not None and not faults:
            faults += legal_k("multi_k", self.multi_k, config)
            faults += [f"multi_k={self.multi_k} is not above k={self.k}."] if self.multi_k <= self.k else []
        return faults + _linear.faults_of_norm(self)

    @property
    def centers(self) -> bool:
        """Whether the paper's encoder reads x - b_dec."""
        return True

    def init(
        self, key: PRNGKeyArray, config: SAEConfig, sample: Float[Array, "B D_out"], k: Int[Array, ""] | None = None
    ) -> Params:
        """Decoder rows of one length, the encoder their transpose, scaled so that reconstructions are as long as rows."""
        return init_tied(self, key, config, sample, k)

    def encode(self, params: Params, x: Float[Array, "B D"], config: SAEConfig) -> SparseLatents:
        """The k largest, those below 0 as 0."""
        before = ranking(params, _linear.preactivations(params, x, config), self.norm_scaled)
        values, indices = candidates(before, self.k)
        return SparseLatents(values=jnp.maximum(values, 0.0), indices=indices, n_latents=config.n_latents)

    def decoder(self, params: Params) -> Params:
        """With decoder rows of length 1, where latents are scaled by it."""
        return _linear.with_unit_rows(params) if self.norm_scaled else params

    def loss(
        self, params: Params, x: Float[Array, "B D"], target: Float[Array, "B D_out"], at: Training
    ) -> tuple[Float[Array, ""], Outcome]:
        """The squared error by k latents, AuxK, and Multi-TopK where it is on."""
        before = lax.stop_gradient(_linear.preactivations(params, x, at.config, at.axes))
        ranked = ranking(lax.stop_gradient(params), before, self.norm_scaled)
        best, indices = candidates(ranked, self.multi_k or self.k)
        values = active_values(params, x, before, indices, at)
        rest = target - _linear.without_latents(params, x, at.config)

        def by(k: int, fewer: Array | None = None) -> tuple[SparseLatents, Array]:
            chosen = at.axes.best(best[:, :k], k, fewer)
            latents = sparse(values[:, :k], indices[:, :k], chosen, before.shape[1])
            return latents, rest - _linear.written(params, latents, at.config, at.axes)

        latents, left = by(self.k, at.k)
        error = _linear.squared_norm(left, at.axes)
        terms = {"error": scaled(error, target, self.error_scale, at)}
        if self.multi_k is not None:
            more = _linear.squared_norm(by(self.multi_k)[1], at.axes)
            terms["multi"] = scaled(more, target, self.error_scale, at) / 8
        if self.auxiliary is not None:
            terms["auxiliary"] = self.auxiliary.loss(params, x, before, left, at, self.norm_scaled)
        fvu = error / _linear.batch_variance(target, at)
        return sum(terms.values(), jnp.zeros_like(error)), outcome_of_active(latents, terms, fvu, at)

    def project(self, gradient: Params, params: Params) -> Params:
        """Without the gradient along the decoder's rows, where their length is 1."""
        return _linear.without_parallel(gradient, params) if self.unit_norm else gradient

    def constrain(self, params: Params, outcome: Outcome) -> Params:
        """Decoder rows of length 1, where they are not free."""
        return _linear.with_unit_rows(params) if self.unit_norm else params
