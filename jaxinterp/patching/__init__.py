"""Causal sweeps: activation patching and ablation over many places as one compiled program."""

from jaxinterp.patching._cells import AXES, Cells, make_cells
from jaxinterp.patching._metrics import (
    Metric,
    cross_entropy,
    kl_divergence,
    log_probability,
    logit_difference,
    probability_difference,
    recovered_fraction,
)
from jaxinterp.patching._paths import path_patch
from jaxinterp.patching._plan import Plan
from jaxinterp.patching._receivers import Receivers, make_receivers
from jaxinterp.patching._sweep import plan, sweep

__all__ = [
    "AXES",
    "Cells",
    "Metric",
    "Plan",
    "Receivers",
    "cross_entropy",
    "kl_divergence",
    "log_probability",
    "logit_difference",
    "make_cells",
    "make_receivers",
    "path_patch",
    "plan",
    "probability_difference",
    "recovered_fraction",
    "sweep",
]
