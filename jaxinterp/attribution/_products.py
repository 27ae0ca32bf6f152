"""The backward pass: at every place of every site the difference of the runs times the gradient."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxinterp import patching
from jaxinterp._typing import Array, Params
from jaxinterp.models import Model
from jaxinterp.tap import capture, perturb, run, take_rows


@functools.partial(jax.jit, static_argnames=("model", "letters", "kept", "narrow"))
def products(
    model: Any,
    params: Params,
    base: Array,
    source: Array | None,
    mask: Array | None,
    readings: dict[str, Any],
    letters: tuple[tuple[str, str], ...],
    kept: tuple[tuple[str, str], ...],
    narrow: bool,
) -> tuple[Array, dict[str, Array]]:
    """The metric of both runs [2, B], and by site (a_source - a_base) dm/da [B, ...], summed over the axes that are not kept.

    Without a source a_source is 0, and the metric that of one run [1, B]. `readings` and `narrow` say what is read, see
    `patching.measure`.
    """
    look = run(patching.forward_of(model, mask), capture(*(name for name, _ in letters)))
    measure = functools.partial(
        _measure, model, params, mask, readings, narrow, any(_is_behind(name) for name, _ in letters)
    )
    both = jax.vmap(lambda tokens: (look(params, tokens)[1], measure(tokens)))
    acts, values = both(jnp.stack([base] if source is None else [base, source]))
    here = {name: x[0] for name, x in acts.items()}
    there = {name: jnp.zeros_like(x[0]) if source is None else x[1] for name, x in acts.items()}
    # Prompts do not see one another, so the gradient of the sum holds each prompt's own. At padding, which nobody reads, it is 0.
    value, pull = jax.vjp(lambda deltas: measure(base, perturb(deltas)), jax.tree.map(jnp.zeros_like, here))
    (gradient,) = pull(jnp.ones_like(value))
    out = {}
    for (name, axes), (_, keeps) in zip(letters, kept, strict=True):
        product = (there[name].astype(jnp.float32) - here[name].astype(jnp.float32)) * gradient[name].astype(
            jnp.float32
        )
        out[name] = jnp.einsum(f"{axes}->{keeps}", product, precision="highest")
    return jnp.concatenate([value[None], values[1:]]), out


def _is_behind(name: str) -> bool:
    """Whether a site is behind the blocks, where a model that is told what is read computes no other rows."""
    return name == "logits" or name.startswith("final.")


def _measure(
    model: Any,
    params: Params,
    mask: Array | None,
    readings: dict[str, Any],
    narrow: bool,
    whole: bool,
    tokens: Array,
    *handlers: Any,
) -> Array:
    """The metric [B] of a run; `whole`: the handlers perturb all rows behind the blocks, not just those that are read."""
    reads = readings["reads"]
    if isinstance(model, Model):
        how = dict(mask=mask, read=None if whole else reads, answers=readings["answers"])
        logits = run(model.forward, *handlers)(params, tokens, **how)[0]
    else:
        logits = run(patching.forward_of(model, mask), *handlers)(params, tokens)[0]
    if whole or not isinstance(model, Model):
        logits = take_rows(logits, reads)
    return patching.measure(logits, readings["metrics"], readings["columns"], narrow)[0][0]
