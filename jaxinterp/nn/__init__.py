"""Layers as functions, with their parameters beside them."""

from jaxinterp.nn._attention import KeyValues, attention, take_rows
from jaxinterp.nn._mlp import ACTIVATIONS, mlp
from jaxinterp.nn._norm import normalize
from jaxinterp.nn._rotary import rotary_frequencies, rotate, scale_linear, scale_llama3

__all__ = [
    "ACTIVATIONS",
    "KeyValues",
    "attention",
    "mlp",
    "normalize",
    "rotary_frequencies",
    "rotate",
    "scale_linear",
    "scale_llama3",
    "take_rows",
]
