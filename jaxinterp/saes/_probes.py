"""Sparse probes: how few latents tell a label."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinterp._errors import InputError
from jaxinterp._tree import pytree, static
from jaxinterp._typing import Array, ArrayLike, Float, Int
from jaxinterp.saes._sae import SAE

if TYPE_CHECKING:
    import xarray

CHUNK, STEPS, RIDGE = 4096, 20, 1e-3


@pytree
class SparseProbes:
    """Balanced accuracies on held-out rows; chance is 0.5.

    Attributes:
        latents: [labels, sizes], of probes on the k best latents.
        coordinates: [labels, sizes], of probes on the k best coordinates of the rows themselves.
        dense: [labels], of a probe on all coordinates.
        chosen: int32 [labels, largest k], the latents in the order in which they are taken.
        sizes: the k's.
    """

    latents: Any
    coordinates: Any
    dense: Any
    chosen: Any
    sizes: tuple[int, ...] = static()

    def dataset(self) -> xarray.Dataset:
        """The accuracies by label and k."""
        import xarray

        at = ("label", "k")
        return xarray.Dataset(
            {"latents": (at, np.asarray(self.latents)), "coordinates": (at, np.asarray(self.coordinates)),
             "dense": ("label", np.asarray(self.dense))},
            coords={"label": np.arange(len(self.dense)), "k": list(self.sizes)}, attrs={"chance": 0.5},
        )  # fmt: skip


def sparse_probes(
    sae: SAE,
    rows: ArrayLike,
    labels: ArrayLike,
    held_out: tuple[ArrayLike, ArrayLike],
    *,
    sizes: Sequence[int] = (1, 2, 4, 8),
) -> SparseProbes:
    """Fits, for each label, logistic probes on the k latents whose means differ most between its two classes.

    Args:
        sae: the dictionary; `random_dictionary` gives the control.
        rows: [n, D], to choose latents and to fit.
        labels: booleans [n, labels]: `amounts > 0` of planted rows.
        held_out: rows and labels that the accuracy is of.
        sizes: the k's.

    Returns:
        Accuracies, beside those of the k best coordinates of the rows and of all coordinates.

    Raises:
        InputError: shapes that do not fit, a label of one class only, a k above the number of latents or coordinates.

    Source: Gurnee et al. 2023 (arXiv 2305.01610), "max mean difference"; Gao et al. 2024 and SAEBench probe with it. Here both
    classes count alike in the fit and in the accuracy, since planted labels are rare, and the latents are divided by their
    standard deviation before the fit, with a ridge of 0.001.
    """
    x, y = jnp.asarray(rows, jnp.float32), jnp.asarray(labels, bool)
    test_x, test_y = jnp.asarray(held_out[0], jnp.float32), jnp.asarray(held_out[1], bool)
    sizes = tuple(int(k) for k in sizes)
    _check(sae, x, y, test_x, test_y, sizes)
    encode = jax.jit(sae.encode)
    latents, chosen = _accuracies(encode, x, y, test_x, test_y, sizes)
    coordinates, _ = _accuracies(lambda part: part, x, y, test_x, test_y, sizes)
    dense = lax.map(lambda label: _fit_one(x, label[0], test_x, label[1]), (y.T, test_y.T))
    return SparseProbes(latents=latents, coordinates=coordinates, dense=dense, chosen=chosen, sizes=sizes)


def _accuracies(
    features: Any, x: Array, y: Array, test_x: Array, test_y: Array, sizes: tuple[int, ...]
) -> tuple[Float[Array, "labels K"], Int[Array, "labels most"]]:
    """Those of probes on the best columns of `features(rows)`, and which these are."""
    columns = _largest_differences(features, x, y, max(sizes))

    def of_labels(rows: Array) -> Array:
        """Each label's own columns, [labels, n, most]; all columns are there for one chunk at a time."""
        parts = [features(rows[i : i + CHUNK])[:, columns.ravel()] for i in range(0, len(rows), CHUNK)]
        return jnp.moveaxis(jnp.concatenate(parts).reshape(len(rows), *columns.shape), 0, 1)

    train, test = of_labels(x), of_labels(test_x)
    accuracy = [_fit_each(train[..., :k], y.T, test[..., :k], test_y.T) for k in sizes]
    return jnp.stack(accuracy, axis=1), columns


def _check(sae: SAE, x: Array, y: Array, test_x: Array, test_y: Array, sizes: tuple[int, ...]) -> None:
    faults = []
    for what, a, b in (("rows", x, y), ("held_out", test_x, test_y)):
        if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or a.shape[1] != sae.config.d_in:
            faults.append(
                f"{what}: {list(a.shape)} with labels {list(b.shape)}; [n, {sae.config.d_in}] and [n, labels]."
            )
        elif (one := np.flatnonzero(np.asarray(b.all(axis=0) | ~b.any(axis=0)))).size:
            faults.append(
                f"{what}: labels {one[:8].tolist()} are of one class only: give more rows, or leave them out."
            )
    most = min(sae.config.n_latents, sae.config.d_in)
    if not sizes or min(sizes) < 1 or max(sizes) > most:
        faults.append(f"sizes={sizes}: 1 to {most}.")
    if faults:
        raise InputError("Sparse probes cannot be fitted: " + " ".join(faults))


def _largest_differences(features: Any, x: Array, y: Array, k: int) -> Int[Array, "labels K"]:
    """The columns whose mean over the positive rows differs most from that over the others."""
    totals: Any = 0.0
    for i in range(0, len(x), CHUNK):
        totals += _class_sums(features(x[i : i + CHUNK]), y[i : i + CHUNK])
    count = jnp.sum(y, axis=0).astype(jnp.float32)
    means = totals / jnp.stack([len(y) - count, count])[..., None]
    return lax.top_k(jnp.abs(means[1] - means[0]), k)[1]


@jax.jit
def _class_sums(z: Array, y: Array) -> Array:
    """The sums of all columns over the rows of each class, [2, labels, N]."""
    both = jnp.stack([~y, y]).astype(jnp.float32)
    return jnp.einsum("cbl,bn->cln", both, z, precision="highest")


@jax.jit
def _fit_each(train: Array, y: Array, test: Array, test_y: Array) -> Float[Array, " labels"]:
    return lax.map(lambda one: _fit_one(*one), (train, y, test, test_y))


def _fit_one(train: Array, y: Array, test: Array, test_y: Array) -> Float[Array, ""]:
    """The balanced accuracy on `test` of a probe fitted on `train`, [n, k] each."""
    mean, deviation = jnp.mean(train, axis=0), jnp.maximum(jnp.std(train, axis=0), 1e-6)
    weights = logistic((train - mean[None]) / deviation[None], y)
    guess = jnp.dot(_with_one((test - mean[None]) / deviation[None]), weights, precision="highest") > 0
    right = lambda label: jnp.sum(jnp.where(test_y == label, guess == label, False)) / jnp.sum(test_y == label)
    return 0.5 * (right(True) + right(False))


@functools.partial(jax.jit, static_argnames=("ridge",))
def logistic(x: Float[Array, "n k"], y: Array, ridge: float = RIDGE) -> Float[Array, " k+1"]:
    """Weights and bias (last) of a logistic regression in which both classes weigh the same, by Newton's method.

    The least of mean_weighted(log(1 + exp(-s z))) + ridge / 2 |w|^2, s = +-1; the bias is not penalized.
    """
    x = _with_one(x)
    share = jnp.mean(y.astype(jnp.float32))
    weight = jnp.where(y, 0.5 / share, 0.5 / (1.0 - share)) / len(x)
    penalty = jnp.full(x.shape[1], ridge, jnp.float32).at[-1].set(0.0)

    def loss(w: Array) -> Array:
        z = jnp.dot(x, w, precision="highest")
        return jnp.sum(weight * jax.nn.softplus(jnp.where(y, -z, z))) + 0.5 * jnp.sum(penalty * w**2)

    def step(_: Any, w: Array) -> Array:
        p = jax.nn.sigmoid(jnp.dot(x, w, precision="highest"))
        gradient = jnp.dot(x.T, weight * (p - y.astype(jnp.float32)), precision="highest") + penalty * w
        hessian = jnp.einsum("nj,n,nk->jk", x, weight * p * (1.0 - p), x, precision="highest")
        direction = jnp.linalg.solve(hessian + jnp.diag(penalty + 1e-7), gradient)
        lengths = 0.5 ** jnp.arange(8, dtype=jnp.float32)  # the longest step that helps most
        return w - lengths[jnp.argmin(jax.vmap(lambda a: loss(w - a * direction))(lengths))] * direction

    return lax.fori_loop(0, STEPS, step, jnp.zeros(x.shape[1], jnp.float32))


def _with_one(x: Array) -> Array:
    return jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)
