"""The optimizer that the project's models are trained with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax

from jaxinterp._errors import InputError
from jaxinterp._typing import Params

if TYPE_CHECKING:
    import optax


def warmup_cosine(peak: float, *, steps: int, warmup: int = 100, final: float = 0.05) -> optax.Schedule:
    """A learning rate that climbs to `peak` in `warmup` steps and falls along a cosine to `final * peak` at `steps`.

    Args:
        peak: the highest learning rate.
        steps: the length of the run.
        warmup: how many steps the climb from 0 takes.
        final: the last rate as a fraction of the peak.

    Raises:
        InputError: a warm-up that is not shorter than the run.

    Example:
        >>> rate = warmup_cosine(1e-3, steps=1000, warmup=10)
        >>> [round(float(rate(step)), 6) for step in (0, 10, 1000)]
        [0.0, 0.001, 5e-05]
    """
    import optax

    if not 0 <= warmup < steps:
        raise InputError(
            f"warmup={warmup} steps do not fit into a run of steps={steps}: choose a shorter warm-up or a longer run."
        )
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, final * peak)


def adamw(
    learning_rate: float | optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.98,
    weight_decay: float = 0.1,
    clip: float = 1.0,
) -> optax.GradientTransformation:
    """AdamW on gradients clipped to a global norm; matrices decay, norms and biases do not.

    Args:
        learning_rate: a number or a schedule.
        b1, b2: the decay rates of the two moments.
        weight_decay: per step, times the learning rate. Only parameters named `W_...` decay.
        clip: the largest global norm of a gradient.

    Source: Loshchilov and Hutter 2019 (arXiv 1711.05101).
    """
    import optax

    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.adamw(learning_rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=_is_matrix),
    )


def _is_matrix(params: Params) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: str(getattr(path[-1], "key", "")).startswith("W_"), params)
