"""How a dictionary is trained, as frozen data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp

from jaxinterp._errors import ConfigError
from jaxinterp._typing import Array
from jaxinterp.saes._config import SAEConfig

if TYPE_CHECKING:
    import optax

Schedule = Callable[[Array], Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run.

    Attributes:
        sae: what is trained.
        steps: how many batches.
        learning_rate: the highest learning rate of Adam.
        warmup_steps: the learning rate climbs from 0 for so long.
        decay_steps: and falls to 0 for so long at the end of the run.
        decay: how it falls: "linear", or "cosine".
        sparsity_warmup_steps: the weight of the penalty climbs from 0 for so long.
        b1: of Adam: how much of the mean gradient stays from step to step.
        b2: of Adam: the same of the mean squared gradient.
        eps: of Adam: what is added to the root of the latter.
        clip: the largest norm of a gradient; None: any.
        accumulation: in how many parts a batch is worked off, one at a time, to save memory. BatchTopK chooses within each part,
            and AuxK's error is over the variance of each part.
        dead_after: a latent is dead that has not fired for so many rows.
        resample_steps: after so many steps each, dead latents are given the direction of badly reconstructed rows (as in the
            recipe of 2023); in the last quarter of a run no more. None: never.
        seed: of the first parameters.
        log_every: steps between two rows of metrics.
        checkpoint_every: steps between two checkpoints; 0: only at the end, and when the process is asked to stop.
        keep: how many checkpoints are kept.
    """

    sae: SAEConfig
    steps: int
    learning_rate: float
    warmup_steps: int = 0
    decay_steps: int = 0
    decay: Literal["linear", "cosine"] = "linear"
    sparsity_warmup_steps: int = 0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip: float | None = None
    accumulation: int = 1
    dead_after: int = 10_000_000
    resample_steps: int | None = None
    seed: int = 0
    log_every: int = 100
    checkpoint_every: int = 0
    keep: int = 2

    def __post_init__(self) -> None:
        least = {
            "steps": 1, "warmup_steps": 0, "decay_steps": 0, "sparsity_warmup_steps": 0, "accumulation": 1, "dead_after": 1,
            "log_every": 1, "checkpoint_every": 0, "keep": 1,
        }  # fmt: skip
        if self.resample_steps is not None:
            least["resample_steps"] = 1
        faults = [
            f"{name}={getattr(self, name)!r}: a whole number of at least {low}."
            for name, low in least.items()
            if not isinstance(getattr(self, name), int) or getattr(self, name) < low
        ]
        if not faults and self.warmup_steps + self.decay_steps > self.steps:
            faults.append(
                f"warmup_steps={self.warmup_steps} and decay_steps={self.decay_steps} do not fit into steps={self.steps}."
            )
        for name, legal, holds in (
            ("learning_rate", "above 0", self.learning_rate > 0),
            ("b1", "at least 0, below 1", 0 <= self.b1 < 1),
            ("b2", "at least 0, below 1", 0 <= self.b2 < 1),
            ("eps", "above 0", self.eps > 0),
            ("clip", "above 0, or None", self.clip is None or self.clip > 0),
            ("decay", "'linear' or 'cosine'", self.decay in ("linear", "cosine")),
        ):
            if not holds:
                faults.append(f"{name}={getattr(self, name)!r}: {legal}.")
        if self.dead_after >= 2**30:
            faults.append(f"dead_after={self.dead_after}: below 2^30, where the counter of idle rows ends.")
        architecture: Any = self.sae.architecture
        if self.resample_steps is not None and not (architecture.name == "relu" and architecture.unit_norm):
            faults.append(
                f"resample_steps={self.resample_steps}: only ReLU(unit_norm=True) is resampled; TopK has AuxK instead."
            )
        if faults:
            raise ConfigError("This training run cannot be:\n  " + "\n  ".join(faults))

    def optimizer(self) -> optax.GradientTransformation:
        """Adam without its learning rate."""
        import optax

        return optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps)

    def rate(self) -> Schedule:
        """The learning rate of a step, as a fraction of the highest."""
        up, down = self.warmup_steps, self.decay_steps

        def of(step: Array) -> Array:
            step = step.astype(jnp.float32)
            left = jnp.clip((self.steps - step) / max(down, 1), 0.0, 1.0)
            fall = left if self.decay == "linear" else 0.5 - 0.5 * jnp.cos(jnp.pi * left)
            return _climb(step, up) * fall

        return of

    def sparsity_warmup(self) -> Schedule:
        """The weight of the penalty at a step, as a fraction of the last."""
        return lambda step: _climb(step.astype(jnp.float32), self.sparsity_warmup_steps)


def _climb(step: Array, steps: int) -> Array:
    """From 1 / steps at the first step to 1."""
    return jnp.minimum(1.0, (step + 1.0) / max(steps, 1))
