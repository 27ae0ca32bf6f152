"""Real checkpoints: folders and hub models to parameters and a tokenizer, and back."""

from jaxinterp.weights._checkpoint import read_json
from jaxinterp.weights._families import FAMILIES
from jaxinterp.weights._family import Family
from jaxinterp.weights._hub import fetch_files
from jaxinterp.weights._language_model import LanguageModel
from jaxinterp.weights._load import load
from jaxinterp.weights._partition import partition_specs, shard
from jaxinterp.weights._prediction import PredictedToken, Prediction
from jaxinterp.weights._processing import (
    applicable,
    center_unembedding,
    center_writing_weights,
    fold_norms,
    fold_value_biases,
    process,
)
from jaxinterp.weights._safetensors import read_safetensors, write_safetensors
from jaxinterp.weights._save import save
from jaxinterp.weights._tokenizer import Tokenizer
from jaxinterp.weights._transformer_lens import from_transformer_lens, to_transformer_lens

__all__ = [
    "FAMILIES",
    "Family",
    "LanguageModel",
    "PredictedToken",
    "Prediction",
    "Tokenizer",
    "applicable",
    "center_unembedding",
    "center_writing_weights",
    "fetch_files",
    "fold_norms",
    "fold_value_biases",
    "from_transformer_lens",
    "load",
    "partition_specs",
    "process",
    "read_json",
    "read_safetensors",
    "save",
    "shard",
    "to_transformer_lens",
    "write_safetensors",
]
