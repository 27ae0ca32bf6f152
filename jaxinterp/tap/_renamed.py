"""Handlers of TransformerLens's names, turned into handlers of ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxinterp._errors import InputError
from jaxinterp._typing import PyTree
from jaxinterp.tap._aliases import Resolved, check_layer, is_foreign, resolve
from jaxinterp.tap._site import Handler, Site, SiteShape


@dataclasses.dataclass(frozen=True)
class Renamed:
    """`visit` of a handler under the name that the user wrote.

    Where that name has a layer's number, the handler sees a site that is in no layer, and the other layers are left alone.
    """

    visit: Callable[..., tuple[Any, Any, Any]]
    name: str
    layer: int | None

    def __call__(
        self, site: Site, value: Any, state: Any, data: Any, layer_slice: Any, tap: Any
    ) -> tuple[Any, Any, Any]:
        if self.layer is None:
            return self.visit(site._replace(name=self.name), value, state, data, layer_slice, tap)
        check_layer(self.name, self.layer, site.n_layers)
        if isinstance(site.layer, int) and site.layer != self.layer:
            return value, state, None
        alone = site._replace(name=self.name, layer=None, n_layers=None)
        new, after, emitted = self.visit(alone, value, state, data, None, tap)
        if isinstance(site.layer, int):
            return new, after, emitted
        here = site.layer == self.layer
        pick = lambda a, b: a if a is b else jnp.where(here, a, b)
        return pick(new, value), jax.tree.map(pick, after, state), emitted


@dataclasses.dataclass(frozen=True)
class _Init:
    """`init` of a handler under the name that the user wrote."""

    init: Callable[[list[SiteShape], PyTree], PyTree]
    name: str
    layer: int | None

    def __call__(self, specs: list[SiteShape], data: PyTree) -> PyTree:
        alone = {} if self.layer is None else {"n_layers": None}
        return self.init([spec._replace(name=self.name, **alone) for spec in specs], data)


def any_foreign(handlers: Sequence[Handler]) -> bool:
    """Whether a handler has a name that may be TransformerLens's."""
    return any(is_foreign(name) for handler in handlers for name in handler.sites)


def renamed(handlers: Sequence[Handler], known: Collection[str]) -> tuple[list[Handler], list[list[int]]]:
    """The handlers under our names: one for each of TransformerLens's names, and one for all others of a handler.

    Args:
        handlers: as the user made them.
        known: the sites of the function, on-demand ones included.

    Returns:
        Handlers, and for each of the user's where it went. A name that means nothing stays, so that the check of what was visited
        reports it together with all others.
    """
    made: list[Handler] = []
    places: list[list[int]] = []
    for handler in handlers:
        meanings = {name: resolve(name, known) for name in handler.sites}
        rest = tuple(name for name, meaning in meanings.items() if meaning is None)
        parts = [dataclasses.replace(handler, sites=rest)] if rest or not meanings else []
        parts += [_under(handler, name, meaning) for name, meaning in meanings.items() if meaning is not None]
        places.append(list(range(len(made), len(made) + len(parts))))
        made += parts
    return made, places


def _under(handler: Handler, name: str, meaning: Resolved) -> Handler:
    layers = handler.layers
    if meaning.layer is not None:
        where = handler.data.get("where", {}) if isinstance(handler.data, Mapping) else {}
        if layers is not None or "layer" in where:
            given = f"layers={list(layers)}" if layers is not None else f"layer={where['layer']}"
            raise InputError(
                f"{name!r} names layer {meaning.layer}, and {given} was given too. Leave that out, or name all layers: "
                f"{name.replace(f'.{meaning.layer}.', '.*.', 1)!r}."
            )
        layers = (meaning.layer,)
    return dataclasses.replace(
        handler,
        sites=(meaning.site,),
        visit=Renamed(handler.visit, name, meaning.layer),
        init=None if handler.init is None else _Init(handler.init, name, meaning.layer),
        layers=layers,
    )


def joined(states: Sequence[PyTree]) -> PyTree:
    """The state of a handler that became several: the union of their dictionaries."""
    if len(states) == 1 or all(isinstance(state, tuple) and not state for state in states):
        return states[0]
    if not all(isinstance(state, Mapping) for state in states):
        raise InputError(
            "a handler whose state is no dictionary by site has several of TransformerLens's names. Give it one of them, or "
            "our names (jaxinterp.sites lists them)."
        )
    return {name: value for state in states for name, value in state.items()}
