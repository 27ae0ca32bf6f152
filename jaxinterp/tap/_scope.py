"""What one run keeps while a function is traced."""

from collections.abc import Sequence

from jaxinterp._errors import DuplicateSiteError
from jaxinterp._typing import PyTree
from jaxinterp.tap._records import Records
from jaxinterp.tap._site import Site, SiteShape

try:
    from jax.extend.core import get_opaque_trace_state
except ImportError:  # before jax 0.10
    from jax.core import get_opaque_trace_state  # type: ignore[attr-defined,no-redef]


class Log:
    """What one trace of a function saw: shared by all taps of a `run`."""

    def __init__(self, *, everything: bool = False, types: bool = False):
        self.visited: dict[str, SiteShape] = {}
        self.on_demand: set[str] = set()
        self.reached: dict[tuple[int, str], set[int]] = {}  # by (index of the handler, site): at which layers
        self.stepped: set[int] = set()  # handlers that visited a site in a decoding step
        self.everything, self.types = everything, types


class Scope:
    """What belongs to one JAX trace: the states, and the values emitted so far."""

    def __init__(self, states: Sequence[PyTree], log: Log):
        self.states = list(states)
        self.records = Records()
        self.log = log
        self.visits: set[tuple[str, int | None]] = set()
        # by handler of `Tap.under`: what it keeps from one site of a block to the next
        self.held: dict[int, PyTree] = {}
        self._trace = get_opaque_trace_state()

    @property
    def is_open(self) -> bool:
        """Whether JAX is still in the trace that this scope belongs to."""
        return get_opaque_trace_state() == self._trace

    def visit(self, key: str, site: Site) -> None:
        """Notes a visit; a second one of a site, in one layer, is an error, since edits would apply twice."""
        place = (key, site.layer if isinstance(site.layer, int) else None)
        if place in self.visits:
            where = f" in layer {site.layer}" if isinstance(site.layer, int) else ""
            raise DuplicateSiteError(
                f"site {key!r} is tapped twice{where}. Tap it once, or under two names; in a Python loop over layers, by "
                "tap.at(layer=i, n_layers=n)."
            )
        self.visits.add(place)
