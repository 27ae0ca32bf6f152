"""How much of a model's loss survives when a dictionary's reconstruction stands in for a site."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError
from jaxinterp._typing import Array, Params
from jaxinterp.saes._sae import SAE
from jaxinterp.saes._site import Batch, as_batch, put, read_site
from jaxinterp.tap import run
from jaxinterp.training import token_nats

LEAST_GAP = 0.05
"""Nats between the ablated and the clean cross-entropy, below which a recovered share would divide by noise."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossRecovered:
    """Four cross-entropies of the next token, in nats, and what they tell.

    Attributes:
        clean: of the model as it is.
        spliced: with the reconstruction at the site.
        zero: with zeros there.
        mean: with the mean of the site over all positions that may be touched.
        tokens: how many predictions each of them is the mean of.
        touched: how many positions were replaced.
    """

    clean: float
    spliced: float
    zero: float
    mean: float
    tokens: int
    touched: int

    @property
    def over_zero(self) -> float:
        """(zero - spliced) / (zero - clean); NaN where the gap is below 0.05 nats."""
        return self._share(self.zero)

    @property
    def over_mean(self) -> float:
        """(mean - spliced) / (mean - clean); NaN where the gap is below 0.05 nats."""
        return self._share(self.mean)

    @property
    def undefined(self) -> str:
        """Why a share is NaN; empty where none is."""
        return " ".join(
            f"Over {name} ablation: it costs {ablated - self.clean:.3f} nats, under {LEAST_GAP}, so the share of it that is "
            f"recovered is not defined."
            for name, ablated in (("zero", self.zero), ("mean", self.mean))
            if not ablated - self.clean >= LEAST_GAP
        )

    def _share(self, ablated: float) -> float:
        gap = ablated - self.clean
        return (ablated - self.spliced) / gap if gap >= LEAST_GAP else float("nan")


def loss_recovered(
    sae: SAE,
    model: Any,
    params: Params,
    batches: Iterable[Any],
    *,
    exclude: Sequence[int] = (),
    exclude_positions: Sequence[int] = (0,),
) -> LossRecovered:
    """Splices a dictionary into a model and compares what the next token costs.

    Args:
        sae: its config's site says where: "resid_post.3" is `resid_post` of layer 3. A transcoder's output stands in for its
            target.
        model: anything with `forward(params, tokens, *, tap)`.
        params: its parameters.
        batches: token ids [B, T] each, or what `activations.read_tokens` gives (padding and the borders of packed texts are then
            known); kept in memory, since the mean is needed before the second pass.
        exclude: ids at which the site is never touched, in no run: special tokens (`tokens.special_ids`).
        exclude_positions: positions of the same kind, counted from the first token of a text. By default the first, where BOS
            stands: models keep a value of its own kind there, which no dictionary is asked to give.

    Returns:
        The cross-entropies: means over predictions, each of which weighs the same, whatever batch it is in.

    Raises:
        InputError: no batch; exclusions that leave nothing.

    Example:
        >>> import jax, jaxinterp as ji
        >>> from jaxinterp import saes
        >>> lm = ji.zoo.load("stories")
        >>> tokens = lm.encode("Once upon a time there was a little dog.")
        >>> config = saes.SAEConfig(architecture=saes.TopK(k=4), d_in=lm.config.d_model, n_latents=256, site="resid_post.1")
        >>> rows = jax.random.normal(jax.random.key(0), (64, lm.config.d_model))
        >>> sae = saes.random_dictionary(config, jax.random.key(1), rows)
        >>> loss_recovered(sae, lm.model, lm.params, [tokens]).over_zero < 1.0
        True

    Source: Bricken et al. 2023 (zero ablation); Gao et al. 2024 (arXiv 2406.04093), section 4.1; Karvonen et al. 2025
    (SAEBench, arXiv 2503.09532) for its form. Positions that are excluded are left alone in the ablated runs as well.
    """
    given = [as_batch(tokens, tuple(exclude), tuple(exclude_positions)) for tokens in batches]
    if not given:
        raise InputError("loss_recovered got no batch of tokens.")
    touched = sum(int(jnp.sum(batch.kept)) for batch in given)
    if not touched:
        raise InputError(
            f"exclude={tuple(exclude)} and exclude_positions={tuple(exclude_positions)} leave no position to splice at."
        )
    name = sae.config.target_site
    totals = [np.asarray(_total(params, batch, model=model, name=name), np.float64) for batch in given]
    mean = jnp.asarray(np.sum(totals, axis=0) / touched, jnp.float32)
    sums = [np.asarray(_nats(sae, params, batch, mean, model=model), np.float64) for batch in given]
    counts = sum(int(jnp.sum(batch.predicts)) for batch in given)
    nats = dict(zip(("clean", "spliced", "zero", "mean"), (np.sum(sums, axis=0) / counts).tolist(), strict=True))
    return LossRecovered(**nats, tokens=counts, touched=touched)


@functools.partial(jax.jit, static_argnames=("model", "name"))
def _total(params: Params, batch: Batch, *, model: Any, name: str) -> Array:
    """The sum of a site over the positions that may be touched, [D]."""
    value = read_site(model, params, batch, name).astype(jnp.float32)
    return jnp.sum(jnp.where(batch.kept[..., None], value, 0.0), axis=(0, 1))


@functools.partial(jax.jit, static_argnames=("model",))
def _nats(sae: SAE, params: Params, batch: Batch, mean: Array, *, model: Any) -> Array:
    """The summed cost of all predictions, of the four runs."""
    name = sae.config.target_site
    guess = sae(read_site(model, params, batch, sae.config.site))
    changes = ((_given, guess), (_zero, ()), (_mean, mean))
    runs = [(), *((put(name, change, batch.kept, data),) for change, data in changes)]
    sums = []
    for handlers in runs:
        logits = run(model.forward, *handlers)(params, batch.tokens, **batch.how)[0]
        nats = token_nats(logits[:, :-1], batch.tokens[:, 1:])
        sums.append(jnp.sum(jnp.where(batch.predicts, nats, 0.0)))
    return jnp.stack(sums)


def _given(value: Array, guess: Array) -> Array:
    return guess


def _zero(value: Array, data: Any) -> Array:
    return jnp.zeros_like(value)


def _mean(value: Array, mean: Array) -> Array:
    return jnp.broadcast_to(mean[None, None].astype(value.dtype), value.shape)
