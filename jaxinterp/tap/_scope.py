"""What one run keeps while a function is traced."""

from collections.abc import Sequence

from jax.extend.core import get_opaque_trace_state

from jaxinterp._typing import PyTree
from jaxinterp.tap._records import Records
from jaxinterp.tap._site import SiteShape


class Log:
    """What one trace of a function saw: shared by all taps of a `run`."""

    def __init__(self, *, everything: bool = False, types: bool = False):
        self.visited: dict[str, SiteShape] = {}
        self.on_demand: set[str] = set()
        self.reached: set[tuple[int, str]] = set()  # (index of the handler, site)
        self.everything, self.types = everything, types


class Scope:
    """What belongs to one JAX trace: the states, and the values emitted so far."""

    def __init__(self, states: Sequence[PyTree], log: Log):
        self.states = list(states)
        self.records = Records()
        self.log = log
        self.trace = get_opaque_trace_state()
