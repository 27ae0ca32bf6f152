"""Matryoshka: BatchTopK whose first latents must reconstruct alone."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, ClassVar, Literal

import jax.numpy as jnp

from jaxinterp._typing import Array, Float, Int, Params, PRNGKeyArray
from jaxinterp.saes import _linear
from jaxinterp.saes._active import AuxK, ErrorScale, init_tied
from jaxinterp.saes._architecture import Outcome, Training
from jaxinterp.saes._batch_topk import constrain_batch, encode_by_threshold, faults_of_batch, loss_of_batch

if TYPE_CHECKING:
    from jaxinterp.saes._config import SAEConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matryoshka:
    """BatchTopK over the whole dictionary; the error is the mean of those by its first widths[0], widths[1], ... latents.

    So the first latents learn what is common and the last what is rare, and a general latent has less reason to leave its special
    cases to others (feature absorption).

    Attributes:
        widths: how many of the first latents reconstruct together, rising; the whole dictionary is added as the last.
        combine: whether the loss has the "mean" of the errors, as in the paper, or their "sum", as in SAELens.
        k: the mean number of active latents of a row, of the whole dictionary.
        auxiliary: the loss of dead latents; None: none.
        error_scale: "variance" of the batch, which makes each error an FVU; or "sum".
        unit_norm: whether decoder rows have length 1.
        norm_scaled: whether latents are chosen by, and given as, their pre-activation times the length of their decoder row.
        decoder_norm: the first length of decoder rows. None: 1 with unit_norm, else 0.1.
        bias: the decoder's first bias.
        threshold_rate: how much the newest batch counts in the running mean of the threshold, as of `BatchTopK`.

    Source: Bussmann, Nabeshima, Karvonen and Nanda 2025 (arXiv 2503.17547).
    """

    name: ClassVar[str] = "matryoshka"
    widths: tuple[int, ...]
    combine: Literal["mean", "sum"] = "mean"
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
        rising = (0, *self.widths, config.n_latents)
        if not self.widths or any(a >= b for a, b in itertools.pairwise(rising)):
            return [
                f"widths={self.widths}: at least one number, rising, above 0 and below n_latents={config.n_latents}."
            ]
        return faults_of_batch(self, config) + _linear.faults_of_choices(self, "combine")

    @property
    def centers(self) -> bool:
        """Whether the paper's encoder reads x - b_dec."""
        return True

    def init(
        self, key: PRNGKeyArray, config: SAEConfig, sample: Float[Array, "B D_out"], k: Int[Array, ""] | None = None
    ) -> Params:
        """As of `BatchTopK`."""
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
        """The squared errors by the nested parts, and AuxK."""
        return loss_of_batch(
            self, params, x, target, at, widths=(*self.widths, at.config.n_latents), combine=self.combine
        )

    def project(self, gradient: Params, params: Params) -> Params:
        """Without the gradient along the decoder's rows, where their length is 1."""
        return _linear.without_parallel(gradient, params) if self.unit_norm else gradient

    def constrain(self, params: Params, outcome: Outcome) -> Params:
        """Decoder rows of length 1, where they are not free; the running threshold."""
        return constrain_batch(self, params, outcome)
