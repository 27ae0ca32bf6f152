"""Running a function under handlers, and listing its sites."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxinterp._errors import InputError, UnvisitedSiteError
from jaxinterp._tree import is_traced
from jaxinterp._typing import PyTree
from jaxinterp.tap._aliases import Resolved, check_layer, explain, resolve
from jaxinterp.tap._renamed import any_foreign, joined, renamed
from jaxinterp.tap._scope import Log, Scope
from jaxinterp.tap._site import Handler, SiteShape, is_glob, matches
from jaxinterp.tap._tap import Tap


def run(fn: Callable[..., Any], *handlers: Handler) -> Callable[..., tuple[Any, dict[str, PyTree], tuple[PyTree, ...]]]:
    """Runs `fn` under handlers, as a pure function.

    Handlers apply from left to right: a capture after an edit sees the edited value. The result can be passed to `jax.jit`,
    `vmap`, `grad`, `jvp`, `checkpoint` and used inside `shard_map`. To change an edit without compiling again, pass the
    handler (a pytree) or its data as an argument of the jitted function.

    TransformerLens's names are taken for sites as well: `blocks.3.attn.hook_z` is `attn.z` in layer 3, and its capture has no
    axis of layers; `blocks.*.attn.hook_z` is `attn.z`. What was captured is under the name that was written. (To look such names
    up, `fn` is traced once more.)

    Args:
        fn: a function that takes the keyword argument `tap`, such as `model.forward`.
        *handlers: made by `capture`, `edit`, `patch`, ...

    Returns:
        A function of `fn`'s other arguments that returns `(out, acts, states)`: `fn`'s own result; what was captured, by site
        name, with a leading L axis for sites in layers; and the last state of each handler.

    Raises:
        UnvisitedSiteError: (when called) a handler names a site that `fn` never visits; the message names the closest ones.

    Example:
        >>> import jax.numpy as jnp, jaxinterp as ji
        >>> def double(x, *, tap):
        ...     return 2 * tap("x", x)
        >>> ji.run(double, ji.add("x", 10.0), ji.capture("x"))(jnp.ones((1, 2)))[:2]
        (Array([[22., 22.]], dtype=float32), {'x': Array([[11., 11.]], dtype=float32)})
    """
    for handler in handlers:
        if not isinstance(handler, Handler):
            raise InputError(
                f"run got {handler!r} in place of a handler. Handlers are made by capture, edit, patch, zero, ...: "
                "run(fn, capture('resid_pre'))(params, tokens)."
            )

    _check_takes_tap(fn)

    def transformed(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, PyTree], tuple[PyTree, ...]]:
        if not any_foreign(handlers):
            return _run(fn, handlers, args, kwargs)
        ours, places = renamed(handlers, _names(fn, args, kwargs))
        out, acts, states = _run(fn, tuple(ours), args, kwargs)
        return out, acts, tuple(joined([states[i] for i in at]) for at in places)

    return transformed


def _run(fn: Callable[..., Any], handlers: tuple[Handler, ...], args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
    states: list[PyTree] = [()] * len(handlers)
    if any(h.init is not None for h in handlers):
        log = _shapes(fn, handlers, args, kwargs)
        for i, handler in enumerate(handlers):
            if handler.init is not None:
                specs = [s for s in log.visited.values() if matches(handler.sites, s.name, s.on_demand)]
                states[i] = handler.init(specs, handler.data)
    log = Log()
    tap, scope = _open(handlers, states, log)
    out = fn(*args, **kwargs, tap=tap)
    _check_visited(handlers, log)
    return out, scope.records.collapse()[0], tuple(scope.states)


def _check_takes_tap(fn: Callable[..., Any]) -> None:
    try:
        names = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # a builtin, say: calling it will tell
        return
    if not any(p.name == "tap" or p.kind is p.VAR_KEYWORD for p in names):
        raise InputError(
            f"{getattr(fn, '__name__', fn)!r} has no keyword argument tap. Give the function one and call it for each value "
            "that it names: def f(x, *, tap=jaxinterp.IDENTITY): x = tap('name', x)."
        )


def _open(handlers: tuple[Handler, ...], states: list[PyTree], log: Log) -> tuple[Tap, Scope]:
    scope = Scope(states, log)
    return Tap(handlers, scope, slices=[None] * len(handlers)), scope


def _names(fn: Callable[..., Any], args: Any, kwargs: Any) -> set[str]:
    """The sites of `fn`, on-demand ones included, by an abstract trace."""
    log = Log()
    _abstract(lambda args, kwargs: fn(*args, **kwargs, tap=_open((), [], log)[0]), args, kwargs)
    return set(log.visited) | log.on_demand


def _shapes(fn: Callable[..., Any], handlers: tuple[Handler, ...], args: Any, kwargs: Any) -> Log:
    """One abstract trace that sees the sites which `handlers` name; those with a state yet to be made look on."""
    quiet = tuple(h if h.init is None else Handler(sites=h.sites, visit=_pass) for h in handlers)
    log = Log(types=True)

    def trace(args: Any, kwargs: Any) -> None:
        tap, _ = _open(quiet, [()] * len(quiet), log)
        fn(*args, **kwargs, tap=tap)

    _abstract(trace, args, kwargs)
    _check_visited(handlers, log)
    return log


def _abstract(trace: Callable[..., None], args: Any, kwargs: Any) -> None:
    """`jax.eval_shape` that leaves everything but arrays (configs, None, strings) as it is."""
    leaves, tree = jax.tree.flatten((args, kwargs))
    arrays = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")]

    def rebuilt(values: list[Any]) -> None:
        full = list(leaves)
        for i, value in zip(arrays, values, strict=True):
            full[i] = value
        trace(*jax.tree.unflatten(tree, full))

    jax.eval_shape(rebuilt, [leaves[i] for i in arrays])


def _pass(site: Any, value: Any, state: Any, data: Any, layer_slice: Any, tap: Any) -> Any:
    return value, state, None


def _check_visited(handlers: tuple[Handler, ...], log: Log) -> None:
    known = set(log.visited) | log.on_demand
    faults = []
    for i, handler in enumerate(handlers):
        reached = [log.visited[name] for j, name in log.reached if j == i]
        faults += _unvisited_layers(i, handler, log)
        faults += _unvisited_steps(i, handler, log)
        for pattern in handler.sites:
            seen = any(matches((pattern,), s.name, s.on_demand) for s in reached)
            if not seen:
                if pattern in log.visited:
                    faults.append(
                        f"site {pattern!r} is opened by a handler that stands to the right of the one that asks for it: handlers "
                        "apply from left to right, so put that one first."
                    )
                    continue
                what = "no site matches the glob" if is_glob(pattern) else "the function never visits site"
                faults.append(f"{what} {pattern!r}. {explain(pattern, known)}")
    if faults:
        raise UnvisitedSiteError(
            " ".join(dict.fromkeys(faults))
            + " List them with jaxinterp.sites(fn, *args). (A glob finds no on-demand site: name "
            "it in full.)"
        )


def _unvisited_layers(i: int, handler: Handler, log: Log) -> list[str]:
    """Layers that a handler speaks of, as far as they are known, and that none of its sites has."""
    chosen = handler.data.get("where", {}).get("layer") if isinstance(handler.data, dict) else None
    wanted = {*(handler.layers or ()), *handler.apart}
    wanted |= set(np.ravel(chosen).tolist()) if chosen is not None and not is_traced(chosen) else set()
    seen = {name: layers for (j, name), layers in log.reached.items() if j == i}
    missing = sorted(wanted - set().union(*seen.values())) if seen else []
    if not missing:
        return []
    found = "; ".join(f"{name!r} at {sorted(layers)}" for name, layers in seen.items())
    return [f"the function never visits layers {missing} of {', '.join(map(repr, handler.sites))}; it visits {found}."]


def _unvisited_steps(i: int, handler: Handler, log: Log) -> list[str]:
    """An edit of decoding steps in a function that has none, or none of that site."""
    where = handler.data.get("where", {}) if isinstance(handler.data, dict) else {}
    if i in log.stepped or not any(j == i for j, _ in log.reached) or not {"step", "steps"} & set(where):
        return []
    return [
        f"the function never visits {', '.join(map(repr, handler.sites))} in a decoding step, so step= selects nothing. (The "
        "prompt is no step: generate with max_new_tokens=n has n - 1 of them, 0 to n - 2.)"
    ]


class SiteTable:
    """The sites of a function in the order of their visits; prints as a table. Iterates over `SiteShape`s.

    `table[name]` takes TransformerLens's names too; one with a layer's number gives the shape in that layer alone.
    """

    def __init__(self, rows: list[SiteShape]):
        self.rows = rows

    def __iter__(self) -> Iterator[SiteShape]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> SiteShape:
        name, layer = self.resolve(name)
        row = next(row for row in self.rows if row.name == name)
        return row if layer is None else row._replace(n_layers=None)

    def resolve(self, name: str) -> Resolved:
        """Our name for a site, and the layer that TransformerLens's name for it has (`blocks.3.attn.hook_z`), or None.

        Raises:
            UnvisitedSiteError: it is no site.
            SiteIndexError: there is no such layer.
        """
        rows = {row.name: row for row in self.rows}
        meaning = Resolved(name, None) if name in rows else resolve(name, rows)
        if meaning is None:
            raise UnvisitedSiteError(f"no site {name!r}. {explain(name, rows)}")
        if meaning.layer is not None:
            check_layer(name, meaning.layer, rows[meaning.site].n_layers)
        return meaning

    def __str__(self) -> str:
        head = ("site", "axes", "shape", "dtype", "bytes", "computed")
        body = [
            (
                r.name, ("L" if r.n_layers is not None else "") + r.axes, str(r.stacked_shape).replace(" ", ""), str(r.dtype),
                f"{r.bytes:,}", "on demand" if r.on_demand else "always",
            )
            for r in self.rows
        ]  # fmt: skip
        widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in [head, *body]]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])

    __repr__ = __str__


def sites(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> SiteTable:
    """Every site of `fn`, on-demand ones included, with axes, shape, dtype and bytes of a capture. Nothing is computed.

    Args:
        fn: a function with the keyword argument `tap`, such as `model.forward`.
        *args: its arguments, or `jax.ShapeDtypeStruct`s in place of arrays.
        **kwargs: its keyword arguments.

    Example:
        >>> import jax.numpy as jnp, jaxinterp as ji
        >>> ji.sites(lambda x, *, tap: tap("x", x), jnp.ones((1, 2)))
        site  axes  shape  dtype    bytes  computed
        -------------------------------------------
        x     BD    (1,2)  float32  8      always
    """
    log = Log(everything=True)

    def trace(args: Any, kwargs: Any) -> None:
        tap, _ = _open((), [], log)
        fn(*args, **kwargs, tap=tap)

    _abstract(trace, args, kwargs)
    return SiteTable(list(log.visited.values()))
