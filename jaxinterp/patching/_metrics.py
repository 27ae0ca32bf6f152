"""Metrics: what is read off the logits of a run, one number for each prompt.

A metric says which positions and which tokens it reads, so that a sweep computes no other logits. It is a pytree: other answers
or positions of the same shapes compile nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError
from jaxinterp._tree import pytree, static
from jaxinterp._typing import Array, ArrayLike, Float, PyTree


@pytree
class Metric:
    """One number for each prompt, from some of its logits.

    Attributes:
        name: static, such as "logit difference".
        unit: static: "logits", "nats" or "fraction".
        function: static, module-level: (logits [B, P, n], data) -> [B]; n is the tokens that it reads, or all V.
        positions: [B, P], absolute positions that it reads.
        tokens: [B, n], the ids that it reads; None: the whole vocabulary. Where an id is -1 the logit is to be ignored.
        data: leaves for `function`.
    """

    name: str = static()
    unit: str = static()
    function: Callable[..., Array] = static()
    positions: Any
    tokens: Any = None
    data: PyTree = ()

    def __call__(self, logits: Float[ArrayLike, "B P n"]) -> Float[Array, " B"]:
        """The metric of logits at its positions and tokens."""
        return self.function(jnp.asarray(logits), self.data)


def _ids(ids: Any, what: str) -> np.ndarray:
    array = np.asarray(ids)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{what} is {array.dtype}{list(array.shape)}; give integers, one a prompt [B], or [B, n].")
    return array.astype(np.int32)


def _answers(correct: Any, wrong: Any, position: Any) -> dict[str, Any]:
    right, bad, rows = _ids(correct, "correct"), _ids(wrong, "wrong"), _ids(position, "position")
    if not len(right) == len(bad) == len(rows):
        raise InputError(
            f"correct, wrong and position are for {len(right)}, {len(bad)} and {len(rows)} prompts; they must agree."
        )
    if (right < 0).all(1).any() or (bad < 0).all(1).any():
        raise InputError("some prompt has no correct or no wrong answer: every id in its row is -1 (padding).")
    tokens = np.concatenate([right, bad], 1)
    # sign and weight of each token: + for correct, - for wrong, 0 for padding
    return dict(positions=rows, tokens=tokens, data={"correct": right >= 0, "wrong": bad >= 0})


def _logit_difference(logits: Array, data: Any) -> Array:
    last = logits[:, -1]
    split = data["correct"].shape[1]
    return _mean(last[:, :split], data["correct"]) - _mean(last[:, split:], data["wrong"])


def _mean(x: Array, there: ArrayLike) -> Array:
    there = jnp.asarray(there)
    return jnp.sum(jnp.where(there, x, jnp.zeros_like(x)), 1) / jnp.sum(there, 1).astype(x.dtype)


def logit_difference(correct: Any, wrong: Any, position: Any) -> Metric:
    """Logit of the correct answer minus that of the wrong one; of several answers, the mean.

    Args:
        correct, wrong: token ids [B], or [B, n] padded with -1.
        position: the absolute position whose logits are read, [B].

    Source: Wang et al. 2022 (arXiv 2211.00593), section 2.
    """
    return Metric(
        name="logit difference", unit="logits", function=_logit_difference, **_answers(correct, wrong, position)
    )


def _probability_difference(logits: Array, data: Any) -> Array:
    p = jax.nn.softmax(logits[:, -1], axis=-1)

    def total(ids: ArrayLike) -> Array:
        ids = jnp.asarray(ids)
        taken = jnp.take_along_axis(p, jnp.maximum(ids, 0), axis=1)
        return jnp.sum(jnp.where(ids >= 0, taken, jnp.zeros_like(taken)), 1)

    return total(data["correct"]) - total(data["wrong"])


def probability_difference(correct: Any, wrong: Any, position: Any) -> Metric:
    """Probability of all correct answers together minus that of all wrong ones; arguments as in `logit_difference`.

    Source: Hanna et al. 2023 (arXiv 2305.00586), greater-than.
    """
    checked = _answers(correct, wrong, position)
    data = {"correct": _ids(correct, "correct"), "wrong": _ids(wrong, "wrong")}
    return Metric(
        name="probability difference",
        unit="fraction",
        function=_probability_difference,
        positions=checked["positions"],
        data=data,
    )


def _log_probability(logits: Array, data: Any) -> Array:
    logp = jax.nn.log_softmax(logits, axis=-1)
    return jnp.mean(jnp.take_along_axis(logp, jnp.asarray(data)[..., None], axis=-1)[..., 0], axis=1)


def log_probability(token: Any, position: Any) -> Metric:
    """Log-probability of a token, in nats; the mean over P tokens at P positions where [B, P] are given.

    Args:
        token: ids [B] or [B, P].
        position: the absolute positions whose logits predict them, [B] or [B, P].
    """
    ids, rows = _same(_ids(token, "token"), _ids(position, "position"))
    return Metric(name="log-probability", unit="nats", function=_log_probability, positions=rows, data=ids)


def _cross_entropy(logits: Array, data: Any) -> Array:
    return -_log_probability(logits, data)


def cross_entropy(targets: Any, position: Any) -> Metric:
    """Mean cross-entropy of target tokens, in nats.

    Args:
        targets: ids [B, P]: the token that follows each position.
        position: the absolute positions whose logits predict them, [B, P].
    """
    ids, rows = _same(_ids(targets, "targets"), _ids(position, "position"))
    return Metric(name="cross-entropy", unit="nats", function=_cross_entropy, positions=rows, data=ids)


def _same(ids: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if ids.shape != rows.shape:
        raise InputError(
            f"token ids of shape {list(ids.shape)} at positions of shape {list(rows.shape)}; they must agree."
        )
    if (ids < 0).any():
        raise InputError(
            "a token id is negative. Padding has no place here: give every prompt the same number of targets."
        )
    return ids, rows


def _kl_divergence(logits: Array, data: Any) -> Array:
    reference = jax.nn.log_softmax(jnp.asarray(data), axis=-1)
    difference = reference - jax.nn.log_softmax(logits, axis=-1)
    return jnp.mean(jnp.sum(jnp.exp(reference) * difference, axis=-1), axis=1)


def kl_divergence(reference: Any, position: Any) -> Metric:
    """KL(reference || run) of the next-token distributions, in nats; the mean over positions.

    Args:
        reference: logits [B, P, V], of the clean run, say.
        position: the absolute positions at which both are read, [B] or [B, P].
    """
    rows, logits = _ids(position, "position"), jnp.asarray(reference, jnp.float32)
    logits = logits[:, None] if logits.ndim == 2 else logits
    if logits.ndim != 3 or logits.shape[:2] != rows.shape:
        raise InputError(
            f"reference logits of shape {list(logits.shape)} at positions of shape {list(rows.shape)}; give [B, P, V]."
        )
    return Metric(name="KL divergence", unit="nats", function=_kl_divergence, positions=rows, data=logits)


def recovered_fraction(patched: ArrayLike, base: ArrayLike, source: ArrayLike) -> np.ndarray:
    """(patched - base) / (source - base) of mean metrics: 1 restores the source's value, 0 does nothing.

    A ratio of means, not a mean of ratios. NaN where base and source coincide (within 1e-6 of the larger), since it is
    undefined there.

    Args:
        patched, base, source: the metric of the three runs, any shapes that broadcast.

    Example:
        >>> recovered_fraction(np.float32([1.0, -3.0]), np.float32(-3.0), np.float32(5.0))
        array([0.5, 0. ], dtype=float32)

    Source: Wang et al. 2022 (arXiv 2211.00593); Heimersheim and Nanda 2024 (arXiv 2404.15255), section 4.
    """
    patched, base, source = (np.asarray(x) for x in (patched, base, source))
    gap = source - base
    flat = np.abs(gap) <= 1e-6 * np.maximum(np.abs(source), np.abs(base))
    return (patched - base) / np.where(flat, np.float32(np.nan), gap)
