"""Causal sweeps: activation patching and ablation over many places as one compiled program.

- `sweep`, `plan`: effects of edits at places; what they will cost. `Plan`.
- `path_patch`, `make_receivers`, `Receivers`: effects through chosen inputs only.
- `Metric` and those that there are: `logit_difference`, `probability_difference`, `log_probability`, `cross_entropy`,
  `kl_divergence`; `recovered_fraction`.
- `make_cells`, `Cells`, `AXES`: the places.
- The layer beneath `sweep`, for other ways to the effect of each cell (attribution is one): `as_tokens`, `parse_over`,
  `forward_of`, `axis_letter`, `prepare`, `Prepared` before; `measure`, `check_finite`, `named_result` behind.
"""

from jaxinterp.patching._cells import AXES, Cells, axis_letter, make_cells, parse_over
from jaxinterp.patching._check import as_tokens
from jaxinterp.patching._engine import measure
from jaxinterp.patching._metrics import (
    Metric,
    cross_entropy,
    kl_divergence,
    log_probability,
    logit_difference,
    probability_difference,
    recovered_fraction,
)
from jaxinterp.patching._ops import forward_of
from jaxinterp.patching._paths import path_patch
from jaxinterp.patching._plan import Plan
from jaxinterp.patching._prepare import Prepared, prepare
from jaxinterp.patching._receivers import Receivers, make_receivers
from jaxinterp.patching._result import named_result
from jaxinterp.patching._run import check_finite
from jaxinterp.patching._sweep import plan, sweep

__all__ = [
    "AXES",
    "Cells",
    "Metric",
    "Plan",
    "Prepared",
    "Receivers",
    "as_tokens",
    "axis_letter",
    "check_finite",
    "cross_entropy",
    "forward_of",
    "kl_divergence",
    "log_probability",
    "logit_difference",
    "make_cells",
    "make_receivers",
    "measure",
    "named_result",
    "parse_over",
    "path_patch",
    "plan",
    "prepare",
    "probability_difference",
    "recovered_fraction",
    "sweep",
]
