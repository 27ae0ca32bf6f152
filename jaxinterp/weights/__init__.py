"""Real checkpoints: folders and hub models to parameters and a tokenizer, and back."""

from jaxinterp.weights._families import FAMILIES
from jaxinterp.weights._family import Family
from jaxinterp.weights._language_model import LanguageModel
from jaxinterp.weights._load import load
from jaxinterp.weights._partition import partition_specs, shard
from jaxinterp.weights._prediction import PredictedToken, Prediction
from jaxinterp.weights._save import save
from jaxinterp.weights._tokenizer import Tokenizer

__all__ = [
    "FAMILIES",
    "Family",
    "LanguageModel",
    "PredictedToken",
    "Prediction",
    "Tokenizer",
    "load",
    "partition_specs",
    "save",
    "shard",
]
