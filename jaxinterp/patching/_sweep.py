"""The sweep: a named result from named axes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxinterp._errors import InputError
from jaxinterp._typing import ArrayLike, Params
from jaxinterp.patching._about import bar, op_name
from jaxinterp.patching._check import check_keep
from jaxinterp.patching._ops import Forward, make_handler
from jaxinterp.patching._plan import Plan
from jaxinterp.patching._prepare import Prepared, make_plan, prepare
from jaxinterp.patching._records import describe, stored_suffixes
from jaxinterp.patching._result import named_result
from jaxinterp.patching._run import measure_ends, run
from jaxinterp.tap import Handler, patch

if TYPE_CHECKING:
    import xarray as xr


def plan(
    model: Forward,
    params: Params,
    *,
    base: Any,
    source: Any = None,
    site: str | None = None,
    over: Any,
    metric: Any,
    op: Callable[..., Handler] = patch,
    mask: ArrayLike | None = None,
    source_mask: ArrayLike | None = None,
    positions: ArrayLike | None = None,
    roles: Mapping[str, Any] | None = None,
    null: str | None = None,
    draws: int = 10,
    seed: int = 0,
    memory: int | None = None,
    mesh: Any = None,
) -> Plan:
    """What a sweep will do: cells, operations, memory, chunks, compiles. Computes nothing; `params` may be shapes.

    Args: see `sweep`.

    Returns:
        A `Plan`, which prints as a table. `sweep(..., plan=plan)` keeps to its numbers of rows and its chunks, so that other
        prompts of the same shape compile nothing, wherever they begin to differ (if not before the plan's first row).

    Raises:
        InputError: as `sweep`, and a memory budget that holds no cell; the message has the smallest that does.

    Example:
        >>> import jax, jax.numpy as jnp, jaxinterp as ji
        >>> config = ji.TransformerConfig(n_layers=2, d_model=8, n_ctx=8, n_heads=2, d_head=4, d_vocab=11, d_mlp=16)
        >>> model = ji.Model(config=config)
        >>> base, source = jnp.array([[1, 2, 3, 4]]), jnp.array([[1, 2, 5, 4]])
        >>> metric = ji.patching.logit_difference([5], [6], [3])
        >>> todo = ji.patching.plan(
        ...     model, model.param_shapes(), base=base, source=source, site="attn.z", over="layer,head,position", metric=metric,
        ... )
        >>> todo.n_cells, todo.n_run  # positions 0 and 1 are the same in both; in the last layer only position 3 is read
        (16, 6)
    """
    return make_plan(
        prepare(
            model, params, base=base, source=source, site=site, over=over, metric=metric, op=op, mask=mask,
            source_mask=source_mask, positions=positions, roles=roles, null=null, draws=draws, seed=seed, mesh=mesh,
        ),
        memory,
    )  # fmt: skip


def sweep(
    model: Forward,
    params: Params,
    *,
    base: Any,
    source: Any = None,
    site: str | Sequence[str] | None = None,
    over: Any,
    metric: Any,
    op: Callable[..., Handler] = patch,
    mask: ArrayLike | None = None,
    source_mask: ArrayLike | None = None,
    positions: ArrayLike | None = None,
    roles: Mapping[str, Any] | None = None,
    keep: Sequence[str] = (),
    null: str | None = None,
    draws: int = 10,
    seed: int = 0,
    tokenizer: Any = None,
    provenance: Mapping[str, Any] | None = None,
    memory: int | None = None,
    plan: Plan | None = None,
    mesh: Any = None,
    store: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Edits one place at a time and measures what it does: activation patching and ablation.

    Every cell is a run on `base` with the edit `op` at one layer, head, position, ... With `op=patch` (the default) the edit puts
    in what `source` has at that place: denoising is base = corrupt, source = clean; noising the other way. The results are those
    of a loop over whole forward passes. What runs is less: of a `Model`, each cell starts at its first edited layer from the base
    run's residual stream, recomputes only the rows that can differ, up to the last one that is read, and unembeds only the rows
    and tokens that the metric reads; a cell that provably changes nothing does not run, and its effect is exactly 0.

    Args:
        model: a `Model`, or a function `(params, tokens, *, tap) -> logits [B, T, V]` (then whole forward passes run).
        params: its parameters.
        base: prompts, int32 [B, T].
        source: the prompts to patch from, aligned with `base`; only needed by `op=patch`, and for the normalized effect.
        site: which value to edit (`jaxinterp.sites` lists them); several give the result an axis site.
        over: the axes, "layer,head", or a mapping from axis to the values wanted (None: all). Legal axes: layer, head, position,
            role, feature. An axis that is left out is edited as a whole; a value that is a tuple is a block, edited as one. Or a
            list of cells: mappings such as {"layer": 3, "head": 1} (and "site"), or lists of mappings for several edits at once.
        metric: what to measure, or several by name.
        op: makes the edit from a site: `patch`, `zero`, `mean`, `functools.partial(mean, over="B", groups=templates)`,
            `functools.partial(add, value=v)`, ... For resampling, `patch` from a `source` of shuffled prompts.
        mask: True at real tokens [B, T], where prompts are padded. A function then takes it as an optional argument `mask`, and
            gives its taps `positions` (`saes.Spliced` does).
        source_mask, positions: for a source of other lengths: its mask, and for each position of the base prompts the source's
            position [B, T], -1 where there is none.
        roles: absolute positions [B] by name, for the axis role.
        keep: "prompts" for effects by prompt, "interval" for a 95 % bootstrap interval over prompts (low, high), "logits" for the
            logits that the metrics read (other metrics then need no rerun).
        null: "prompts" or "directions" adds `null`, effects of edits that carry nothing: values of another base prompt, or the
            same change turned into a random direction. Each draw costs as much as the sweep.
        draws, seed: of the null distribution.
        tokenizer: with `str_tokens(ids)` and `bos_id`; adds the text of the longest base prompt's tokens as a coordinate of
            position, and records whether the prompts begin with BOS.
        provenance: recorded in the result's attributes: `lm.source`, say.
        memory: bytes on one device for the base run, what is patched in and the cells side by side; None: a quarter of what is
            free (half on an accelerator).
        plan: from `plan`, whose chunks are kept to.
        mesh: devices to share the work among, `jaxinterp.mesh.make_mesh(cells=4, prompts=2)`; parameters are on each of them.
        store: a folder to which results go as they are finished. The same call goes on after an interrupt, and gives the same
            bits as one that was not interrupted.
        progress: whether to show a bar.

    Returns:
        An `xarray.Dataset` with the axes of `over`, or the axis cell (and site, metric, prompt, answer, draw):
        effect: patched - base, in the metric's unit, the mean over prompts that have the place;
        normalized: (patched - base) / (source - base) of the means: 1 restores the source's value, 0 does nothing;
        base, source: the metric of the two runs;
        low, high, null, effect_by_prompt [..., prompt], logits [..., prompt, answer] as asked for.

    Raises:
        InputError: shapes, axes or a `keep` that are not legal; metrics that are not finite; a budget that holds no cell.
        SiteIndexError: values of an axis out of range.
        UnvisitedSiteError: the model has no such site.
        StoreMismatchError: the store holds results of other arguments; the message lists them.

    Source: Vig et al. 2020 (arXiv 2004.12265); Heimersheim and Nanda 2024 (arXiv 2404.15255) for the two directions.
    """
    if not isinstance(site, (str, type(None))):
        given = {key: value for key, value in locals().items() if key not in ("model", "params", "site", "store")}
        return _several_sites(model, params, site, store, given)
    check_keep(keep)
    todo = prepare(
        model, params, base=base, source=source, site=site, over=over, metric=metric, op=op, mask=mask,
        source_mask=source_mask, positions=positions, roles=roles, null=null, draws=draws, seed=seed, mesh=mesh,
    )  # fmt: skip
    if plan is not None and memory is not None:
        raise InputError(
            "plan and memory are both given, but a plan was made for its own budget. Give memory to plan() instead."
        )
    held = plan.suffixes if plan is not None else stored_suffixes(store)
    steps = make_plan(todo, memory, held)
    ends = measure_ends(todo)
    about = {"site": site, "op": op_name(op), "edit": _edit_facts(op, todo), "null": null and [null, draws, seed]}
    with bar(steps.n_run, site or "cells", progress) as advance:
        values, logits = run(todo, steps, ends, store=store, about=about, keep_logits="logits" in keep, advance=advance)
    return named_result(
        todo, values - ends.base, base=ends.base, source=ends.source, site=site, op=op_name(op), over=over, keep=keep,
        logits=logits, tokenizer=tokenizer, provenance=provenance, seed=seed,
        more={"null": null, "draws": draws, "null_seed": seed} if null else None,
    )  # fmt: skip


def _several_sites(
    model: Forward, params: Params, sites: Sequence[str], store: Any, given: dict[str, Any]
) -> xr.Dataset:
    """One sweep a site, along an axis site."""
    import xarray as xr

    if not sites or given["plan"] is not None:
        raise InputError("site is a list: name at least one site, and give no plan (each site has its own).")
    folder = lambda name: None if store is None else os.path.join(store, name)
    parts = [sweep(model, params, site=name, store=folder(name), **given) for name in sites]
    joined = xr.concat(
        parts,
        xr.Variable("site", list(sites)),
        data_vars="all",
        coords="minimal",
        compat="override",
        combine_attrs="override",
    )
    return joined.assign_attrs(site=", ".join(sites))


def _edit_facts(op: Any, todo: Prepared) -> str | None:
    """What the edit does and brings, for the store."""
    if op is patch:
        return None
    names = dict.fromkeys(name for job in todo.jobs for name in job.cells.sites)
    return describe([make_handler(op, name) for name in names])
