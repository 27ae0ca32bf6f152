"""ReLU with an L1 penalty: the recipes of 2023 and of 2024."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import jax.numpy as jnp

from jaxinterp._typing import Array, Float, Int, Params, PRNGKeyArray
from jaxinterp.saes import _linear
from jaxinterp.saes._architecture import Outcome, Training

if TYPE_CHECKING:
    from jaxinterp.saes._config import SAEConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReLU:
    """f = ReLU(W_enc x + b_enc); loss = |x - x'|^2 + l1_coefficient * sum of f_i |W_dec_i|.

    The default is the recipe of 2024; that of 2023 is `ReLU(l1_coefficient=..., unit_norm=True, bias="geometric_median")` with
    `TrainConfig.resample_steps`, whose encoder reads x - b_dec.

    Attributes:
        l1_coefficient: the weight of the penalty. 5 is the paper's where rows have a mean norm of the root of their width
            (`SAEConfig(normalize="sqrt_d")`). Too small a one reconstructs well and recovers nothing.
        unit_norm: whether decoder rows have length 1 (they are normalized after each step, and the gradient along them is
            dropped); else their length is free and weighs the penalty.
        norm_scaled: whether latents are given as their activation times the length of their decoder row.
        decoder_norm: the first length of decoder rows. None: 1 with unit_norm, else 0.1.
        bias: the decoder's first bias.

    Source: Bricken et al. 2023, Towards Monosemanticity; Conerly et al. 2024, Update on how we train SAEs. The encoder begins as
    the decoder's transpose in both. norm_scaled is from dictionary_learning.
    """

    name: ClassVar[str] = "relu"
    l1_coefficient: float = 5.0
    unit_norm: bool = False
    norm_scaled: bool = False
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
        return self.unit_norm

    def init(
        self, key: PRNGKeyArray, config: SAEConfig, sample: Float[Array, "B D_out"], k: Int[Array, ""] | None = None
    ) -> Params:
        """Decoder rows of one length, the encoder their transpose."""
        return _linear.init_linear(
            key, config, bias=_linear.first_bias(self.bias, sample), norm=_linear.first_norm(self)
        )

    def encode(self, params: Params, x: Float[Array, "B D"], config: SAEConfig) -> Float[Array, "B N"]:
        """All latents."""
        latents = jnp.maximum(_linear.preactivations(params, x, config), 0.0)
        return latents * _linear.norms(params["W_dec"])[None] if self.norm_scaled else latents

    def decoder(self, params: Params) -> Params:
        """With decoder rows of length 1, where latents are scaled by it."""
        return _linear.with_unit_rows(params) if self.norm_scaled else params

    def loss(
        self, params: Params, x: Float[Array, "B D"], target: Float[Array, "B D_out"], at: Training
    ) -> tuple[Float[Array, ""], Outcome]:
        """The squared error and the penalty."""
        latents = jnp.maximum(_linear.preactivations(params, x, at.config, at.axes), 0.0)
        error = _linear.squared_norm(_linear.decode(params, latents, x, at.config, at.axes) - target, at.axes)
        weighted = latents if self.unit_norm else latents * _linear.norms(params["W_dec"])[None]
        terms = {"error": error, "sparsity": at.sparsity * _linear.mean_sum(weighted, at.axes)}
        fvu = error / _linear.batch_variance(target, at)
        return error + terms["sparsity"], _linear.outcome_of_dense(latents, terms, fvu, at.axes)

    def project(self, gradient: Params, params: Params) -> Params:
        """Without the gradient along the decoder's rows, where their length is 1."""
        return _linear.without_parallel(gradient, params) if self.unit_norm else gradient

    def constrain(self, params: Params, outcome: Outcome) -> Params:
        """Decoder rows of length 1, where they are not free."""
        return _linear.with_unit_rows(params) if self.unit_norm else params
