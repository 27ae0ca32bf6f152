"""Loops over layers and decoding steps: one scan, or straight code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxinterp._typing import PyTree
from jaxinterp.tap._records import Place, Records, buffer, from_loop, slot
from jaxinterp.tap._site import Handler


def layer_rows(handler: Handler, first: int, n: int, total: int) -> PyTree:
    """The layers first .. first+n-1 of a handler's per_layer leaves; None for a leaf that has no axis of layers."""
    return jax.tree.map(
        lambda leaf: leaf[first : first + n] if jnp.ndim(leaf) and leaf.shape[0] == total else None, handler.per_layer
    )


def unrolled(step: Any, carry: Any, states: Any, xs: Any, slices: Any, layers: Sequence[int]) -> Any:
    """Straight code, one copy for each layer, whose index is static."""
    ys, all_records = [], Records()
    for i, layer in enumerate(layers):
        x, s = jax.tree.map(lambda leaf: leaf[i], (xs, slices))  # noqa: B023
        carry, states, y, records = step(layer, carry, states, x, s)
        ys.append(y)
        all_records.merge(records)
    return carry, states, jax.tree.map(lambda *leaves: jnp.stack(leaves), *ys), all_records


def rolled(
    step: Any,
    carry: Any,
    states: Any,
    xs: Any,
    slices: Any,
    layers: Sequence[int] | None,
    length: int,
    partial: bool,
    unroll: int,
) -> Any:
    """One lax.scan. What is kept at some layers only is written into a buffer that rides in the carry."""
    places: dict[str, Place] = {}

    def body(c: Any, inp: Any) -> Any:
        carry, states, buffers = c
        index, x, s = inp
        carry, states, y, records = step(index, carry, states, x, s)
        values, found = records.collapse()
        places.update(found)
        part = {k: values.pop(k) for k, place in found.items() if layers is not None and place.keep is not None}
        if buffers is None:
            return (carry, states, None), (y, values, part)
        for k, v in part.items():
            row = slot(found[k].keep or (), index, layers or ())
            buffers[k] = jax.tree.map(lambda b, a: lax.dynamic_update_index_in_dim(b, a, row, 0), buffers[k], v)  # noqa: B023
        return (carry, states, buffers), (y, values, {})

    indices = jnp.arange(length, dtype=jnp.int32) + (layers[0] if layers else 0)
    inputs, buffers = (indices, xs, slices), None
    if partial and layers is not None:
        first = jax.tree.map(lambda leaf: leaf[0], inputs)
        _, (_, _, part) = jax.eval_shape(body, (carry, states, None), first)
        buffers = {
            k: jax.tree.map(lambda a: buffer(a, places[k].keep or (), layers or ()), v)  # noqa: B023
            for k, v in part.items()
        }
    (carry, states, buffers), (ys, whole, _) = lax.scan(body, (carry, states, buffers), inputs, unroll=unroll)
    return carry, states, ys, from_loop(whole, buffers or {}, places, layers)
