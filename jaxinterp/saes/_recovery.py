"""Whether a dictionary holds known directions: recall, precision, one-to-one matching, beside chance."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError
from jaxinterp._tree import pytree, static
from jaxinterp._typing import Array, ArrayLike, PRNGKeyArray
from jaxinterp.saes._linear import unit_rows
from jaxinterp.saes._sae import SAE, as_written

LARGEST_MATCHING = 2**24
"""So many cosines are matched one to one; larger problems take minutes."""

NO_MATCH = -2.0
"""In place of a cosine to a dead latent: below all, so that a matching takes live ones first."""


@pytree
class Recovery:
    """How well directions are found; cosines are signed.

    Attributes:
        best: [G], each true direction's largest cosine to a live latent.
        nearest: [M], each latent's largest cosine to a true direction; NaN where the latent is dead.
        matched: [G], its cosine to the latent that a one-to-one matching of the largest summed cosine gives it; 0 where the live
            latents are too few.
        latents: int32 [G], which latent that is; -1 where there is none.
        threshold: above it a direction counts as found.
        random: the same of random directions, as many as there are live latents.
        data: the same of normalized data points; None where none were given.
    """

    best: Any
    nearest: Any
    matched: Any
    latents: Any
    random: Any = None
    data: Any = None
    threshold: float = static(default=0.9)

    def summary(self) -> dict[str, float]:
        """The numbers to report.

        Returns:
            "mmcs": the mean of `best` (recall); "recall": the share above the threshold; "precision": the mean of `nearest` over
            live latents; "precise": the share above the threshold; "hungarian": the mean of `matched`; "hungarian_recall": the
            share above the threshold. Those of the controls have "random_" and "data_" in front.
        """
        with np.errstate(invalid="ignore"):
            nearest = np.asarray(self.nearest)[np.isfinite(self.nearest)]
            numbers = {
                name: value
                for mean, share, cosines in (
                    ("mmcs", "recall", self.best), ("precision", "precise", nearest),
                    ("hungarian", "hungarian_recall", self.matched),
                )
                for name, value in ((mean, _mean(cosines)), (share, _mean(np.asarray(cosines) > self.threshold)))
            }  # fmt: skip
        for name, control in (("random", self.random), ("data", self.data)):
            if control is not None:
                numbers |= {f"{name}_{key}": value for key, value in control.summary().items()}
        return numbers


def recovery(
    found: SAE | ArrayLike,
    truth: ArrayLike,
    *,
    alive: ArrayLike | None = None,
    rows: ArrayLike | None = None,
    threshold: float = 0.9,
    key: PRNGKeyArray | None = None,
) -> Recovery:
    """Compares a dictionary with directions that are known, and so do a random one and one of data points.

    MMCS is the mean over true directions of the largest cosine to a latent's decoder row. It grows with the number of latents
    alone, and a dictionary of copied data points scores high, so it is told beside both. With another dictionary's decoder in
    place of the truth the one-to-one matching measures the stability from seed to seed.

    Args:
        found: the dictionary, or its directions [M, D].
        truth: [G, D], of any length: `Planted.directions`, or another dictionary's `params["W_dec"]`.
        alive: booleans [M], which latents count (`Evaluation.firing_rate > 0`); None: all.
        rows: data points [n, D]; as many as there are live latents are drawn from them for the second control. None: without.
        threshold: the cosine from which on a direction is found.
        key: of the controls. None: `jax.random.key(0)`.

    Returns:
        Cosines, and the same of the controls; `summary()` has the means and shares.

    Raises:
        InputError: widths that differ; values that are not finite; no live latent.

    Example:
        >>> import jax.numpy as jnp
        >>> recovery(jnp.eye(4)[:3], jnp.eye(4)).summary()["hungarian"]
        0.75

    Source: MMCS: Sharkey, Braun and Millidge 2022; one-to-one matching between seeds: Paulo and Belrose 2025 (arXiv 2501.16615),
    there over encoder and decoder, here over the decoder alone.
    """
    directions = jnp.asarray(found.params["W_dec"] if isinstance(found, SAE) else found, jnp.float32)
    truth = jnp.asarray(truth, jnp.float32)
    alive = np.ones(len(directions), bool) if alive is None else np.asarray(alive, bool)
    _check(directions, truth, alive)
    key = jax.random.key(0) if key is None else key
    random_key, data_key = jax.random.split(key)
    first = jnp.arange(len(directions)) < int(alive.sum())  # as many directions as are alive
    controls: dict[str, Recovery] = {}
    drawn = jax.random.normal(random_key, directions.shape, jnp.float32)
    controls["random"] = _compared(drawn, truth, first, threshold)
    if rows is not None:
        points = jnp.asarray(rows, jnp.float32)
        order = jax.random.permutation(data_key, len(points))
        points = points[order[np.arange(len(directions)) % len(points)]]
        controls["data"] = _compared(points, truth, first, threshold)
    return _compared(directions, truth, jnp.asarray(alive), threshold, **controls)


def _check(directions: Array, truth: Array, alive: np.ndarray) -> None:
    faults = []
    if directions.ndim != 2 or truth.ndim != 2 or directions.shape[1:] != truth.shape[1:]:
        faults.append(
            f"directions {list(directions.shape)} and truth {list(truth.shape)}: [M, D] and [G, D] of one width D."
        )
    if alive.shape != directions.shape[:1]:
        faults.append(f"alive {list(alive.shape)}: one boolean for each of {len(directions)} latents.")
    elif not alive.any():
        faults.append("no latent is alive, so there is nothing to compare.")
    if len(directions) * len(truth) > LARGEST_MATCHING:
        faults.append(
            f"{len(truth)} times {len(directions)} cosines are too many for a one-to-one matching, which takes at most "
            f"{LARGEST_MATCHING}: "
            f"give fewer directions, such as the latents that fire most."
        )
    if not bool(jnp.isfinite(directions).all() & jnp.isfinite(truth).all()):
        faults.append("a direction is not finite.")
    if faults:
        raise InputError("recovery cannot compare: " + " ".join(faults))


def _compared(directions: Array, truth: Array, alive: Array, threshold: float, **controls: Recovery) -> Recovery:
    best, nearest, matched, latents = _matches(directions, truth, alive)
    return Recovery(best=best, nearest=nearest, matched=matched, latents=latents, threshold=threshold, **controls)


@jax.jit
def _matches(directions: Array, truth: Array, alive: Array) -> tuple[Array, Array, Array, Array]:
    """`best`, `nearest`, `matched` and `latents` of `Recovery`."""
    import optax

    cosines = jnp.dot(unit_rows(truth), unit_rows(directions).T, precision="highest")
    cosines = jnp.where(alive[None], cosines, NO_MATCH)
    # Optax mixes dtypes and ranks, which our own code and tests do not.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        rows, columns = optax.assignment.hungarian_algorithm(-cosines)
    pairs = cosines[rows, columns]
    is_match = pairs > NO_MATCH
    matched = jnp.zeros(len(truth), jnp.float32).at[rows].set(jnp.where(is_match, pairs, 0.0))
    latents = jnp.full(len(truth), -1, jnp.int32).at[rows].set(jnp.where(is_match, columns.astype(jnp.int32), -1))
    nearest = jnp.where(alive, jnp.max(cosines, axis=0), jnp.nan)
    return jnp.max(cosines, axis=1), nearest, matched, latents


def amplitude_ratio(sae: SAE, found: Recovery, rows: ArrayLike, amounts: ArrayLike) -> float:
    """How much of a planted direction's amount its latent writes: 1 is all, less is shrinkage.

    The mean of (activation times length of the decoder row) / amount over rows and directions where both are active, for
    directions whose matched latent is above the threshold; in the units of the rows, however the dictionary normalizes them.
    Where several latents share a direction, the matched one writes a part.

    Args:
        sae: the dictionary.
        found: what `recovery` gave for it.
        rows: [n, D].
        amounts: [n, G], as `Planted.sample` gives them.

    Returns:
        The mean; NaN where no direction is found.

    Source: shrinkage by the L1 penalty: Wright and Sharkey 2024, "Addressing feature suppression in SAEs".
    """
    latents = np.asarray(found.latents)
    at = np.flatnonzero((latents >= 0) & (np.asarray(found.matched) > found.threshold))
    if not at.size:
        return float("nan")
    written, count = _written(sae, jnp.asarray(rows), jnp.asarray(amounts)[:, at], jnp.asarray(latents[at]))
    return float(written) / max(float(count), 1.0)


@jax.jit
def _written(sae: SAE, rows: Array, amounts: Array, latents: Array) -> tuple[Array, Array]:
    amounts_written, decoder = as_written(sae, rows)
    written = amounts_written[:, latents] * jnp.linalg.norm(decoder[latents], axis=1)[None]
    both = (written > 0) & (amounts > 0)
    ratios = jnp.where(both, written / jnp.where(both, amounts, 1.0), 0.0)
    return jnp.sum(ratios), jnp.sum(both, dtype=jnp.float32)


def _mean(values: Any) -> float:
    values = np.asarray(values, np.float64)
    return float(values.mean()) if values.size else float("nan")
