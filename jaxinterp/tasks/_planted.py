"""Planted dictionaries: rows made of known directions, for judging what found them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError
from jaxinterp._tree import pytree, static
from jaxinterp._typing import Array, PRNGKeyArray


@pytree
class Planted:
    """Known directions and how often each is active; made by `planted`.

    Attributes:
        directions: float32 [G, D], each of length 1.
        frequencies: [G], the probability that a direction is active in a row.
        draws: [G], the same given that its parent is active.
        parents: int32 [G], -1 where there is none.
        group_size, correlation, depth: see `planted`; depth is the number of levels below the roots.
    """

    directions: Any
    frequencies: Any
    draws: Any
    parents: Any
    group_size: int = static()
    correlation: float = static()
    depth: int = static()

    def sample(self, key: PRNGKeyArray, n: int) -> dict[str, Array]:
        """Draws rows; `activations.from_function` takes this.

        Args:
            key: a typed key.
            n: how many.

        Returns:
            "x": the rows, [n, D], sums of amount times direction; "amounts": [n, G], 0 where a direction is not active, else
            0.5 plus an exponential draw of mean 0.5.
        """
        shared_key, own_key, amount_key = jax.random.split(key, 3)
        g = len(self.directions)
        if self.correlation:
            groups = np.arange(g) // self.group_size
            shared = jax.random.normal(shared_key, (n, int(groups[-1]) + 1), jnp.float32)[:, groups]
            own = jax.random.normal(own_key, (n, g), jnp.float32)
            score = self.correlation**0.5 * shared + (1.0 - self.correlation) ** 0.5 * own
            active = score < jax.scipy.special.ndtri(self.draws)[None]
        else:
            active = jax.random.bernoulli(own_key, jnp.broadcast_to(self.draws[None], (n, g)))
        is_root = self.parents[None] < 0
        for _ in range(self.depth):
            active = active & (is_root | active[:, jnp.maximum(self.parents, 0)])
        amounts = jnp.where(active, 0.5 + 0.5 * jax.random.exponential(amount_key, (n, g), jnp.float32), 0.0)
        return {"x": jnp.dot(amounts, self.directions, precision="highest"), "amounts": amounts}


def planted(
    key: PRNGKeyArray,
    *,
    n_directions: int,
    width: int,
    active: float = 4.0,
    frequencies: str | Sequence[float] = "uniform",
    parents: Sequence[int] | None = None,
    given_parent: float = 0.4,
    group_size: int = 1,
    correlation: float = 0.0,
) -> Planted:
    """Plants a dictionary: random unit directions, more of them than the rows are wide, few active at a time.

    Args:
        key: a typed key, of the directions.
        n_directions: how many (G).
        width: of the rows (D).
        active: how many are active in a row, on average.
        frequencies: how often each is active, relative to the others: "uniform", "zipf" (the g-th 1/g as often as the first), or
            G numbers. Those of children count for nothing.
        parents: the parent of each direction, -1 for none; a parent stands before its children. A child is active only where its
            parent is: what feature absorption needs. None: no hierarchy.
        given_parent: the probability of a child where its parent is active.
        group_size: so many neighbors each are drawn together,
        correlation: with this correlation (0 to 1) between the Gaussian scores whose tails are the activities; each keeps its
            frequency.

    Returns:
        A sampler: `sample(key, n)`. Its amounts are labels as well (`> 0`), for sparse probes.

    Raises:
        InputError: numbers that are not legal; a direction that would be active with probability 1 or more.

    Example:
        >>> import jax
        >>> truth = planted(jax.random.key(0), n_directions=32, width=8, active=2.0)
        >>> truth.sample(jax.random.key(1), 5)["x"].shape
        (5, 8)

    Source: the setting of Sharkey, Braun and Millidge 2022 ("Taking features out of superposition with sparse autoencoders") and
    of Elhage et al. 2022; amounts are at least 0.5, so that an active direction is never next to silent. Hierarchies: Chanin et
    al. 2024 (arXiv 2409.14507).
    """
    up = np.full(n_directions, -1, np.int32) if parents is None else np.asarray(parents, np.int32)
    faults = _faults(n_directions, width, active, up, given_parent, group_size, correlation)
    weights = _weights(frequencies, n_directions, faults)
    if faults:
        raise InputError("This dictionary cannot be planted:\n  " + "\n  ".join(faults))
    levels = np.zeros(n_directions, np.int32)
    for child in np.flatnonzero(up >= 0):
        weights[child] = given_parent * weights[up[child]]
        levels[child] = levels[up[child]] + 1
    rates = active * weights / weights.sum()
    if rates.max() >= 1.0:
        raise InputError(
            f"With active={active} direction {rates.argmax()} would be active with probability {rates.max():.3g}, which has to "
            f"be below 1: ask for at most {0.99 * active / rates.max():.3g} active ones, or flatter frequencies."
        )
    directions = jax.random.normal(key, (n_directions, width), jnp.float32)
    return Planted(
        directions=directions / jnp.linalg.norm(directions, axis=1, keepdims=True),
        frequencies=jnp.asarray(rates, jnp.float32),
        draws=jnp.asarray(np.where(up < 0, rates, given_parent), jnp.float32),
        parents=jnp.asarray(up),
        group_size=group_size,
        correlation=float(correlation),
        depth=int(levels.max()),
    )


def _faults(
    n: int, width: int, active: float, parents: np.ndarray, given_parent: float, group_size: int, correlation: float
) -> list[str]:
    checks = (
        (n >= 1 and width >= 1, f"n_directions={n}, width={width}: both at least 1."),
        (active > 0, f"active={active}: above 0."),
        (0 < given_parent < 1, f"given_parent={given_parent}: above 0, below 1."),
        (1 <= group_size <= max(n, 1), f"group_size={group_size}: 1 to {n}."),
        (0 <= correlation <= 1, f"correlation={correlation}: 0 to 1."),
        (correlation == 0 or group_size > 1, f"correlation={correlation} needs a group_size above 1."),
    )
    faults = [fault for holds, fault in checks if not holds]
    if parents.shape != (n,):
        faults.append(f"parents of shape {list(parents.shape)}: one for each of {n} directions.")
    elif (wrong := np.flatnonzero((parents < -1) | (parents >= np.arange(n)))).size:
        faults.append(f"the parents of directions {wrong[:5].tolist()} do not stand before them (-1 for none).")
    return faults


def _weights(frequencies: str | Sequence[float], n: int, faults: list[str]) -> np.ndarray:
    if isinstance(frequencies, str):
        if frequencies not in ("uniform", "zipf"):
            faults.append(f"frequencies={frequencies!r}: 'uniform', 'zipf', or {n} numbers.")
        return np.ones(n) if frequencies == "uniform" else 1.0 / np.arange(1, n + 1)
    weights = np.array(frequencies, np.float64)
    if weights.shape != (n,) or not (np.isfinite(weights) & (weights > 0)).all():
        faults.append(f"frequencies of shape {list(weights.shape)}: {n} numbers above 0.")
    return weights
