"""BatchTopK: the k B largest pre-activations of a batch of B rows, and after training a threshold in their place."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import jax.numpy as jnp
from jax import lax

from jaxinterp._typing import Array, Float, Int, Params, PRNGKeyArray
from jaxinterp.saes import _linear
from jaxinterp.saes._active import (
    AuxK,
    ErrorScale,
    faults_of_active,
    init_tied,
    ranking,
    scaled,
)
from jaxinterp.saes._architecture import Outcome, Training
from jaxinterp.saes._largest import written_by_largest

if TYPE_CHECKING:
    from jaxinterp.saes._config import SAEConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchTopK:
    """f = pre-activations among the k B largest positive ones of a batch; loss = FVU + AuxK.

    In use a latent is active above `threshold`, a running mean of the smallest activation of each batch, so that a row's latents
    do not depend on the other rows.

    Attributes:
        k: the mean number of active latents of a row.
        auxiliary: the loss of dead latents; None: none.
        error_scale: "variance" of the batch, which makes the error the FVU; or "sum".
        unit_norm: whether decoder rows have length 1.
        norm_scaled: whether latents are chosen by, and given as, their pre-activation times the length of their decoder row.
        decoder_norm: the first length of decoder rows. None: 1 with unit_norm, else 0.1.
        bias: the decoder's first bias.
        threshold_rate: how much the newest batch counts in the running mean.

    Source: Bussmann, Leask and Nanda 2024 (arXiv 2412.06410).
    """

    name: ClassVar[str] = "batch_topk"
    k: int = 32
    auxiliary: AuxK | None = AuxK()
    error_scale: ErrorScale = "variance"
    unit_norm: bool = True
    norm_scaled: bool = False
    decoder_norm: float | None = None
    bias: _linear.Bias = "geometric_median"
    threshold_rate: float = 0.01

    @property
    def sparsity(self) -> float:
        """What `Training.sparsity` is without warm-up: there is no penalty."""
        return 0.0

    def faults(self, config: SAEConfig) -> list[str]:
        """What is wrong with the settings, one sentence each."""
        return faults_of_batch(self, config)

    @property
    def centers(self) -> bool:
        """Whether the paper's encoder reads x - b_dec."""
        return True

    def init(
        self, key: PRNGKeyArray, config: SAEConfig, sample: Float[Array, "B D_out"], k: Int[Array, ""] | None = None
    ) -> Params:
        """Decoder rows of one length, the encoder their transpose, scaled so that reconstructions are as long as rows."""
        return {**init_tied(self, key, config, sample, k), "threshold": jnp.zeros((), jnp.float32)}

    def encode(self, params: Params, x: Float[Array, "B D"], config: SAEConfig) -> Float[Array, "B N"]:
        """Pre-activations above the threshold, the rest as 0."""
        return encode_by_threshold(self, params, x, config)

    def decoder(self, params: Params) -> Params:
        """With decoder rows of length 1, where latents are scaled by it."""
        return _linear.with_unit_rows(params) if self.norm_scaled else params

    def loss(
        self, params: Params, x: Float[Array, "B D"], target: Float[Array, "B D_out"], at: Training
    ) -> tuple[Float[Array, ""], Outcome]:
        """The squared error by the chosen latents, and AuxK."""
        return loss_of_batch(self, params, x, target, at, widths=(at.config.n_latents,))

    def project(self, gradient: Params, params: Params) -> Params:
        """Without the gradient along the decoder's rows, where their length is 1."""
        return _linear.without_parallel(gradient, params) if self.unit_norm else gradient

    def constrain(self, params: Params, outcome: Outcome) -> Params:
        """Decoder rows of length 1, where they are not free; the running threshold."""
        return constrain_batch(self, params, outcome)


def faults_of_batch(architecture: Any, config: SAEConfig) -> list[str]:
    """What is wrong with the settings that BatchTopK and Matryoshka share."""
    faults = faults_of_active(architecture.k, architecture.auxiliary, config) + _linear.faults_of_norm(architecture)
    if not 0 < architecture.threshold_rate <= 1:
        faults.append(f"threshold_rate={architecture.threshold_rate}: above 0, at most 1.")
    return faults + _linear.faults_of_choices(architecture, "error_scale")


def encode_by_threshold(architecture: Any, params: Params, x: Array, config: SAEConfig) -> Float[Array, "B N"]:
    """Pre-activations above one threshold for all latents; before training all positive ones."""
    ranked = ranking(params, _linear.preactivations(params, x, config), architecture.norm_scaled)
    return jnp.where(ranked > jnp.maximum(params["threshold"], 0.0), ranked, 0.0)  # some files have -1 before training


def constrain_batch(architecture: Any, params: Params, outcome: Outcome) -> Params:
    """Decoder rows of length 1, where they are not free; and the running mean of the smallest activation."""
    old, rate = params["threshold"], architecture.threshold_rate
    newest = jnp.where(
        jnp.isfinite(outcome.smallest), outcome.smallest, old
    )  # a batch without any activation tells nothing
    params = {**params, "threshold": jnp.where(old <= 0, newest, (1 - rate) * old + rate * newest)}
    return _linear.with_unit_rows(params) if architecture.unit_norm else params


def loss_of_batch(
    architecture: Any,
    params: Params,
    x: Array,
    target: Array,
    at: Training,
    widths: tuple[int, ...],
    combine: str = "mean",
) -> tuple[Float[Array, ""], Outcome]:
    """The mean (or sum) over `widths` of the squared error by the chosen ones among the first so many latents; and AuxK."""
    before = lax.stop_gradient(_linear.preactivations(params, x, at.config, at.axes))
    ranked = ranking(lax.stop_gradient(params), before, architecture.norm_scaled)
    seen = written_by_largest(architecture.k, params, x, before, ranked, at, widths)
    rest = target - _linear.without_latents(params, x, at.config)
    lefts = rest[None] - jnp.cumsum(seen.written, axis=0)
    errors = [_linear.squared_norm(left, at.axes) for left in lefts]
    whole = sum(errors, jnp.zeros_like(errors[0])) / (len(errors) if combine == "mean" else 1)
    terms = {"error": scaled(whole, target, architecture.error_scale, at)}
    if architecture.auxiliary is not None:
        terms["auxiliary"] = architecture.auxiliary.loss(params, x, before, lefts[-1], at, architecture.norm_scaled)
    outcome = Outcome(
        terms=terms,
        fired=at.axes.rows(seen.fired.astype(jnp.int32)) > 0,
        l0=at.axes.latents(at.axes.mean(seen.count / len(x))),
        fvu=errors[-1] / _linear.batch_variance(target, at),
        smallest=at.axes.least(seen.smallest),
    )
    return sum(terms.values(), jnp.zeros_like(whole)), outcome
