"""The tap: what a model calls once for each named value."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType

from jaxinterp._errors import InputError, SiteIndexError, SiteTypeError, TapScopeError, UnvisitedSiteError
from jaxinterp._typing import Array, PyTree
from jaxinterp.tap._loops import layer_rows, rolled, unrolled
from jaxinterp.tap._records import Place, Records
from jaxinterp.tap._renamed import Renamed
from jaxinterp.tap._scope import Scope
from jaxinterp.tap._site import Handler, Site, SiteShape, axes_of, matches
from jaxinterp.tap._where import take_rows

Value = TypeVar("Value")


class Tap:
    """Called by a model once for each named value; its behavior is a chain of handlers.

    Models take one as the keyword argument `tap`, with `IDENTITY` as its default. Users make none: `run` does.
    """

    def __init__(
        self,
        handlers: tuple[Handler, ...] = (),
        scope: Scope | None = None,
        *,
        site: Site = Site(name="", axes=""),
        slices: Sequence[PyTree] = (),
        prefix: str = "",
        start: int = 0,
        covers: range | None = None,
        front: tuple[Handler, ...] = (),
    ):
        self._handlers, self._scope = handlers, scope
        self._covers = covers  # the layers of the loop that it is in
        self._front = front  # handlers of functions that run under handlers of their own: they come before all others
        self._site, self._slices, self._prefix, self._start = site, tuple(slices), prefix, start

    def _replace(self, **changes: Any) -> Tap:
        now = dict(
            handlers=self._handlers, scope=self._scope, site=self._site, slices=self._slices,
            prefix=self._prefix, start=self._start, covers=self._covers, front=self._front,
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
        value = jnp.asarray(value)  # type: ignore[assignment]
        site = self._site._replace(name=name, axes=axes_of(name, jnp.ndim(value), axes))  # type: ignore[arg-type]
        on_demand = name in scope.log.on_demand
        for i, handler in enumerate(self._front):
            if matches(handler.sites, name, on_demand):
                behind = self._replace(front=self._front[i + 1 :])
                before = jax.typeof(value)
                held = scope.held.get(id(handler), ())
                value, scope.held[id(handler)], _ = handler.visit(site, value, held, handler.data, None, behind)
                _check_kept(site, before, jax.typeof(value))
        scope.log.visited[name] = SiteShape(
            name, site.axes, jnp.shape(value), jnp.result_type(value), site.n_layers, on_demand,  # type: ignore[arg-type]
            jax.eval_shape(lambda v: v, value) if scope.log.types else None,
        )  # fmt: skip
        scope.visit(self._prefix + name, site)
        layers = (site.layer,) if isinstance(site.layer, int) else self._covers or range(site.n_layers or 0)
        for i in range(self._start, len(self._handlers)):
            handler = self._handlers[i]
            if matches(handler.sites, name, on_demand):
                scope.log.reached.setdefault((i, name), set()).update(layers)
                if site.n_steps is not None:
                    scope.log.stepped.add(i)
                value = self._visit(i, handler, site, value, scope)
        return value

    def _visit(self, i: int, handler: Handler, site: Site, value: Any, scope: Scope) -> Any:
        right = self._replace(start=i + 1)
        before = jax.typeof(value)
        value, scope.states[i], emitted = handler.visit(
            site, value, scope.states[i], handler.data, self._slices[i], right
        )
        _check_kept(site, before, jax.typeof(value))
        if emitted is not None:
            alias = handler.visit if isinstance(handler.visit, Renamed) else None
            key = self._prefix + handler.prefix + (site.name if alias is None else alias.name)
            alone = alias is not None and alias.layer is not None
            scope.records.add(key, emitted, site.layer, handler.layers, alone)
        return value

    def _enter(self, name: str) -> Scope:
        assert self._scope is not None
        if not self._scope.is_open:
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
        return self._scope.log.everything or any(
            name in h.sites for h in (*self._front, *self._handlers[self._start :])
        )

    def at(self, *, prefix: str = "", **place: Any) -> Tap:
        """The same tap at another place.

        Args:
            prefix: put before the names of what is emitted (`prompt/` in generation).
            **place: fields of `Site`: `layer` with `n_layers` (in a Python loop over layers), `step`, `positions`, `extent`,
                `rows`.
        """
        if self._scope is None:
            return self
        if (place.get("layer") is None) != (place.get("n_layers") is None):
            raise InputError("tap.at takes layer and n_layers together, so that a layer out of range can be told.")
        changes: dict[str, Any] = dict(site=self._site._replace(**place), prefix=self._prefix + prefix)
        if (layer := place.get("layer")) is not None:
            n = place["n_layers"]
            if isinstance(layer, int) and not 0 <= layer < n:
                raise SiteIndexError(f"tap.at(layer={layer}, n_layers={n}): legal are 0 to {n - 1}.")
            rows = [layer_rows(h, 0, n, n) for h in self._handlers]
            changes["slices"] = jax.tree.map(lambda leaf: jnp.asarray(leaf)[layer], rows)
        return self._replace(**changes)

    def narrow(self, read: Array | None) -> Tap:
        """The same tap for values of which only some rows are left.

        Args:
            read: the rows that are left, [B or 1, P], counted among those that were present; None: all.
        """
        if self._scope is None or read is None:
            return self
        at = self._site
        rows = read if at.rows is None else take_rows(at.rows, read)
        positions = read if at.positions is None else take_rows(at.positions, read)
        return self._replace(site=at._replace(rows=rows, positions=positions))

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
        depth = first + n if total is None else total
        apart = {layer for h in (*self._front, *self._handlers) for layer in h.apart if first <= layer < first + n}
        if layered and apart and not unroll:
            return self._scan_apart(body, carry, xs, sorted(apart), range(first, first + n), depth)
        slices = [layer_rows(h, first, n, depth) if layered else None for h in self._handlers]
        layers = range(first, first + n)

        def step(index: Any, carry: Any, states: Any, x: Any, slices: Any) -> tuple[Any, Any, Any, Records]:
            inner = Scope(states, scope.log)
            place = dict(layer=index, n_layers=depth) if layered else dict(step=index, n_steps=n)
            here = dict(slices=slices, covers=layers) if layered else {}
            t = self._replace(scope=inner, site=self._site._replace(**place), prefix="", **here)
            carry, y = body(carry, x, tap=t)
            return carry, inner.states, y, inner.records

        if unroll and layered:
            carry, states, ys, records = unrolled(step, carry, scope.states, xs, slices, layers)
        else:
            partial = any(h.layers is not None for h in self._handlers)
            carry, states, ys, records = rolled(
                step, carry, scope.states, xs, slices, layers if layered else None, n, partial, n if unroll else 1
            )
        scope.states = list(states)
        scope.records.merge(records, prefix=self._prefix)
        return carry, ys

    def _scan_apart(
        self, body: Callable[..., Any], carry: PyTree, xs: PyTree, apart: Sequence[int], layers: range, total: int
    ) -> tuple[PyTree, PyTree]:
        """A loop over layers in pieces: some layers are straight code, what is between them a loop each."""

        def indexed(carry: Any, row: Any, *, tap: Tap) -> tuple[Any, Any]:  # a piece copies no weights
            x = jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, row, keepdims=False), xs)
            return body(carry, x, tap=tap)

        ends = sorted({layers.start, layers.stop, *apart, *(layer + 1 for layer in apart)})
        pieces = []
        for first, stop in itertools.pairwise(ends):
            rows = jnp.arange(first - layers.start, stop - layers.start, dtype=jnp.int32)
            carry, ys = self.scan(indexed, carry, rows, first=first, total=total, unroll=first in apart)
            pieces.append(ys)
        return carry, jax.tree.map(lambda *ys: jnp.concatenate(ys), *pieces)

    def under(self, fn: Callable[..., Any], *handlers: Handler) -> Callable[..., Any]:
        """`fn` with handlers that belong to it: they see every value first, and what users ask for comes behind them.

        For functions that take a tap and run another one in a changed form: `tap.under(model.forward, handler)(params, tokens)`.
        Sites that the handlers open are sites of the new function.

        Args:
            fn: a function with the keyword argument `tap`.
            *handlers: edits and the like: without a state (but from site to site of one block), without leaves by layer, and they
                emit nothing.

        Raises:
            UnvisitedSiteError: (when called) `fn` never visits the site or layer of a handler.
        """
        if any(h.init is not None or jax.tree.leaves(h.per_layer) for h in handlers):
            raise InputError("tap.under takes handlers without a state and without leaves by layer.")

        def changed(*args: Any, **kwargs: Any) -> Any:
            if self._scope is None:
                from jaxinterp.tap._run import run

                return run(fn, *handlers)(*args, **kwargs)[0]
            out = fn(*args, **kwargs, tap=self._replace(front=(*handlers, *self._front)))
            for handler in handlers:
                seen = [s for s in self._scope.log.visited.values() if matches(handler.sites, s.name, s.on_demand)]
                deep = max((s.n_layers or 0 for s in seen), default=0)
                if not seen or any(layer >= deep for layer in handler.apart):
                    raise UnvisitedSiteError(
                        f"the function has no site {', '.join(map(repr, handler.sites))}"
                        f"{f' in layers {list(handler.apart)}' if handler.apart else ''}; it visits "
                        f"{', '.join(self._scope.log.visited)}."
                    )
            return out

        return changed

    def lift(self, transform: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[..., Any]:
        """Enters a transformation: `tap.lift(jax.checkpoint)(fn)(*args)`, where `fn` takes the keyword `tap`.

        `transform` turns a function of positional arguments into another one of the same (`jax.checkpoint`, `jax.jit`,
        `functools.partial(jax.vmap, in_axes=...)`, `jax.named_call`). Under vmap, what is emitted has the mapped axis in front,
        behind L.
        """

        def lifted(fn: Callable[..., Any]) -> Callable[..., Any]:
            if self._scope is None:
                return lambda *args: transform(lambda *a: fn(*a, tap=self))(*args)
            scope = self._enter("tap.lift")

            def call(*args: Any) -> Any:
                places: dict[str, Place] = {}
                ranks: dict[str, PyTree] = {}

                def pure(*a: Any) -> Any:
                    inner = Scope(scope.states, scope.log)
                    out = fn(*a, tap=self._replace(scope=inner, prefix=""))
                    values, found = inner.records.collapse()
                    places.update(found)
                    ranks.update(jax.tree.map(jnp.ndim, values))
                    return out, inner.states, values

                out, states, values = transform(pure)(*args)
                if _shapes(states) != _shapes(scope.states):
                    raise TapScopeError(
                        "a handler with state (statistics) was lifted through a transformation that adds an axis (vmap). "
                        "Use it outside of that transformation, or capture with of=... instead."
                    )
                scope.states = list(states)
                for name, place in places.items():
                    if place.layers is not None:
                        values[name] = jax.tree.map(_layers_first, values[name], ranks[name])
                scope.records.restore(values, places, prefix=self._prefix)
                return out

            return call

        return lifted


def _check_kept(site: Site, before: Any, after: Any) -> None:
    if (before.shape, before.dtype, _explicit(before)) != (after.shape, after.dtype, _explicit(after)):
        raise SiteTypeError(
            f"a handler turned site {site.name!r} from {before.str_short()} into {after.str_short()}. A handler "
            "returns the shape, dtype and sharding that it was given: broadcast or cast inside it, "
            "for example with .astype(value.dtype)."
        )


def _explicit(kind: Any) -> Any:
    """How a type is cut over explicit mesh axes; where JAX chooses, a type says nothing (and may lack the mesh)."""
    mesh = kind.sharding.mesh
    return kind.sharding if AxisType.Explicit in getattr(mesh, "axis_types", ()) else None


def _shapes(states: PyTree) -> list[tuple[int, ...]]:
    return [jnp.shape(leaf) for leaf in jax.tree.leaves(states)]


def _layers_first(value: Any, rank: int) -> Any:
    """Puts the axis of layers in front of what vmap added to a value of `rank` axes."""
    return jnp.moveaxis(value, value.ndim - rank, 0)


IDENTITY = Tap()
"""The tap without handlers: every site is `jax.ad_checkpoint.checkpoint_name`, and nothing else is computed."""
