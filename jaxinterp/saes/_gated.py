"""Gated: which latents are active, and how much, by two biases on one matrix."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import jax.numpy as jnp
from jax import lax

from jaxinterp._typing import Array, Float, Int, Params, PRNGKeyArray
from jaxinterp.saes import _linear
from jaxinterp.saes._architecture import Outcome, Training

if TYPE_CHECKING:
    from jaxinterp.saes._config import SAEConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gated:
    """f = H(g) ReLU(exp(r_mag) W_enc (x - b_dec) + b_mag), g = W_enc (x - b_dec) + b_gate.

    loss = |x - x'|^2 + l1_coefficient * sum of ReLU(g) + |x - x'(ReLU(g))|^2, the last with the decoder held fixed.

    Attributes:
        l1_coefficient: the weight of the penalty.
        unit_norm: whether decoder rows have length 1; else their length is free and weighs the penalty.
        frozen_decoder: whether the decoder gets no gradient from the third term, as in the paper (SAELens gives it one).
        decoder_norm: the first length of decoder rows. None: 1 with unit_norm, else 0.1.
        bias: the decoder's first bias.

    Source: Rajamanoharan et al. 2024 (arXiv 2404.16014).
    """

    name: ClassVar[str] = "gated"
    l1_coefficient: float = 1.0
    unit_norm: bool = True
    frozen_decoder: bool = True
    decoder_norm: float | None = None
    bias: _linear.Bias = "zeros"

    @property
    def sparsity(self) -> float:
        """What `Training.sparsity` is without warm-up."""
        return self.l1_coefficient

    def faults(self, config: SAEConfig) -> list[str]:
        """What is wrong with the settings, one sentence each."""
        return _linear.faults_of_coefficient("l1_coefficient", self.l1_coefficient) + _linear.faults_of_norm(self)

    @property
    def centers(self) -> bool:
        """Whether the paper's encoder reads x - b_dec."""
        return True

    def init(
        self, key: PRNGKeyArray, config: SAEConfig, sample: Float[Array, "B D_out"], k: Int[Array, ""] | None = None
    ) -> Params:
        """Decoder rows of one length, the encoder their transpose; b_gate, b_mag and r_mag are 0."""
        bias = _linear.first_bias(self.bias, sample)
        params = _linear.init_linear(key, config, bias=bias, norm=_linear.first_norm(self))
        zeros = params.pop("b_enc")
        return {**params, "b_gate": zeros, "b_mag": zeros, "r_mag": zeros}

    def encode(self, params: Params, x: Float[Array, "B D"], config: SAEConfig) -> Float[Array, "B N"]:
        """Magnitudes where the gate is open, the rest as 0."""
        return self._latents(params, _linear.projections(params, x, config))[0]

    def decoder(self, params: Params) -> Params:
        """The parameters as they are."""
        return params

    def loss(
        self, params: Params, x: Float[Array, "B D"], target: Float[Array, "B D_out"], at: Training
    ) -> tuple[Float[Array, ""], Outcome]:
        """The squared error, the penalty of the gates, and the squared error by the gates."""
        latents, gate = self._latents(params, _linear.projections(params, x, at.config, at.axes))
        error = _linear.squared_norm(_linear.decode(params, latents, x, at.config, at.axes) - target, at.axes)
        opened = jnp.maximum(gate, 0.0)
        frozen = {name: lax.stop_gradient(leaf) for name, leaf in params.items()} if self.frozen_decoder else params
        by_gate = _linear.decode(frozen, opened, x, at.config, at.axes)
        weighted = opened if self.unit_norm else opened * _linear.norms(params["W_dec"])[None]
        terms = {
            "error": error,
            "sparsity": at.sparsity * _linear.mean_sum(weighted, at.axes),
            "auxiliary": _linear.squared_norm(by_gate - target, at.axes),
        }
        fvu = error / _linear.batch_variance(target, at)
        return sum(terms.values(), jnp.zeros_like(error)), _linear.outcome_of_dense(latents, terms, fvu, at.axes)

    def project(self, gradient: Params, params: Params) -> Params:
        """Without the gradient along the decoder's rows, where their length is 1."""
        return _linear.without_parallel(gradient, params) if self.unit_norm else gradient

    def constrain(self, params: Params, outcome: Outcome) -> Params:
        """Decoder rows of length 1, where they are not free."""
        return _linear.with_unit_rows(params) if self.unit_norm else params

    def _latents(self, params: Params, projected: Array) -> tuple[Array, Array]:
        gate = projected + params["b_gate"][None]
        magnitude = jnp.maximum(projected * jnp.exp(params["r_mag"])[None] + params["b_mag"][None], 0.0)
        return jnp.where(gate > 0, magnitude, 0.0), gate
