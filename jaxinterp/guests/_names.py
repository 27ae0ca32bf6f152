"""What both frameworks share: which submodule has which sites, and the faults of a call reported together."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from jaxinterp._errors import InputError
from jaxinterp.tap import Tap


class Found(NamedTuple):
    """A submodule that a path names.

    Attributes:
        path: where it is, in the framework's own keys.
        layer, n_layers: the number that `*` stands for, and how many there are; None outside layers.
    """

    path: tuple[Any, ...]
    layer: int | None
    n_layers: int | None

    def at(self, tap: Tap) -> Tap:
        """The tap for this submodule's sites."""
        return tap if self.layer is None else tap.at(layer=self.layer, n_layers=self.n_layers)


class Hooks(NamedTuple):
    """The sites of one submodule, each with where it is."""

    inputs: tuple[tuple[str, Found], ...] = ()
    outputs: tuple[tuple[str, Found], ...] = ()


class PathError(Exception):
    """What is wrong with one path; `collect` reports all of them together."""


def collect(
    find: Callable[[str], list[Found]], inputs: Mapping[str, str], outputs: Mapping[str, str]
) -> dict[tuple[Any, ...], Hooks]:
    """The hooks of each submodule that some path names.

    Args:
        find: the submodules of one path, or a PathError.
        inputs, outputs: site names by path.

    Raises:
        InputError: all faults of all paths, in one message.
    """
    hooks: dict[tuple[Any, ...], Hooks] = {}
    faults = []
    for which, given in (("inputs", inputs), ("outputs", outputs)):
        for pattern, site in given.items():
            if not isinstance(site, str) or not site:
                faults.append(f"{pattern!r} is given {site!r} as the name of its site")
                continue
            try:
                places = find(pattern)
            except PathError as fault:
                faults.append(str(fault))
                continue
            for place in places:
                old = hooks.get(place.path, Hooks())
                hooks[place.path] = old._replace(**{which: (*getattr(old, which), (site, place))})
    if faults:
        raise InputError("; ".join(dict.fromkeys(faults)))
    return hooks


def takes_tap(call: Callable[..., Any]) -> bool:
    """Whether a module's own call has the keyword argument `tap`."""
    return "tap" in inspect.signature(call).parameters


@contextlib.contextmanager
def usual_promotion() -> Iterator[None]:
    """JAX's usual promotion of dtypes and ranks, which other people's code may count on."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
