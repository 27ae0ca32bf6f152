"""TransformerLens's names for sites: what each means here, and what a function's own names make of it.

A name such as `blocks.3.attn.hook_z` is looked up when the function is run, since what it means depends on the function: the gate
of a gated MLP is called `mlp.hook_pre` there, and so is the only input of an MLP without one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import NamedTuple

from jaxinterp._errors import SiteIndexError, closest


class Alias(NamedTuple):
    """One of TransformerLens's names.

    Attributes:
        hook: the name, without `blocks.3.`.
        sites: ours; the first that the function has.
        layered: whether it stands behind `blocks.3.`.
        note: what differs, or why there is no counterpart where there is none.
        means: whether `sites` have that value in a function of these sites; None: always.
    """

    hook: str
    sites: tuple[str, ...]
    layered: bool = True
    note: str = ""
    means: Callable[[Collection[str]], bool] | None = None


class Resolved(NamedTuple):
    """What a name means: our site, in one layer (None: in all layers, or in none)."""

    site: str
    layer: int | None


def _sums_are_sites(known: Collection[str]) -> bool:
    """Whether the residual stream is a plain sum: not in blocks that normalize each sum, and so need no norm at the end."""
    return "attn.post_norm_scale" not in known or "attn.norm_scale" in known or "final.norm_scale" in known


def _is_gated(known: Collection[str]) -> bool:
    return "mlp.gate" in known


def _sums_are_normed(known: Collection[str]) -> bool:
    return not _sums_are_sites(known)


_NO_GATE = "this MLP has no gate: mlp.hook_pre is mlp.pre"
_NORMED_SUM = "blocks that normalize each sum (BERT's) have a site for the normalized one only"
_NORMALIZED = (
    "what a norm gives before its weights is no site; it is (x - mean) / scale (RMSNorm: x / scale), with x = "
)
ALIASES: tuple[Alias, ...] = (
    Alias("hook_embed", ("embed.token",), False),
    Alias("hook_pos_embed", ("embed.position",), False, "a model with RoPE adds no position embedding"),
    Alias("hook_full_embed", ("embed",), False),
    Alias("hook_resid_pre", ("resid_pre",)),
    Alias("hook_attn_in", (), note="[B, T, H, D] there; edit attn.q_in, attn.k_in and attn.v_in here, or attn.in for all heads"),
    Alias("hook_q_input", ("attn.q_in",)),
    Alias("hook_k_input", ("attn.k_in",)),
    Alias("hook_v_input", ("attn.v_in",)),
    Alias("ln1.hook_scale", ("attn.norm_scale", "attn.post_norm_scale")),
    Alias("ln1.hook_normalized", (), note=_NORMALIZED + "attn.in"),
    Alias("ln1_post.hook_scale", ("attn.post_norm_scale",)),
    Alias("attn.hook_q", ("attn.q",)),
    Alias("attn.hook_k", ("attn.k",)),
    Alias("attn.hook_v", ("attn.v",)),
    Alias("attn.hook_rot_q", ("attn.q_rot",)),
    Alias("attn.hook_rot_k", ("attn.k_rot",)),
    Alias("attn.hook_attn_scores", ("attn.scores",), note="-inf there where nothing is attended to, the lowest float32 here"),
    Alias("attn.hook_pattern", ("attn.pattern",)),
    Alias("attn.hook_z", ("attn.z",)),
    Alias("attn.hook_result", ("attn.result",)),
    Alias("hook_attn_out", ("attn.out",)),
    Alias("hook_resid_mid", ("resid_mid",), note=_NORMED_SUM, means=_sums_are_sites),
    Alias("hook_mlp_in", ("mlp.in",), note=_NORMED_SUM, means=_sums_are_sites),
    Alias("ln2.hook_scale", ("mlp.norm_scale", "mlp.post_norm_scale")),
    Alias("ln2.hook_normalized", (), note=_NORMALIZED + "mlp.in"),
    Alias("ln2_post.hook_scale", ("mlp.post_norm_scale",)),
    Alias("mlp.hook_pre", ("mlp.gate", "mlp.pre"), note="the gate's input where the MLP is gated"),
    Alias("mlp.hook_pre_linear", ("mlp.pre",), note=_NO_GATE, means=_is_gated),
    Alias("mlp.hook_post", ("mlp.post",)),
    Alias("hook_mlp_out", ("mlp.out",)),
    Alias("hook_resid_post", ("resid_post",), note=_NORMED_SUM, means=_sums_are_sites),
    Alias("hook_normalized_resid_post", ("resid_post",), note="of blocks that normalize sums (BERT's)", means=_sums_are_normed),
    Alias("ln_final.hook_scale", ("final.norm_scale",), False),
    Alias("ln_final.hook_normalized", (), False, _NORMALIZED + "final.in"),
    Alias("unembed.hook_in", (), False, "what the unembedding reads is no site; final.in is what the norm before it reads"),
    Alias("unembed.hook_out", (), False, "name logits, which is the same unless logits have a soft cap (logits is behind it)"),
)  # fmt: skip
"""Every hook of TransformerLens's models of GPT-2's and Llama's kind, and some of others."""

_BY_HOOK = {(alias.hook, alias.layered): alias for alias in ALIASES}
_HOOK_OF: dict[tuple[tuple[str, ...], bool], str] = {
    (alias.sites, alias.layered): alias.hook for alias in reversed(ALIASES) if len(alias.sites) == 1
}
"""The first hook of each site that is one thing in every model."""
_PARTS = re.compile(r"(?:blocks\.(?P<layer>\d+|\*)\.)?(?P<hook>.+)")


def is_foreign(name: str) -> bool:
    """Whether a name looks like TransformerLens's: it has a part that begins with `hook_`, or begins with `blocks.`."""
    return name.startswith("blocks.") or any(part.startswith("hook_") for part in name.split("."))


def site_of_hook(name: str) -> str | None:
    """Our name for one of TransformerLens's, where it means the same in every model: with its layer behind it.

    Args:
        name: such as "blocks.3.hook_resid_post".

    Returns:
        Such as "resid_post.3"; None where there is no such site, or which one depends on the model (`mlp.hook_pre`).

    Example:
        >>> site_of_hook("blocks.3.attn.hook_z")
        'attn.z.3'
    """
    found = _PARTS.fullmatch(name)
    alias = found and _BY_HOOK.get((found["hook"], found["layer"] is not None))
    if not found or alias is None or _HOOK_OF.get((alias.sites, alias.layered)) != alias.hook or found["layer"] == "*":
        return None
    return f"{alias.sites[0]}.{found['layer']}" if alias.layered else alias.sites[0]


def hook_of_site(site: str) -> str | None:
    """TransformerLens's name for a site with its layer behind it; None where there is none. The inverse of `site_of_hook`.

    Example:
        >>> hook_of_site("resid_post.3")
        'blocks.3.hook_resid_post'
    """
    name, _, layer = site.rpartition(".")
    if layer.isdigit():
        hook = _HOOK_OF.get(((name,), True))
        return None if hook is None else f"blocks.{layer}.{hook}"
    return _HOOK_OF.get(((site,), False))


def split_site(key: str) -> tuple[str, int | None]:
    """The name and the layer of a site whose layer stands behind it, as keys of activations have it.

    Example:
        >>> split_site("mlp.out.3"), split_site("embed")
        (('mlp.out', 3), ('embed', None))
    """
    name, _, last = key.rpartition(".")
    return (name, int(last)) if name and last.isdigit() else (key, None)


def resolve(name: str, known: Collection[str]) -> Resolved | None:
    """What one of TransformerLens's names means in a function that has the sites `known`; None: nothing.

    A function's own name comes first.
    """
    found = _PARTS.fullmatch(name) if is_foreign(name) and name not in known else None
    if found is None:
        return None
    alias = _BY_HOOK.get((found["hook"], found["layer"] is not None))
    if alias is None or (alias.means is not None and not alias.means(known)):
        return None
    layer = None if found["layer"] in (None, "*") else int(found["layer"])
    return next((Resolved(site, layer) for site in alias.sites if site in known), None)


def explain(name: str, known: Collection[str]) -> str:
    """Why a name means nothing: the closest ones, in the vocabulary that it is of."""
    found = _PARTS.fullmatch(name)
    if not is_foreign(name) or found is None:
        return closest(name, known)
    alias = _BY_HOOK.get((found["hook"], found["layer"] is not None))
    if alias is not None and alias.note:
        return f"It has no counterpart here: {alias.note}."
    names = [(f"blocks.{found['layer'] or '*'}." if a.layered else "") + a.hook for a in ALIASES]
    return closest(name, [*(n for n in names if resolve(n, known)), *known])


def check_layer(name: str, layer: int, n_layers: int | None) -> None:
    """Refuses a layer that a site does not have."""
    if n_layers is None or layer >= n_layers:
        raise SiteIndexError(
            f"{name!r} names layer {layer}, but "
            + (
                "that site is in no layer."
                if n_layers is None
                else f"there are {n_layers}: legal are 0 to {n_layers - 1}."
            )
        )
