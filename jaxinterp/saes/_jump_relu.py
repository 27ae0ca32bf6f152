"""JumpReLU: a threshold of its own for each latent, learned through estimates of a step's gradient."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxinterp._typing import Array, Float, Int, Params, PRNGKeyArray
from jaxinterp.saes import _linear
from jaxinterp.saes._architecture import Outcome, Training

if TYPE_CHECKING:
    from jaxinterp.saes._config import SAEConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class JumpReLU:
    """f = z H(z - threshold), z = W_enc x + b_enc; loss = |x - x'|^2 + penalty (+ a loss of pre-activations).

    The default is the recipe of Rajamanoharan et al.; that of Anthropic is `JumpReLU(penalty="tanh", through_input=True,
    bandwidth=2.0, threshold=0.1, unit_norm=False, preactivation_coefficient=3e-6, l0_coefficient=...)`.

    Attributes:
        l0_coefficient: the weight of the penalty.
        penalty: "l0", the number of active latents, whose gradient with respect to the threshold is estimated by a rectangle; or
            "tanh", the sum of tanh(tanh_scale f_i |W_dec_i|).
        bandwidth: the width of the rectangle.
        through_input: whether the estimates go to the pre-activations as well, and not to the thresholds alone.
        tanh_scale: of "tanh".
        preactivation_coefficient: the weight of the sum of ReLU(threshold - z) |W_dec_i|, which gives silent latents a gradient.
        preactivation_of: which latents it counts: "all", or the "dead" ones (as SAELens has it).
        threshold: the first threshold.
        parameter: what is learned: "log_threshold", as the papers have it, or "threshold" itself, kept at 0 or above.
        unit_norm: whether decoder rows have length 1.
        decoder_norm: the first length of decoder rows. None: 1 with unit_norm, else 0.1.
        bias: the decoder's first bias.

    Source: Rajamanoharan et al. 2024 (arXiv 2407.14435), with `SAEConfig(normalize="unit")`; Conerly et al. 2025, Dictionary
    Learning Optimization Techniques.
    """

    name: ClassVar[str] = "jump_relu"
    l0_coefficient: float = 1e-3
    penalty: Literal["l0", "tanh"] = "l0"
    bandwidth: float = 1e-3
    through_input: bool = False
    tanh_scale: float = 4.0
    preactivation_coefficient: float = 0.0
    preactivation_of: Literal["all", "dead"] = "all"
    threshold: float = 1e-3
    parameter: Literal["log_threshold", "threshold"] = "log_threshold"
    unit_norm: bool = True
    decoder_norm: float | None = None
    bias: _linear.Bias = "zeros"

    @property
    def sparsity(self) -> float:
        """What `Training.sparsity` is without warm-up."""
        return self.l0_coefficient

    def faults(self, config: SAEConfig) -> list[str]:
        """What is wrong with the settings, one sentence each."""
        faults = _linear.faults_of_coefficient("l0_coefficient", self.l0_coefficient) + _linear.faults_of_norm(self)
        faults += _linear.faults_of_choices(self, "penalty", "preactivation_of", "parameter")
        for field in ("bandwidth", "tanh_scale", "threshold"):
            if not getattr(self, field) > 0:
                faults.append(f"{field}={getattr(self, field)}: above 0.")
        return faults

    @property
    def centers(self) -> bool:
        """Whether the paper's encoder reads x - b_dec."""
        return False

    def init(
        self, key: PRNGKeyArray, config: SAEConfig, sample: Float[Array, "B D_out"], k: Int[Array, ""] | None = None
    ) -> Params:
        """Decoder rows of one length, the encoder their transpose, one threshold for all."""
        bias = _linear.first_bias(self.bias, sample)
        params = _linear.init_linear(key, config, bias=bias, norm=_linear.first_norm(self))
        first = jnp.full(config.n_latents, self.threshold, jnp.float32)
        return {**params, self.parameter: jnp.log(first) if self.parameter == "log_threshold" else first}

    def thresholds(self, params: Params) -> Float[Array, " N"]:
        """The threshold of each latent."""
        return jnp.exp(params["log_threshold"]) if self.parameter == "log_threshold" else params["threshold"]

    def encode(self, params: Params, x: Float[Array, "B D"], config: SAEConfig) -> Float[Array, "B N"]:
        """Pre-activations above their thresholds, the rest as 0."""
        before = _linear.preactivations(params, x, config)
        return jnp.where(before > self.thresholds(params)[None], jnp.maximum(before, 0.0), 0.0)

    def decoder(self, params: Params) -> Params:
        """The parameters as they are."""
        return params

    def loss(
        self, params: Params, x: Float[Array, "B D"], target: Float[Array, "B D_out"], at: Training
    ) -> tuple[Float[Array, ""], Outcome]:
        """The squared error, the penalty, and the loss of pre-activations where it is on."""
        before = _linear.preactivations(params, x, at.config, at.axes)
        thresholds = jnp.broadcast_to(self.thresholds(params)[None], before.shape)
        latents = jump(before, thresholds, self.bandwidth, self.through_input)
        error = _linear.squared_norm(_linear.decode(params, latents, x, at.config, at.axes) - target, at.axes)
        norms = _linear.norms(params["W_dec"])[None]
        if self.penalty == "l0":
            counted = step(before, thresholds, self.bandwidth, self.through_input)
        else:
            counted = jnp.tanh(self.tanh_scale * latents * norms)
        terms = {"error": error, "sparsity": at.sparsity * _linear.mean_sum(counted, at.axes)}
        if self.preactivation_coefficient:
            below = jnp.maximum(thresholds - before, 0.0) * norms
            below = below if self.preactivation_of == "all" else jnp.where(at.dead[None], below, 0.0)
            terms["preactivation"] = self.preactivation_coefficient * _linear.mean_sum(below, at.axes)
        fvu = error / _linear.batch_variance(target, at)
        return sum(terms.values(), jnp.zeros_like(error)), _linear.outcome_of_dense(latents, terms, fvu, at.axes)

    def project(self, gradient: Params, params: Params) -> Params:
        """Without the gradient along the decoder's rows, where their length is 1."""
        return _linear.without_parallel(gradient, params) if self.unit_norm else gradient

    def constrain(self, params: Params, outcome: Outcome) -> Params:
        """Decoder rows of length 1, where they are not free; thresholds at 0 or above."""
        if self.parameter == "threshold":
            params = {**params, "threshold": jnp.maximum(params["threshold"], 0.0)}
        return _linear.with_unit_rows(params) if self.unit_norm else params


def jump(
    z: Float[Array, "B N"], threshold: Float[Array, "B N"], bandwidth: float, through_input: bool
) -> Float[Array, "B N"]:
    """Z where it is above its threshold, else 0. Estimated gradient of the threshold: -(threshold / bandwidth) K."""
    return _jump(z, threshold, bandwidth, through_input)


def _jump_value(z: Array, threshold: Array, bandwidth: float, through_input: bool) -> Array:
    return jnp.where(z > threshold, z, 0.0)


def _jump_forward(
    z: Array, threshold: Array, bandwidth: float, through_input: bool
) -> tuple[Array, tuple[Array, Array]]:
    return _jump_value(z, threshold, bandwidth, through_input), (z, threshold)


def _jump_backward(bandwidth: float, through_input: bool, kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    z, threshold = kept
    estimate = g * threshold * _rectangle(z, threshold, bandwidth)
    direct = jnp.where(z > threshold, g, 0.0)
    return direct + estimate if through_input else direct, -estimate


_jump: Any = jax.custom_vjp(_jump_value, nondiff_argnums=(2, 3))
_jump.defvjp(_jump_forward, _jump_backward)


def step(
    z: Float[Array, "B N"], threshold: Float[Array, "B N"], bandwidth: float, through_input: bool
) -> Float[Array, "B N"]:
    """1 where z is above its threshold, else 0. Estimated gradient of the threshold: -K / bandwidth."""
    return _step(z, threshold, bandwidth, through_input)


def _step_value(z: Array, threshold: Array, bandwidth: float, through_input: bool) -> Array:
    return (z > threshold).astype(z.dtype)


def _step_forward(
    z: Array, threshold: Array, bandwidth: float, through_input: bool
) -> tuple[Array, tuple[Array, Array]]:
    return _step_value(z, threshold, bandwidth, through_input), (z, threshold)


def _step_backward(bandwidth: float, through_input: bool, kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    estimate = g * _rectangle(*kept, bandwidth)
    return estimate if through_input else jnp.zeros_like(estimate), -estimate


_step: Any = jax.custom_vjp(_step_value, nondiff_argnums=(2, 3))
_step.defvjp(_step_forward, _step_backward)


def _rectangle(z: Array, threshold: Array, bandwidth: float) -> Array:
    """The rectangle kernel K((z - threshold) / bandwidth) / bandwidth."""
    return (jnp.abs(z - threshold) < bandwidth / 2).astype(z.dtype) / bandwidth
