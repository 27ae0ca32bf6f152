"""Feature absorption on planted hierarchies: a child's latent that also speaks for its parent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError
from jaxinterp._tree import pytree
from jaxinterp._typing import Array, ArrayLike
from jaxinterp.saes._recovery import Recovery
from jaxinterp.saes._sae import SAE, as_written
from jaxinterp.tasks import Planted

if TYPE_CHECKING:
    import xarray

LEAST_SHARE = 0.5
"""A child's latent speaks for the parent where it writes at least this share of the parent's amount along its direction."""


@pytree
class Absorption:
    """For each child of a planted hierarchy; [children] each.

    Attributes:
        child, parent: their numbers.
        missed_with: where both are active, the share of rows in which the parent's latent is silent.
        missed_without: the same where the parent is active and none of its children is; what is missed anyway.
        absorbed: where both are active, the share of rows in which the parent's latent is silent and the child's latent writes
            at least half of the parent's amount along the parent's direction.
        elsewhere: the control: the same for a direction that is no ancestor or descendant of the child, where both are active.
        tilt: the cosine of the child's latent to the parent's direction, less that of the child's own direction.
    """

    child: Any
    parent: Any
    missed_with: Any
    missed_without: Any
    absorbed: Any
    elsewhere: Any
    tilt: Any

    def summary(self) -> dict[str, float]:
        """Means over children, where they are defined."""
        names = ("missed_with", "missed_without", "absorbed", "elsewhere", "tilt")
        known = {name: np.asarray(getattr(self, name))[np.isfinite(getattr(self, name))] for name in names}
        return {name: float(values.mean()) if values.size else float("nan") for name, values in known.items()}

    def dataset(self) -> xarray.Dataset:
        """The arrays, by child."""
        import xarray

        names = ("parent", "missed_with", "missed_without", "absorbed", "elsewhere", "tilt")
        arrays = {name: ("child", np.asarray(getattr(self, name))) for name in names}
        return xarray.Dataset(arrays, coords={"child": np.asarray(self.child)}, attrs=self.summary())


def absorption(sae: SAE, truth: Planted, found: Recovery, rows: ArrayLike, amounts: ArrayLike) -> Absorption:
    """Measures how often a parent's latent is silent because the child's latent has taken its part over.

    Sparsity rewards it: where the child implies the parent, one latent for "child and parent" costs less than two.

    Args:
        sae: the dictionary.
        truth: a planted dictionary with parents.
        found: what `recovery(sae, truth.directions)` gave: which latent stands for which direction.
        rows, amounts: what `truth.sample` gave.

    Returns:
        Rates by child; NaN where a latent is missing (no match) or no row counts.

    Raises:
        InputError: a planted dictionary without parents.

    Source: Chanin et al. 2024 (arXiv 2409.14507). There the parent (a first letter) is found by a probe, and absorption is a
    silent main latent beside one whose effect by integrated gradients dominates; here both directions are known, so the latents
    are the matched ones and the share that is written is measured itself.
    """
    parents = np.asarray(truth.parents)
    child = np.flatnonzero(parents >= 0)
    if not child.size:
        raise InputError("This planted dictionary has no parents: plant it with planted(..., parents=...).")
    parent = parents[child]
    other = np.array([unrelated(int(c), parents) for c in child])
    latents = np.asarray(found.latents)
    children = parents[None] == np.arange(len(parents))[:, None]  # [G, G], whether the second is a child of the first
    rates = _rates(
        sae, truth.directions, jnp.asarray(rows), jnp.asarray(amounts), jnp.asarray(latents), jnp.asarray(children),
        jnp.asarray(child), jnp.asarray(parent), jnp.asarray(other),
    )  # fmt: skip
    own, control = latents[child], np.where(other >= 0, latents[other], -1)
    known = (own >= 0) & (latents[parent] >= 0)
    rates = {name: np.where(known, np.asarray(value), np.nan) for name, value in rates.items()}
    rates["elsewhere"] = np.where(control >= 0, rates["elsewhere"], np.nan)
    return Absorption(child=child, parent=parent, **rates)


def unrelated(child: int, parents: np.ndarray) -> int:
    """A direction for the control: one that has children (else any) and is not on the child's line; -1 where there is none."""

    def above(direction: int) -> list[int]:
        line = [direction]
        while parents[line[-1]] >= 0:
            line.append(int(parents[line[-1]]))
        return line

    free = [i for i in range(len(parents)) if i not in above(child) and child not in above(i)]
    with_children = [i for i in free if i in parents]
    free = with_children or free
    behind = [i for i in free if i > parents[child]]  # in turn, so that not all children get the same one
    return (behind or free or [-1])[0]


@jax.jit
def _rates(
    sae: SAE, directions: Array, rows: Array, amounts: Array, latents: Array, children: Array, child: Array, parent: Array,
    other: Array,
) -> dict[str, Array]:  # fmt: skip
    active = amounts > 0
    codes, decoder = as_written(sae, rows)
    writes = lambda to: jnp.sum(decoder[latents[child]] * directions[to], axis=1)  # by a unit of the child's latent
    silent = lambda of: codes[:, latents[of]] == 0
    share = lambda where, counted: jnp.where(
        jnp.sum(where, axis=0) > 0, jnp.sum(where & counted, axis=0) / jnp.maximum(jnp.sum(where, axis=0), 1), jnp.nan
    )  # fmt: skip

    def taken(of: Array) -> Array:
        spoken = codes[:, latents[child]] * writes(of)[None] >= LEAST_SHARE * amounts[:, of]
        return silent(of) & spoken

    both = active[:, child] & active[:, parent]
    any_child = jnp.dot(active.astype(jnp.float32), children.T.astype(jnp.float32), precision="highest") > 0
    alone = active[:, parent] & ~any_child[:, parent]
    own = jnp.sum(directions[child] * directions[parent], axis=1)
    length = jnp.linalg.norm(decoder[latents[child]], axis=1)
    return {
        "missed_with": share(both, silent(parent)),
        "missed_without": share(alone, silent(parent)),
        "absorbed": share(both, taken(parent)),
        "elsewhere": share(active[:, child] & active[:, other], taken(other)),
        "tilt": writes(parent) / jnp.maximum(length, 1e-30) - own,
    }
