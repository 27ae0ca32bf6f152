"""What each latent of a dictionary is: where it is active and how strongly, with which others, and what it writes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxinterp._errors import InputError
from jaxinterp._tree import pytree, static
from jaxinterp._typing import Array, Params
from jaxinterp.saes._directions import Ranked, extreme_tokens, nearest_latents
from jaxinterp.saes._events import events_of
from jaxinterp.saes._partners import coactive_latents
from jaxinterp.saes._running import BINS, PARTNER_SAMPLE, Running, add, nothing_yet
from jaxinterp.saes._sae import SAE
from jaxinterp.saes._site import Batch, as_batch, read_site

if TYPE_CHECKING:
    import xarray


@pytree
class Contexts:
    """Stretches of text around tokens at which a latent is active; W tokens each.

    Attributes:
        tokens: int32 [N, ..., W], -1 where the text has no token, and everywhere in a context that is not there.
        activations: float32 [N, ..., W], of the latent at each of them; 0 at tokens that were excluded.
    """

    tokens: Any
    activations: Any


@pytree
class LatentDescriptions:
    """What `describe_latents` found, as numpy arrays by latent.

    Attributes:
        rows: how many tokens were seen.
        firing_rate: [N], the share of them at which each latent is active.
        max_activation, mean_activation: [N], over those; 0 where there is none.
        counts: int32 [N, 64], the histogram of activations: bin i is [i w, (i + 1) w).
        bin_width: [N], w: a power of 2, so that the largest activation is in the upper half of the bins.
        top: contexts [N, n_top, W] of the largest activations, the largest first; no two of one text, or with the same tokens
            before and at the one in question.
        quantiles: contexts [N, n_quantiles, per_quantile, W] of a uniform sample of all tokens at which the latent is active,
            sorted, the largest first, and cut into equal parts.
        promoted, suppressed: tokens whose logits the decoder row raises and lowers most, in logits; none for a site that is not
            in the residual stream.
        nearest: latents with the largest cosine of decoder rows.
        coactive: latents that are active at the same tokens, by their Jaccard index.
        coactive_share: [N, n], the share of a latent's own active tokens at which each of those is active too.
        before: where the token itself stands among the W tokens of a context.
        site: what the dictionary reads.
    """

    rows: Any
    firing_rate: Any
    max_activation: Any
    mean_activation: Any
    counts: Any
    bin_width: Any
    top: Any
    quantiles: Any
    promoted: Any
    suppressed: Any
    nearest: Any
    coactive: Any
    coactive_share: Any
    before: int = static()
    site: str = static()

    def dataset(self) -> xarray.Dataset:
        """All arrays with named axes."""
        import xarray

        by_latent = ("firing_rate", "max_activation", "mean_activation", "bin_width")
        arrays: dict[str, Any] = {name: ("latent", getattr(self, name)) for name in by_latent}
        arrays["counts"] = (("latent", "bin"), self.counts)
        for name, axes in (("top", ("example",)), ("quantiles", ("quantile", "quantile_example"))):
            contexts = getattr(self, name)
            arrays[f"{name}_tokens"] = (("latent", *axes, "offset"), contexts.tokens)
            arrays[f"{name}_activations"] = (("latent", *axes, "offset"), contexts.activations)
        kinds = (("promoted", "token", "logits"), ("suppressed", "token", "logits"), ("nearest", "latent", "cosine"),
                 ("coactive", "latent", "jaccard"))  # fmt: skip
        for name, what, value in kinds:
            ranked = getattr(self, name)
            axes = ("latent", f"{name}_rank")
            arrays |= {f"{name}_{what}": (axes, ranked.ids), f"{name}_{value}": (axes, ranked.values)}
        arrays["coactive_share"] = (("latent", "coactive_rank"), self.coactive_share)
        offsets = np.arange(self.top.tokens.shape[-1]) - self.before
        coords = {"latent": np.arange(len(self.firing_rate)), "offset": offsets}
        return xarray.Dataset(arrays, coords=coords, attrs={"rows": int(self.rows), "site": self.site})


def describe_latents(
    sae: SAE,
    model: Any,
    params: Params,
    batches: Iterable[Any],
    *,
    n_top: int = 20,
    n_quantiles: int = 5,
    per_quantile: int = 4,
    context: tuple[int, int] = (16, 8),
    n_tokens: int = 10,
    n_latents: int = 8,
    exclude: Sequence[int] = (),
    exclude_positions: Sequence[int] = (),
    threshold: float = 0.0,
    unembed: Callable[[Array], Array] | None = None,
) -> LatentDescriptions:
    """Describes all latents of a dictionary in one pass over texts.

    Top contexts are exact: of each text the token of largest activation; of those with equal tokens before them (as far as a
    context goes), again the largest; and of these the `n_top` largest. Quantile contexts are examples of all strengths: of the
    tokens at which a latent is active a uniform sample of n_quantiles * per_quantile, sorted and cut. (Each pair of a token and a
    latent has a random number of its own, and the smallest are taken: the same texts give the same sample, however they are
    batched.)

    Co-activation is counted in the rows of such a sample of 64 tokens for each latent i: the share s of them at which j is
    active. So i and j are active together at about s n_i tokens, and their Jaccard index is s n_i / (n_i + n_j - s n_i): exactly
    where n_i is at most 64, else with a standard error of s of at most 0.06. Of a row with more than 64 active latents the 64
    strongest count. Rare latents have partners as good as frequent ones, and no table of N x N is made.

    Tokens are promoted by a decoder row of length sqrt(D) alone: the logits that the model's own norm and unembedding give it,
    less those of a row of zeros, less their mean over the vocabulary.

    The memory does not grow with the texts: 8 N W (n_top + n_quantiles per_quantile) bytes for contexts of W tokens, 16,384 N for
    co-activation, the result, and the active latents of one batch (with all others, where the architecture gives them): of 16,384
    latents of a TopK dictionary, with the default settings, 1.3 GB in all. What is kept is on the host.

    Args:
        sae: the dictionary; a transcoder's latents are active where it reads, and write to its target.
        model, params: the model whose site it reads.
        batches: as of `loss_recovered`, an iterator too; each is used once, none is kept.
        n_top: top contexts of each latent.
        n_quantiles, per_quantile: parts of the sample, and contexts in each.
        context: tokens before and behind the one that a context is about.
        n_tokens: promoted, and suppressed, tokens.
        n_latents: nearest, and co-active, latents.
        exclude, exclude_positions: tokens that are not counted, as of `loss_recovered`.
        threshold: a latent is active above it.
        unembed: logits [n, V] of rows [n, D] that the dictionary writes. None: `model.unembed`, where those rows are in the
            residual stream.

    Returns:
        The descriptions.

    Raises:
        InputError: no batch, nothing left to count, activations that are not finite, numbers below 0.

    Example:
        >>> import jax, jaxinterp as ji
        >>> from jaxinterp import saes
        >>> lm = ji.zoo.load("stories")
        >>> tokens = lm.encode("Once upon a time there was a little dog.")
        >>> config = saes.SAEConfig(architecture=saes.TopK(k=4), d_in=lm.config.d_model, n_latents=64, site="resid_post.1")
        >>> rows = jax.random.normal(jax.random.key(0), (64, lm.config.d_model))
        >>> sae = saes.random_dictionary(config, jax.random.key(1), rows)
        >>> found = describe_latents(sae, lm.model, lm.params, [tokens], exclude_positions=[0])
        >>> found.top.tokens.shape, found.quantiles.tokens.shape
        ((64, 20, 25), (64, 5, 4, 25))

    Source: the parts are those of the dashboards of Bricken et al. 2023 (Towards Monosemanticity); intervals there are of the
    activation, here of its rank.
    """
    sizes = dict(n_top=n_top, n_quantiles=n_quantiles, per_quantile=per_quantile, before=context[0], behind=context[1],
                 n_tokens=n_tokens, n_latents=n_latents, threshold=threshold)  # fmt: skip
    below = [
        f"{name}={value}" for name, value in sizes.items() if value < (name in ("n_top", "n_quantiles", "per_quantile"))
    ]
    if below:
        raise InputError(f"{', '.join(below)}: numbers of contexts are at least 1, the others at least 0.")
    running = nothing_yet(sae.config.n_latents, n_top, n_quantiles * per_quantile, sum(context) + 1)
    dtype = None
    for i, tokens in enumerate(batches):
        batch = as_batch(tokens, tuple(exclude), tuple(exclude_positions))
        codes, row = jax.device_get(_codes(sae, params, batch, model=model))
        dtype = row.dtype
        add(running, events_of(codes, batch, context, threshold, where=f"{sae.config.site!r} in batch {i}"))
    if not running.rows:
        raise InputError(
            f"describe_latents saw no token: give at least one batch, of which exclude={tuple(exclude)} and "
            f"exclude_positions={tuple(exclude_positions)} leave something."
        )
    extremes = extreme_tokens(sae, model, params, unembed, dtype, n_tokens)
    return _result(sae, running, n_quantiles, context[0], extremes, n_latents)


@functools.partial(jax.jit, static_argnames=("model",))
def _codes(sae: SAE, params: Params, batch: Batch, *, model: Any) -> tuple[Any, Array]:
    """The activations of all latents, and a row of the site of no width, which has its dtype."""
    value = read_site(model, params, batch, sae.config.site)
    return sae.encode_active(value), value[0, 0, :0]


def _result(
    sae: SAE, running: Running, n_quantiles: int, before: int, tokens: tuple[Ranked, Ranked], n_latents: int
) -> LatentDescriptions:
    """The descriptions, after the last batch."""
    fired = running.fired
    top = running.top.ordered(running.top.keys)[1]
    sizes, sample = running.sample.ordered(running.sample.data["activations"][..., before])
    coactive, share = coactive_latents(
        running.partners.data["sets"], np.minimum(fired, PARTNER_SAMPLE), fired, n_latents
    )
    return LatentDescriptions(
        rows=running.rows,
        firing_rate=(fired / running.rows).astype(np.float32),
        max_activation=top["activations"][:, 0, before],
        mean_activation=(running.total / np.maximum(fired, 1)).astype(np.float32),
        counts=running.counts.astype(np.int32),
        bin_width=np.where(fired, np.ldexp(1.0 / BINS, np.where(fired, running.exponents, 0)), 0.0).astype(np.float32),
        top=Contexts(tokens=top["tokens"], activations=top["activations"]),
        quantiles=Contexts(**{name: _cut(a, sizes, n_quantiles) for name, a in sample.items()}),
        promoted=tokens[0],
        suppressed=tokens[1],
        nearest=nearest_latents(sae, n_latents),
        coactive=coactive,
        coactive_share=share,
        before=before,
        site=sae.config.site,
    )


def _cut(a: np.ndarray, sizes: np.ndarray, n: int) -> np.ndarray:
    """Sorted samples [N, S, ...], of which the first `sizes` are there, in n equal parts [N, n, S / n, ...] (to one entry)."""
    parts = np.arange(n + 1) * sizes[:, None] // n  # [N, n + 1], where each begins and the last ends
    places = parts[:, :-1, None] + np.arange(a.shape[1] // n)  # [N, n, S / n]
    out = a[np.arange(len(a))[:, None, None], np.minimum(places, a.shape[1] - 1)]
    out[places >= parts[:, 1:, None]] = 0 if a.dtype.kind == "f" else -1
    return out
