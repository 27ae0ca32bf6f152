"""Models of other frameworks as functions with taps: their submodules' inputs and outputs get site names."""

from jaxinterp.guests._nnx import from_nnx
from jaxinterp.guests._penzai import from_penzai, tap_named

__all__ = ["from_nnx", "from_penzai", "tap_named"]
