"""What single latents do to a model's next-token logits, and to how many of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinterp._errors import InputError
from jaxinterp._tree import pytree
from jaxinterp._typing import Array, Float, Params, PRNGKeyArray
from jaxinterp.saes._sae import SAE
from jaxinterp.saes._site import Batch, as_batch, put, read_site
from jaxinterp.tap import run

if TYPE_CHECKING:
    import xarray


@pytree
class AblationEffects:
    """Effects of taking one latent away at the position where it is most active in a text.

    Attributes:
        latents: [n], which.
        texts: [n], in how many texts each was active: what the means are over.
        effect: [n], the root mean square change of the logits, after the median of each position is subtracted.
        spread: [n], (L1 / L2)^2 / V of that change: the share of the vocabulary that it moves; 1 is all alike.
        random_effect, random_spread: [n], the same for a change of the same length in a random direction.
    """

    latents: Any
    texts: Any
    effect: Any
    spread: Any
    random_effect: Any
    random_spread: Any

    def dataset(self) -> xarray.Dataset:
        """The arrays by latent."""
        import xarray

        names = ("texts", "effect", "spread", "random_effect", "random_spread")
        arrays = {name: ("latent", np.asarray(getattr(self, name))) for name in names}
        return xarray.Dataset(arrays, coords={"latent": np.asarray(self.latents)})


def ablation_effects(
    sae: SAE,
    model: Any,
    params: Params,
    tokens: Any,
    latents: Sequence[int],
    *,
    exclude: Sequence[int] = (),
    exclude_positions: Sequence[int] = (0,),
    key: PRNGKeyArray | None = None,
) -> AblationEffects:
    """Takes single latents out of a model's site and looks at the logits of the next token.

    The rest of the site (other latents and the dictionary's error) stays. One forward pass for each latent and its control.

    Args:
        sae: the dictionary.
        model, params: the model.
        tokens: one batch, as `loss_recovered` takes them.
        latents: which ones.
        exclude, exclude_positions: where no latent is taken out, as of `loss_recovered`.
        key: of the random directions. None: `jax.random.key(0)`.

    Returns:
        Effects by latent; NaN where it is active in no text.

    Raises:
        InputError: latents that are not there.

    Source: Gao et al. 2024 (arXiv 2406.04093), section 4.5, there over this and the 16 following tokens; here over the
    next token alone, at one position of each text.
    """
    chosen = np.asarray(latents)
    if chosen.ndim != 1 or not chosen.size or chosen.min() < 0 or chosen.max() >= sae.config.n_latents:
        raise InputError(f"latents={list(latents)[:8]}: give at least one number from 0 to {sae.config.n_latents - 1}.")
    batch = as_batch(tokens, tuple(exclude), tuple(exclude_positions))
    key = jax.random.key(0) if key is None else key
    out = jax.device_get(_effects(sae, params, batch, jnp.asarray(chosen, jnp.int32), key, model=model))
    texts = out.pop("texts")
    means = {name: np.where(texts > 0, value, np.nan) for name, value in out.items()}
    return AblationEffects(latents=chosen, texts=texts, **means)


@functools.partial(jax.jit, static_argnames=("model",))
def _effects(
    sae: SAE, params: Params, batch: Batch, latents: Array, key: PRNGKeyArray, *, model: Any
) -> dict[str, Array]:
    name = sae.config.target_site
    value = read_site(model, params, batch, sae.config.site)
    codes = jnp.where(batch.kept[..., None], sae.encode(value), 0.0)
    rows = jnp.arange(len(value))

    def one(latent_and_key: tuple[Array, Array]) -> dict[str, Array]:
        latent, key = latent_and_key
        position = jnp.argmax(codes[:, :, latent], axis=1)
        x, z = value[rows, position], codes[rows, position]
        active = z[:, latent] > 0
        delta = sae.decode(z.at[:, latent].set(0.0), x) - sae.decode(z, x)
        noise = jax.random.normal(key, delta.shape, jnp.float32)
        length = lambda a: jnp.linalg.norm(a, axis=1, keepdims=True)
        noise = noise * length(delta) / length(noise)
        at = jnp.arange(batch.tokens.shape[1])[None] == position[:, None]
        clean = _next_logits(model, params, batch, position, ())
        measured = {}
        for prefix, change in (("", delta), ("random_", noise)):
            handler = put(name, _add, at, change)
            moved = _next_logits(model, params, batch, position, (handler,)) - clean
            moved = moved - jnp.median(moved, axis=1, keepdims=True)
            squares = jnp.mean(jnp.square(moved), axis=1)
            spread = jnp.square(jnp.mean(jnp.abs(moved), axis=1)) / jnp.maximum(squares, 1e-30)
            count = jnp.maximum(jnp.sum(active, dtype=jnp.float32), 1.0)
            over = lambda a, count=count: jnp.sum(jnp.where(active, a, 0.0)) / count
            measured |= {f"{prefix}effect": over(jnp.sqrt(squares)), f"{prefix}spread": over(spread)}
        return {**measured, "texts": jnp.sum(active)}

    return lax.map(one, (latents, jax.random.split(key, len(latents))))


def _next_logits(
    model: Any, params: Params, batch: Batch, position: Array, handlers: tuple[Any, ...]
) -> Float[Array, "B V"]:
    logits = run(model.forward, *handlers)(params, batch.tokens, read=position[:, None], **batch.how)[0]
    return logits[:, 0]


def _add(value: Array, change: Array) -> Array:
    return value + change[:, None].astype(value.dtype)
