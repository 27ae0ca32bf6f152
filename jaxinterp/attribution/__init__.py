"""Gradients in place of sweeps: first-order estimates of what patching does, with their true error beside them.

- `attribution_patching`: a score for every place of several sites from one backward pass; `audit=64` adds exact effects.
- `Attribution`, `Audit`: what it returns.
- `saturation`: the heads whose attention is so sharp that gradients cannot pass it.
- `spearman`: rank correlation.
"""

from jaxinterp.attribution._audit import Audit, spearman
from jaxinterp.attribution._saturation import MANY_HEADS, MANY_ROWS, SATURATED, saturation
from jaxinterp.attribution._scores import Attribution, attribution_patching

__all__ = [
    "MANY_HEADS",
    "MANY_ROWS",
    "SATURATED",
    "Attribution",
    "Audit",
    "attribution_patching",
    "saturation",
    "spearman",
]
