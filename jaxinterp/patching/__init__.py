"""Causal sweeps: activation patching and ablation over many places as one compiled program."""

from jaxinterp.patching._cells import AXES, Cells, make_cells
from jaxinterp.patching._engine import chunk_size, read, run_cells
from jaxinterp.patching._metrics import (
    Metric,
    cross_entropy,
    kl_divergence,
    log_probability,
    logit_difference,
    probability_difference,
    recovered_fraction,
)
from jaxinterp.patching._sweep import sweep

__all__ = [
    "AXES",
    "Cells",
    "Metric",
    "chunk_size",
    "cross_entropy",
    "kl_divergence",
    "log_probability",
    "logit_difference",
    "make_cells",
    "probability_difference",
    "read",
    "recovered_fraction",
    "run_cells",
    "sweep",
]
