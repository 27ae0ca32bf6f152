"""Transformers as a config, a tree of parameters and pure functions."""

from jaxinterp.models._config import RotaryScaling, TransformerConfig
from jaxinterp.models._generate import generate
from jaxinterp.models._model import Model, check_tokens, token_positions
from jaxinterp.models._parameters import init, param_shapes
from jaxinterp.models._sampling import Sampling, check_sampling
from jaxinterp.models._transformer import block, embed, layer_data, unembed

__all__ = [
    "Model",
    "RotaryScaling",
    "Sampling",
    "TransformerConfig",
    "block",
    "check_sampling",
    "check_tokens",
    "embed",
    "generate",
    "init",
    "layer_data",
    "param_shapes",
    "token_positions",
    "unembed",
]
