"""The tap: what a model calls once for each named value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import get_opaque_trace_state

from jaxinterp._errors import DuplicateSiteError, InputError, SiteTypeError, TapScopeError
from jaxinterp._typing import Array, PyTree
from jaxinterp.tap._records import Place, Records, buffer, from_loop, slot
from jaxinterp.tap._site import Handler, Site, SiteShape, axes_of, matches

Value = TypeVar("Value")


class Log:
    """What one trace of a function saw: shared by all taps of a `run`."""

    def __init__(self, *, everything: bool = False):
        self.visited: dict[str, SiteShape] = {}
        self.on_demand: set[str] = set()
        self.everything = everything


class _Scope:
    """What belongs to one JAX trace: the states, and the values emitted so far."""

    def __init__(self, states: Sequence[PyTree], log: Log):
        self.states = list(states)
        self.records = Records()
        self.log = log
        self.trace = get_opaque_trace_state()


class Tap:
    """Called by a model once for each named value; its behavior is a chain of handlers.

    Models take one as the keyword argument `tap`, with `IDENTITY` as its default. Users make none: `run` does.
    """

    def __init__(
        self,
        handlers: tuple[Handler, ...] = (),
        scope: _Scope | None = None,
        *,
        site: Site = Site(name="", axes=""),
        slices: Sequence[PyTree] = (),
        prefix: str = "",
        start: int = 0,
    ):
        self._handlers, self._scope = handlers, scope
        self._site, self._slices, self._prefix, self._start = site, tuple(slices), prefix, start

    def _replace(self, **changes: Any) -> Tap:
        now = dict(
            handlers=self._handlers, scope=self._scope, site=self._site, slices=self._slices,
            prefix=self._prefix, start=self._start,
        )  # fmt: skip
        return Tap(**{**now, **changes})

    def __call__(self, name: str, value: Value, axes: str | None = None) -> Value:
        """Names a value; returns it as the handlers left it.

        Args:
            name: the site's name, static, without a layer number.
            value: the array.
            axes: one letter for each axis (see `Site`); by default by rank: BD, BTD, BTHE.

        Raises:
            TapScopeError: inside a transformation that this tap did not enter.
            SiteTypeError: a handler changed the value's shape or dtype.
        """
        value = checkpoint_name(value, name)
        if self._scope is None:
            return value
        scope = self._enter(name)
        site = self._site._replace(name=name, axes=axes_of(name, jnp.ndim(value), axes))  # type: ignore[arg-type]
        on_demand = name in scope.log.on_demand
        scope.log.visited[name] = SiteShape(
            name, site.axes, jnp.shape(value), jnp.result_type(value), site.n_layers, on_demand  # type: ignore[arg-type]
        )
        for i in range(self._start, len(self._handlers)):
            handler = self._handlers[i]
            if matches(handler, name, on_demand):
                value = self._visit(i, handler, site, value, scope)
        return value

    def _visit(self, i: int, handler: Handler, site: Site, value: Any, scope: _Scope) -> Any:
        right = self._replace(start=i + 1)
        before = jax.typeof(value)
        value, scope.states[i], emitted = handler.visit(
            site, value, scope.states[i], handler.data, self._slices[i], right
        )
        after = jax.typeof(value)
        if (before.shape, before.dtype) != (after.shape, after.dtype) or before.sharding != after.sharding:
            raise SiteTypeError(
                f"a handler turned site {site.name!r} from {before.str_short()} into {after.str_short()}. A handler "
                "returns the shape, dtype and sharding that it was given: broadcast or cast inside it, "
                "for example with .astype(value.dtype)."
            )
        if emitted is not None:
            scope.records.add(handler.prefix + self._prefix + site.name, emitted, site.layer, handler.layers)
        return value

    def _enter(self, name: str) -> _Scope:
        assert self._scope is not None
        if get_opaque_trace_state() != self._scope.trace:
            raise TapScopeError(
                f"site {name!r} was tapped inside a JAX transformation that its tap did not enter (a raw lax.scan, an inner "
                "jit, vmap or checkpoint). Use tap.scan(body, carry, xs) for loops and tap.lift(jax.checkpoint)(fn)(*args) "
                "for other transformations, and inside them the tap that the function is given."
            )
        return self._scope

    def wants(self, name: str) -> bool:
        """Whether a handler names the on-demand site `name`: compute the value and tap it only then. Static."""
        if self._scope is None:
            return False
        self._scope.log.on_demand.add(name)
        return self._scope.log.everything or any(name in h.sites for h in self._handlers[self._start :])

    def at(self, *, prefix: str = "", **place: Any) -> Tap:
        """The same tap at another place.

        Args:
            prefix: put before the names of what is emitted (`prompt/` in generation).
            **place: fields of `Site`: `layer` with `n_layers` (in a Python loop over layers), `step`, `positions`, `extent`.
        """
        if self._scope is None:
            return self
        if (place.get("layer") is None) != (place.get("n_layers") is None):
            raise InputError("tap.at takes layer and n_layers together, so that a layer out of range can be told.")
        changes: dict[str, Any] = dict(site=self._site._replace(**place), prefix=self._prefix + prefix)
        if (layer := place.get("layer")) is not None:
            rows = [_rows(h, layer, 1, place["n_layers"]) for h in self._handlers]
            changes["slices"] = jax.tree.map(lambda leaf: leaf[0], rows)
        return self._replace(**changes)

    def scan(
        self,
        body: Callable[..., tuple[Any, Any]],
        carry: PyTree,
        xs: PyTree,
        *,
        axis: str = "layer",
        length: int | None = None,
        first: int = 0,
        total: int | None = None,
        unroll: bool = False,
    ) -> tuple[PyTree, PyTree]:
        """`jax.lax.scan` over layers or decoding steps, with sites inside.

        Args:
            body: `(carry, x, *, tap) -> (carry, y)`.
            carry: the carry's first value.
            xs: scanned along its leading axis.
            axis: `"layer"` or `"step"`: which field of `Site` counts.
            length: the number of iterations, where `xs` is empty.
            first: the index of the first iteration (layers in several segments).
            total: how many layers there are in all; by default first + length.
            unroll: whether the loop becomes straight code, with static indices.

        Returns:
            The last carry and the stacked `y`s. What handlers emit inside gets a leading axis, L or steps.
        """
        if axis not in ("layer", "step"):
            raise InputError(f"tap.scan counts axis={axis!r}; legal: 'layer', 'step'.")
        n = length if length is not None else jax.tree.leaves(xs)[0].shape[0]
        if self._scope is None:
            return lax.scan(lambda c, x: body(c, x, tap=self), carry, xs, length=n, unroll=n if unroll else 1)
        scope = self._enter(f"tap.scan over {axis}")
        layered = axis == "layer"
        total = first + n if total is None else total
        slices = [_rows(h, first, n, total) if layered else None for h in self._handlers]

        def step(index: Any, carry: Any, states: Any, x: Any, slices: Any) -> tuple[Any, Any, Any, Records]:
            inner = _Scope(states, scope.log)
            place = dict(layer=index, n_layers=total) if layered else dict(step=index)
            t = self._replace(
                scope=inner, site=self._site._replace(**place), slices=slices if layered else self._slices, prefix=""
            )
            carry, y = body(carry, x, tap=t)
            return carry, inner.states, y, inner.records

        layers = range(first, first + n)
        if unroll and layered:
            carry, states, ys, records = _unrolled(step, carry, scope.states, xs, slices, layers)
        else:
            partial = any(h.layers is not None for h in self._handlers)
            carry, states, ys, records = _rolled(
                step, carry, scope.states, xs, slices, layers if layered else None, n, partial, n if unroll else 1
            )
        scope.states = list(states)
        scope.records.merge(records, prefix=self._prefix)
        return carry, ys

    def lift(self, transform: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[..., Any]:
        """Enters a transformation: `tap.lift(jax.checkpoint)(fn)(*args)`, where `fn` takes the keyword `tap`.

        `transform` turns a function of positional arguments into another one of the same (`jax.checkpoint`, `jax.jit`,
        `functools.partial(jax.vmap, in_axes=...)`, `jax.named_call`). Under vmap, what is emitted has the mapped axis in front.
        """

        def lifted(fn: Callable[..., Any]) -> Callable[..., Any]:
            if self._scope is None:
                return lambda *args: transform(lambda *a: fn(*a, tap=self))(*args)
            scope = self._enter("tap.lift")

            def call(*args: Any) -> Any:
                places: dict[str, Any] = {}

                def pure(*a: Any) -> Any:
                    inner = _Scope(scope.states, scope.log)
                    out = fn(*a, tap=self._replace(scope=inner, prefix=""))
                    values, found = inner.records.collapse()
                    places.update(found)
                    return out, inner.states, values

                out, states, values = transform(pure)(*args)
                if jax.tree.map(jnp.shape, states) != jax.tree.map(jnp.shape, scope.states):
                    raise TapScopeError(
                        "a handler with state (statistics) was lifted through a transformation that adds an axis (vmap). "
                        "Use it outside of that transformation, or capture with of=... instead."
                    )
                scope.states = list(states)
                scope.records.restore(values, places, prefix=self._prefix)
                return out

            return call

        return lifted


IDENTITY = Tap()
"""The tap without handlers: every site is `jax.ad_checkpoint.checkpoint_name`, and nothing else is computed."""


def _rows(handler: Handler, first: int, n: int, total: int) -> PyTree:
    """The layers first .. first+n-1 of a handler's per_layer leaves; None for a leaf that has no axis of layers."""
    return jax.tree.map(
        lambda leaf: leaf[first : first + n] if jnp.ndim(leaf) and leaf.shape[0] == total else None, handler.per_layer
    )


def _unrolled(step: Any, carry: Any, states: Any, xs: Any, slices: Any, layers: Sequence[int]) -> Any:
    """Straight code, one copy for each layer, whose index is static."""
    ys, all_records = [], Records()
    for i, layer in enumerate(layers):
        x, s = jax.tree.map(lambda leaf: leaf[i], (xs, slices))  # noqa: B023
        carry, states, y, records = step(layer, carry, states, x, s)
        ys.append(y)
        all_records.merge(records)
    return carry, states, jax.tree.map(lambda *leaves: jnp.stack(leaves), *ys), all_records


def _rolled(
    step: Any, carry: Any, states: Any, xs: Any, slices: Any, layers: Sequence[int] | None, length: int, partial: bool, unroll: int
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
            buffers[k] = jax.tree.map(lambda b, a: b.at[row].set(a, mode="drop"), buffers[k], v)  # noqa: B023
        return (carry, states, buffers), (y, values, {})

    indices = jnp.arange(length, dtype=jnp.int32) + (layers[0] if layers else 0)
    inputs, buffers = (indices, xs, slices), None
    if partial and layers is not None:
        first = jax.tree.map(lambda leaf: leaf[0], inputs)
        _, (_, _, part) = jax.eval_shape(body, (carry, states, None), first)
        buffers = {
            k: jax.tree.map(lambda a: buffer(a, places[k].keep or (), layers), v)  # noqa: B023
            for k, v in part.items()
        }
    (carry, states, buffers), (ys, whole, _) = lax.scan(body, (carry, states, buffers), inputs, unroll=unroll)
    return carry, states, ys, from_loop(whole, buffers or {}, places, layers)
