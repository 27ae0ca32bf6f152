"""A dictionary spliced into a model: a site replaced by what it gives, the latents a site of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax.numpy as jnp

from jaxinterp._errors import InputError
from jaxinterp._typing import Array
from jaxinterp.saes._sae import SAE
from jaxinterp.tap import IDENTITY, Handler, Site, Tap, make_where, row_positions, select, site_of_hook, split_site

LATENTS = "sae.latents"

Error = Literal["keep", "drop"]


def splice(
    sae: SAE,
    *,
    error: Error = "keep",
    position: Any = None,
    step: Any = None,
    exclude_positions: Sequence[int] = (),
    name: str = LATENTS,
) -> Handler:
    """Replaces the site that a dictionary gives by its reconstruction, and opens the latents as a site.

    That is the site that it reads, or the target of a transcoder, which is visited later (`mlp.in.3` and `mlp.out.3`). The
    latents [B, T, N] are named `name` and are in no layer: capture them, or edit them by `position`, `feature` and `step` with
    any handler that stands to the right. With the error kept, the value becomes x + decode(latents as edited) - decode(latents),
    so that without an edit nothing changes (Templeton et al. 2024); with it dropped, decode(latents).

    Args:
        sae: a dictionary whose `config.site` is a site of the model, such as "resid_post.3", as is a transcoder's target.
        error: "keep" or "drop".
        position, step: where the site is replaced, as in `jaxinterp.edit`; elsewhere it stays. None: everywhere.
        exclude_positions: positions at which it stays, such as (0,) for BOS.
        name: of the site of latents; two dictionaries in one model need two names.

    Raises:
        InputError: another `error`; a transcoder's two sites are in different layers.
        SiteTypeError: (when run) the site is not as wide as what the dictionary reads.

    Example:
        >>> import jax, jaxinterp as ji
        >>> from jaxinterp import saes
        >>> lm = ji.zoo.load("stories")
        >>> config = saes.SAEConfig(architecture=saes.TopK(k=4), d_in=lm.config.d_model, n_latents=64, site="resid_post.2")
        >>> sae = saes.init(config, jax.random.key(0))
        >>> tokens = jax.numpy.array([lm.tokenizer.encode("Once upon a time")])
        >>> handlers = saes.splice(sae), ji.zero("sae.latents", feature=7), ji.capture("sae.latents")
        >>> ji.run(lm.model.forward, *handlers)(lm.params, tokens)[1]["sae.latents"].shape[-1]
        64
    """
    if error not in ("keep", "drop"):
        raise InputError(f"error={error!r}: legal are 'keep' and 'drop'.")
    (site, layer), (target, there) = (_named(name) for name in (sae.config.site, sae.config.target_site))
    if layer != there:
        raise InputError(
            f"a transcoder from {sae.config.site!r} to {sae.config.target!r}: only one within a layer is spliced."
        )
    where = make_where(position=position, step=step)
    excluded = jnp.asarray(sorted(exclude_positions), jnp.int32)
    return Handler(
        sites=(site,) if site == target else (site, target),
        visit=_Splice(site, target, layer, error, name),
        apart=() if layer is None else (layer,),
        data={"sae": sae, "where": where, "excluded": excluded},
    )


@dataclasses.dataclass(frozen=True)
class Spliced:
    """A function with dictionaries in it, as a function of its own: with the latents among its sites.

    It takes `{"model": params, "saes": [sae, ...]}` in place of the parameters. So it goes wherever a plain function goes: sweeps
    with `site="sae.latents"`, attribution, a user's own `grad` and `vmap`. Sweeps run whole forward passes of it.

    Attributes:
        forward: the function, `model.forward`.
        error: of `splice`.
        exclude_positions: of `splice`.

    Example:
        >>> import jax, jaxinterp as ji
        >>> from jaxinterp import saes
        >>> lm = ji.zoo.load("stories")
        >>> config = saes.SAEConfig(architecture=saes.TopK(k=4), d_in=lm.config.d_model, n_latents=64, site="resid_post.2")
        >>> params = {"model": lm.params, "saes": [saes.init(config, jax.random.key(0))]}
        >>> spliced = saes.Spliced(lm.model.forward)
        >>> tokens = jax.numpy.array([lm.tokenizer.encode("Once upon a time")])
        >>> ji.sites(spliced, params, tokens)["sae.latents"].axes
        'BTN'
    """

    forward: Callable[..., Array]
    error: Error = "keep"
    exclude_positions: tuple[int, ...] = ()

    def __call__(self, params: Any, tokens: Any, *, tap: Tap = IDENTITY, **how: Any) -> Array:
        """The function's result with the dictionaries in their places."""
        saes = params["saes"]
        names = [LATENTS] if len(saes) == 1 else [f"{LATENTS}.{sae.config.site}" for sae in saes]
        handlers = [
            splice(sae, error=self.error, exclude_positions=self.exclude_positions, name=name)
            for sae, name in zip(saes, names, strict=True)
        ]
        return tap.under(self.forward, *handlers)(params["model"], tokens, **how)


def _named(site: str) -> tuple[str, int | None]:
    return split_site(site_of_hook(site) or site)


@dataclasses.dataclass(frozen=True)
class _Splice:
    site: str
    target: str
    layer: int | None
    error: Error
    name: str

    def __call__(
        self, site: Site, value: Array, state: Any, data: Any, layer_slice: Any, tap: Any
    ) -> tuple[Array, Any, None]:
        if self.layer is not None and (not isinstance(site.layer, int) or site.layer != self.layer):
            return value, state, None
        sae: SAE = data["sae"]
        rows = value.reshape(*value.shape[:2], -1)  # sites of heads are laid flat, as streams do
        if self.site != self.target and site.name == self.site:
            return value, rows, None  # kept until the target is visited, in the same block
        read, state = (rows, state) if self.site == self.target else (state, ())
        if isinstance(read, tuple):
            raise InputError(
                f"{self.target!r} is visited before {self.site!r}, from which the transcoder is to give it."
            )
        before = sae.encode(read)
        after = tap.at(layer=None, n_layers=None)(self.name, before, site.axes[:2] + "N")
        new = sae.decode(after, read)
        if self.error == "keep":
            new = rows.astype(jnp.float32) + (new - sae.decode(before, read))
        new = new.astype(value.dtype).reshape(value.shape)
        if data["excluded"].size:
            positions = row_positions(site, value.shape[1])
            stays = (positions[:, :, None] == data["excluded"][None, None]).any(-1)
            new = jnp.where(stays.reshape(*stays.shape, *[1] * (value.ndim - 2)), value, new)
        return select(data["where"], site, value, new), state, None
