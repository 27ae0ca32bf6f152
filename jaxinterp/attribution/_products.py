"""The backward pass: at every place of every site the difference of the runs times the gradient; and what is refused."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp import patching
from jaxinterp._errors import InputError
from jaxinterp._typing import Array, Params
from jaxinterp.models import Model, check_tokens, token_positions
from jaxinterp.tap import capture, perturb, run, take_rows


@functools.partial(jax.jit, static_argnames=("model", "letters", "kept"))
def products(
    model: Any,
    params: Params,
    base: Array,
    source: Array,
    mask: Array | None,
    metric: patching.Metric,
    letters: tuple[tuple[str, str], ...],
    kept: tuple[tuple[str, str], ...],
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The metric of both runs [B], and by site (a_source - a_base) dm/da, summed over the axes that are not kept."""
    extra = {} if mask is None or not isinstance(model, Model) else {"mask": mask}
    look = run(model.forward if isinstance(model, Model) else model, capture(*(name for name, _ in letters)))

    measure = functools.partial(_measure, model, params, metric, mask, tuple(name for name, _ in letters))
    both = jax.vmap(lambda tokens: (look(params, tokens, **extra)[1], measure(tokens)))
    acts, values = both(jnp.stack([base, source]))
    here, there = ({name: x[i] for name, x in acts.items()} for i in (0, 1))
    # Prompts do not see one another, so the gradient of the sum holds each prompt's own. At padding, which nobody reads, it is 0.
    value, pull = jax.vjp(lambda deltas: measure(base, perturb(deltas)), jax.tree.map(jnp.zeros_like, here))
    (gradient,) = pull(jnp.ones_like(value))
    out = {}
    for (name, axes), (_, keeps) in zip(letters, kept, strict=True):
        product = (there[name].astype(jnp.float32) - here[name].astype(jnp.float32)) * gradient[name].astype(
            jnp.float32
        )
        out[name] = jnp.einsum(f"{axes}->{keeps}", product, precision="highest")
    return {"base": value, "source": values[1]}, out


def _measure(
    model: Any,
    params: Params,
    metric: patching.Metric,
    mask: Array | None,
    names: tuple[str, ...],
    tokens: Array,
    *handlers: Any,
) -> Array:
    """The metric [B] of a run, from the logits that it reads."""
    places = token_positions(tokens, mask, None)
    rows = jnp.argmax(places[:, :, None] == jnp.asarray(metric.positions)[:, None, :], axis=1)
    answers = None if metric.tokens is None else jnp.maximum(jnp.asarray(metric.tokens), 0)
    if not isinstance(model, Model):
        logits = run(model, *handlers)(params, tokens)[0]
    elif any(name == "logits" or name.startswith("final.") for name in names):  # perturbed at all rows
        logits = run(model.forward, *handlers)(params, tokens, mask=mask)[0]
    else:
        return metric(run(model.forward, *handlers)(params, tokens, mask=mask, read=rows, answers=answers)[0])
    logits = take_rows(logits, rows)
    return metric(logits if answers is None else jnp.take_along_axis(logits, answers[:, None, :], axis=2))


def checked(
    model: Any, base: Any, source: Any, mask: Any, metric: Any, names: list[str], audit: int, keep: Sequence[str]
) -> tuple[Array, Array, Array | None]:
    """Arguments as arrays. The sweep's checks of what a metric reads hold here too."""
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
    rows = {"base": np.asarray(base), "source": np.asarray(source)}
    for what, array in rows.items():
        if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
            raise InputError(f"{what} is {array.dtype}{list(array.shape)}; give token ids [batch, position].")
    if rows["base"].shape != rows["source"].shape or len(rows["base"]) != len(metric.positions):
        raise InputError(
            f"base has shape {list(rows['base'].shape)}, source {list(rows['source'].shape)}, and the metric is for "
            f"{len(metric.positions)} prompts; all three must be for the same prompts in the same number of tokens."
        )
    mask = None if mask is None else jnp.asarray(mask, bool)
    if isinstance(model, Model):
        for array in rows.values():
            check_tokens(model.config, array, mask)
    elif mask is not None:
        raise InputError(
            "a mask was given, but the model is a plain function, which takes none. Group prompts by length."
        )
    last = np.asarray(token_positions(jnp.asarray(rows["base"]), mask, None)).max(1)
    wrong = ((np.asarray(metric.positions) < 0) | (np.asarray(metric.positions) > last[:, None])).any(1)
    if wrong.any():
        raise InputError(f"the metric reads positions outside prompts {np.flatnonzero(wrong)[:10].tolist()}.")
    return jnp.asarray(rows["base"]), jnp.asarray(rows["source"]), mask


def check_finite(values: Mapping[str, np.ndarray], metric: patching.Metric) -> None:
    for what, x in values.items():
        if not np.isfinite(x).all():
            raise InputError(
                f"{metric.name} of the {what} run is not finite for prompts {np.flatnonzero(~np.isfinite(x))[:10].tolist()}. Are "
                "there NaN in the weights, or answers of probability 0?"
            )
