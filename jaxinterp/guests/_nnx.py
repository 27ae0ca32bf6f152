"""Modules of flax.nnx as guests."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from jaxinterp._errors import InputError, SiteTypeError, closest
from jaxinterp._typing import Params
from jaxinterp.guests._names import Found, Hooks, PathError, collect, takes_tap, usual_promotion
from jaxinterp.tap import IDENTITY, Tap

_NOTHING: Mapping[str, str] = MappingProxyType({})


def from_nnx(
    module: Any,
    outputs: Mapping[str, str] = _NOTHING,
    *,
    inputs: Mapping[str, str] = _NOTHING,
    axes: Mapping[str, str] = _NOTHING,
) -> tuple[Callable[..., Any], Params]:
    """A `flax.nnx` module as a function with taps, and its parameters.

    The function is `nnx.merge` and a call: pure, so that `run`, `jit`, `vmap`, `grad` and the sweep take it as they take
    `model.forward`. Sites are what the named submodules return or are given; and if the module's own call has the keyword `tap`,
    it gets the tap, so that `x = tap("name", x)` in its code makes a site.

    Args:
        module: an `nnx.Module`, set to the mode that it is to run in (`module.eval()` for no dropout). It is not changed.
        outputs: site names by submodule: `{"embed": "embed", "blocks.*.attn": "attn.out"}`. A path is attributes and indices
            with dots between; one `*` stands for the number of the layer, in a list (`blocks.*`) or a name (`block_*`).
        inputs: the same, for the first argument of the submodules.
        axes: axis letters by site, where they are not BD, BTD or BTHE by rank (see `Site`): `{"attn.pattern": "BHTS"}`.

    Returns:
        `forward(params, *args, tap=IDENTITY, **kwargs)`, and `params`: the module's state as `nnx.split` gives it. What the call
        changes in the state (statistics of norms, counts of random streams) is dropped. Make the two once: jit knows a function
        by identity.

    Raises:
        InputError: paths that name no submodule, all of them with the closest that are there.
        SiteTypeError: (when run) a submodule's value is not one array.
        TapScopeError: (when run) a submodule is called inside an nnx transformation (`nnx.scan`, `nnx.remat`): give its module's
            call the keyword `tap` and use `tap.scan` or `tap.lift` there.

    Example:
        >>> import jax.numpy as jnp, jaxinterp as ji
        >>> from flax import nnx
        >>> mlp = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(3, 2, rngs=nnx.Rngs(1)))
        >>> forward, params = ji.guests.from_nnx(mlp, {"layers.0": "hidden"})
        >>> ji.sites(forward, params, jnp.ones((1, 2)))["hidden"].shape
        (1, 3)
    """
    from flax import nnx  # pyright: ignore[reportMissingImports]

    if not isinstance(module, nnx.Module):
        raise InputError(
            f"from_nnx got {type(module).__name__}; give a module of flax.nnx (one of flax.linen has to be ported first)."
        )
    nodes = ((path, node) for path, node in nnx.iter_graph(module) if path and isinstance(node, nnx.Module))
    paths = {path for path, node in nodes if not isinstance(node, nnx.List | nnx.Dict)}
    hooks = collect(functools.partial(_find, paths), inputs, outputs)
    _refuse_unnamed(axes, {*inputs.values(), *outputs.values()})
    graph, params = nnx.split(module)
    own = takes_tap(type(module).__call__)

    def forward(params: Params, *args: Any, tap: Tap = IDENTITY, **kwargs: Any) -> Any:
        copy = nnx.merge(graph, params, copy=True)  # so that a call which changes its state changes none of ours
        for path, here in hooks.items():
            _attach(functools.reduce(_child, path, copy), _Here(here, axes, tap))
        with usual_promotion():
            return copy(*args, **kwargs, **({"tap": tap} if own else {}))

    return forward, params


def _find(paths: Iterable[tuple[Any, ...]], pattern: str) -> list[Found]:
    """The submodules of one path."""
    known = {".".join(map(str, path)): path for path in paths}
    if pattern.count("*") > 1:
        raise PathError(f"{pattern!r} has more than one *, which stands for the number of the layer")
    if "*" not in pattern:
        if pattern not in known:
            raise PathError(f"no submodule {pattern!r}. {closest(pattern, map(_starred, known))}")
        return [Found(known[pattern], None, None)]
    before, after = (re.escape(part) for part in pattern.split("*"))
    component, dot, rest = after.partition(r"\.")
    prefix = re.compile(f"{before}([0-9]+){component}(?:[.]|$)")
    layers = {int(hit[1]) for name in known if (hit := prefix.match(name))}
    whole = re.compile(f"{before}([0-9]+){component}{dot}{rest}")
    found = [(int(hit[1]), path) for name, path in known.items() if (hit := whole.fullmatch(name))]
    if not found:
        raise PathError(f"no submodule {pattern!r}. {closest(pattern, map(_starred, known))}")
    if layers != set(range(len(layers))):
        raise PathError(f"the layers of {pattern!r} are {sorted(layers)}, and have to be counted from 0 without a gap")
    return [Found(path, layer, len(layers)) for layer, path in sorted(found, key=lambda item: item[0])]


def _starred(name: str) -> str:
    """A path as a user would write it: the first number as `*`."""
    return re.sub(r"[0-9]+", "*", name, count=1)


def _refuse_unnamed(axes: Mapping[str, str], sites: set[str]) -> None:
    if unknown := sorted(set(axes) - sites):
        raise InputError(f"axes are given for {unknown}, which are no sites of this call: {sorted(sites)}.")


def _child(node: Any, key: Any) -> Any:
    return getattr(node, key) if isinstance(key, str) and hasattr(node, key) else node[key]


class _Here(NamedTuple):
    """What a submodule in a copy carries: its sites, and the tap of the call."""

    hooks: Hooks
    axes: Mapping[str, str]
    tap: Tap

    def visit(self, sites: tuple[tuple[str, Found], ...], value: Any, what: str) -> Any:
        """A value as the taps of `sites` leave it."""
        for name, found in sites:
            if not isinstance(value, jax.Array):
                raise SiteTypeError(
                    f"site {name!r}: the {what} of submodule {'.'.join(map(str, found.path))!r} is of type "
                    f"{type(value).__name__}, and a site is one array. Name a submodule inside it, or tap it in the code."
                )
            value = found.at(self.tap)(name, value, self.axes.get(name))
        return value


def _attach(module: Any, here: _Here) -> None:
    """Makes one module, in a copy that lives for one call, tap what it is given and returns.

    Its class becomes a subclass of its own, so that all else about it stays: attributes, other methods, isinstance.
    """
    object.__setattr__(module, "__class__", _tapped(type(module)))
    object.__setattr__(module, "_jaxinterp", here)


@functools.cache
def _tapped(kind: type) -> type:
    """The subclass whose call taps; one for each class, since nnx keeps a record of every class."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        here: _Here = self._jaxinterp
        if here.hooks.inputs:
            first = args[0] if args else None
            args = (here.visit(here.hooks.inputs, first, "first positional argument"), *args[1:])
        return here.visit(here.hooks.outputs, kind.__call__(self, *args, **kwargs), "result")

    return type(kind)(kind.__name__, (kind,), {"__call__": call})
