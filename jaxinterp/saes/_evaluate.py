"""What a dictionary does to rows: error, sparsity, dead latents, shrinkage, activity of each latent; one pass, bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError
from jaxinterp._tree import pytree
from jaxinterp._typing import Array, ArrayLike, Float
from jaxinterp.mesh import fetch
from jaxinterp.saes._sae import SAE, beside
from jaxinterp.saes._sparse import SparseLatents

if TYPE_CHECKING:
    import xarray

CHUNK = 8192
"""Rows of an array are worked off so many at a time."""

DENSITY_EDGES = np.concatenate([[-np.inf], np.arange(-7.0, 0.01, 0.25)])
"""Edges of the histogram of log10 firing rates; latents that never fire are in the first bin."""


@pytree
class Evaluation:
    """What `evaluate` measured; means over rows, in the units of the rows.

    Attributes:
        rows: how many rows were seen.
        fvu: the summed squared error over the summed squared distance of the targets from their mean.
        explained_variance: 1 - variance of the error / variance of the targets; a constant error is not charged.
        mse: the squared error, summed over the width.
        l0: active latents.
        dead: the share of latents that fired in no row seen.
        cosine: of reconstruction and target, over rows that are not 0.
        norm_ratio: mean length of reconstructions over that of targets; below 1 is shrinkage.
        firing_rate: [N], the share of rows in which each latent is active.
        max_activation: [N].
        mean_activation: [N], over the rows in which it is active; 0 where there is none.
    """

    rows: Any
    fvu: Any
    explained_variance: Any
    mse: Any
    l0: Any
    dead: Any
    cosine: Any
    norm_ratio: Any
    firing_rate: Any
    max_activation: Any
    mean_activation: Any

    def summary(self) -> dict[str, float]:
        """The numbers that are no arrays."""
        names = ("rows", "fvu", "explained_variance", "mse", "l0", "dead", "cosine", "norm_ratio")
        return {name: float(getattr(self, name)) for name in names}

    def density(self) -> tuple[np.ndarray, np.ndarray]:
        """The histogram of log10 firing rates: counts [bins], and the edges [bins + 1] of which the first is -inf."""
        with np.errstate(divide="ignore"):
            rates = np.log10(np.asarray(self.firing_rate, np.float64))
        counts = np.bincount(
            np.searchsorted(DENSITY_EDGES, rates, side="right") - 1, minlength=len(DENSITY_EDGES) - 1
        )  # fmt: skip
        counts[-2] += counts[-1] if len(counts) == len(DENSITY_EDGES) else 0  # a rate of 1 is the last edge itself
        return counts[: len(DENSITY_EDGES) - 1], DENSITY_EDGES

    def dataset(self) -> xarray.Dataset:
        """The arrays by latent, with the numbers as attributes."""
        import xarray

        names = ("firing_rate", "max_activation", "mean_activation")
        arrays = {name: ("latent", np.asarray(getattr(self, name))) for name in names}
        return xarray.Dataset(arrays, coords={"latent": np.arange(len(self.firing_rate))}, attrs=self.summary())


def evaluate(sae: SAE, batches: ArrayLike | Iterable[Any], *, rows: int | None = None) -> Evaluation:
    """Measures a dictionary on rows, in one pass that keeps no activations.

    Args:
        sae: the dictionary.
        batches: an array [n, D]; or a stream or list of batches, each an array [B, D], or by site as `ActivationStream` gives
            them (needed by a transcoder).
        rows: stop once so many were seen; needed by an endless stream. None: all there are.

    Returns:
        Means over rows.

    Raises:
        InputError: no row at all, rows of another width, a batch without the dictionary's sites, values that are not finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxinterp import saes
        >>> config = saes.SAEConfig(architecture=saes.TopK(k=2, auxiliary=None), d_in=8, n_latents=16)
        >>> x = jax.random.normal(jax.random.key(0), (100, 8))
        >>> sae = saes.random_dictionary(config, jax.random.key(1), x)
        >>> evaluate(sae, x).l0 <= 2.0
        True

    Source: FVU as in Gao et al. 2024 (arXiv 2406.04093), there "normalized MSE"; density and dead latents: Bricken et al. 2023.
    """
    if isinstance(batches, jax.Array | np.ndarray):
        array = batches
        batches = (array[i : i + CHUNK] for i in range(0, len(array), CHUNK))
    state = None
    seen = 0
    for batch in batches:
        x, target = _sites(sae, batch)
        state = _more(sae, _nothing(sae) if state is None else state, x, target)
        seen += len(x)
        if rows is not None and seen >= rows:
            break
    if state is None or not seen:
        raise InputError("evaluate saw no row: give at least one batch.")
    return _result(fetch(state))


def _sites(sae: SAE, batch: Any) -> tuple[Array, Array]:
    """Inputs and targets of one batch."""
    config = sae.config
    if not isinstance(batch, Mapping):
        if config.target is not None:
            raise InputError(
                f"A transcoder's batch has its two sites by name, {config.site!r} and {config.target!r}; got an array."
            )
        batch = {config.site: batch}
    missing = sorted({config.site, config.target_site} - set(batch))
    if missing:
        raise InputError(
            f"The batch has {', '.join(map(repr, sorted(batch)))}, and not {', '.join(map(repr, missing))}, which the dictionary "
            f"reads or gives. Make the stream with these sites."
        )
    x, target = (beside(sae, jnp.asarray(batch[site])) for site in (config.site, config.target_site))
    if x.ndim != 2 or target.shape != (len(x), config.width_out):
        raise InputError(
            f"Rows of shapes {list(x.shape)} and {list(target.shape)}; this dictionary takes [B, {config.d_in}] and gives "
            f"[B, {config.width_out}]."
        )
    return x, target


def _nothing(sae: SAE) -> dict[str, Array]:
    """The running numbers before the first row."""
    n, d = sae.config.n_latents, sae.config.width_out
    scalars = {name: jnp.zeros((), jnp.float32) for name in ("error", "cosine", "nonzero", "length", "guess_length")}
    vectors = {name: jnp.zeros(d, jnp.float32) for name in ("target_mean", "error_mean")}
    moments = {name: jnp.zeros((), jnp.float32) for name in ("target_moment", "error_moment")}
    latents = {name: jnp.zeros(n, jnp.float32) for name in ("total", "largest")}
    return {
        "rows": jnp.zeros((), jnp.int32), "fired": jnp.zeros(n, jnp.int32), **scalars, **vectors, **moments, **latents,
    }  # fmt: skip


@jax.jit
def _more(
    sae: SAE, state: dict[str, Array], x: Float[Array, "B D"], target: Float[Array, "B D_out"]
) -> dict[str, Array]:
    """The running numbers after a batch; means and summed squares are merged so that no large numbers cancel.

    Source: Chan, Golub and LeVeque 1979, Updating formulae and a pairwise algorithm for computing sample variances.
    """
    latents = sae.encode_active(x)
    guess = sae.decode(latents, x)
    target = target.astype(jnp.float32)
    left = target - guess
    length, guess_length = (jnp.linalg.norm(rows, axis=1) for rows in (target, guess))
    products = jnp.sum(target * guess, axis=1)
    old, new = state["rows"], jnp.asarray(len(x), jnp.int32)
    share = new.astype(jnp.float32) / (old + new).astype(jnp.float32)
    values = {
        "error": jnp.sum(jnp.square(left), axis=1),
        "cosine": products / jnp.maximum(length * guess_length, 1e-30),
        "nonzero": (length > 0).astype(jnp.float32),
        "length": length,
        "guess_length": guess_length,
    }
    merged = {name: state[name] + share * (jnp.mean(rows) - state[name]) for name, rows in values.items()}
    for name, rows in (("target", target), ("error", left)):
        mean = jnp.mean(rows, axis=0)
        delta = mean - state[f"{name}_mean"]
        inside = jnp.sum(jnp.square(rows - mean[None])) / len(x)
        between = (1.0 - share) * share * jnp.sum(jnp.square(delta))
        merged[f"{name}_mean"] = state[f"{name}_mean"] + share * delta
        merged[f"{name}_moment"] = (1.0 - share) * state[f"{name}_moment"] + share * inside + between
    fired, total, largest = _by_latent(latents)
    return {
        **merged, "rows": old + new, "fired": state["fired"] + fired, "total": state["total"] + total,
        "largest": jnp.maximum(state["largest"], largest),
    }  # fmt: skip


def _by_latent(latents: Array | SparseLatents) -> tuple[Array, Array, Array]:
    """How often each latent is active in these rows, its summed activation and its largest, [N] each."""
    if not isinstance(latents, SparseLatents):
        return jnp.sum(latents > 0, axis=0, dtype=jnp.int32), jnp.sum(latents, axis=0), jnp.max(latents, axis=0)
    zeros = jnp.zeros(latents.n_latents, jnp.float32)
    at = latents.indices
    fired = jnp.zeros(latents.n_latents, jnp.int32).at[at].add((latents.values > 0).astype(jnp.int32))
    return fired, zeros.at[at].add(latents.values), zeros.at[at].max(latents.values)


def _result(state: dict[str, np.ndarray]) -> Evaluation:
    rows, error = int(state["rows"]), float(state["error"])
    if not np.isfinite(error):
        raise InputError(f"The squared error of {rows} rows is {error}: a row, or the dictionary, is not finite.")
    fired = state["fired"].astype(np.float64)
    variance = float(state["target_moment"])
    over = lambda a: a / variance if variance > 0 else float("nan")
    ratio = lambda a, b: float(state[a] / state[b]) if state[b] > 0 else float("nan")
    return Evaluation(
        rows=rows,
        fvu=over(error),
        explained_variance=1.0 - over(float(state["error_moment"])),
        mse=error,
        l0=float(fired.sum() / rows),
        dead=float((fired == 0).mean()),
        cosine=ratio("cosine", "nonzero"),
        norm_ratio=ratio("guess_length", "length"),
        firing_rate=(fired / rows).astype(np.float32),
        max_activation=state["largest"],
        mean_activation=(state["total"] / np.maximum(fired, 1.0)).astype(np.float32),
    )
