"""Layers as functions, with their parameters beside them."""

from jaxinterp.nn._attention import AttentionKind, KeyValues, attention
from jaxinterp.nn._mlp import ACTIVATIONS, mlp
from jaxinterp.nn._norm import NO_NORM, Norm, normalize
from jaxinterp.nn._rotary import rotary_frequencies, rotate, scale_linear, scale_llama3
from jaxinterp.nn._rows import lookup

__all__ = [
    "ACTIVATIONS",
    "NO_NORM",
    "AttentionKind",
    "KeyValues",
    "Norm",
    "attention",
    "lookup",
    "mlp",
    "normalize",
    "rotary_frequencies",
    "rotate",
    "scale_linear",
    "scale_llama3",
]
