"""Attribution patching: what a sweep would find, to first order, from one backward pass."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp import patching
from jaxinterp._errors import InputError, SiteTypeError
from jaxinterp._typing import Array, ArrayLike, Params
from jaxinterp.attribution._audit import Audit, make_audit
from jaxinterp.attribution._cells import axes_for, check_single, gather
from jaxinterp.attribution._products import products
from jaxinterp.attribution._saturation import has_scores, saturation, warn_if_saturated
from jaxinterp.tap import SiteShape, SiteTable, sites, zero

if TYPE_CHECKING:
    import xarray as xr

DEFAULT_OVER = ("layer", "head", "position")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Attribution:
    """Scores by site, with their audit. `attribution["attn.z"]` is the Dataset of a site; printing gives a summary.

    Attributes:
        scores: by site an `xarray.Dataset` (see `attribution_patching`).
        audits: by site an `Audit`; empty unless asked for.
        saturation: the share of saturated query rows [layer, head]; None where the model has no `attn.scores`.
    """

    scores: Mapping[str, Any]
    audits: Mapping[str, Audit]
    saturation: Any

    def __getitem__(self, site: str) -> xr.Dataset:
        return self.scores[site]

    def __str__(self) -> str:
        lines = []
        for site, data in self.scores.items():
            sizes = " x ".join(f"{size} {axis}s" for axis, size in data["score"].sizes.items())
            largest = float(np.nanmax(np.abs(data["score"].values)))
            lines.append(f"{site}: {sizes}, largest |score| {largest:.3g} {data.attrs['unit']}")
        lines += [f"audit of {audit}" for audit in self.audits.values()]
        if self.saturation is not None:
            lines.append(
                f"saturated rows of attention: {100 * float(np.nanmax(self.saturation.values)):.0f} % in the sharpest head"
            )
        return "\n".join(lines)


def attribution_patching(
    model: Any,
    params: Params,
    *,
    base: Any,
    source: Any = None,
    metric: Any,
    sites: str | Sequence[str] = ("resid_pre", "attn.z", "mlp.out"),
    over: Any = None,
    mask: ArrayLike | None = None,
    roles: Mapping[str, Any] | None = None,
    audit: int = 0,
    seed: int = 0,
    keep: Sequence[str] = (),
    tokenizer: Any = None,
    provenance: Mapping[str, Any] | None = None,
    memory: int | None = None,
    progress: bool = True,
) -> Attribution:
    """Estimates the effects of a sweep at every place of several sites from one backward pass.

    To first order, patching the value a of a cell from the source run changes the metric m by (a_source - a_base) . dm/da, the
    gradient being that of the base run. One forward and one backward pass give the gradients at all sites, layers and positions.
    A score is an estimate of the effect that `patching.sweep` finds by running the cell, in the same unit and over the same
    axes, so that the two compare cell by cell. How good an estimate is differs by model and site: `audit=64` finds out.

    Args:
        model: a `Model`, or a function `(params, tokens, *, tap) -> logits [B, T, V]`.
        params: its parameters.
        base: prompts, int32 [B, T].
        source: the prompts that values would be patched from, aligned with `base`. None: the effect of setting a value to zero
            is estimated, -a . dm/da, as for the latents of a dictionary (`saes.Spliced`).
        metric: what to measure; one, since a backward pass is for one number.
        sites: one or several (`jaxinterp.sites` lists them), on-demand ones too; results are under our names.
        over: the axes, as in `sweep`. A site has those of them that it has; the score of an axis that is left out is the sum
            over it. None: layer, head and position.
        mask: True at real tokens [B, T], where prompts are padded; of a function as in `sweep`.
        roles: absolute positions [B] by name, for the axis role.
        audit: runs the exact effects of this many cells of each site, drawn at random by strata of |score| and layer, and of the
            ten strongest by |score|. 0: none.
        seed: of that draw.
        keep: "prompts" for scores by prompt.
        tokenizer, provenance: as in `sweep`.
        memory, progress: for the sweep of an audit.

    Returns:
        An `Attribution`. Each site has an `xarray.Dataset` of its own, since sites differ in their axes (and key/value heads are
        not heads), with the axes that `sweep` gives:
        score: the estimate of the effect, in the metric's unit, the mean over prompts that have the place;
        normalized: score / (source - base) of the means, comparable with `sweep`'s normalized effect;
        base, source: the metric of the two runs;
        score_by_prompt, base_by_prompt, source_by_prompt [..., prompt], as asked by `keep`.
        Rename to plot: `viz.plot(result["attn.z"].rename(score="effect"))`.

    Raises:
        InputError: sites, axes, shapes or a `keep` that are not legal, or a metric that is not finite.
        UnvisitedSiteError: the model has no such site.
        SiteTypeError: a site without gradients.

    Warns:
        UserWarning: attention is saturated in many heads, where gradients vanish and scores are too small (see `saturation`).

    Example:
        >>> import jax, jaxinterp as ji
        >>> config = ji.TransformerConfig(n_layers=2, d_model=8, n_ctx=8, n_heads=2, d_head=4, d_vocab=5, d_mlp=8)
        >>> model = ji.Model(config=config)
        >>> result = ji.attribution.attribution_patching(
        ...     model, model.init(jax.random.key(0)), base=[[1, 2, 3]], source=[[1, 4, 3]], sites=("attn.z", "mlp.out"),
        ...     metric=ji.patching.logit_difference([2], [4], [2]))
        >>> result["attn.z"].score.shape, result["mlp.out"].score.dims
        ((2, 2, 3), ('layer', 'position'))

    Source: Nanda 2023, "Attribution patching: activation patching at industrial scale"; Syed et al. 2023 (arXiv 2310.10348),
    equation 1.
    """
    names = [sites] if isinstance(sites, str) else list(sites)
    _check_choice(metric, names, audit, keep)
    table = _table(model, params, patching.as_tokens(base, "base"))
    names = [_own_name(table, name) for name in names]
    shapes = {name: _differentiable(table, name) for name in names}
    axes = axes_for(shapes, DEFAULT_OVER if over is None else over, chosen=over is not None)
    op = {"op": zero} if source is None else {}
    how = dict(base=base, source=source, mask=mask, metric=metric, roles=roles, **op)
    todo = {name: patching.prepare(model, params, site=name, over=axes[name], **how) for name in names}
    for name in names if audit else ():
        check_single(todo[name].cells, audit)
    values, found = _run(model, params, todo, shapes, axes)
    ends: dict[str, Any] = dict(base=values[:1], source=None if source is None else values[1:])
    about: dict[str, Any] = dict(op="attribution patching", keep=keep, tokenizer=tokenizer, provenance=provenance)
    scores = {
        name: patching.named_result(
            todo[name], gather(found[name], todo[name])[:, None], site=name, over=axes[name], **ends, **about
        ).rename({"effect": "score", **({"effect_by_prompt": "score_by_prompt"} if "prompts" in keep else {})})
        for name in names
    }
    sharp = None
    if has_scores(table):
        sharp = saturation(model, params, todo[names[0]].base, mask=todo[names[0]].mask)
        warn_if_saturated(sharp, stacklevel=3)
    exact = functools.partial(_exact, model, params, **how, memory=memory, progress=progress)
    audits = {name: make_audit(name, scores[name], audit, seed, exact) for name in names} if audit else {}
    return Attribution(scores=scores, audits=audits, saturation=sharp)


def _check_choice(metric: Any, names: Sequence[str], audit: int, keep: Sequence[str]) -> None:
    if not isinstance(metric, patching.Metric):
        raise InputError(
            f"metric={metric!r}: give one metric, such as jaxinterp.patching.logit_difference(correct, wrong, position). "
            "A backward pass is for one number; call again for another."
        )
    faults = [f"sites={names}: name each site once, and at least one"] * (not names or len(set(names)) != len(names))
    faults += [f"audit={audit}: give the number of cells to sample, or 0"] * (audit < 0)
    faults += [f"keep={tuple(keep)}: legal is 'prompts'"] * bool(set(keep) - {"prompts"})
    if faults:
        raise InputError("; ".join(faults) + ".")


def _run(
    model: Any,
    params: Params,
    todo: Mapping[str, patching.Prepared],
    shapes: Mapping[str, SiteShape],
    axes: Mapping[str, Mapping[str, Any]],
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The metric of base and, if there is one, source [1 or 2, B], and the products of each site along its axes."""
    first, *_ = todo.values()
    # The job that reads all tokens, if some site needs them (the logits themselves).
    job = min((one.jobs[0] for one in todo.values()), key=lambda job: job.is_narrow)
    letters = tuple((name, ("L" if shape.n_layers is not None else "") + shape.axes) for name, shape in shapes.items())
    kept = tuple(
        (name, "B" + "".join(str(patching.axis_letter(axis, shapes[name])) for axis in axes[name])) for name in todo
    )
    found = products(
        model,
        params,
        job.tokens,
        None if first.source is None else first.source.tokens,
        job.mask,
        job.readings(),
        letters,
        kept,
        job.is_narrow,
    )
    values, by_site = jax.tree.map(np.asarray, found)
    for what, value in zip(("base", "source"), values, strict=False):
        patching.check_finite(value[None], first.metrics, what)
    return values, by_site


def _exact(model: Any, params: Params, site: str, cells: Sequence[Mapping[str, Any]], **how: Any) -> np.ndarray:
    """Effects of a list of cells [n]."""
    return patching.sweep(model, params, site=site, over=list(cells), **how)["effect"].values


def _table(model: Any, params: Params, tokens: Array) -> SiteTable:
    return sites(patching.forward_of(model), params, tokens)


def _own_name(table: SiteTable, name: str) -> str:
    site, layer = table.resolve(name)
    if layer is not None:
        raise InputError(
            f"site {name!r} names layer {layer}; one backward pass gives the scores of all layers. Name all of them: "
            f"{name.replace(f'.{layer}.', '.*.', 1)!r}, and choose with over={{'layer': [{layer}], ...}}."
        )
    return site


def _differentiable(table: SiteTable, name: str) -> SiteShape:
    shape = table[name]
    if "B" not in shape.axes or not jnp.issubdtype(shape.dtype, jnp.floating):
        raise SiteTypeError(
            f"site {name!r} is {shape.dtype} with axes {shape.axes!r}; attribution needs a floating-point value of each prompt "
            "(an axis B)."
        )
    return shape
